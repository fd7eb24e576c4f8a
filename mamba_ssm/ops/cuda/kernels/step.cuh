#pragma once
#include "prelude.cuh"
// One token of a channel (Gu & Dao 2023, arXiv 2312.00752, section 3.4 and algorithm 2): what the fused step of a block and
// the ops by themselves share.

// Moves the last S inputs on by x, S at least W - 1; returns bias + <weight, the last W inputs, x included>.
template <int S, int W> INLINE float convolve(float (&past)[S], const float (&weight)[W], float bias, float x) {
    float y = bias;
#pragma unroll
    for (int k = 0; k < W - 1; ++k) y = fmaf(weight[k], past[S - W + 1 + k], y);
#pragma unroll
    for (int s = 0; s < S; ++s) past[s] = s == S - 1 ? x : past[s + 1];
    return fmaf(weight[W - 1], x, y);
}

// Four numbers of a row as fp32, `apart` numbers apart; zeros where fewer are left.
template <bool VECTORS, typename T> INLINE Pack<float, 4> load_four(const T* p, int left, int64 apart = 1) {
    Pack<float, 4> v = {};
    if constexpr (VECTORS) {
        if (left > 0) {
            const Pack<T, 4> raw = load_pack<T, 4>(p);
#pragma unroll
            for (int i = 0; i < 4; ++i) v.at[i] = to_float(raw.at[i]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (i < left) v.at[i] = to_float(p[i * apart]);
    }
    return v;
}

template <bool VECTORS, typename T>
INLINE void store_four(T* p, int left, const Pack<float, 4>& v, int64 apart = 1) {
    if constexpr (VECTORS) {
        Pack<T, 4> raw;
#pragma unroll
        for (int i = 0; i < 4; ++i) raw.at[i] = from_float<T>(v.at[i]);
        if (left > 0) store_pack(p, raw);
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (i < left) p[i * apart] = from_float<T>(v.at[i]);
    }
}

// Four states: h <- 2^(dt A) h + input B, where A is times log2(e); returns y + <C, h>.
INLINE float move_on(Pack<float, 4>& h, const Pack<float, 4>& A, const Pack<float, 4>& B, const Pack<float, 4>& C,
                     float dt, float input, float y) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        h.at[i] = fmaf(exp2_fast(dt * A.at[i]), h.at[i], input * B.at[i]);
        y = fmaf(C.at[i], h.at[i], y);
    }
    return y;
}
