#pragma once
#include "prelude.cuh"
// How a warp divides a tile of the selective scan: channels and states over its lanes, loads and stores over its lanes.
//
// Constants, set when the kernel is compiled:
//   STATES    N, the states of a channel                LANES   lanes that share a channel, each with NS of its states
//   WARPS     warps of a block                          TILE    steps of time that are loaded at once
//   OWN       what a lane loads of a tile. 2: two channels, for channel-last tensors; 1: one, for channel-first
//   U_TYPE .. float, bf16 or fp16                       U_LAYOUT ..  as OWN where a tensor can be loaded in vectors of
//                                                       that shape; 0: number by number, any strides
//
// A lane carries two channels, so that each B and C that it reads from shared memory serves twice. Shared memory hands
// out 16 bytes a lane in 2 passes instead of 4 where lanes i and i^1, or i and i^2, read the same address. Hence the bits
// of a lane: bit 0 tells channels apart (the same B and C), the next log2(LANES) bits states, the others channels again.

INLINE constexpr int power_of_two_from(int n) { return n <= 1 ? 1 : 2 * power_of_two_from((n + 1) / 2); }

constexpr int NS = power_of_two_from((STATES + LANES - 1) / LANES);
constexpr int THREADS = WARPS * 32;
constexpr int WARP_CHANNELS = 2 * 32 / LANES;
constexpr int BLOCK_CHANNELS = WARPS * WARP_CHANNELS;
constexpr int OWNED = WARP_CHANNELS * TILE / 32;
constexpr int OWN_C = OWN == 2 ? 2 : 1, OWN_T = OWNED / OWN_C;
constexpr int OWN_ROWS = WARP_CHANNELS / OWN_C;  // lanes side by side along the channels
constexpr int GROUP = LANES / 2;                 // steps whose outputs, of two channels, make one number a lane
constexpr int BC_ROW = LANES * 2 * NS + 4;       // floats of one step: B and C of each lane's states; 4 against conflicts
constexpr int PAIR_ROW = TILE + 2, ROW = TILE + 4;
static_assert(OWN_T % 2 == 0, "a lane owns whole vectors of steps");
static_assert(LANES >= 4 && LANES <= 16, "2 to 8 channels a half warp");

struct Lane {
    int lane, warp;
    int slot;      // which of the LANES that share a channel: it has states slot*NS .. slot*NS + NS-1
    int channels;  // its two channels are channels, channels+1 of the warp
    bool swapped;  // it carries them the other way round, so that the first is the one whose sum it will hold
    int own_c, own_t;

    INLINE Lane() {
        lane = threadIdx.x % 32;
        warp = threadIdx.x / 32;
        slot = (lane >> 1) % LANES;
        channels = 2 * ((lane & 1) | (lane / (2 * LANES)) << 1);
        swapped = slot >= LANES / 2;
        if (OWN == 2) {
            own_c = lane % OWN_ROWS * 2;
            own_t = lane / OWN_ROWS * OWN_T;
        } else {
            own_c = lane / (TILE / OWN_T);
            own_t = lane % (TILE / OWN_T) * OWN_T;
        }
    }
    // The warp's channel that the lane carries first (k = 0) or second.
    INLINE int channel(int k) const { return channels + (k ^ int(swapped)); }
};

// Numbers of u, delta, z, .. that a lane owns in one tile, as they lie in memory: index c * OWN_T + t.
template <typename T> using Own = Pack<T, OWNED>;

template <typename T, int LAYOUT>
INLINE Own<T> load_own(const T* p, int64 stride_d, int64 stride_t, int channels_left, int steps_left) {
    Own<T> v;
    if (LAYOUT == OWN && channels_left >= OWN_C && steps_left >= OWN_T) {
        if constexpr (OWN == 1) return load_pack<T, OWNED>(p);
#pragma unroll
        for (int t = 0; t < OWN_T; ++t) {
            Pack<T, 2> two = load_pack<T, 2>(p + t * stride_t);
            v.at[t] = two.at[0];
            v.at[(OWN_C - 1) * OWN_T + t] = two.at[1];
        }
        return v;
    }
#pragma unroll
    for (int c = 0; c < OWN_C; ++c)
#pragma unroll
        for (int t = 0; t < OWN_T; ++t)
            v.at[c * OWN_T + t] = c < channels_left && t < steps_left ? p[c * stride_d + t * stride_t] : T{};
    return v;
}

