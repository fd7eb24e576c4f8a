#include "step.cuh"
// A matrix times one to eight vectors, which is what one token in a few rows costs, with what comes before and after it:
//
//   x' = x, or with NORM s = x + residual (the new residual) and x' = norm(s)
//   y = W x' + bias, and with CONV the first `channels` rows of y go through one step of a causal convolution and SiLU
//
// RMSNorm: arXiv 1910.07467, equation 4; LayerNorm: arXiv 1607.06450, equation 4; the block: arXiv 2312.00752, figure 3.
//
// Bound: W is read once, 2 bytes a weight of half precision, and each weight is worth BATCH multiply-adds: memory, up to
// eight vectors; for small matrices it is the latency of a launch. So a block takes ROWS whole rows, and each of its
// threads the same CHUNKS x VECTOR columns of all: x' stays in its registers, which lets every block repeat add and norm
// without passing shared memory, and all its loads of W are in flight at once, before it waits for the kernel that
// computes x. The rows' sums are scattered over lanes, then added over warps in a fixed order.

struct Parameters {
    const TYPE* x;                  // (batch, INPUTS), rows x_b apart
    const RESIDUAL_TYPE* residual;  // (batch, INPUTS), or null
    RESIDUAL_TYPE* sum;             // (batch, INPUTS): x + residual; or null
    const NORM_TYPE* norm_weight;   // (INPUTS)
    const NORM_TYPE* norm_bias;     // (INPUTS), or null
    const TYPE* weight;             // (outputs, INPUTS)
    const TYPE* bias;               // (outputs), or null
    TYPE* out;                      // (batch, outputs)
    CONV_TYPE* conv_state;          // (batch, channels, WIDTH), rows conv_b apart
    const TYPE* conv_weight;        // (channels, WIDTH)
    const TYPE* conv_bias;          // (channels), or null
    int64 x_b, conv_b, batch, outputs, channels;
    int64 eps;  // the bits of a float
};

STARTS_EARLY;

constexpr int LAYER_NORM = 2;  // NORM: 0 none, 1 RMSNorm, 2 LayerNorm
constexpr int WARPS = THREADS / 32;
constexpr int VALUES = ROWS * BATCH;  // sums of a block, each finished by one thread
constexpr int LEFT = VALUES > 32 ? VALUES / 32 : 1;  // of these, what a lane holds after scatter_sum
static_assert(VALUES <= THREADS, "a thread finishes one sum");

// Sums v over the warp's lanes, and leaves each lane max(1, COUNT / 32) of the COUNT sums: returns the first one's index.
template <int COUNT, int MASK> INLINE int scatter_sum(float* v) {
    if constexpr (MASK == 0) {
        return 0;
    } else if constexpr (COUNT == 1) {
        v[0] += __shfl_xor_sync(FULL_WARP, v[0], MASK);
        return scatter_sum<1, MASK / 2>(v);
    } else {
        constexpr int HALF = COUNT / 2;
        const bool upper = threadIdx.x & MASK;
#pragma unroll
        for (int i = 0; i < HALF; ++i) {
            const float kept = upper ? v[i + HALF] : v[i], sent = upper ? v[i] : v[i + HALF];
            v[i] = kept + __shfl_xor_sync(FULL_WARP, sent, MASK);
        }
        return (upper ? HALF : 0) + scatter_sum<HALF, MASK / 2>(v);
    }
}

INLINE void block_sum(float (&v)[BATCH], float (&shared)[WARPS][BATCH]) {
#pragma unroll
    for (int b = 0; b < BATCH; ++b) {
#pragma unroll
        for (int mask = 16; mask > 0; mask /= 2) v[b] += __shfl_xor_sync(FULL_WARP, v[b], mask);
        if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32][b] = v[b];
        v[b] = 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp)
#pragma unroll
        for (int b = 0; b < BATCH; ++b) v[b] += shared[warp][b];
}

INLINE int column(int chunk) { return (chunk * THREADS + int(threadIdx.x)) * VECTOR; }

template <typename T> INLINE void widen(float (&to)[VECTOR], const Pack<T, VECTOR>& from) {
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) to[i] = to_float(from.at[i]);
}

struct Weights {
    Pack<TYPE, VECTOR> at[ROWS][CHUNKS];

    INLINE void load(const Parameters& p, int64 row) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
            for (int c = 0; c < CHUNKS; ++c) {
                at[r][c] = {};
                if (row + r < p.outputs && column(c) < INPUTS)
                    at[r][c] = load_once<TYPE, VECTOR>(p.weight + (row + r) * INPUTS + column(c));
            }
    }
};

// What the thread that finishes the sum of (row, b) needs.
struct Finish {
    int64 row, b;
    bool active, convolves;
    float bias = 0.0f, conv_bias = 0.0f, conv_weight[WIDTH];

    INLINE void load(const Parameters& p, int64 first) {
        row = first + threadIdx.x / BATCH;
        b = threadIdx.x % BATCH;
        active = threadIdx.x < VALUES && row < p.outputs && b < p.batch;
        convolves = CONV && active && row < p.channels;
        bias = active && p.bias ? to_float(p.bias[row]) : 0.0f;
        conv_bias = convolves && p.conv_bias ? to_float(p.conv_bias[row]) : 0.0f;
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) conv_weight[k] = convolves ? to_float(p.conv_weight[row * WIDTH + k]) : 0.0f;
    }
};

