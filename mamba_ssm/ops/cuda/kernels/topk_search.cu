#include "prelude.cuh"
// Late interaction (Khattab & Zaharia 2020, arXiv 2004.12832) with weights, for windows c of two half windows:
//
//   S_c = sum_j w_j max_{i in c} q_j . k_i
//
// Bound: memory for one question, each key is read once: 2R bytes of bf16 for 2MR operations, which at M = 32 needs a
// tenth of an H100's tensor cores; tensor cores for 16 questions. Products never leave registers: a warp multiplies 32
// question tokens by the keys of two half windows, 32 of each at a time, and keeps the maximum over keys.
//
// Products sum over R in any order, so fragments are not cut as the instruction numbers them: of each key (and token) a
// lane of the four that share it takes 16 bytes, and the next lane the next 16. So fragments come straight from memory
// in full sectors, with no shared memory and no shuffles. Keys are read again for every 32 tokens of a question and for
// every question that shares them, from L1: neighbouring warps take the same keys for other questions.
//
// A warp walks along a range of the text, so that a half window's maxima are there when the next one comes; only the
// first of a range is computed twice, by the warp before it too. The result for a window does not depend on the ranges.
//
// ABOVE: no match of a half window counts less than its floor; what that adds to a score is summed beside it.
//
// fp32 keys: each number is split in two of tf32's 11 bits, and three of the four products are added up, the error is
// then of the order of fp32's own. It is a tenth of the instructions of fp32 FMAs, which could not keep up with memory.

constexpr int WARPS = 4;
constexpr int K = 16 / sizeof(TYPE);
constexpr int TILE = 32;  // keys of a half window, and question tokens, at a time
// Blocks of a multiprocessor: as many as leave the registers that the compiler needs.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int BLOCKS = 2;
#else
constexpr int BLOCKS = sizeof(TYPE) == 4 ? 2 : 3;
#endif

struct Parameters {
    const TYPE* queries;   // (B, M, WIDTH)
    const float* weights;  // (B, M)
    const TYPE* keys;      // (L, WIDTH), or (B, L, WIDTH)
    const float* before;   // (B, M): the maxima of the half window before the keys; or null
    const float* floor;    // (B, M, H), H with the half window before the keys where there is one; or null
    float* scores;         // (B, W)
    float* gains;          // (B, W): what the floor added; or null
    float* last;           // (B, M): the maxima of the last half window
    int64 keys_b, keys_t;  // a half window's keys lie within 2^30 numbers
    int64 questions, tokens;
    int64 halves;  // of the text
    int64 pairs;   // of half windows in a range; each range but the first begins where the one before it ends
    int64 ranges;
};

union Fragment {
    Pack<TYPE, K> numbers;
    uint32 words[4];
};

INLINE Fragment load(const TYPE* p, int k) {
    Fragment f = {};
    if (WIDTH % (4 * K) == 0 || k < WIDTH) f.numbers = load_pack<TYPE, K>(p + k);
    return f;
}

