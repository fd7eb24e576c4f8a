#include "prelude.cuh"
// Layer norm and RMS norm with the residual stream added first. With s = x + residual, c = s - mean(s) (RMS norm:
// c = s) and r = 1 / sqrt(mean(c^2) + eps), means over the D numbers of a row,
//
//   y = c r weight + bias        g = dy weight        ds = r (g - c r^2 mean(g c) [- mean(g)]) + dstream
//   dweight = sum dy c r         dbias = sum dy       (sums over rows; [] not in RMS norm; dx = dresidual = ds)
//
// LayerNorm: Ba et al. 2016, arXiv 1607.06450, equation 4.
// RMSNorm: Zhang & Sennrich 2019, arXiv 1910.07467, equation 4.
//
// Memory bounds both: with half-precision x and an fp32 stream 12 bytes a number forward (x and residual in, y and
// stream out) and 16 backward (stream, dy, dstream in, dx and dresidual out), against some 10 and 20 instructions. So
// a row is read once and stays in registers: a narrow one in those of a warp, where sums are shuffles and need no
// barrier, a wider one in those of a block. The variance is the mean of squared differences, which costs nothing there
// and doesn't cancel. The backward makes mean and r again, in the sums that it needs anyhow, so only the stream is
// kept for it. Its rows go round a grid that fits the GPU at once: dweight and dbias stay in registers and leave one
// partial sum a block, which the caller adds, so the order of the additions never varies.
//
// Constants, set when the kernel is compiled:
//   X_TYPE      of x, y, dy, dx              STREAM_TYPE  of residual, stream, and their gradients
//   VEC         numbers loaded at once       PACKS        such loads of a thread, as few as D needs
//   ROW_WARPS   warps that share a row       ROWS         rows of a block; 1 where several warps share one
//   SUMMED      the backward's residual is the stream, the sum with x
//   HOLD        weight and bias are loaded early, and the backward keeps its row in registers; 0 where D is too wide
//               for that, and what was read comes from the cache again
//   BLOCKS      blocks of the backward on a multiprocessor

struct Forward {
    const X_TYPE* x;  // (rows, D), as all below without a shape
    const STREAM_TYPE* residual;
    const WEIGHT_TYPE* weight;  // (D)
    const BIAS_TYPE* bias;      // (D)
    X_TYPE* y;
    STREAM_TYPE* stream;
    double eps;
    int64 rows, dim;
};

struct Backward {
    const X_TYPE* x;
    const STREAM_TYPE* residual;
    const WEIGHT_TYPE* weight;
    const X_TYPE* dy;
    const STREAM_TYPE* dstream;
    X_TYPE* dx;
    STREAM_TYPE* dresidual;  // null where dx has its dtype and serves for both
    float* parts;            // (1, blocks, D), the sums for dweight; with a bias (2, blocks, D)
    double eps;
    int64 rows, dim;
};

STARTS_EARLY;

constexpr int ROW_THREADS = ROW_WARPS * 32, THREADS = ROWS * ROW_THREADS;
// Loads in flight of a row that isn't held.
constexpr int AT_ONCE = HOLD || PACKS * VEC < 4 ? PACKS : (VEC < 4 ? 4 / VEC : 1);
static_assert(ROWS == 1 || ROW_WARPS == 1, "rows that share a block have no barriers");

// What a thread has of a row: PACKS times VEC neighbours, as they lie in memory or as fp32.
template <typename T> struct Row { Pack<T, VEC> at[PACKS]; };

INLINE int column(int i) { return (i * ROW_THREADS + int(threadIdx.x) % ROW_THREADS) * VEC; }

// Only a thread's last load may lie beyond the row's end, for PACKS is no larger than it must be.
INLINE bool inside(int i, int dim) { return i < PACKS - 1 || column(i) < dim; }

template <typename T> INLINE Pack<T, VEC> load_part(const T* row, int i, int dim) {
    return inside(i, dim) ? load_pack<T, VEC>(row + column(i)) : Pack<T, VEC>{};
}

template <typename T> INLINE Row<T> load_row(const T* row, int dim) {
    Row<T> v;
#pragma unroll
    for (int i = 0; i < PACKS; ++i) v.at[i] = load_part(row, i, dim);
    return v;
}

template <typename T> INLINE void store_part(T* row, int i, int dim, const Pack<float, VEC>& v) {
    Pack<T, VEC> rounded;
#pragma unroll
    for (int k = 0; k < VEC; ++k) rounded.at[k] = from_float<T>(v.at[k]);
    if (inside(i, dim)) store_pack<T, VEC>(row + column(i), rounded);
}

template <bool ADD_X, bool ADD_RESIDUAL>
INLINE Pack<float, VEC> add(const Pack<X_TYPE, VEC>& x, const Pack<STREAM_TYPE, VEC>& residual) {
    Pack<float, VEC> s;
#pragma unroll
    for (int k = 0; k < VEC; ++k)
        s.at[k] = (ADD_X ? to_float(x.at[k]) : 0.0f) + (ADD_RESIDUAL ? to_float(residual.at[k]) : 0.0f);
    return s;
}

