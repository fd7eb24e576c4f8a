#include "block_step.cuh"
// A matrix times some tens or hundreds of vectors, which is what one token in as many rows costs: Y = X W^T + bias, and with
// CONV the first `channels` columns of Y, x, go through one step of a causal convolution and SiLU (the block: arXiv
// 2312.00752, figure 3).
//
// Bound: W is read once, 2 bytes a weight, and a weight is worth as many multiply-adds as there are rows: memory, up to
// some 200 rows. But X comes from L2 once for each block, and L2 feeds the multiprocessors only about twice as fast as
// memory feeds L2. So tiles are TILE_M x TILE_N, as large as registers allow, which is fewer of them than there are
// multiprocessors, and the CLUSTER blocks of a cluster (and WARPS_K groups of a block's warps) share a tile: each takes a
// part of K and then adds up a part of the tile, reading the others' sums from their shared memory in a fixed order.
//
// W and X flow through STAGES buffers of STEP columns, the first of W before the kernel in front of this one has ended.
// A row of a buffer has 128 bytes, whose eight 16-byte pieces are permuted by the row's last three bits: then the eight
// rows that load_matrices reads at a time lie in different banks.
//
// With CONV a tile has columns of x and z in turns of eight, so that all blocks and warps have as much to convolve.
//
// Constants, set when the kernel is compiled: TILE_M rows of X and TILE_N outputs a tile, WARPS_M x WARPS_N x WARPS_K
// warps a block, STAGES, CLUSTER, INPUTS (a multiple of 8), TYPE, CONV, CONV_TYPE and WIDTH of the convolution,
// PAIRS: two neighbours of Y can be stored at once; CONV_VECTORS: and their states and weights loaded.

struct Parameters {
    const TYPE* x;            // (batch, INPUTS), rows x_b apart
    const TYPE* weight;       // (outputs, INPUTS)
    const TYPE* bias;         // (outputs), or null
    TYPE* out;                // (batch, outputs)
    CONV_TYPE* conv_state;    // (batch, channels, WIDTH), rows conv_b apart
    const TYPE* conv_weight;  // (channels, WIDTH)
    const TYPE* conv_bias;    // (channels), or null
    int64 x_b, conv_b, batch, outputs, channels;
};

constexpr int STEP = 64;
constexpr int PIECES = STEP / 8;  // of 16 bytes in a row of a stage
constexpr int THREADS = WARPS_M * WARPS_N * WARPS_K * 32;
constexpr int M_TILES = TILE_M / WARPS_M / 16, N_TILES = TILE_N / WARPS_N / 8;  // of multiply_tiles, in a warp
constexpr int TILES = M_TILES * N_TILES;
constexpr int RANKS = CLUSTER * WARPS_K;            // that share a tile's sums
constexpr int OWNED = (TILES + RANKS - 1) / RANKS;  // what a warp adds up and finishes
constexpr int AT_ONCE = OWNED % 5 == 0 ? 5 : OWNED % 4 == 0 ? 4 : OWNED % 3 == 0 ? 3 : 1;  // of it, loads in flight
constexpr int STEPS = (INPUTS + STEP - 1) / STEP;
static_assert(TILE_M % (16 * WARPS_M) == 0 && TILE_N % (8 * WARPS_N) == 0 && WARPS_K <= STEP / 32, "whole tiles");
static_assert(THREADS % 128 == 0 && INPUTS % 8 == 0 && (!CONV || TILE_N % 16 == 0), "see Copy");

struct alignas(128) Stage {
    TYPE x[TILE_M][STEP], w[TILE_N][STEP];
};

union Shared {
    Stage stages[STAGES];
    float4 sums[WARPS_K][TILES][WARPS_M * WARPS_N][32];  // each lane's
    INLINE Shared() {}
};

DECLARE_SHARED(Shared);

#if !defined(EMULATED) && CLUSTER > 1 && __CUDA_ARCH__ >= 900
#define IN_CLUSTER __cluster_dims__(CLUSTER, 1, 1)
#else
#define IN_CLUSTER
#endif

