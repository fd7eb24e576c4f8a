#include "prelude.cuh"
// The causal convolution over time, each channel by itself (Gu & Dao 2023, arXiv 2312.00752, section 3.4), and backward:
//
//   s_t = bias + sum_k weight_k x_{t-k}, the lag k from 0 to W-1     out_t = silu(s_t)     dy_t = dout_t silu'(s_t)
//   dx_t = sum_k weight_k dy_{t+k}     dweight_k = sum_t dy_t x_{t-k}     dbias = sum_t dy_t
//
// Bound: bytes. Forward moves 4 bytes of bf16 a number for some 15 instructions, backward 6 for some 31: on an H100, at
// 3 TB/s and 9e11 instructions of a warp a second, 40% and 50% of the issue slots. What counts is hence to have enough
// loads on the way, 16 KB a multiprocessor and more, to wait for many at once, and to read each number from DRAM once.
//
// CHANNEL_LAST: a thread takes VECTOR neighbouring channels and walks a run of steps; its past W-1 inputs stay in
// registers, and the next STEPS steps are on their way while it works on as many. Two neighbouring runs both load the
// W-1 steps between them, the second time from a cache. Backward walks the same way: at step t it has dy of t-W+1 .. t
// and finishes dx of t-W+1, so it computes dy of W-1 steps past its run again, and needs neither the sums s nor dy in
// memory.
//
// Else: a warp takes one channel, a lane VECTOR neighbouring steps of each tile, and gets the W-1 inputs before them from
// the lane before by shuffles; backward walks the tiles in reverse, so that the dy after a tile are known.
//
// Constants, set when the kernel is compiled:
//   BACKWARD, CHANNEL_LAST, SILU, PACKED     0 or 1                  WIDTH    W, 2 to 4
//   VECTOR   numbers that a thread loads at once. Channel-last: all tensors can be loaded so, VECTOR divides D
//   VECTORS  channel-first: whether tensors can be loaded so and VECTOR divides L; else one by one, any strides
//   STEPS    channel-last: that a thread loads together, W-1 or more
//   WARPS    of a block     BLOCKS    of a multiprocessor at least: what the registers of a thread are cut for
//   X_TYPE, WEIGHT_TYPE, BIAS_TYPE, INITIAL_TYPE    float, bf16 or fp16

constexpr int HISTORY = WIDTH - 1;
constexpr int THREADS = WARPS * 32;
constexpr int COLUMN = 32 * VECTOR;  // channels of a block where CHANNEL_LAST
constexpr int TILE = 32 * VECTOR;    // else steps that a warp loads at once
constexpr int TILES = 2;             // a warp loads together in forward else
static_assert(STEPS >= HISTORY, "STEPS leave a whole window behind");

struct Parameters {
    const X_TYPE* x;
    const WEIGHT_TYPE* weight;    // (D, W)
    const BIAS_TYPE* bias;        // (D), or null
    const int* sequence;          // (B, L) where PACKED
    const INITIAL_TYPE* initial;  // (B, D, W-1), or null
    X_TYPE* y;                    // out; where BACKWARD, dout
    X_TYPE* dx;
    float* sums;             // (B * spans, D W + D): dweight and dbias over each span of time
    INITIAL_TYPE* dinitial;  // (B, D, W-1) dense, or null
    int64 x_b, x_d, x_t, y_b, y_d, y_t, dx_b, dx_d, dx_t, initial_b, initial_d, initial_t;
    int64 dim, length;
    int64 run;    // steps of a thread where CHANNEL_LAST, of a warp else: a multiple of STEPS, of TILE
    int64 spans;  // blocks along the time of a row
};

INLINE float activated(float s) { return SILU ? silu(s) : s; }

INLINE float slope(float s) {
    if (!SILU) return 1.0f;
    const float gate = sigmoid(s);
    return gate * fmaf(s, 1.0f - gate, 1.0f);
}

