#include "step.cuh"
// One token of the selective scan (Gu & Dao 2023, arXiv 2312.00752, algorithm 2), its states h moved on in place:
//
//   dt = softplus(dt + bias)    h <- exp(dt A) h + (dt x) B    y = (<C, h> + D x) silu(z)
//
// Bound: the launch for a few rows, else memory: h is read and written. LANES neighbours share a channel, with four of
// its states each at a time, so that a warp reads whole lines of h; all strides are numbers, and may be zero.

struct Parameters {
    STATE_TYPE* state;      // (batch, heads, dim, STATES)
    const X_TYPE* x;        // (batch, heads, dim)
    const DT_TYPE* dt;      // (batch, heads, dim)
    const A_TYPE* A;        // (heads, dim, STATES)
    const B_TYPE* B;        // (batch, groups, STATES)
    const C_TYPE* C;        // (batch, groups, STATES)
    const D_TYPE* D;        // (heads, dim), or null
    const Z_TYPE* z;        // (batch, heads, dim), or null
    const BIAS_TYPE* bias;  // (heads, dim), or null
    X_TYPE* out;            // (batch, heads, dim), dense
    int64 heads, dim, heads_per_B, heads_per_C;
    int64 state_b, state_h, state_d, state_n, x_b, x_h, x_d, dt_b, dt_h, dt_d, A_h, A_d, A_n;
    int64 B_b, B_g, B_n, C_b, C_g, C_n, D_h, D_d, z_b, z_h, z_d, bias_h, bias_d;
};

constexpr int CHANNELS = THREADS / LANES;  // of a block

extern "C" __global__ void __launch_bounds__(THREADS) selective_state_update(const Parameters p) {
    const uint32 row_blocks = (uint32(p.dim) + CHANNELS - 1) / CHANNELS;
    const uint32 row = blockIdx.x / row_blocks, head = row % uint32(p.heads);
    const int64 b = row / uint32(p.heads);
    const int64 d = blockIdx.x % row_blocks * CHANNELS + threadIdx.x / LANES;
    const int lane = threadIdx.x % LANES;
    const bool there = d < p.dim;  // the others take part in the sums
    auto number = [&](const auto* from, int64 at) { return there && from ? to_float(from[at]) : 0.0f; };

    const float x = number(p.x, b * p.x_b + head * p.x_h + d * p.x_d);
    const float z = number(p.z, b * p.z_b + head * p.z_h + d * p.z_d);
    const float skip = number(p.D, head * p.D_h + d * p.D_d);
    float dt = number(p.dt, b * p.dt_b + head * p.dt_h + d * p.dt_d) + number(p.bias, head * p.bias_h + d * p.bias_d);
    if (SOFTPLUS) dt = softplus(dt);

    STATE_TYPE* const state = p.state + b * p.state_b + head * p.state_h + d * p.state_d;
    const A_TYPE* const A_at = p.A + head * p.A_h + d * p.A_d;
    const B_TYPE* const B_at = p.B + b * p.B_b + head / uint32(p.heads_per_B) * p.B_g;
    const C_TYPE* const C_at = p.C + b * p.C_b + head / uint32(p.heads_per_C) * p.C_g;
    float y = 0.0f;
#pragma unroll
    for (int pass = 0; pass < STATES; pass += 4 * LANES) {
        const int n = pass + 4 * lane, left = there ? STATES - n : 0;
        Pack<float, 4> h = load_four<STATE_VECTORS>(state + n * p.state_n, left, p.state_n);
        Pack<float, 4> A = load_four<A_VECTORS>(A_at + n * p.A_n, left, p.A_n);
        const Pack<float, 4> B = load_four<B_VECTORS>(B_at + n * p.B_n, left, p.B_n);
        const Pack<float, 4> C = load_four<C_VECTORS>(C_at + n * p.C_n, left, p.C_n);
#pragma unroll
        for (int i = 0; i < 4; ++i) A.at[i] *= LOG2E;
        y = move_on(h, A, B, C, dt, dt * x, y);
        store_four<STATE_VECTORS>(state + n * p.state_n, left, h, p.state_n);
    }
#pragma unroll
    for (int mask = 1; mask < LANES; mask *= 2) y += __shfl_xor_sync(FULL_WARP, y, mask);
    if (there && lane == 0)
        p.out[int64(row) * p.dim + d] = from_float<X_TYPE>(fmaf(skip, x, y) * (p.z ? silu(z) : 1.0f));
}