// This thread's pieces of ROWS rows of a matrix with INPUTS columns: it copies piece `threadIdx.x % PIECES` of every
// `APART`th row.
template <int ROWS, bool IN_TURNS> struct Copy {
    static constexpr int APART = THREADS / PIECES;
    static constexpr int COUNT = (ROWS + APART - 1) / APART;
    const TYPE* from;
    int64 next;  // from one of the rows to the next
    int rows;    // that exist from the first on, in steps of `row_step`
    static constexpr int row_step = IN_TURNS ? APART / 2 : APART;

    static INLINE int row() { return threadIdx.x / PIECES; }
    static INLINE int piece() { return threadIdx.x % PIECES; }

    // `first`: of the matrix, the row that is the thread's first one; `existing` rows exist from there on.
    INLINE Copy(const TYPE* matrix, int64 stride, int64 first, int64 existing)
        : from(matrix + (existing > 0 ? first : 0) * stride + piece() * 8),
          next(stride * row_step),
          rows(int(existing)) {}

    INLINE void operator()(TYPE (*to)[STEP], int step) const {
        const bool inside = step * STEP + piece() * 8 < INPUTS;
        const TYPE* at = from + (inside ? step * STEP : 0);
        TYPE* const target = &to[row()][(piece() ^ row() % 8) * 8];
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const bool there = inside && i * row_step < rows;
            if (ROWS % APART == 0 || row() + i * APART < ROWS)
                copy_async(target + i * APART * STEP, there ? at + i * next : from, there);
        }
    }
};

// Where an output of a tile belongs: its column in Y.
struct Column {
    int64 at;
    int there;  // it and the next one: 0, 1 or 2 exist
};

// `tile` counts from the block's first; the column is its 2t-th.
INLINE Column column(const Parameters& p, int64 n0, int tile, int t) {
    if (CONV) {
        const int64 channel = n0 / 2 + tile / 2 * 8 + 2 * t;
        return {channel + tile % 2 * p.channels, int(min(p.channels - channel, int64(2)))};
    }
    const int64 at = n0 + tile * 8 + 2 * t;
    return {at, int(min(p.outputs - at, int64(2)))};
}

INLINE void store_two(TYPE* to, float first, float second, int there) {
    if (PAIRS) {
        if (there > 0) *reinterpret_cast<uint32*>(to) = pack_two<TYPE>(first, second);
    } else {
        if (there > 0) to[0] = from_float<TYPE>(first);
        if (there > 1) to[1] = from_float<TYPE>(second);
    }
}

// The first `count` of K; all exist where they can be loaded at once.
template <int K> INLINE void store_some(CONV_TYPE* to, const float (&from)[K], int count) {
    if constexpr (CONV_VECTORS) {
        store_numbers<true>(to, from);
    } else {
#pragma unroll
        for (int i = 0; i < K; ++i)
            if (i < count) to[i] = from_float<CONV_TYPE>(from[i]);
    }
}

template <typename T, int K> INLINE void load_some(float (&to)[K], const T* from, int count) {
    if constexpr (CONV_VECTORS) {
        load_numbers<true>(to, from);
    } else {
#pragma unroll
        for (int i = 0; i < K; ++i) to[i] = i < count ? to_float(from[i]) : 0.0f;
    }
}

// A warp's place among those that share a tile.
struct Place {
    int rank;        // which of its tiles of 16 x 8 it owns: OWNED from rank * OWNED on
    int of_block;    // its number among the warps with other sums
    int64 m0, n0;    // its first row, its block's first output
    int first_tile;  // of its columns, eight each, in the block

    INLINE int begin() const { return rank * OWNED; }
    INLINE int end() const { return min(TILES, begin() + OWNED); }
    INLINE int64 row(int tile, int half) const {
        return m0 + tile % M_TILES * 16 + threadIdx.x % 32 / 4 + 8 * half;
    }
    INLINE Column columns(const Parameters& p, int tile) const {
        return column(p, n0, first_tile + tile / M_TILES, threadIdx.x % 4);
    }
    INLINE bool convolves(int tile) const { return CONV && (first_tile + tile / M_TILES) % 2 == 0; }
};