template <typename T, int LAYOUT>
INLINE void store_own(T* p, const Own<T>& v, int64 stride_d, int64 stride_t, int channels_left, int steps_left) {
    if (LAYOUT == OWN && channels_left >= OWN_C && steps_left >= OWN_T) {
        if constexpr (OWN == 1) {
            store_pack<T, OWNED>(p, v);
        } else {
#pragma unroll
            for (int t = 0; t < OWN_T; ++t)
                store_pack<T, 2>(p + t * stride_t, Pack<T, 2>{{v.at[t], v.at[(OWN_C - 1) * OWN_T + t]}});
        }
        return;
    }
#pragma unroll
    for (int c = 0; c < OWN_C; ++c)
#pragma unroll
        for (int t = 0; t < OWN_T; ++t)
            if (c < channels_left && t < steps_left) p[c * stride_d + t * stride_t] = v.at[c * OWN_T + t];
}

// The owned numbers of a warp's array [channel][time] in shared memory.
constexpr int WIDE = OWN_T < 4 ? OWN_T : 4;

INLINE void read_row(const float (*rows)[ROW], const Lane& me, float (&v)[OWNED]) {
#pragma unroll
    for (int i = 0; i < OWNED; i += WIDE) {
        const Pack<float, WIDE> some = load_pack<float, WIDE>(&rows[me.own_c + i / OWN_T][me.own_t + i % OWN_T]);
#pragma unroll
        for (int t = 0; t < WIDE; ++t) v[i + t] = some.at[t];
    }
}

INLINE void write_row(float (*rows)[ROW], const Lane& me, const float (&v)[OWNED]) {
#pragma unroll
    for (int i = 0; i < OWNED; i += WIDE) {
        Pack<float, WIDE> some;
#pragma unroll
        for (int t = 0; t < WIDE; ++t) some.at[t] = v[i + t];
        store_pack<float, WIDE>(&rows[me.own_c + i / OWN_T][me.own_t + i % OWN_T], some);
    }
}

// Two owned numbers of each step, side by side.
INLINE void read_pairs(const float2 (*rows)[PAIR_ROW], const Lane& me, float (&first)[OWNED], float (&second)[OWNED]) {
#pragma unroll
    for (int i = 0; i < OWNED; i += 2) {
        const float4 two = *reinterpret_cast<const float4*>(&rows[me.own_c + i / OWN_T][me.own_t + i % OWN_T]);
        first[i] = two.x, second[i] = two.y, first[i + 1] = two.z, second[i + 1] = two.w;
    }
}

INLINE void write_pairs(float2 (*rows)[PAIR_ROW], const Lane& me, const float (&first)[OWNED],
                        const float (&second)[OWNED]) {
#pragma unroll
    for (int i = 0; i < OWNED; i += 2)
        *reinterpret_cast<float4*>(&rows[me.own_c + i / OWN_T][me.own_t + i % OWN_T]) =
            make_float4(first[i], second[i], first[i + 1], second[i + 1]);
}

// B or C of one tile on its way to shared memory: what this thread fetches of it.
constexpr int UNITS = (TILE * LANES + THREADS - 1) / THREADS;