// The sequence that step t belongs to; before the first step it is the first's. Past the last step dy is zero anyway.
INLINE int sequence_at(const int* sequence, int64 t, int64 length) { return sequence[max(0ll, min(t, length - 1))]; }

// The input at step t < 0 of a channel.
INLINE float initial_at(const Parameters& p, int64 row, int64 d, int64 t) {
    if (!p.initial) return 0.0f;
    return to_float(p.initial[row * p.initial_b + d * p.initial_d + (t + HISTORY) * p.initial_t]);
}

typedef Pack<X_TYPE, VECTOR> Numbers;

template <int BYTES> struct WordOf { typedef uint32 type; };
template <> struct WordOf<2> { typedef uint16 type; };
typedef WordOf<sizeof(Numbers)>::type Word;

// Numbers as they lie in memory, taken apart where they are used: done where they are loaded, a warp would wait there.
struct Raw {
    static constexpr int PER_WORD = sizeof(Word) / sizeof(X_TYPE);
    Pack<Word, VECTOR / PER_WORD> words;

    INLINE float operator[](int i) const {
        return from_bits<X_TYPE>(uint32(words.at[i / PER_WORD]) >> 16 * (i % PER_WORD));
    }
    INLINE void load(const X_TYPE* p) { words = load_pack<Word, VECTOR / PER_WORD>(reinterpret_cast<const Word*>(p)); }
    INLINE void load(const X_TYPE* p, int i) { words.at[i / PER_WORD] |= Word(to_bits(*p) << 16 * (i % PER_WORD)); }
};

// ---- channel-last -----------------------------------------------------------------------------------------------------

struct Run {
    int lane, warp;
    int64 row, span, d0, d;  // d0: the block's first channel, d: the thread's
    int64 start;
    int steps;  // 0 for a thread without channels

    INLINE explicit Run(const Parameters& p) {
        lane = threadIdx.x % 32;
        warp = threadIdx.x / 32;
        const uint32 columns = uint32((p.dim + COLUMN - 1) / COLUMN), spans = uint32(p.spans);
        const uint32 of_columns = blockIdx.x / columns;
        d0 = int64(blockIdx.x % columns) * COLUMN;
        row = of_columns / spans;
        span = of_columns % spans;
        d = d0 + lane * VECTOR;
        start = (span * WARPS + warp) * p.run;
        steps = d < p.dim ? int(max(0ll, min(p.run, p.length - start))) : 0;
    }
};

// Weights by lag, then bias, of a block's channels: through shared memory, where W neighbours in memory come apart.
struct Filter {
    float at[WIDTH + 1][COLUMN + 8];  // 8: the W weights of 8 channels go to 32 banks

    INLINE void load(const Parameters& p, int64 d0) {
        const int channels = int(min(int64(COLUMN), p.dim - d0));
#pragma unroll
        for (int from = 0; from < COLUMN; from += THREADS) {
            const int i = from + threadIdx.x;
            float v = 0.0f;
            if (i < channels && p.bias) v = to_float(p.bias[d0 + i]);
            if (i < COLUMN) at[WIDTH][i] = v;
        }
#pragma unroll
        for (int from = 0; from < COLUMN * WIDTH; from += THREADS) {
            const int i = from + threadIdx.x;
            if (i < channels * WIDTH) at[HISTORY - i % WIDTH][i / WIDTH] = to_float(p.weight[d0 * WIDTH + i]);
        }
    }
};

struct Batch {
    Raw at[STEPS];
};

// The next STEPS steps of a tensor, on their way; zeros past the last one.
struct Ahead {
    Batch next;
    const X_TYPE* from;
    int64 stride;

    INLINE Ahead(const X_TYPE* first, int64 stride, int left) : from(first), stride(stride) { fetch(left); }
    INLINE void fetch(int left) {
#pragma unroll
        for (int i = 0; i < STEPS; ++i) {
            next.at[i] = Raw{};
            if (i < left) next.at[i].load(from + i * stride);
        }
        from += STEPS * stride;
    }
    // And asks for those after them, of which `left` are there.
    INLINE Batch take(int left) {
        const Batch now = next;
        fetch(left);
        return now;
    }
};

