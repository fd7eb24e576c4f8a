#include "step.cuh"
// The inner part of one token of a Mamba block (Gu & Dao 2023, arXiv 2312.00752, algorithm 2 and figure 3), for each row
// of the batch and each channel, with N states h:
//
//   x = silu(convolution(x))                                                                       (convolve_rows)
//   dt = softplus(<W_dt, dt_low> + bias)    h <- exp(dt A) h + (dt x) B    y = (<C, h> + D x) silu(z)   (update_states)
//
// Bound: memory. h in fp32 is read and written, 8 N bytes a channel and row; the convolution's state costs 4 WIDTH bytes of
// half precision. So a warp of update_states takes 16 channels of BATCH rows. It asks for their h, to be brought to L2,
// before anything else, while the kernel in front still runs; then tensor cores compute dt: 16 channels x 8 rows are one
// tile of theirs, and the sums over the rank would else cost more instructions than the states do. h follows with 16-byte
// loads, all in flight at once, where the rank is large only after dt, whose registers it then takes: twelve warps a
// multiprocessor hide what is left. Four lanes share a channel, with 4 of its states each.

struct Parameters {
    TYPE* xz;                 // (batch, 2 dim): x, which convolve_rows changes in place, and z
    const TYPE* selected;     // (batch, RANK + 2 STATES): dt_low, B, C
    const TYPE* dt_weight;    // (dim, RANK)
    const TYPE* dt_bias;      // (dim), or null
    const A_TYPE* A_log;      // (dim, STATES)
    const D_TYPE* D;          // (dim)
    float* state;             // (batch, dim, STATES), rows state_b apart
    TYPE* out;                // (batch, dim)
    CONV_TYPE* conv_state;    // (batch, dim, WIDTH), rows conv_b apart
    const TYPE* conv_weight;  // (dim, WIDTH)
    const TYPE* conv_bias;    // (dim), or null
    int64 batch, dim, state_b, conv_b;
};

STARTS_EARLY;

constexpr int PASS = 16;  // states that a warp updates at once
constexpr int SELECTED = RANK + 2 * STATES;
constexpr int RANK_STEPS = (RANK + 31) / 32;

// K numbers as fp32 and back; at once where CONV_VECTORS says that they are aligned.
template <typename T, int K> INLINE void load_numbers(float (&to)[K], const T* from) {
    if constexpr (CONV_VECTORS) {
        const Pack<T, K> v = load_pack<T, K>(from);
#pragma unroll
        for (int i = 0; i < K; ++i) to[i] = to_float(v.at[i]);
    } else {
#pragma unroll
        for (int i = 0; i < K; ++i) to[i] = to_float(from[i]);
    }
}

template <typename T, int K> INLINE void store_numbers(T* to, const float (&from)[K]) {
    if constexpr (CONV_VECTORS) {
        Pack<T, K> v;
#pragma unroll
        for (int i = 0; i < K; ++i) v.at[i] = from_float<T>(from[i]);
        store_pack<T, K>(to, v);
    } else {
#pragma unroll
        for (int i = 0; i < K; ++i) to[i] = from_float<T>(from[i]);
    }
}

// A thread takes CONV_CHANNELS channels of a row.
extern "C" __global__ void __launch_bounds__(256) convolve_rows(const Parameters p) {
    start_next();
    const uint32 threads = uint32(p.dim / CONV_CHANNELS);  // of a row
    const uint32 row_blocks = (threads + 255) / 256;
    const int64 b = blockIdx.x / row_blocks;
    const uint32 in_row = blockIdx.x % row_blocks * 256 + threadIdx.x;
    if (in_row >= threads) {
        wait_for_previous();
        return;
    }
    const int64 d = int64(in_row) * CONV_CHANNELS;
    float weights[CONV_CHANNELS * WIDTH], bias[CONV_CHANNELS];
    load_numbers(weights, p.conv_weight + d * WIDTH);
#pragma unroll
    for (int c = 0; c < CONV_CHANNELS; ++c) bias[c] = p.conv_bias ? to_float(p.conv_bias[d + c]) : 0.0f;
    wait_for_previous();
    CONV_TYPE* const state_at = p.conv_state + b * p.conv_b + d * WIDTH;
    TYPE* const x_at = p.xz + b * 2 * p.dim + d;
    float states[CONV_CHANNELS * WIDTH], x[CONV_CHANNELS];
    load_numbers(states, state_at);
    load_numbers(x, x_at);
#pragma unroll
    for (int c = 0; c < CONV_CHANNELS; ++c) {
        float state[WIDTH], weight[WIDTH];
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
            state[k] = states[c * WIDTH + k];
            weight[k] = weights[c * WIDTH + k];
        }
        x[c] = silu(convolve(state, weight, bias[c], x[c]));
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) states[c * WIDTH + k] = state[k];
    }
    store_numbers(state_at, states);
    store_numbers(x_at, x);
}