// s - mean; zero beyond the row's end.
INLINE Pack<float, VEC> centred(Pack<float, VEC> s, float mean, int i, int dim) {
#pragma unroll
    for (int k = 0; k < VEC; ++k) s.at[k] = inside(i, dim) ? s.at[k] - mean : 0.0f;
    return s;
}

// K sums over the threads of a row; every thread gets them, with the same bits. `turn` alternates between two buffers,
// so that one barrier is enough: nobody writes a buffer before all have read what it held.
template <int K> INLINE void add_over_row(float (&v)[K], int& turn) {
#pragma unroll
    for (int bit = 16; bit >= 1; bit /= 2)
#pragma unroll
        for (int k = 0; k < K; ++k) v[k] += __shfl_xor_sync(FULL_WARP, v[k], bit);
    if (ROW_WARPS == 1) return;
    __shared__ float of_warps[2][K][32];
    const int lane = threadIdx.x % 32;
    if (lane == 0)
#pragma unroll
        for (int k = 0; k < K; ++k) of_warps[turn][k][threadIdx.x / 32] = v[k];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; ++k) v[k] = lane < ROW_WARPS ? of_warps[turn][k][lane] : 0.0f;
#pragma unroll
    for (int bit = 16; bit >= 1; bit /= 2)
#pragma unroll
        for (int k = 0; k < K; ++k) v[k] += __shfl_xor_sync(FULL_WARP, v[k], bit);
    turn ^= 1;
}

extern "C" __global__ void __launch_bounds__(THREADS) norm_forward(const Forward p) {
    start_next();
    wait_for_previous();
    const int64 row = int64(blockIdx.x) * ROWS + threadIdx.x / ROW_THREADS;
    if (row >= p.rows) return;  // whole warps, in blocks without barriers
    const int dim = int(p.dim);
    const int64 at = row * p.dim;
    Row<float> s;
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
        Pack<STREAM_TYPE, VEC> residual;
        if (HAS_RESIDUAL) residual = load_part(p.residual + at, i, dim);
        s.at[i] = add<true, HAS_RESIDUAL>(load_part(p.x + at, i, dim), residual);
    }
    Row<WEIGHT_TYPE> weight;
    Row<BIAS_TYPE> bias;
    if (HOLD) weight = load_row(p.weight, dim);
    if (HOLD && HAS_BIAS) bias = load_row(p.bias, dim);
    if (HAS_STREAM)
#pragma unroll
        for (int i = 0; i < PACKS; ++i) store_part(p.stream + at, i, dim, s.at[i]);

    int turn = 0;
    const float part = 1.0f / dim;
    float sum[1] = {0.0f};
    if (!RMS) {
#pragma unroll
        for (int i = 0; i < PACKS; ++i)
#pragma unroll
            for (int k = 0; k < VEC; ++k) sum[0] += s.at[i].at[k];
        add_over_row(sum, turn);
#pragma unroll
        for (int i = 0; i < PACKS; ++i) s.at[i] = centred(s.at[i], sum[0] * part, i, dim);
        sum[0] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < PACKS; ++i)
#pragma unroll
        for (int k = 0; k < VEC; ++k) sum[0] = fmaf(s.at[i].at[k], s.at[i].at[k], sum[0]);
    add_over_row(sum, turn);
    const float r = reciprocal_root(fmaf(sum[0], part, float(p.eps)));
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
        const Pack<WEIGHT_TYPE, VEC> w = HOLD ? weight.at[i] : load_part(p.weight, i, dim);
        Pack<BIAS_TYPE, VEC> b;
        if (HAS_BIAS) b = HOLD ? bias.at[i] : load_part(p.bias, i, dim);
        Pack<float, VEC> y;
#pragma unroll
        for (int k = 0; k < VEC; ++k)
            y.at[k] = fmaf(s.at[i].at[k] * r, to_float(w.at[k]), HAS_BIAS ? to_float(b.at[k]) : 0.0f);
        store_part(p.y + at, i, dim, y);
    }
}