// What a thread keeps while it walks: index j of a window is step t-(W-1)+j, where t is the next step.
struct Walk {
    float weight[WIDTH][VECTOR], bias[VECTOR];
    float xs[VECTOR][HISTORY + STEPS];
    int ids[HISTORY + STEPS], next_ids[STEPS];
    const int* sequence;
    int64 t, length;
    Raw past[HISTORY];

    INLINE Walk(const Parameters& p, const Run& me, const X_TYPE* x)
        : sequence(p.sequence + me.row * p.length), t(me.start), length(p.length) {
#pragma unroll
        for (int j = 0; j < HISTORY; ++j) {
            past[j] = Raw{};
            if (me.steps > 0 && t > 0) past[j].load(x + (j - HISTORY) * p.x_t);
            if (PACKED) ids[j] = sequence_at(sequence, t + j - HISTORY, length);
        }
        fetch_ids();
    }
    INLINE void fetch_ids() {
#pragma unroll
        for (int i = 0; i < STEPS; ++i)
            if (PACKED) next_ids[i] = sequence_at(sequence, t + i, length);
    }
    // Once the first loads are all on their way.
    INLINE void start(const Parameters& p, const Run& me, const Filter& filter) {
#pragma unroll
        for (int k = 0; k <= WIDTH; ++k) {
            const Pack<float, VECTOR> v = load_pack<float, VECTOR>(&filter.at[k][me.lane * VECTOR]);
#pragma unroll
            for (int c = 0; c < VECTOR; ++c) (k < WIDTH ? weight[k] : bias)[c] = v.at[c];
        }
#pragma unroll
        for (int j = 0; j < HISTORY; ++j)
#pragma unroll
            for (int c = 0; c < VECTOR; ++c) xs[c][j] = past[j][c];
        if (me.steps > 0 && t == 0 && p.initial)
#pragma unroll
            for (int j = 0; j < HISTORY; ++j)
#pragma unroll
                for (int c = 0; c < VECTOR; ++c) xs[c][j] = initial_at(p, me.row, me.d + c, j - HISTORY);
    }
    INLINE void take(const Batch& now) {
#pragma unroll
        for (int i = 0; i < STEPS; ++i) {
#pragma unroll
            for (int c = 0; c < VECTOR; ++c) xs[c][HISTORY + i] = now.at[i][c];
            if (PACKED) ids[HISTORY + i] = next_ids[i];
        }
        t += STEPS;
        fetch_ids();
    }
    // The input k steps before the i-th that was taken, if it is of the same sequence.
    INLINE float before(int c, int i, int k) const {
        return PACKED && ids[HISTORY + i - k] != ids[HISTORY + i] ? 0.0f : xs[c][HISTORY + i - k];
    }
    INLINE float sum(int c, int i) const {
        float s = bias[c];
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) s = fmaf(weight[k][c], before(c, i, k), s);
        return s;
    }
    INLINE void move_on() {
#pragma unroll
        for (int j = 0; j < HISTORY; ++j) {
#pragma unroll
            for (int c = 0; c < VECTOR; ++c) xs[c][j] = xs[c][STEPS + j];
            if (PACKED) ids[j] = ids[STEPS + j];
        }
    }
};