// 8 numbers of a row of RANK, from column k on; zeros past its end.
template <typename T> INLINE Pack<T, 8> load_rank(const T* row, int k, bool there) {
    Pack<T, 8> v = {};
    if (!there) return v;
    if (RANK_VECTORS) {
        if (k < RANK) v = load_pack<T, 8>(row + k);
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i)
            if (k + i < RANK) v.at[i] = row[k + i];
    }
    return v;
}

// <W_dt, dt_low> of a warp's 16 channels and 8 rows, in the layout of multiply_tiles' c. The columns of W_dt are taken in
// another order, the same for both factors: a lane's 8 lie together.
template <typename T> struct Rates {
    Pack<T, 8> weight[RANK_STEPS][2];

    INLINE void load_weights(const T* rows, int64 channels) {
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int i = 0; i < RANK_STEPS; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half)
                weight[i][half] = load_rank(rows + (g + 8 * half) * RANK, 32 * i + 8 * t, g + 8 * half < channels);
    }

    INLINE void multiply(float (&rates)[4], const T* low, int rows) const {
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        union Words { Pack<T, 8> pack; uint32 at[4]; INLINE Words() {} };
        Words right[RANK_STEPS];
#pragma unroll
        for (int i = 0; i < RANK_STEPS; ++i)
            right[i].pack = load_rank(low + int64(g) * SELECTED, 32 * i + 8 * t, g < rows);
#pragma unroll
        for (int i = 0; i < RANK_STEPS; ++i) {
            Words left[2];
            left[0].pack = weight[i][0];
            left[1].pack = weight[i][1];
#pragma unroll
            for (int k = 0; k < 4; k += 2) {
                const uint32 a[4] = {left[0].at[k], left[1].at[k], left[0].at[k + 1], left[1].at[k + 1]};
                const uint32 b[2] = {right[i].at[k], right[i].at[k + 1]};
                multiply_tiles<T>(rates, a, b);
            }
        }
    }
};

// Tensor cores would round fp32.
template <> struct Rates<float> {
    const float* weights;
    int64 there;

    INLINE void load_weights(const float* rows, int64 channels) {
        weights = rows;
        there = channels;
    }

    INLINE void multiply(float (&rates)[4], const float* low, int rows) const {
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll 4
        for (int k = 0; k < RANK; ++k)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int channel = g + i / 2 * 8, row = 2 * t + i % 2;
                if (channel < there && row < rows)
                    rates[i] = fmaf(weights[channel * RANK + k], low[int64(row) * SELECTED + k], rates[i]);
            }
    }
};