// Brings the states that `finish` will need to L2. That changes no number, even where an earlier kernel still writes them.
INLINE void prefetch_states(const Parameters& p, const Place& place) {
#pragma unroll 1
    for (int tile = place.begin(); tile < place.end(); ++tile) {
        const Column where = place.columns(p, tile);
        if (threadIdx.x % 4 != 0 || !place.convolves(tile) || where.there <= 0) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int64 b = place.row(tile, half);
            if (b < p.batch) prefetch(p.conv_state + b * p.conv_b + where.at * WIDTH);
        }
    }
}

// Adds up the tiles that the warp owns, and does what comes after. A loop, not unrolled: so much code would not fit into
// the cache of instructions.
INLINE void finish(const Parameters& p, const Shared& shared, const Place& place) {
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int from = place.begin(); from < place.end(); from += AT_ONCE) {
        float4 sums[AT_ONCE];
        float states[AT_ONCE][2][2 * WIDTH], weights[AT_ONCE][2 * WIDTH], bias[AT_ONCE][2], conv_bias[AT_ONCE][2];
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            const int tile = min(from + i, TILES - 1);
            const Column where = place.columns(p, tile);
            float4 parts[RANKS];
#pragma unroll
            for (int r = 0; r < RANKS; ++r) {
                const float4* at = &shared.sums[r % WARPS_K][tile][place.of_block][lane];
                parts[r] = CLUSTER > 1 ? load_from_block(shared, at, r / WARPS_K) : *at;
            }
            sums[i] = parts[0];
#pragma unroll
            for (int r = 1; r < RANKS; ++r) {
                sums[i].x += parts[r].x, sums[i].y += parts[r].y;
                sums[i].z += parts[r].z, sums[i].w += parts[r].w;
            }
            const bool convolves = place.convolves(tile);
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                bias[i][k] = p.bias && k < where.there ? to_float(p.bias[where.at + k]) : 0.0f;
                conv_bias[i][k] =
                    convolves && p.conv_bias && k < where.there ? to_float(p.conv_bias[where.at + k]) : 0.0f;
            }
            if (!convolves || where.there <= 0) continue;
            load_some(weights[i], p.conv_weight + where.at * WIDTH, where.there * WIDTH);
#pragma unroll
            for (int half = 0; half < 2; ++half)
                if (const int64 b = place.row(tile, half); b < p.batch)
                    load_some(states[i][half], p.conv_state + b * p.conv_b + where.at * WIDTH, where.there * WIDTH);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            const int tile = from + i;
            const Column where = place.columns(p, tile);
            if (tile >= place.end() || where.there <= 0) continue;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int64 b = place.row(tile, half);
                if (b >= p.batch) continue;
                float y[2] = {half ? sums[i].z : sums[i].x, half ? sums[i].w : sums[i].y};