INLINE void forward_channel_last(const Parameters& p) {
    __shared__ __align__(16) Filter filter;
    const Run me(p);
    const X_TYPE* x = p.x + me.row * p.x_b + me.d * p.x_d + me.start * p.x_t;
    X_TYPE* out = p.y + me.row * p.y_b + me.d * p.y_d + me.start * p.y_t;

    Ahead xs(x, p.x_t, me.steps);
    Walk walk(p, me, x);
    filter.load(p, me.d0);
    __syncthreads();
    walk.start(p, me, filter);

    for (int t = 0; t < me.steps; t += STEPS) {
        walk.take(xs.take(me.steps - t - STEPS));
#pragma unroll
        for (int i = 0; i < STEPS; ++i) {
            Numbers y;
#pragma unroll
            for (int c = 0; c < VECTOR; ++c) {
                const float v = activated(walk.sum(c, i));
                y.at[c] = from_float<X_TYPE>(PACKED && walk.ids[HISTORY + i] < 0 ? 0.0f : v);
            }
            if (t + i < me.steps) store_pack<X_TYPE, VECTOR>(out + i * p.y_t, y);
        }
        out += STEPS * p.y_t;
        walk.move_on();
    }
}

INLINE void backward_channel_last(const Parameters& p) {
    __shared__ __align__(16) Filter filter;
    __shared__ __align__(16) float partial[WARPS][WIDTH + 1][COLUMN];
    const Run me(p);
    const X_TYPE* x = p.x + me.row * p.x_b + me.d * p.x_d + me.start * p.x_t;
    const X_TYPE* dout = p.y + me.row * p.y_b + me.d * p.y_d + me.start * p.y_t;
    X_TYPE* dx = p.dx + me.row * p.dx_b + me.d * p.dx_d + (me.start - HISTORY) * p.dx_t;
    const int steps = me.steps > 0 ? me.steps + HISTORY : 0;  // dy is needed of so many
    const int inside = int(min(int64(steps), p.length - me.start));

    Ahead xs(x, p.x_t, inside), douts(dout, p.y_t, inside);
    Walk walk(p, me, x);
    filter.load(p, me.d0);
    __syncthreads();
    walk.start(p, me, filter);

    float dy[VECTOR][HISTORY + STEPS], sums[WIDTH + 1][VECTOR];
#pragma unroll
    for (int c = 0; c < VECTOR; ++c) {
#pragma unroll
        for (int j = 0; j < HISTORY; ++j) dy[c][j] = 0.0f;
#pragma unroll
        for (int k = 0; k <= WIDTH; ++k) sums[k][c] = 0.0f;
    }
    for (int t = 0; t < steps; t += STEPS) {
        walk.take(xs.take(inside - t - STEPS));
        const Batch now = douts.take(inside - t - STEPS);
#pragma unroll
        for (int i = 0; i < STEPS; ++i) {
            // The run before counts the first W-1 steps, as this one those past its end; past the last step dout is 0.
            const bool counted = i >= HISTORY || t > 0 || me.start == 0;
            const bool shown = !PACKED || walk.ids[HISTORY + i] >= 0;
            float sum[VECTOR];  // dx of step t + i - HISTORY
#pragma unroll
            for (int c = 0; c < VECTOR; ++c) {
                const float dy_now = shown ? now.at[i][c] * slope(walk.sum(c, i)) : 0.0f;
                dy[c][HISTORY + i] = dy_now;
                const float part = counted ? dy_now : 0.0f;
#pragma unroll
                for (int k = 0; k < WIDTH; ++k) sums[k][c] = fmaf(part, walk.before(c, i, k), sums[k][c]);
                sums[WIDTH][c] += part;
                sum[c] = 0.0f;
#pragma unroll
                for (int k = 0; k < WIDTH; ++k)
                    if (!PACKED || walk.ids[i + k] == walk.ids[i])
                        sum[c] = fmaf(walk.weight[k][c], dy[c][i + k], sum[c]);
            }
            if (i >= HISTORY || t > 0) {
                Numbers v;
#pragma unroll
                for (int c = 0; c < VECTOR; ++c) v.at[c] = from_float<X_TYPE>(sum[c]);
                if (t + i < steps) store_pack<X_TYPE, VECTOR>(dx + i * p.dx_t, v);
            } else if (me.start == 0 && p.dinitial) {
#pragma unroll
                for (int c = 0; c < VECTOR; ++c)
                    p.dinitial[(me.row * p.dim + me.d + c) * HISTORY + i] = from_float<INITIAL_TYPE>(sum[c]);
            }
        }
        dx += STEPS * p.dx_t;
        walk.move_on();
#pragma unroll
        for (int c = 0; c < VECTOR; ++c)
#pragma unroll
            for (int j = 0; j < HISTORY; ++j) dy[c][j] = dy[c][STEPS + j];
    }

    // The warps of a block are added here, so that few partial sums reach memory.
#pragma unroll
    for (int k = 0; k <= WIDTH; ++k) {
        Pack<float, VECTOR> v;
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) v.at[c] = sums[k][c];
        store_pack<float, VECTOR>(&partial[me.warp][k][me.lane * VECTOR], v);
    }
    __syncthreads();
    const int channels = int(min(int64(COLUMN), p.dim - me.d0));
    float* to = p.sums + (me.row * p.spans + me.span) * p.dim * (WIDTH + 1);
    for (int i = threadIdx.x; i < channels * (WIDTH + 1); i += THREADS) {
        const bool of_bias = i >= channels * WIDTH;
        const int c = of_bias ? i - channels * WIDTH : i / WIDTH, k = of_bias ? WIDTH : HISTORY - i % WIDTH;
        float v = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) v += partial[w][k][c];
        to[of_bias ? p.dim * WIDTH + me.d0 + c : me.d0 * WIDTH + i] = v;
    }
}

