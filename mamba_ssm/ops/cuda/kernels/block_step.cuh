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

STARTS_EARLY;