template <typename T, int LAYOUT> struct States {
    T at[UNITS][NS];

    // A unit is one step and one slot; neighbouring threads go along whichever is contiguous.
    static INLINE int slot(int i) {
        int unit = threadIdx.x + i * THREADS;
        return LAYOUT == 1 ? unit / TILE : unit % LANES;
    }
    static INLINE int step(int i) {
        int unit = threadIdx.x + i * THREADS;
        return LAYOUT == 1 ? unit % TILE : unit / LANES;
    }
    static INLINE bool mine(int i) { return TILE * LANES % THREADS == 0 || threadIdx.x + i * THREADS < TILE * LANES; }

    INLINE void load(const T* p, int64 stride_n, int64 stride_t, int steps_left) {
#pragma unroll
        for (int i = 0; i < UNITS; ++i) {
            bool inside = mine(i) && step(i) < steps_left;
            const T* from = p + step(i) * stride_t + slot(i) * NS * stride_n;
            if (LAYOUT == 2 && STATES % NS == 0 && inside && (slot(i) + 1) * NS <= STATES) {
                Pack<T, NS> v = load_pack<T, NS>(from);
#pragma unroll
                for (int n = 0; n < NS; ++n) at[i][n] = v.at[n];
            } else {
#pragma unroll
                for (int n = 0; n < NS; ++n)
                    at[i][n] = inside && slot(i) * NS + n < STATES ? from[n * stride_n] : T{};
            }
        }
    }
    // part 0 for B, 1 for C.
    INLINE void store(float (*rows)[BC_ROW], int part) const {
#pragma unroll
        for (int i = 0; i < UNITS; ++i)
            if (mine(i)) {
                Pack<float, NS> v;
#pragma unroll
                for (int n = 0; n < NS; ++n) v.at[n] = to_float(at[i][n]);
                store_pack<float, NS>(&rows[step(i)][(slot(i) * 2 + part) * NS], v);
            }
    }
};

// Sums over the lanes that share a channel. In: for each of the lane's two channels K steps. Out: K * 2 / LANES sums a
// lane, of its first channel, for the steps from first_step(K) on.
template <int K> INLINE void sum_over_states(float (&v)[2][K], const Lane& me) {
#pragma unroll
    for (int t = 0; t < K; ++t) v[0][t] += __shfl_xor_sync(FULL_WARP, v[1][t], LANES);
    int count = K;
#pragma unroll
    for (int bit = LANES / 2; bit > 1; bit /= 2) {
        count /= 2;
        bool upper = me.lane & bit;
#pragma unroll
        for (int t = 0; t < count; ++t) {
            float send = upper ? v[0][t] : v[0][t + count];
            float keep = upper ? v[0][t + count] : v[0][t];
            v[0][t] = keep + __shfl_xor_sync(FULL_WARP, send, bit);
        }
    }
}

template <int K> INLINE int first_step(const Lane& me) {
    int at = 0, count = K;
#pragma unroll
    for (int bit = LANES / 2; bit > 1; bit /= 2) {
        count /= 2;
        at += me.lane & bit ? count : 0;
    }
    return at;
}

// Sums over the lanes that own numbers of the same channel; every such lane gets the sum.
INLINE float sum_over_owners(float v) {
    // They differ in the upper bits of their number, or in the lower ones.
#pragma unroll
    for (int bit = OWN == 2 ? OWN_ROWS : 1; bit < (OWN == 2 ? 32 : TILE / OWN_T); bit *= 2)
        v += __shfl_xor_sync(FULL_WARP, v, bit);
    return v;
}

// Which steps of a tile from t0 on begin another sequence, a bit each.
INLINE uint32 resets_of_tile(const int* sequence, int64 t0, int64 stop, int lane) {
    int64 t = t0 + lane;
    bool reset = lane < TILE && t < stop && t > 0 && sequence[t] != sequence[t - 1];
    return __ballot_sync(FULL_WARP, reset);
}

// Dynamic shared memory as a struct: the kernel declares struct Shared, and the host asks SHARED_BYTES how much it needs.
#ifdef EMULATED
#define DECLARE_SHARED(type) static type shared_pool
#define SHARED_POOL(type) shared_pool
#else
#define DECLARE_SHARED(type)                                    \
    extern "C" __device__ const int SHARED_BYTES = sizeof(type); \
    extern __shared__ __align__(16) uint8 shared_pool[]
#define SHARED_POOL(type) (*reinterpret_cast<type*>(shared_pool))
#endif