// ---- channel-first ----------------------------------------------------------------------------------------------------

struct Row {
    int lane;
    int64 row, span, d, start, stop;
    float weight[WIDTH], bias;  // by lag

    INLINE explicit Row(const Parameters& p) {
        lane = threadIdx.x % 32;
        const uint32 bands = uint32((p.dim + WARPS - 1) / WARPS), spans = uint32(p.spans);
        const uint32 of_spans = blockIdx.x / spans;
        span = blockIdx.x % spans;
        d = int64(of_spans % bands) * WARPS + threadIdx.x / 32;
        row = of_spans / bands;
        start = span * p.run;
        stop = min(start + p.run, p.length);
    }
    INLINE void load_filter(const Parameters& p) {
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) weight[k] = to_float(p.weight[d * WIDTH + HISTORY - k]);
        bias = p.bias ? to_float(p.bias[d]) : 0.0f;
    }
};

INLINE Raw load_tile(const X_TYPE* at, int64 stride, int64 left) {
    Raw v = {};
    if (VECTORS) {
        if (left > 0) v.load(at);
        return v;
    }
#pragma unroll
    for (int i = 0; i < VECTOR; ++i)
        if (i < left) v.load(at + i * stride, i);
    return v;
}

INLINE void store_tile(X_TYPE* at, const Numbers& v, int64 stride, int64 left) {
    if (VECTORS) {
        if (left > 0) store_pack<X_TYPE, VECTOR>(at, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < VECTOR; ++i)
        if (i < left) at[i * stride] = v.at[i];
}

// x of the step t < L of the channel at `x`, which may lie before the first step.
INLINE float input_at(const Parameters& p, const Row& me, const X_TYPE* x, int64 t) {
    return t < 0 ? initial_at(p, me.row, me.d, t) : to_float(x[t * p.x_t]);
}

// A lane's steps of a tile with the W-1 before them.
struct Window {
    float xs[HISTORY + VECTOR];
    int ids[HISTORY + VECTOR + HISTORY];  // and with the W-1 after them

    INLINE void take(const Raw& v) {
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) xs[HISTORY + i] = v[i];
    }
    INLINE void load_ids(const Parameters& p, const int* sequence, int64 t) {
#pragma unroll
        for (int i = 0; i < HISTORY + VECTOR + (BACKWARD ? HISTORY : 0); ++i)
            ids[i] = sequence_at(sequence, t + i - HISTORY, p.length);
    }
    INLINE float before(int i, int k) const {
        return PACKED && ids[HISTORY + i - k] != ids[HISTORY + i] ? 0.0f : xs[HISTORY + i - k];
    }
    INLINE float sum(const Row& me, int i) const {
        float s = me.bias;
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) s = fmaf(me.weight[k], before(i, k), s);
        return s;
    }
};