INLINE void load_inputs(float (&x)[BATCH][CHUNKS][VECTOR], const Parameters& p) {
#pragma unroll
    for (int b = 0; b < BATCH; ++b)
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            const bool there = b < p.batch && column(c) < INPUTS;
            Pack<TYPE, VECTOR> mine = {};
            if (there) mine = load_pack<TYPE, VECTOR>(p.x + b * p.x_b + column(c));
            widen(x[b][c], mine);
            if (NORM && p.residual && there) {
                float before[VECTOR];
                widen(before, load_pack<RESIDUAL_TYPE, VECTOR>(p.residual + int64(b) * INPUTS + column(c)));
#pragma unroll
                for (int i = 0; i < VECTOR; ++i) x[b][c][i] += before[i];
            }
            if (NORM && p.sum && there && blockIdx.x == 0) {
                Pack<RESIDUAL_TYPE, VECTOR> sum;
#pragma unroll
                for (int i = 0; i < VECTOR; ++i) sum.at[i] = from_float<RESIDUAL_TYPE>(x[b][c][i]);
                store_pack(p.sum + int64(b) * INPUTS + column(c), sum);
            }
        }
}

INLINE void normalise(
    float (&x)[BATCH][CHUNKS][VECTOR],
    const Pack<NORM_TYPE, VECTOR> (&weight)[CHUNKS],
    const Pack<NORM_TYPE, VECTOR> (&bias)[CHUNKS],
    float eps
) {
    __shared__ float shared[2][WARPS][BATCH];
    float mean[BATCH], square[BATCH];
    if (NORM == LAYER_NORM) {
#pragma unroll
        for (int b = 0; b < BATCH; ++b) {
            mean[b] = 0.0f;
#pragma unroll
            for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
                for (int i = 0; i < VECTOR; ++i) mean[b] += x[b][c][i];
        }
        block_sum(mean, shared[1]);
    }
#pragma unroll
    for (int b = 0; b < BATCH; ++b) {
        square[b] = 0.0f;
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) {
                if (NORM == LAYER_NORM && column(c) < INPUTS) x[b][c][i] -= mean[b] * (1.0f / INPUTS);
                square[b] = fmaf(x[b][c][i], x[b][c][i], square[b]);
            }
    }
    block_sum(square, shared[0]);
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
        float w[VECTOR], plus[VECTOR];
        widen(w, weight[c]);
        widen(plus, bias[c]);
#pragma unroll
        for (int b = 0; b < BATCH; ++b) {
            const float scale = reciprocal_root(square[b] * (1.0f / INPUTS) + eps);
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) x[b][c][i] = fmaf(x[b][c][i] * scale, w[i], plus[i]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) project(const Parameters p) {
    __shared__ float partial[2][WARPS][VALUES];
    start_next();

    int64 row = int64(blockIdx.x) * (ROWS * GROUPS);
    Weights weights;
    weights.load(p, row);
    Finish finish;
    finish.load(p, row);
    Pack<NORM_TYPE, VECTOR> norm_weight[CHUNKS] = {}, norm_bias[CHUNKS] = {};
    if (NORM) {
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            if (column(c) >= INPUTS) continue;
            norm_weight[c] = load_pack<NORM_TYPE, VECTOR>(p.norm_weight + column(c));
            if (p.norm_bias) norm_bias[c] = load_pack<NORM_TYPE, VECTOR>(p.norm_bias + column(c));
        }
    }
    wait_for_previous();  // all above are parameters of the model

    float x[BATCH][CHUNKS][VECTOR];
    load_inputs(x, p);
    if (NORM) normalise(x, norm_weight, norm_bias, bits_to_float(uint32(p.eps)));

#pragma unroll 1
    for (int group = 0; group < GROUPS; ++group) {
        const Finish mine = finish;
        CONV_TYPE* const kept = p.conv_state + mine.b * p.conv_b + mine.row * WIDTH;
        float conv_state[WIDTH];
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) conv_state[k] = mine.convolves ? to_float(kept[k]) : 0.0f;

        float sums[VALUES];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
#pragma unroll
            for (int b = 0; b < BATCH; ++b) sums[r * BATCH + b] = 0.0f;
#pragma unroll
            for (int c = 0; c < CHUNKS; ++c) {
                float w[VECTOR];
                widen(w, weights.at[r][c]);
#pragma unroll
                for (int b = 0; b < BATCH; ++b)
#pragma unroll
                    for (int i = 0; i < VECTOR; ++i) sums[r * BATCH + b] = fmaf(w[i], x[b][c][i], sums[r * BATCH + b]);
            }
        }
        row += ROWS;
        if (group + 1 < GROUPS) {  // in flight while the sums are finished
            weights.load(p, row);
            finish.load(p, row);
        }

        const int first = scatter_sum<VALUES, 16>(sums);
        constexpr int COPIES = VALUES < 32 ? 32 / VALUES : 1;  // lanes that hold the same sum
        if (threadIdx.x % COPIES == 0) {
#pragma unroll
            for (int i = 0; i < LEFT; ++i) partial[group % 2][threadIdx.x / 32][first + i] = sums[i];
        }
        __syncthreads();  // the other buffer was read before this barrier, so one a group is enough
        if (mine.active) {
            float y = mine.bias;
#pragma unroll
            for (int warp = 0; warp < WARPS; ++warp) y += partial[group % 2][warp][threadIdx.x];
            if (mine.convolves) {
                y = silu(convolve(conv_state, mine.conv_weight, mine.conv_bias, y));
#pragma unroll
                for (int k = 0; k < WIDTH; ++k) kept[k] = from_float<CONV_TYPE>(conv_state[k]);
            }
            p.out[mine.b * p.outputs + mine.row] = from_float<TYPE>(y);
        }
    }
}