// Brings the states of a warp's tile from memory to L2, before the kernel in front has ended: that changes no number, even
// where an earlier kernel still writes them.
INLINE void prefetch_states(const float* state, int64 state_b, int channels, int rows) {
    constexpr int LINE = 128 / sizeof(float), LINES = (16 * STATES + LINE - 1) / LINE;  // of a row
#pragma unroll
    for (int i = 0; i < BATCH * LINES; i += 32) {
        const int line = i + threadIdx.x % 32, row = line / LINES, at = line % LINES * LINE;
        if (row < rows && at < channels * STATES) prefetch(state + row * state_b + at);
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) update_states(const Parameters p) {
    __shared__ __align__(16) float shared[WARPS][BATCH][2][PASS];  // B and C
    start_next();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int64 tiles = (p.dim + 15) / 16;  // of channels
    const int64 id = int64(blockIdx.x) * WARPS + warp;
    const int64 d0 = id % tiles * 16, b0 = id / tiles * BATCH;
    const int channels = int(min(p.dim - d0, int64(16))), rows = int(min(p.batch - b0, int64(BATCH)));
    if (rows <= 0) {
        wait_for_previous();
        return;
    }

    if (BATCH < 8) prefetch_states(p.state + b0 * p.state_b + d0 * STATES, p.state_b, channels, rows);
    Rates<TYPE> weights;
    weights.load_weights(p.dt_weight + d0 * RANK, channels);
    float bias[2], skip[2];
    Pack<float, 4> A[2];  // of the first pass, times log2(e)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int64 d = d0 + g + 8 * half;
        const bool there = g + 8 * half < channels;
        bias[half] = there && p.dt_bias ? to_float(p.dt_bias[d]) : 0.0f;
        skip[half] = there ? to_float(p.D[d]) : 0.0f;
        A[half] = load_four<STATE_VECTORS>(p.A_log + d * STATES + 4 * t, there ? STATES - 4 * t : 0);
    }
    wait_for_previous();  // all above are parameters of the model

    // The lane's own 4 numbers, of channels g and g + 8 and rows 2t and 2t + 1, as multiply_tiles lays them out.
    float x[4], z[4], dt[4] = {}, dtx[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const bool there = g + i / 2 * 8 < channels && 2 * t + i % 2 < rows;
        const TYPE* at = p.xz + (b0 + 2 * t + i % 2) * 2 * p.dim + d0 + g + i / 2 * 8;
        x[i] = there ? to_float(at[0]) : 0.0f;
        z[i] = there ? to_float(at[p.dim]) : 0.0f;
    }

    float y[BATCH][2] = {};
    bool first = true;
#pragma unroll 1
    for (int pass = 0; pass < STATES; pass += PASS) {
        const int n = pass + 4 * t;
        float* const state_at = p.state + b0 * p.state_b + (d0 + g) * STATES + n;
        Pack<float, 4> h[BATCH][2];
#pragma unroll
        for (int b = 0; b < BATCH; ++b)
#pragma unroll
            for (int half = 0; half < 2; ++half)
                h[b][half] = load_four<STATE_VECTORS>(
                    state_at + b * p.state_b + half * 8 * STATES, b < rows && g + 8 * half < channels ? STATES - n : 0
                );
#pragma unroll
        for (int b = 0; b < BATCH; ++b) {  // a lane a number: 16 of B, 16 of C
            const int at = pass + lane % PASS;
            const TYPE* from = p.selected + (b0 + b) * SELECTED + RANK + lane / PASS * STATES + at;
            shared[warp][b][lane / PASS][lane % PASS] = b < rows && at < STATES ? to_float(*from) : 0.0f;
        }
        if (first) {
            weights.multiply(dt, p.selected + b0 * SELECTED, rows);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                dt[i] = softplus(dt[i] + bias[i / 2]);
                dtx[i] = dt[i] * x[i];
            }
        } else {
#pragma unroll
            for (int half = 0; half < 2; ++half)
                A[half] = load_four<STATE_VECTORS>(
                    p.A_log + (d0 + g + 8 * half) * STATES + n, g + 8 * half < channels ? STATES - n : 0
                );
        }
        first = false;
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int i = 0; i < 4; ++i) A[half].at[i] = -LOG2E * exp2_fast(LOG2E * A[half].at[i]);
        __syncwarp();
#pragma unroll
        for (int b = 0; b < BATCH; ++b) {
            const Pack<float, 4> B = load_pack<float, 4>(&shared[warp][b][0][4 * t]);
            const Pack<float, 4> C = load_pack<float, 4>(&shared[warp][b][1][4 * t]);
            const int owner = lane / 4 * 4 + b / 2;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float step = __shfl_sync(FULL_WARP, dt[2 * half + b % 2], owner);
                const float input = __shfl_sync(FULL_WARP, dtx[2 * half + b % 2], owner);
                y[b][half] = move_on(h[b][half], A[half], B, C, step, input, y[b][half]);
                store_four<STATE_VECTORS>(
                    state_at + b * p.state_b + half * 8 * STATES,
                    b < rows && g + 8 * half < channels ? STATES - n : 0, h[b][half]
                );
            }
        }
        __syncwarp();  // the next pass overwrites B and C
    }

    float own[4] = {};
#pragma unroll
    for (int b = 0; b < BATCH; ++b)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float sum = y[b][half];
            sum += __shfl_xor_sync(FULL_WARP, sum, 1);
            sum += __shfl_xor_sync(FULL_WARP, sum, 2);
            if (t == b / 2) own[2 * half + b % 2] = sum;
        }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int channel = g + i / 2 * 8, row = 2 * t + i % 2;
        if (channel < channels && row < rows)
            p.out[(b0 + row) * p.dim + d0 + channel] = from_float<TYPE>(fmaf(skip[i / 2], x[i], own[i]) * silu(z[i]));
    }
}