INLINE void forward_channel_first(const Parameters& p) {
    Row me(p);
    if (me.d >= p.dim) return;
    const X_TYPE* x = p.x + me.row * p.x_b + me.d * p.x_d;
    X_TYPE* out = p.y + me.row * p.y_b + me.d * p.y_d;
    const int* sequence = p.sequence + me.row * p.length;

    int64 t = me.start + me.lane * VECTOR;
    Raw next[TILES];
    auto fetch = [&](int64 from) {
#pragma unroll
        for (int a = 0; a < TILES; ++a)
            next[a] = load_tile(x + (from + a * TILE) * p.x_t, p.x_t, me.stop - from - a * TILE);
    };
    fetch(t);
    me.load_filter(p);
    float past[HISTORY];  // in lane 31: its last W-1 inputs of the tile before
#pragma unroll
    for (int j = 0; j < HISTORY; ++j) past[j] = input_at(p, me, x, me.start + j - HISTORY);

    for (int64 t0 = me.start; t0 < me.stop; t0 += TILES * TILE) {
        Raw now[TILES];
#pragma unroll
        for (int a = 0; a < TILES; ++a) now[a] = next[a];
        fetch(t + TILES * TILE);
#pragma unroll
        for (int a = 0; a < TILES; ++a) {
            if (t0 + a * TILE >= me.stop) break;
            Window window;
            window.take(now[a]);
#pragma unroll
            for (int j = 0; j < HISTORY; ++j) {
                const float mine = window.xs[VECTOR + j];
                window.xs[j] = __shfl_sync(FULL_WARP, me.lane == 31 ? past[j] : mine, (me.lane + 31) % 32);
                past[j] = mine;
            }
            if (PACKED) window.load_ids(p, sequence, t);
            Numbers y;
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) {
                const float v = activated(window.sum(me, i));
                y.at[i] = from_float<X_TYPE>(PACKED && window.ids[HISTORY + i] < 0 ? 0.0f : v);
            }
            store_tile(out + t * p.y_t, y, p.y_t, me.stop - t);
            t += TILE;
        }
    }
}

