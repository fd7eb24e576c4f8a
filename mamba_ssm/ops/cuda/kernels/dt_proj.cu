#include "prelude.cuh"
// The projection of dt in a Mamba block (Gu & Dao 2023, arXiv 2312.00752, section 3.6) for each token and channel:
//
//   delta = dt W^T        dt (tokens, RANK), W (dim, RANK)
//
// Bound: memory, the writing of delta. RANK is 1/32 of dim, so dt is a few percent of the bytes, and at RANK = 48 tensor
// cores need a quarter of the time that the writing takes; at 160, three quarters.
//
// A block keeps WARPS * CHANNELS rows of W in registers, as fragments, CHANNELS a warp, and walks over a run of tokens,
// whose dt comes to shared memory two tiles ahead and serves all its warps. Blocks of other channels and the same tokens
// are neighbours, so dt is read from device memory once.
//
// Products sum over RANK in any order, so fragments are not cut as the instruction numbers them: of 32 numbers of a row,
// each of the four lanes that share it takes 16 bytes. In the same way the columns of a warp's four products, 32
// channels, are dealt out so that a lane has 8 neighbours: it writes 16 bytes, and four lanes write whole sectors.

constexpr int THREADS = WARPS * 32;
constexpr int STAGES = 3;
constexpr int K = (RANK + 15) / 16 * 16;
constexpr int WIDE = K / 32;             // steps of 32 numbers of a row, 16 bytes a lane
constexpr bool REST = K % 32 != 0;       // and one of 16, 8 bytes a lane
constexpr int PIECES = RANK / 8;         // of 16 bytes in a row
constexpr int ROW = (K + 31) / 64 * 32 + 16;  // words between rows in shared memory: 64 bytes more than a multiple of 128
constexpr int COLUMNS = CHANNELS / 8;    // products of a warp and 16 tokens

struct Parameters {
    const TYPE* dt;      // (tokens, RANK), rows dt_t apart, each 16 bytes aligned
    const TYPE* weight;  // (dim, RANK)
    TYPE* delta;         // (tokens, dim)
    int64 dt_t, tokens, dim;
    int64 run;     // tokens of a block
    int64 blocks;  // that share these
};

template <int N> INLINE Pack<uint32, N> load_words(const void* p) {
    return load_pack<uint32, N>(static_cast<const uint32*>(p));
}

// A warp's rows of W: of each 16 numbers k and 8 channels, what multiply_tiles wants as b.
struct Weights {
    uint32 at[K / 16][COLUMNS][2];

    // d: the warp's first channel. Beyond the last channel it is taken again.
    INLINE void load(const Parameters& p, int64 d) {
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n) {
            const int64 channel = d + n / 4 * 32 + g / 2 * 8 + n % 4 * 2 + g % 2;
            const TYPE* const row = p.weight + min(channel, p.dim - 1) * RANK;
#pragma unroll
            for (int i = 0; i < WIDE; ++i) {
                Pack<uint32, 4> v = {};
                if (32 * i + 8 * t < RANK) v = load_words<4>(row + 32 * i + 8 * t);
#pragma unroll
                for (int word = 0; word < 4; ++word) at[2 * i + word / 2][n][word % 2] = v.at[word];
            }
            if constexpr (REST) {
                Pack<uint32, 2> v = {};
                if (32 * WIDE + 4 * t < RANK) v = load_words<2>(row + 32 * WIDE + 4 * t);
                at[2 * WIDE][n][0] = v.at[0];
                at[2 * WIDE][n][1] = v.at[1];
            }
        }
    }

    // c = dt W^T for 16 rows of dt in shared memory.
    INLINE void multiply(float (&c)[COLUMNS][4], const uint32 (*rows)[ROW]) const {
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int i = 0; i < WIDE; ++i) {
            const Pack<uint32, 4> upper = load_words<4>(&rows[g][16 * i + 4 * t]);
            const Pack<uint32, 4> lower = load_words<4>(&rows[g + 8][16 * i + 4 * t]);
#pragma unroll
            for (int word = 0; word < 4; word += 2) {
                const uint32 a[4] = {upper.at[word], lower.at[word], upper.at[word + 1], lower.at[word + 1]};
#pragma unroll
                for (int n = 0; n < COLUMNS; ++n) multiply_tiles<TYPE>(c[n], a, at[2 * i + word / 2][n]);
            }
        }
        if constexpr (REST) {
            const Pack<uint32, 2> upper = load_words<2>(&rows[g][16 * WIDE + 2 * t]);
            const Pack<uint32, 2> lower = load_words<2>(&rows[g + 8][16 * WIDE + 2 * t]);
            const uint32 a[4] = {upper.at[0], lower.at[0], upper.at[1], lower.at[1]};
#pragma unroll
            for (int n = 0; n < COLUMNS; ++n) multiply_tiles<TYPE>(c[n], a, at[2 * WIDE][n]);
        }
    }
};