// One partial sum a block of what its threads hold of a row.
INLINE void store_block_sum(float* to, const Row<float>& v, int dim) {
    if (ROWS == 1) {
#pragma unroll
        for (int i = 0; i < PACKS; ++i) store_part(to, i, dim, v.at[i]);
        return;
    }
    __shared__ __align__(16) float of_warps[ROWS][ROWS == 1 ? VEC : ROW_THREADS * PACKS * VEC];
    __syncthreads();  // the sum before this one was read
#pragma unroll
    for (int i = 0; i < PACKS; ++i) store_pack<float, VEC>(&of_warps[threadIdx.x / ROW_THREADS][column(i)], v.at[i]);
    __syncthreads();
    for (int d = threadIdx.x; d < dim; d += THREADS) {
        float sum = of_warps[0][d];
#pragma unroll
        for (int w = 1; w < ROWS; ++w) sum += of_warps[w][d];
        to[d] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) norm_backward(const Backward p) {
    start_next();
    wait_for_previous();
    const int dim = int(p.dim);
    const float part = 1.0f / dim, eps = float(p.eps);
    int turn = 0;
    Row<float> dweight = {}, dbias = {};
    const int64 first = int64(blockIdx.x) * ROWS + threadIdx.x / ROW_THREADS;
    for (int64 row = first; row < p.rows; row += int64(gridDim.x) * ROWS) {
        const int64 at = row * p.dim;
        Row<float> s;
        Row<X_TYPE> dy;
        Row<STREAM_TYPE> dstream;
        auto load_s = [&](int i) {
            Pack<X_TYPE, VEC> x;
            Pack<STREAM_TYPE, VEC> residual;
            if (!SUMMED) x = load_part(p.x + at, i, dim);
            if (HAS_RESIDUAL) residual = load_part(p.residual + at, i, dim);
            return add<!SUMMED, HAS_RESIDUAL>(x, residual);
        };
        if (HOLD) {
#pragma unroll
            for (int i = 0; i < PACKS; ++i) s.at[i] = load_s(i);
            dy = load_row(p.dy + at, dim);
            if (HAS_STREAM) dstream = load_row(p.dstream + at, dim);
        }
        // The i-th part of s, dy, dstream, and of the weight, which lies in the cache.
        auto s_of = [&](int i) { return HOLD ? s.at[i] : load_s(i); };
        auto dy_of = [&](int i) { return HOLD ? dy.at[i] : load_part(p.dy + at, i, dim); };
        auto dstream_of = [&](int i) { return HOLD ? dstream.at[i] : load_part(p.dstream + at, i, dim); };
        auto weight_of = [&](int i) { return load_part(p.weight, i, dim); };

        float mean = 0.0f, mean_g = 0.0f;
        if (!RMS) {
            float sums[2] = {0.0f, 0.0f};  // of s and g
#pragma unroll AT_ONCE
            for (int i = 0; i < PACKS; ++i) {
                const Pack<float, VEC> c = s_of(i);
                const Pack<X_TYPE, VEC> d = dy_of(i);
                const Pack<WEIGHT_TYPE, VEC> w = weight_of(i);
#pragma unroll
                for (int k = 0; k < VEC; ++k) {
                    sums[0] += c.at[k];
                    sums[1] = fmaf(to_float(d.at[k]), to_float(w.at[k]), sums[1]);
                }
            }
            add_over_row(sums, turn);
            mean = sums[0] * part;
            mean_g = sums[1] * part;
        }
        float sums[2] = {0.0f, 0.0f};  // of c^2 and g c
#pragma unroll AT_ONCE
        for (int i = 0; i < PACKS; ++i) {
            const Pack<float, VEC> c = RMS ? s_of(i) : centred(s_of(i), mean, i, dim);
            const Pack<X_TYPE, VEC> d = dy_of(i);
            const Pack<WEIGHT_TYPE, VEC> w = weight_of(i);
#pragma unroll
            for (int k = 0; k < VEC; ++k) {
                sums[0] = fmaf(c.at[k], c.at[k], sums[0]);
                sums[1] = fmaf(to_float(d.at[k]) * to_float(w.at[k]), c.at[k], sums[1]);
            }
        }
        add_over_row(sums, turn);
        const float r = reciprocal_root(fmaf(sums[0], part, eps));
        const float along = -r * r * sums[1] * part;
#pragma unroll
        for (int i = 0; i < PACKS; ++i) {
            const Pack<float, VEC> c = RMS ? s_of(i) : centred(s_of(i), mean, i, dim);
            const Pack<X_TYPE, VEC> d = dy_of(i);
            const Pack<WEIGHT_TYPE, VEC> w = weight_of(i);
            Pack<STREAM_TYPE, VEC> more;
            if (HAS_STREAM) more = dstream_of(i);
            Pack<float, VEC> ds;
#pragma unroll
            for (int k = 0; k < VEC; ++k) {
                const float dyk = to_float(d.at[k]);
                const float g = fmaf(dyk, to_float(w.at[k]), -mean_g);
                ds.at[k] = fmaf(r, fmaf(c.at[k], along, g), HAS_STREAM ? to_float(more.at[k]) : 0.0f);
                dweight.at[i].at[k] = fmaf(dyk, c.at[k] * r, dweight.at[i].at[k]);
                if (HAS_BIAS) dbias.at[i].at[k] += dyk;
            }
            store_part(p.dx + at, i, dim, ds);
            if (HAS_RESIDUAL && p.dresidual) store_part(p.dresidual + at, i, dim, ds);
        }
    }
    const int64 at = blockIdx.x * p.dim;
    store_block_sum(p.parts + at, dweight, dim);
    if (HAS_BIAS) store_block_sum(p.parts + gridDim.x * p.dim + at, dbias, dim);
}