INLINE void backward_channel_first(const Parameters& p) {
    Row me(p);
    if (me.d >= p.dim) return;
    const X_TYPE* x = p.x + me.row * p.x_b + me.d * p.x_d;
    const X_TYPE* dout = p.y + me.row * p.y_b + me.d * p.y_d;
    X_TYPE* dx = p.dx + me.row * p.dx_b + me.d * p.dx_d;
    const int* sequence = p.sequence + me.row * p.length;

    int64 t0 = me.start + (me.stop - me.start - 1) / TILE * TILE;
    Raw x_next, dout_next, past_next;  // past: in lane 0, the inputs before the tile
    auto fetch = [&](int64 from) {
        const int64 t = from + me.lane * VECTOR;
        x_next = load_tile(x + t * p.x_t, p.x_t, me.stop - t);
        dout_next = load_tile(dout + t * p.y_t, p.y_t, me.stop - t);
        past_next = load_tile(x + (from - VECTOR) * p.x_t, p.x_t, me.lane == 0 && from > 0 ? VECTOR : 0);
    };
    fetch(t0);
    me.load_filter(p);

    float sums[WIDTH + 1];
#pragma unroll
    for (int k = 0; k <= WIDTH; ++k) sums[k] = 0.0f;
    float later[HISTORY];  // in lane 0: dy of its first W-1 steps of the tile after
    {
        const int64 t = me.stop + me.lane;
        float v = 0.0f;
        if (me.lane < HISTORY && t < p.length && (!PACKED || sequence[t] >= 0)) {
            float s = me.bias;
#pragma unroll
            for (int k = 0; k < WIDTH; ++k)
                if (!PACKED || sequence[t - k] == sequence[t]) s = fmaf(me.weight[k], to_float(x[(t - k) * p.x_t]), s);
            v = to_float(dout[t * p.y_t]) * slope(s);
        }
#pragma unroll
        for (int j = 0; j < HISTORY; ++j) later[j] = __shfl_sync(FULL_WARP, v, j);
    }

    for (; t0 >= me.start; t0 -= TILE) {
        const int64 t = t0 + me.lane * VECTOR;
        Window window;
        window.take(x_next);
        const Raw dout_now = dout_next, past = past_next;
        if (t0 > me.start) fetch(t0 - TILE);
#pragma unroll
        for (int j = 0; j < HISTORY; ++j) {
            const float before = __shfl_up_sync(FULL_WARP, window.xs[VECTOR + j], 1);
            window.xs[j] = me.lane == 0 ? past[VECTOR - HISTORY + j] : before;
        }
        if (t == 0)
#pragma unroll
            for (int j = 0; j < HISTORY; ++j) window.xs[j] = initial_at(p, me.row, me.d, j - HISTORY);
        if (PACKED) window.load_ids(p, sequence, t);

        float dy[VECTOR + HISTORY];
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            const bool shown = !PACKED || window.ids[HISTORY + i] >= 0;
            dy[i] = shown ? dout_now[i] * slope(window.sum(me, i)) : 0.0f;
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) sums[k] = fmaf(dy[i], window.before(i, k), sums[k]);
            sums[WIDTH] += dy[i];
        }
#pragma unroll
        for (int j = 0; j < HISTORY; ++j) {
            dy[VECTOR + j] = __shfl_sync(FULL_WARP, me.lane == 0 ? later[j] : dy[j], (me.lane + 1) % 32);
            later[j] = dy[j];
        }
        Numbers v;
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            float sum = 0.0f;
#pragma unroll
            for (int k = 0; k < WIDTH; ++k)
                if (!PACKED || window.ids[HISTORY + i + k] == window.ids[HISTORY + i])
                    sum = fmaf(me.weight[k], dy[i + k], sum);
            v.at[i] = from_float<X_TYPE>(sum);
        }
        store_tile(dx + t * p.dx_t, v, p.dx_t, me.stop - t);
        if (t == 0 && p.dinitial)
#pragma unroll
            for (int j = 0; j < HISTORY; ++j) {
                float sum = 0.0f;
#pragma unroll
                for (int k = HISTORY - j; k < WIDTH; ++k)
                    if (!PACKED || window.ids[j + k] == window.ids[0])
                        sum = fmaf(me.weight[k], dy[j - HISTORY + k], sum);
                p.dinitial[(me.row * p.dim + me.d) * HISTORY + j] = from_float<INITIAL_TYPE>(sum);
            }
    }

    float* to = p.sums + (me.row * p.spans + me.span) * p.dim * (WIDTH + 1);
#pragma unroll
    for (int k = 0; k <= WIDTH; ++k) {
        float v = sums[k];
#pragma unroll
        for (int bit = 1; bit < 32; bit *= 2) v += __shfl_xor_sync(FULL_WARP, v, bit);
        if (me.lane == 0) to[k < WIDTH ? me.d * WIDTH + HISTORY - k : p.dim * WIDTH + me.d] = v;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) causal_conv1d(const Parameters p) {
    if constexpr (CHANNEL_LAST && BACKWARD) backward_channel_last(p);
    if constexpr (CHANNEL_LAST && !BACKWARD) forward_channel_last(p);
    if constexpr (!CHANNEL_LAST && BACKWARD) backward_channel_first(p);
    if constexpr (!CHANNEL_LAST && !BACKWARD) forward_channel_first(p);
}
