#include "prelude.cuh"
// Cross-entropy of logits x (T, V), in place. For each row, with its target t:
//
//   loss = log(sum_v exp x_v) - x_t        d loss / d x_v = exp(x_v) / sum_w exp x_w - [v = t]
//
// Bound: memory, each number is read once and written once; two exponentials a number are a third of that time on an
// H100. So the row must not be read again: a block holds it in registers between the sum and the gradient, 50,000 bf16
// numbers in 256 threads, with a second block on the multiprocessor that loads while the first computes. Of longer rows
// the rest is read again, and comes from L2 if it is still there. Exponentials are relative to the row's maximum, which
// a thread finds first in its own numbers; threads' sums are brought to the largest maximum when they are added.

constexpr int THREADS = 256;
constexpr int K = 16 / sizeof(TYPE);
constexpr int VECTORS = (COLUMNS + K - 1) / K;
constexpr int NEEDED = (VECTORS + THREADS - 1) / THREADS;
// Vectors of a thread that are held: as many as fit the registers of two blocks without spills, fewer where the row is
// longer, for PASSING more are then read at a time. The compiler for sm_100 needs more registers for the same.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int MOST = 12, OF_LONGER = 12;
#else
constexpr int MOST = 25, OF_LONGER = 14;
#endif
constexpr int HELD = NEEDED <= MOST ? NEEDED : OF_LONGER;
constexpr int PASSING = GRADIENT ? 4 : 8;  // vectors of a thread that are read together where they are not held
constexpr float LOWEST = -1e30f;           // below any logit

struct Parameters {
    TYPE* logits;
    const int64* targets;
    float* losses;
    int64 stride;   // of a row of logits, a multiple of K, at least VECTORS * K
    int64 ignored;  // the target of rows without loss
};

union Vector {
    Pack<TYPE, K> numbers;
    Pack<uint32, 4> words;

    // Keeps the compiler from holding the numbers as fp32, which takes twice the registers, from one pass to the next.
    INLINE void keep_packed() {
#ifndef EMULATED
#pragma unroll
        for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(words.at[i]));
#endif
    }
};

// The sum of 2^(x log2(e) - top) over some x, of which top is the largest's x log2(e), rounded.
struct Sum { float top, sum; };

INLINE Sum operator+(Sum a, Sum b) {
    const float top = fmaxf(a.top, b.top);
    return {top, a.sum * exp2_fast(a.top - top) + b.sum * exp2_fast(b.top - top)};
}

INLINE Vector load(const TYPE* row, int v) {
    Vector x;
    x.numbers = load_pack<TYPE, K>(row + v * K);
    if (COLUMNS % K && v == VECTORS - 1) {
#pragma unroll
        for (int k = COLUMNS % K; k < K; ++k) x.numbers.at[k] = from_float<TYPE>(bits_to_float(0xff800000u));
    }
    return x;
}

// Reads the thread's N vectors from `first` on, and sums them up.
template <int N> INLINE Sum read(const TYPE* row, int first, Vector (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i)
        if (first + i * THREADS < VECTORS) x[i] = load(row, first + i * THREADS);
    float top = LOWEST;
#pragma unroll
    for (int i = 0; i < N; ++i)
        if (first + i * THREADS < VECTORS) {
#pragma unroll
            for (int k = 0; k < K; ++k) top = fmaxf(top, to_float(x[i].numbers.at[k]));
            x[i].keep_packed();
        }
    top *= LOG2E;
    float sum[2] = {0.0f, 0.0f};  // a chain of additions has their latency
#pragma unroll
    for (int i = 0; i < N; ++i)
        if (first + i * THREADS < VECTORS) {
#pragma unroll
            for (int k = 0; k < K; ++k) sum[k & 1] += exp2_fast(fmaf(to_float(x[i].numbers.at[k]), LOG2E, -top));
            x[i].keep_packed();
        }
    return {top, sum[0] + sum[1]};
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) cross_entropy(const Parameters p) {
    __shared__ Sum sums[THREADS / 32];
    const int thread = threadIdx.x;
    TYPE* const row = p.logits + int64(blockIdx.x) * p.stride;
    const int64 target = p.targets[blockIdx.x];

    if (target == p.ignored) {
        if (thread == 0) p.losses[blockIdx.x] = 0.0f;
        if (GRADIENT) {
            const Pack<uint32, 4> zero = {};
            for (int v = thread; v < VECTORS; v += THREADS)
                store_pack<uint32, 4>(reinterpret_cast<uint32*>(row + v * K), zero);
        }
        return;
    }
    const bool in_range = target >= 0 && target < COLUMNS;
    float x_target = bits_to_float(0x7fc00000u);  // NaN
    if (thread == 0 && in_range) x_target = to_float(row[target]);

    Vector held[HELD], passing[PASSING];
    Sum all = {LOWEST, 0.0f};
    if (GRADIENT) all = read(row, thread, held);
#pragma unroll 1
    for (int first = GRADIENT ? HELD * THREADS : 0; first < VECTORS; first += PASSING * THREADS)
        all = all + read(row, first + thread, passing);
#pragma unroll
    for (int lanes = 16; lanes; lanes /= 2) {
        const float top = __shfl_xor_sync(FULL_WARP, all.top, lanes), sum = __shfl_xor_sync(FULL_WARP, all.sum, lanes);
        all = all + Sum{top, sum};
    }
    if (thread % 32 == 0) sums[thread / 32] = all;
    __syncthreads();
    all = sums[0];
#pragma unroll
    for (int w = 1; w < THREADS / 32; ++w) all = all + sums[w];
    if (thread == 0) p.losses[blockIdx.x] = LN2 * (log2f(all.sum) - fmaf(x_target, LOG2E, -all.top));
    if (!GRADIENT) return;

    const float scale = 1.0f / all.sum;
    const int target_vector = in_range ? int(target) / K : -1, target_at = int(target) % K;
    auto write = [&](int v, const Vector& x) {
        float y[K];
#pragma unroll
        for (int k = 0; k < K; ++k) y[k] = exp2_fast(fmaf(to_float(x.numbers.at[k]), LOG2E, -all.top)) * scale;
        if (v == target_vector) {
#pragma unroll
            for (int k = 0; k < K; ++k)
                if (k == target_at) y[k] -= 1.0f;
        }
        Pack<TYPE, K> gradient;
#pragma unroll
        for (int k = 0; k < K; ++k) gradient.at[k] = from_float<TYPE>(y[k]);
        store_pack<TYPE, K>(row + v * K, gradient);
    };
#pragma unroll
    for (int i = 0; i < HELD; ++i)
        if (i * THREADS + thread < VECTORS) write(i * THREADS + thread, held[i]);
#pragma unroll 4
    for (int v = HELD * THREADS + thread; v < VECTORS; v += THREADS) write(v, load(row, v));
}
