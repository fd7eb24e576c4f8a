#pragma once
// What every kernel here starts with: types, the numbers in memory as fp32, and the few instructions that C++ lacks.
// No header is included, so that NVRTC needs no include path; the tests' emulator defines EMULATED and compiles the same
// source for a CPU.

typedef unsigned char uint8;
typedef unsigned short uint16;
typedef unsigned int uint32;
typedef unsigned long long uint64;
typedef long long int64;

#define INLINE __device__ __forceinline__

constexpr float LOG2E = 1.4426950408889634f;
constexpr float LN2 = 0.6931471805599453f;
constexpr uint32 FULL_WARP = 0xffffffffu;

INLINE float exp2_fast(float x) {
#ifdef EMULATED
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

INLINE float reciprocal(float x) {
#ifdef EMULATED
    return 1.0f / x;
#else
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

INLINE float reciprocal_root(float x) {
#ifdef EMULATED
    return 1.0f / sqrtf(x);
#else
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

INLINE float bits_to_float(uint32 bits) { return __uint_as_float(bits); }

INLINE float sigmoid(float x) { return reciprocal(1.0f + exp2_fast(-LOG2E * x)); }

INLINE float silu(float x) { return x * sigmoid(x); }

// log(1 + exp(x)) with full relative precision, for trained step sizes are 1e-3: exp(-|x|) is in (0, 1], where
// log1p(e) / e is this polynomial (Chebyshev interpolation, relative error 3e-7 in fp32).
INLINE float softplus(float x) {
    float e = exp2_fast(-LOG2E * fabsf(x));
    float p = -0.00837115255f;
    p = fmaf(p, e, 0.0434938998f);
    p = fmaf(p, e, -0.106850029f);
    p = fmaf(p, e, 0.176874767f);
    p = fmaf(p, e, -0.244747742f);
    p = fmaf(p, e, 0.332719284f);
    p = fmaf(p, e, -0.499971745f);
    p = fmaf(p, e, 0.999999781f);
    return fmaf(e, p, fmaxf(x, 0.0f));
}

// Numbers in memory: fp32, or half precision held as bits, which arithmetic cannot touch by mistake.
struct bf16 { uint16 bits; };
struct fp16 { uint16 bits; };

INLINE float to_float(float x) { return x; }
INLINE float to_float(bf16 x) { return bits_to_float(uint32(x.bits) << 16); }
INLINE float to_float(fp16 x) {
#ifdef EMULATED
    return emulated_half_to_float(x.bits);
#else
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#endif
}

template <typename T> INLINE T from_float(float x);
template <> INLINE float from_float<float>(float x) { return x; }
template <> INLINE bf16 from_float<bf16>(float x) {
#ifdef EMULATED
    return {emulated_float_to_bf16(x)};
#else
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#endif
}
template <> INLINE fp16 from_float<fp16>(float x) {
#ifdef EMULATED
    return {emulated_float_to_half(x)};
#else
    fp16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#endif
}

// K numbers that lie together, and that one instruction moves where they make 4, 8 or 16 bytes.
template <typename T, int K> struct alignas(sizeof(T) * K > 16 ? 16 : sizeof(T) * K) Pack { T at[K]; };

template <typename T, int K> INLINE Pack<T, K> load_pack(const T* p) { return *reinterpret_cast<const Pack<T, K>*>(p); }

template <typename T, int K> INLINE void store_pack(T* p, const Pack<T, K>& v) { *reinterpret_cast<Pack<T, K>*>(p) = v; }