// c += queries x keys over the numbers of one Fragment a row: rows g and g + 8 of each half of the question tokens.
INLINE void multiply(float (&c)[2][4][4], const Fragment (&query)[2][2], const Fragment (&key)[4]) {
#pragma unroll
    for (int s = 0; s < 4; s += 2) {
        uint32 a[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int word = 0; word < 4; ++word) a[i][word] = query[i][word % 2].words[s + word / 2];
        if constexpr (sizeof(TYPE) == 2) {
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                const uint32 b[2] = {key[n].words[s], key[n].words[s + 1]};
#pragma unroll
                for (int i = 0; i < 2; ++i) multiply_tiles<TYPE>(c[i][n], a[i], b);
            }
        } else {
            uint32 rest[2][4];
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int word = 0; word < 4; ++word) split_tf32(a[i][word], rest[i][word]);
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                uint32 b[2] = {key[n].words[s], key[n].words[s + 1]}, b_rest[2];
                split_tf32(b[0], b_rest[0]), split_tf32(b[1], b_rest[1]);
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    multiply_tiles_tf32(c[i][n], rest[i], b);
                    multiply_tiles_tf32(c[i][n], a[i], b_rest);
                    multiply_tiles_tf32(c[i][n], a[i], b);
                }
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS) topk_search(const Parameters p) {
    __shared__ float maxima[WARPS][TOKENS];  // of the half window before
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int item = blockIdx.x * WARPS + warp, range = item / int(p.questions);
    const int64 question = item % int(p.questions);
    if (range >= p.ranges) return;
    const int tokens = int(p.tokens), keys_t = int(p.keys_t);
    const bool continues = range == 0 && p.before;  // else the window that ends with the first half window is not ours
    float* const previous = maxima[warp];
    for (int j = lane; j < tokens; j += 32) previous[j] = continues ? p.before[question * tokens + j] : 0.0f;
    __syncwarp();
    const TYPE* const queries = p.queries + question * tokens * WIDTH;
    const float* const weights = p.weights + question * tokens;
    const int64 skipped = p.before ? 0 : 1;
    const int64 to_question = question * (p.halves - skipped) - skipped;
    float* const scores = p.scores + to_question;  // by a window's second half
    float* const gains = p.gains + to_question;

    const int halves = int(p.halves), pairs = int(p.pairs);
    const int first = range * (2 * pairs - 1), end = min(first + 2 * pairs, halves);
    for (int h = first; h < end; h += 2) {
        const bool two = h + 1 < halves;
        const int64 to_second = two ? STRIDE * p.keys_t : 0;
        const TYPE* const keys = p.keys + question * p.keys_b + int64(h) * STRIDE * p.keys_t;
        float score[2] = {0.0f, 0.0f}, own[2] = {0.0f, 0.0f};
        for (int token = 0; token < tokens; token += TILE) {
            int query_at[4];
#pragma unroll
            for (int r = 0; r < 4; ++r)  // beyond the last token it is taken again, and weighs nothing
                query_at[r] = min(token + 8 * r + g, tokens - 1) * WIDTH;
            float top[2][4];  // by half window, of tokens 8 r + g
#pragma unroll
            for (int i = 0; i < 8; ++i) top[i / 4][i % 4] = bits_to_float(0xff800000u);
            for (int from = 0; from < STRIDE; from += TILE) {
                int key_at[4];
#pragma unroll
                for (int n = 0; n < 4; ++n)  // beyond the half window its last key is taken again
                    key_at[n] = min(from + 8 * n + g, STRIDE - 1) * keys_t;
                float c[2][2][4][4] = {};  // by half window, 16 question tokens and 8 keys
#pragma unroll 1
                for (int k = 0; k < WIDTH; k += 4 * K) {
                    Fragment query[2][2];
#pragma unroll
                    for (int r = 0; r < 4; ++r) query[r / 2][r % 2] = load(queries + query_at[r], t * K + k);
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        Fragment key[4];
#pragma unroll
                        for (int n = 0; n < 4; ++n) key[n] = load(keys + half * to_second + key_at[n], t * K + k);
                        multiply(c[half], query, key);
                    }
                }
#pragma unroll
                for (int half = 0; half < 2; ++half)
#pragma unroll
                    for (int n = 0; n < 4; ++n)
#pragma unroll
                        for (int r = 0; r < 4; ++r) {
                            const float* pair = &c[half][r / 2][n][r % 2 * 2];
                            top[half][r] = fmaxf(top[half][r], fmaxf(pair[0], pair[1]));
                        }
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                float& best = top[i / 4][i % 4];
                best = fmaxf(best, __shfl_xor_sync(FULL_WARP, best, 1));
                best = fmaxf(best, __shfl_xor_sync(FULL_WARP, best, 2));
            }
            if (t == 0) {
#pragma unroll
                for (int r = 0; r < 4; ++r) {
                    const int j = token + 8 * r + g;
                    if (j >= tokens) continue;
                    const float weight = weights[j];
                    float best[2] = {fmaxf(previous[j], top[0][r]), fmaxf(top[0][r], top[1][r])};
                    if constexpr (ABOVE) {
                        const int64 rows = p.halves + 1 - skipped;
                        const float* const floor = p.floor + (question * tokens + j) * rows + h + 1 - skipped;
#pragma unroll
                        for (int i = 0; i < 2; ++i) {
                            own[i] = fmaf(weight, best[i], own[i]);
                            if (i ? two : h > first || continues)
                                best[i] = fmaxf(best[i], fmaxf(floor[i - 1], floor[i]));
                        }
                    }
                    score[0] = fmaf(weight, best[0], score[0]);
                    score[1] = fmaf(weight, best[1], score[1]);
                    previous[j] = top[1][r];
                    if (h + 2 >= halves) p.last[question * tokens + j] = top[1][r];
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int lanes = 4; lanes < 32; lanes *= 2) {
                score[i] += __shfl_xor_sync(FULL_WARP, score[i], lanes);
                if constexpr (ABOVE) own[i] += __shfl_xor_sync(FULL_WARP, own[i], lanes);
            }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (lane != 0 || !(i ? two : h > first || continues)) continue;
            scores[h + i] = score[i];
            if constexpr (ABOVE) gains[h + i] = score[i] - own[i];
        }
    }
}
