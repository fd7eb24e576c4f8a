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

INLINE float bits_to_float(uint32 bits) { return __uint_as_float(bits); }

// 2^x for x up to 127, with additions and multiplications only, for where special functions are what binds: x = n + f with n
// whole and |f| <= 1/2, a polynomial in f (Chebyshev interpolation, relative error 2e-7 in fp32), n added to its exponent.
INLINE float exp2_by_parts(float x) {
    x = fmaxf(x, -126.0f);
    const float shifted = x + 12582912.0f;  // 1.5 * 2^23: its last bits are n
    const float f = x - (shifted - 12582912.0f);
    float p = fmaf(0.00133908634f, f, 0.00967603192f);
    p = fmaf(p, f, 0.0555035711f);
    p = fmaf(p, f, 0.240221075f);
    p = fmaf(p, f, 0.693147188f);
    p = fmaf(p, f, 1.00000008f);
    return bits_to_float(__float_as_uint(p) + (__float_as_uint(shifted) << 23));
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

// Brings a line from device memory to the L2 cache; costs no register.
INLINE void prefetch(const void* p) {
#ifndef EMULATED
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#endif
}


INLINE float sigmoid(float x) { return reciprocal(1.0f + exp2_fast(-LOG2E * x)); }

INLINE float silu(float x) { return x * sigmoid(x); }

// log(1 + exp(x)) with full relative precision, for trained step sizes are 1e-3: exp(-|x|) is in (0, 1], where
// log1p(e) / e is a polynomial (Chebyshev interpolation). Its relative error in fp32 is 3e-7; where x comes from a number
// of half precision, EXACT = false, 9e-6 will do.
template <bool EXACT = true> INLINE float softplus(float x) {
    float e = exp2_fast(-LOG2E * fabsf(x)), p;
    if (EXACT) {
        p = fmaf(-0.00837115255f, e, 0.0434938998f);
        p = fmaf(p, e, -0.106850029f);
        p = fmaf(p, e, 0.176874767f);
        p = fmaf(p, e, -0.244747742f);
        p = fmaf(p, e, 0.332719284f);
        p = fmaf(p, e, -0.499971745f);
        p = fmaf(p, e, 0.999999781f);
    } else {
        p = fmaf(-0.0234436558f, e, 0.100139733f);
        p = fmaf(p, e, -0.209079536f);
        p = fmaf(p, e, 0.324849581f);
        p = fmaf(p, e, -0.499314652f);
        p = fmaf(p, e, 0.999990592f);
    }
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

// The bits of a number of type T, and back.
template <typename T> INLINE float from_bits(uint32 bits);
template <> INLINE float from_bits<float>(uint32 bits) { return bits_to_float(bits); }
template <> INLINE float from_bits<bf16>(uint32 bits) { return bits_to_float(bits << 16); }
template <> INLINE float from_bits<fp16>(uint32 bits) { return to_float(fp16{uint16(bits)}); }

INLINE uint32 to_bits(float x) { return __float_as_uint(x); }
INLINE uint32 to_bits(bf16 x) { return x.bits; }
INLINE uint32 to_bits(fp16 x) { return x.bits; }

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

// Two numbers of half precision in a word, the first in its lower half.
template <typename T> INLINE uint32 pack_two(float low, float high) {
    return uint32(from_float<T>(low).bits) | uint32(from_float<T>(high).bits) << 16;
}
#ifndef EMULATED
template <> INLINE uint32 pack_two<bf16>(float low, float high) {
    uint32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
template <> INLINE uint32 pack_two<fp16>(float low, float high) {
    uint32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
#endif

// Adds four numbers to p, 16 bytes aligned, in whatever order blocks come.
INLINE void atomic_add_four(float* p, float4 v) {
#if defined(EMULATED) || __CUDA_ARCH__ < 900
    atomicAdd(p, v.x), atomicAdd(p + 1, v.y), atomicAdd(p + 2, v.z), atomicAdd(p + 3, v.w);
#else
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(v.x), "f"(v.y), "f"(v.z),
                 "f"(v.w)
                 : "memory");
#endif
}

// K numbers that lie together, and that one instruction moves where they make 4, 8 or 16 bytes.
template <typename T, int K> struct alignas(sizeof(T) * K > 16 ? 16 : sizeof(T) * K) Pack { T at[K]; };

template <typename T, int K> INLINE Pack<T, K> load_pack(const T* p) { return *reinterpret_cast<const Pack<T, K>*>(p); }

template <typename T, int K> INLINE void store_pack(T* p, const Pack<T, K>& v) { *reinterpret_cast<Pack<T, K>*>(p) = v; }

// 16 bytes that are read once, such as weights: they need no place in L1. Never moved past wait_for_previous().
template <typename T, int K> INLINE Pack<T, K> load_once(const T* p) {
#ifndef EMULATED
    if constexpr (sizeof(T) * K == 16) {
        union { Pack<T, K> pack; uint32 words[4]; } v;
        asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v.words[0]), "=r"(v.words[1]), "=r"(v.words[2]), "=r"(v.words[3])
                     : "l"(p));
        return v.pack;
    }
#endif
    return load_pack<T, K>(p);
}

// Programmatic dependent launch, from sm_90 on, where the host asks for it; else both do nothing. The next kernel of the
// stream may start once every block has called start_next(); it may read what kernels before it wrote, and write what
// they read, only after wait_for_previous(), which every block of every kernel of the chain must call.
INLINE void start_next() {
#if !defined(EMULATED) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

INLINE void wait_for_previous() {
#if !defined(EMULATED) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Tells the host that every kernel of the file calls both.
#ifdef EMULATED
#define STARTS_EARLY static_assert(true, "")
#else
#define STARTS_EARLY extern "C" __device__ const int EARLY = 1
#endif

template <typename T> constexpr bool IS_BF16 = false;
template <> constexpr bool IS_BF16<bf16> = true;

// c += a b on tensor cores, by a warp: a 16 x 16, b 16 x 8, c 16 x 8, pairs of T to a word. With g = lane / 4 and
// t = lane % 4, a lane holds a: rows g, g + 8, g, g + 8 at columns 2t, 2t, 2t + 8, 2t + 8; b: column g at rows 2t,
// 2t + 8; c: row g at columns 2t, 2t + 1, and row g + 8 at the same.
template <typename T> INLINE void multiply_tiles(float (&c)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
#ifdef EMULATED
    auto number = [](uint32 word, int half) { T x; x.bits = uint16(word >> 16 * half); return to_float(x); };
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int from = 0; from < 4; ++from) {
        for (int part = 0; part < 2; ++part) {
            const uint32 rows[2] = {__shfl_sync(FULL_WARP, a[2 * part], 4 * g + from),
                                    __shfl_sync(FULL_WARP, a[2 * part + 1], 4 * g + from)};
            const uint32 columns[2] = {__shfl_sync(FULL_WARP, b[part], 8 * t + from),
                                       __shfl_sync(FULL_WARP, b[part], 8 * t + 4 + from)};
            for (int i = 0; i < 4; ++i)
                for (int half = 0; half < 2; ++half) c[i] += number(rows[i / 2], half) * number(columns[i % 2], half);
        }
    }
#else
    if constexpr (IS_BF16<T>) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
#endif
}

// An fp32 number as two of tf32's 11 bits, which add up to it but for 2^-23 of it: `whole` becomes the nearest one.
INLINE void split_tf32(uint32& whole, uint32& rest) {
    const uint32 nearest = (whole + 0x1000u) & 0xffffe000u;
    rest = (__float_as_uint(bits_to_float(whole) - bits_to_float(nearest)) + 0x1000u) & 0xffffe000u;
    whole = nearest;
}

// c += a b on tensor cores, by a warp: a 16 x 8, b 8 x 8, c 16 x 8, a tf32 number to a word. With g = lane / 4 and
// t = lane % 4, a lane holds a: rows g, g + 8, g, g + 8 at columns t, t, t + 4, t + 4; b: column g at rows t, t + 4; c as
// in multiply_tiles.
INLINE void multiply_tiles_tf32(float (&c)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
#ifdef EMULATED
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int from = 0; from < 4; ++from)
        for (int part = 0; part < 2; ++part) {
            const float rows[2] = {bits_to_float(__shfl_sync(FULL_WARP, a[2 * part], 4 * g + from)),
                                   bits_to_float(__shfl_sync(FULL_WARP, a[2 * part + 1], 4 * g + from))};
            const float columns[2] = {bits_to_float(__shfl_sync(FULL_WARP, b[part], 8 * t + from)),
                                      bits_to_float(__shfl_sync(FULL_WARP, b[part], 8 * t + 4 + from))};
            for (int i = 0; i < 4; ++i) c[i] += rows[i / 2] * columns[i % 2];
        }
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Dynamic shared memory as a struct: the kernel declares it, and the host asks SHARED_BYTES how much it needs.
#ifdef EMULATED
#define DECLARE_SHARED(type) static type shared_pool
#define SHARED_POOL(type) shared_pool
#else
#define DECLARE_SHARED(type)                                    \
    extern "C" __device__ const int SHARED_BYTES = sizeof(type); \
    extern __shared__ __align__(16) uint8 shared_pool[]
#define SHARED_POOL(type) (*reinterpret_cast<type*>(shared_pool))
#endif