#pragma unroll
                for (int k = 0; k < 2; ++k) y[k] += bias[i][k];
                if (place.convolves(tile)) {
                    float(&both)[2 * WIDTH] = states[i][half];
#pragma unroll
                    for (int c = 0; c < 2; ++c) {
                        float state[WIDTH], weight[WIDTH];
#pragma unroll
                        for (int k = 0; k < WIDTH; ++k) {
                            state[k] = both[c * WIDTH + k];
                            weight[k] = weights[i][c * WIDTH + k];
                        }
                        y[c] = convolve(state, weight, conv_bias[i][c], y[c]);
#pragma unroll
                        for (int k = 0; k < WIDTH; ++k) both[c * WIDTH + k] = state[k];
                    }
                    store_some(p.conv_state + b * p.conv_b + where.at * WIDTH, both, where.there * WIDTH);
                }
                store_two(p.out + b * p.outputs + where.at, y[0], y[1], where.there);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) IN_CLUSTER project_rows(const Parameters p) {
    Shared& shared = SHARED_POOL(Shared);
    start_next();
    const int part = CLUSTER == 1 ? 0 : cluster_rank();
    // Neighbours have the same outputs, so that a second tile of rows finds W in L2.
    const int64 m_tiles = (p.batch + TILE_M - 1) / TILE_M, tile = blockIdx.x / CLUSTER;
    const int64 block_m0 = tile % m_tiles * TILE_M, n0 = tile / m_tiles * TILE_N;
    const int begin = STEPS * part / CLUSTER, steps = STEPS * (part + 1) / CLUSTER - begin;

    using CopyX = Copy<TILE_M, false>;
    using CopyW = Copy<TILE_N, CONV>;
    const CopyX copy_x(p.x, p.x_b, block_m0 + CopyX::row(), p.batch - block_m0 - CopyX::row());
    const int row = CopyW::row();
    const int64 first = CONV ? n0 / 2 + row / 16 * 8 + row % 8 : n0 + row;
    const CopyW copy_w(p.weight + (CONV && row / 8 % 2 ? p.channels * INPUTS : 0), INPUTS, first,
                       (CONV ? p.channels : p.outputs) - first);

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_k = WARPS_K == 1 ? 0 : warp / (WARPS_M * WARPS_N), warp_mn = warp % (WARPS_M * WARPS_N);
    const int warp_m = warp_mn / WARPS_N * M_TILES * 16, warp_n = warp_mn % WARPS_N * N_TILES * 8;
    const Place place = {part * WARPS_K + warp_k, warp_mn, block_m0 + warp_m, n0, warp_n / 8};

#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s)
        if (s < steps) copy_w(shared.stages[s].w, begin + s);
    if (CONV) prefetch_states(p, place);
    wait_for_previous();  // W above is a parameter of the model
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) {
        if (s < steps) copy_x(shared.stages[s].x, begin + s);
        close_copies();
    }

    float sums[N_TILES][M_TILES][4] = {};
#pragma unroll 1
    for (int s = 0; s < steps; ++s) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();  // all see what others copied, and have done with the stage that is filled next
        if (const int next = s + STAGES - 1; next < steps) {
            copy_w(shared.stages[next % STAGES].w, begin + next);
            copy_x(shared.stages[next % STAGES].x, begin + next);
        }
        close_copies();
        const Stage& stage = shared.stages[s % STAGES];
#pragma unroll
        for (int i = 0; i < STEP / 32; i += WARPS_K) {
            const int k = 32 * (i + warp_k);
            uint32 right[N_TILES][4];
#pragma unroll
            for (int n = 0; n < N_TILES; ++n)
                load_matrices(right[n], &stage.w[warp_n + 8 * n + lane % 8][(k / 8 + lane / 8 ^ lane % 8) * 8]);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                uint32 left[M_TILES][4];
#pragma unroll
                for (int m = 0; m < M_TILES; ++m)
                    load_matrices(
                        left[m],
                        &stage.x[warp_m + 16 * m + lane % 16][(k / 8 + 2 * half + lane / 16 ^ lane % 8) * 8]
                    );
#pragma unroll
                for (int n = 0; n < N_TILES; ++n) {
                    const uint32 b[2] = {right[n][2 * half], right[n][2 * half + 1]};
#pragma unroll
                    for (int m = 0; m < M_TILES; ++m) multiply_tiles<TYPE>(sums[n][m], left[m], b);
                }
            }
        }
    }

    wait_for_copies<0>();
    __syncthreads();  // the sums take the stages' place
#pragma unroll
    for (int n = 0; n < N_TILES; ++n)
#pragma unroll
        for (int m = 0; m < M_TILES; ++m) {
            const float(&v)[4] = sums[n][m];
            shared.sums[warp_k][n * M_TILES + m][warp_mn][lane] = make_float4(v[0], v[1], v[2], v[3]);
        }
    if (CLUSTER > 1) {
        cluster_arrive();
        cluster_wait();
    } else if (WARPS_K > 1) {
        __syncthreads();
    }
    finish(p, shared, place);
    if (CLUSTER > 1) {  // the others read this block's shared memory
        __syncwarp();
        cluster_arrive();
        cluster_wait();
    }
}