// TOKENS rows of dt from `first` on. Beyond the last token it is taken again.
INLINE void load_tile(uint32 (*tile)[ROW], const Parameters& p, int64 first) {
    const int last = int(min(p.tokens - 1 - first, int64(TOKENS)));
    const TYPE* const dt = p.dt + first * p.dt_t;
#pragma unroll 1
    for (int i = threadIdx.x; i < TOKENS * PIECES; i += THREADS) {
        const int row = i / PIECES, piece = i % PIECES;
        copy_async(&tile[row][4 * piece], dt + min(row, last) * p.dt_t + 8 * piece, true);
    }
}

// 8 neighbouring channels, of which `left` are there.
INLINE void store(TYPE* p, const Pack<uint32, 4>& v, int left) {
    if constexpr (VECTORS) {
        if (left > 0) store_pack(reinterpret_cast<uint32*>(p), v);
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i)
            if (i < left) p[i].bits = uint16(v.at[i / 2] >> 16 * (i % 2));
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS) dt_proj(const Parameters p) {
    __shared__ __align__(16) uint32 tiles[STAGES * TOKENS][ROW];
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int64 from = blockIdx.x / uint32(p.blocks) * p.run;
    const int run = int(min(p.tokens - from, p.run));
    const int64 d = (int64(blockIdx.x % uint32(p.blocks)) * WARPS + warp) * CHANNELS;
    const int channels = int(min(p.dim - d, int64(CHANNELS)));  // of the warp; none where not positive

    if constexpr (K > RANK) {  // zeros that no copy overwrites
        for (int i = threadIdx.x; i < STAGES * TOKENS; i += THREADS)
            store_pack(&tiles[i][RANK / 2], Pack<uint32, 4>{});
    }
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; ++stage) {
        if (stage * TOKENS < run) load_tile(tiles + stage * TOKENS, p, from + stage * TOKENS);
        close_copies();
    }
    Weights weights;
    weights.load(p, d);

    TYPE* delta = p.delta + (from + g) * p.dim + d + 8 * t;
    int row = 0;  // of the tiles
#pragma unroll 1
    for (int first = 0; first < run; first += TOKENS) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();  // this tile is there, and all have left the one before it
        if (first + (STAGES - 1) * TOKENS < run)
            load_tile(tiles + (row == 0 ? (STAGES - 1) * TOKENS : row - TOKENS), p, from + first + (STAGES - 1) * TOKENS);
        close_copies();
#pragma unroll 1
        for (int token = first; token < first + TOKENS; token += 16) {
            if (token < run && channels > 0) {
                float c[COLUMNS][4] = {};
                weights.multiply(c, tiles + row);
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    if (token + 8 * half + g >= run) continue;
#pragma unroll
                    for (int n = 0; n < COLUMNS; n += 4) {
                        Pack<uint32, 4> v;
#pragma unroll
                        for (int i = 0; i < 4; ++i)
                            v.at[i] = pack_two<TYPE>(c[n + i][2 * half], c[n + i][2 * half + 1]);
                        store(delta + 8 * half * p.dim + 8 * n, v, channels - 8 * (t + n));
                    }
                }
            }
            row += 16;
            delta += 16 * p.dim;
        }
        if (row == STAGES * TOKENS) row = 0;
    }
}
