#include "step.cuh"
// One token, or some, of a causal convolution (Gu & Dao 2023, arXiv 2312.00752, section 3.4), and its state moved on in
// place. Bound: the launch. A thread takes a channel of a row, with the state in its registers; all strides are numbers.

struct Parameters {
    const X_TYPE* x;            // (batch, dim, length)
    STATE_TYPE* state;          // (batch, dim, KEPT), KEPT at least WIDTH - 1
    const WEIGHT_TYPE* weight;  // (dim, WIDTH)
    const BIAS_TYPE* bias;      // (dim), or null
    X_TYPE* out;                // (batch, dim, length), dense
    int64 dim, length;
    int64 x_b, x_d, x_t, state_b, state_d, state_s, weight_d, weight_w, bias_d;
};

extern "C" __global__ void __launch_bounds__(THREADS) causal_conv1d_update(const Parameters p) {
    const uint32 row_blocks = (uint32(p.dim) + THREADS - 1) / THREADS;
    const int64 b = blockIdx.x / row_blocks, d = blockIdx.x % row_blocks * THREADS + threadIdx.x;
    if (d >= p.dim) return;
    const X_TYPE* const x = p.x + b * p.x_b + d * p.x_d;
    STATE_TYPE* const state = p.state + b * p.state_b + d * p.state_d;
    X_TYPE* const out = p.out + (b * p.dim + d) * p.length;
    const float bias = p.bias ? to_float(p.bias[d * p.bias_d]) : 0.0f;
    float past[KEPT], weight[WIDTH];
#pragma unroll
    for (int s = 0; s < KEPT; ++s) past[s] = to_float(state[s * p.state_s]);
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) weight[k] = to_float(p.weight[d * p.weight_d + k * p.weight_w]);
    for (int64 t = 0; t < p.length; ++t) {
        const float y = convolve(past, weight, bias, to_float(x[t * p.x_t]));
        out[t] = from_float<X_TYPE>(SILU ? silu(y) : y);
    }
#pragma unroll
    for (int s = 0; s < KEPT; ++s) state[s * p.state_s] = from_float<STATE_TYPE>(past[s]);
}
