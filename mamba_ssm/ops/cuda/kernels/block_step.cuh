#pragma once
#include "prelude.cuh"

// One token of a causal convolution (Gu & Dao 2023, arXiv 2312.00752, section 3.4): state, the last WIDTH inputs of a
// channel, moves on by x; returns silu(bias + <weight, state>).
INLINE float convolve(float (&state)[WIDTH], const float (&weight)[WIDTH], float bias, float x) {
    float y = bias;
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
        state[k] = k == WIDTH - 1 ? x : state[k + 1];
        y = fmaf(weight[k], state[k], y);
    }
    return silu(y);
}

// K numbers as fp32 and back; at once where VECTORS says that they are aligned.
template <bool VECTORS, typename T, int K> INLINE void load_numbers(float (&to)[K], const T* from) {
    if constexpr (VECTORS) {
        const Pack<T, K> v = load_pack<T, K>(from);
#pragma unroll
        for (int i = 0; i < K; ++i) to[i] = to_float(v.at[i]);
    } else {
#pragma unroll
        for (int i = 0; i < K; ++i) to[i] = to_float(from[i]);
    }
}

template <bool VECTORS, typename T, int K> INLINE void store_numbers(T* to, const float (&from)[K]) {
    if constexpr (VECTORS) {
        Pack<T, K> v;
#pragma unroll
        for (int i = 0; i < K; ++i) v.at[i] = from_float<T>(from[i]);
        store_pack<T, K>(to, v);
    } else {
#pragma unroll
        for (int i = 0; i < K; ++i) to[i] = from_float<T>(from[i]);
    }
}

STARTS_EARLY;
