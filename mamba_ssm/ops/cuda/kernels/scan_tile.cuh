#pragma once
#include "prelude.cuh"
// How a warp divides a tile of the selective scan: channels and states over its lanes, loads and stores over its lanes.
//
// Constants, set when the kernel is compiled:
//   STATES    N, the states of a channel                LANES   lanes that share a channel, each with NS of its states
//   WARPS     warps of a block                          TILE    steps of time that are loaded at once
//   OWN       what a lane loads of a tile. 2: two channels, for channel-last tensors; 1: one, for channel-first
//   U_STEP .. elements from a step of u, z, B, .. to the next: an address is then a constant away from another; 0: unknown
//   SAME      whether delta, out, .. have the strides of u;  SAME_Z  whether dz has those of z
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
constexpr int OWNERS_APART = OWN == 2 ? BLOCK_CHANNELS / OWN_C : 1;  // threads from an owner of a channel to the next
constexpr int OWNERS = TILE / OWN_T;                                 // how many own numbers of a channel
constexpr int GROUP = LANES / 2;                 // steps whose outputs, of two channels, make one number a lane
constexpr int BC_ROW = LANES * 2 * NS + 4;       // floats of one step: B and C of each lane's states; 4 against conflicts
constexpr int PAIR_ROW = TILE + 2, ROW = TILE + 4;
static_assert(OWN_T % 2 == 0, "a lane owns whole vectors of steps");
static_assert(LANES >= 4 && LANES <= 16, "2 to 8 channels a half warp");

// Which part of the whole a block has. The grid is one row of blocks, for its other dimensions are short.
struct Part {
    int64 row, chunk, group, block, groups;  // block: of those that share the group's channels

    INLINE Part(int64 dim, int64 group_dim, int64 chunks) {
        groups = uint32(dim) / uint32(group_dim);  // 32 bits: a division of 64 is a hundred instructions
        const uint32 group_blocks = (uint32(group_dim) + BLOCK_CHANNELS - 1) / BLOCK_CHANNELS;
        const uint32 blocks = uint32(groups) * group_blocks, of_row = blockIdx.x / blocks, of_blocks = blockIdx.x % blocks;
        row = of_row / uint32(chunks), chunk = of_row % uint32(chunks);
        group = of_blocks / group_blocks, block = of_blocks % group_blocks;
    }
};

struct Lane {
    int lane, warp;
    int slot;      // which of the LANES that share a channel: it has states slot*NS .. slot*NS + NS-1
    int channels;  // its two channels are channels, channels+1 of the block
    bool swapped;  // it carries them the other way round, so that the first is the one whose sum it will hold
    int own_c, own_t;  // what it loads and stores of a tile begins at this channel of the block and this step

    INLINE Lane() {
        lane = threadIdx.x % 32;
        warp = threadIdx.x / 32;
        slot = (lane >> 1) % LANES;
        channels = warp * WARP_CHANNELS + 2 * ((lane & 1) | (lane / (2 * LANES)) << 1);
        swapped = slot >= LANES / 2;
        if (OWN == 2) {  // along the channels first, so that a warp touches few rows
            own_c = threadIdx.x % OWNERS_APART * OWN_C;
            own_t = threadIdx.x / OWNERS_APART * OWN_T;
        } else {
            own_c = threadIdx.x / OWNERS;
            own_t = threadIdx.x % OWNERS * OWN_T;
        }
    }
    // The block's channel that the lane carries first (k = 0) or second.
    INLINE int channel(int k) const { return channels + (k ^ int(swapped)); }
};

// Where a lane's numbers of a tensor (B, D, L) are: of its first channel, at its first step of the current tile. A lane
// whose channels lie outside reads others that lie inside instead, so that loads need no branches; what it makes of them
// is not stored. Tensors with the same strides have the same place, which saves registers: hence an offset, not a pointer.
struct Place {
    int64 at, next_d;  // in elements; next_d: from the first owned channel to the second
    int stride_t;

    // d: the lane's first channel, of which `channels` exist from there on. t: its first step.
    INLINE Place(int64 row, int64 stride_b, int64 stride_d, int64 stride_t, int64 d, int channels, int64 t)
        : at(row * stride_b + (d + (channels > 0 ? 0 : (channels - 1) & -OWN_C)) * stride_d + t * stride_t),
          next_d(channels > 1 ? stride_d : 0),
          stride_t(int(stride_t)) {}

    INLINE void move(int steps) { at += int64(steps) * stride_t; }
};

// A stride that is known when the kernel is compiled, or not.
INLINE int64 step_of(int known, int64 given) { return known ? known : given; }

// The block's numbers of p in the tile `steps` after the current one; `which` of up to four tensors p is.
template <typename T> INLINE void prefetch_tile(const T* p, const Place& place, const Lane& me, int steps, int which) {
    if (OWN == 1)
        prefetch(p + place.at + int64(steps) * place.stride_t);
    else if (me.warp % 4 == which && me.lane < TILE)  // a step a lane
        prefetch(p + place.at - me.own_c + int64(steps + me.lane - me.own_t) * place.stride_t);
}

// Numbers of u, delta, z, .. that a lane owns in one tile, number i = channel * OWN_T + step. They stay as the words that
// were loaded until they are used, so that nothing waits for a load that was meant to be early.
template <typename T, int LAYOUT> struct Own {
    static constexpr bool PACKED_WORDS = LAYOUT == OWN;
    static constexpr int WORDS = PACKED_WORDS ? OWNED * int(sizeof(T)) / 4 : OWNED;
    uint32 word[WORDS] = {};

    INLINE float operator[](int i) const {
        if (!PACKED_WORDS) return from_bits<T>(word[i]);
        const int e = OWN == 2 ? i % OWN_T * 2 + i / OWN_T : i;  // its place in memory
        if (sizeof(T) == 4) return from_bits<T>(word[e]);
        if (e % 2 == 0) return from_bits<T>(word[e / 2] & 0xffffu);
        return from_bits<T>(word[e / 2] >> 16);
    }

    // left: steps of the tile that exist. Numbers of the others stay as they were: their steps get dt = 0, which leaves the
    // state alone.
    INLINE void load(const T* p, const Place& place, const Lane& me, int left) {
        p += place.at;
        if constexpr (PACKED_WORDS && OWN == 1) {  // L is a multiple of OWN_T
            if (me.own_t < left) read<WORDS>(p, 0);
        } else {
#pragma unroll
            for (int t = 0; t < OWN_T; ++t)
                if (me.own_t + t < left) load_step(p + int64(t) * place.stride_t, place, t);
        }
    }

  private:
    template <int COUNT> INLINE void read(const T* p, int to) {
        constexpr int AT_ONCE = COUNT < 4 ? COUNT : 4;
#pragma unroll
        for (int w = 0; w < COUNT; w += AT_ONCE) {
            const auto some = load_pack<uint32, AT_ONCE>(reinterpret_cast<const uint32*>(p) + w);
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) word[to + w + i] = some.at[i];
        }
    }
    INLINE void load_step(const T* p, const Place& place, int t) {
        if constexpr (PACKED_WORDS) {
            constexpr int OF_STEP = WORDS / OWN_T;
            read<OF_STEP>(p, t * OF_STEP);
        } else {
#pragma unroll
            for (int c = 0; c < OWN_C; ++c) word[c * OWN_T + t] = to_bits(p[c * place.next_d]);
        }
    }
};

template <typename T, int LAYOUT>
INLINE void store_own(T* to, const Place& place, const float (&v)[OWNED], const Lane& me, int left, int channels) {
    to += place.at;
    if constexpr (LAYOUT == OWN && OWN == 1) {
        if (channels <= 0 || me.own_t >= left) return;
        uint32* p = reinterpret_cast<uint32*>(to);
        constexpr int WORDS = OWNED * int(sizeof(T)) / 4, AT_ONCE = WORDS < 4 ? WORDS : 4;
#pragma unroll
        for (int w = 0; w < WORDS; w += AT_ONCE) {
            Pack<uint32, AT_ONCE> some;
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i)
                if constexpr (sizeof(T) == 4)
                    some.at[i] = to_bits(v[w + i]);
                else
                    some.at[i] = pack_two<T>(v[(w + i) * 2], v[(w + i) * 2 + 1]);
            store_pack<uint32, AT_ONCE>(p + w, some);
        }
    } else {
#pragma unroll
        for (int t = 0; t < OWN_T; ++t) {
            T* p = to + int64(t) * place.stride_t;
            const bool inside = me.own_t + t < left;
            if constexpr (LAYOUT == OWN) {
                if (!inside || channels <= 0) continue;
                const float second = v[(OWN_C - 1) * OWN_T + t];
                if constexpr (sizeof(T) == 4)
                    store_pack<float, 2>(reinterpret_cast<float*>(p), Pack<float, 2>{{v[t], second}});
                else
                    *reinterpret_cast<uint32*>(p) = pack_two<T>(v[t], second);
            } else {
#pragma unroll
                for (int c = 0; c < OWN_C; ++c)
                    if (inside && c < channels) p[c * place.next_d] = from_float<T>(v[c * OWN_T + t]);
            }
        }
    }
}

// The owned numbers of an array [channel][time] in shared memory.
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
    static constexpr bool PACKED_WORDS = LAYOUT == 2 && NS * sizeof(T) >= 4;
    static constexpr int WORDS = PACKED_WORDS ? NS * int(sizeof(T)) / 4 : NS;
    uint32 word[UNITS][WORDS] = {};

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

    // p: at the thread's first unit (see `first`); left: steps of the tile that exist. The others stay as they were.
    INLINE void load(const T* p, int64 stride_n, int64 stride_t, int left) {
#pragma unroll
        for (int i = 0; i < UNITS; ++i) {
            if (!mine(i) || step(i) >= left) continue;
            const T* from = p;
            if (LAYOUT != 1)  // a unit's successor has the same slot
                from += int64(i * (THREADS / LANES)) * int(stride_t);
            else
                from += (step(i) - step(0)) * stride_t + (slot(i) - slot(0)) * NS * stride_n;
            if constexpr (PACKED_WORDS) {
                constexpr int AT_ONCE = WORDS < 4 ? WORDS : 4;
#pragma unroll
                for (int w = 0; w < WORDS; w += AT_ONCE) {
                    const auto some = load_pack<uint32, AT_ONCE>(reinterpret_cast<const uint32*>(from) + w);
#pragma unroll
                    for (int j = 0; j < AT_ONCE; ++j) word[i][w + j] = some.at[j];
                }
            } else {
#pragma unroll
                for (int n = 0; n < NS; ++n)
                    word[i][n] = to_bits(from[(min(slot(i) * NS + n, STATES - 1) - slot(i) * NS) * stride_n]);
            }
        }
    }

    // Where the thread's first unit is, from p, the tile's first step and the first state.
    static INLINE const T* first(const T* p, int64 stride_n, int64 stride_t) {
        return p + step(0) * stride_t + slot(0) * NS * stride_n;
    }

    INLINE float get(int i, int n) const {
        if (!PACKED_WORDS || sizeof(T) == 4) return from_bits<T>(word[i][n]);
        return from_bits<T>(n % 2 ? word[i][n / 2] >> 16 : word[i][n / 2] & 0xffffu);
    }

    // What a unit has of shared memory's row; states that do not exist are 0.
    INLINE Pack<float, NS> unit(int i) const {
        Pack<float, NS> v;
#pragma unroll
        for (int n = 0; n < NS; ++n)
            v.at[n] = LANES * NS == STATES || slot(i) * NS + n < STATES ? get(i, n) : 0.0f;
        return v;
    }
};

using StatesB = States<B_TYPE, B_LAYOUT>;
using StatesC = States<C_TYPE, C_LAYOUT>;

INLINE void store_states(float (*rows)[BC_ROW], const StatesB& B, const StatesC& C) {
#pragma unroll
    for (int i = 0; i < UNITS; ++i) {
        if (!StatesB::mine(i)) continue;
        const Pack<float, NS> b = B.unit(i), c = C.unit(i);
        if constexpr ((B_LAYOUT == 1) == (C_LAYOUT == 1)) {
            Pack<float, 2 * NS> both;
#pragma unroll
            for (int n = 0; n < NS; ++n) both.at[n] = b.at[n], both.at[NS + n] = c.at[n];
            store_pack<float, 2 * NS>(&rows[StatesB::step(i)][StatesB::slot(i) * 2 * NS], both);
        } else {
            store_pack<float, NS>(&rows[StatesB::step(i)][StatesB::slot(i) * 2 * NS], b);
            store_pack<float, NS>(&rows[StatesC::step(i)][StatesC::slot(i) * 2 * NS + NS], c);
        }
    }
}

// One of the two alone: part 0 for B, 1 for C.
template <typename S> INLINE void store_states(float (*rows)[BC_ROW], const S& states, int part) {
#pragma unroll
    for (int i = 0; i < UNITS; ++i)
        if (S::mine(i)) store_pack<float, NS>(&rows[S::step(i)][(S::slot(i) * 2 + part) * NS], states.unit(i));
}

// The decay of step i, channel k, state n of a walk that needs states alone. It has so little else to do that the special
// function unit binds: one in eight goes another way.
INLINE float decay_of_state_walk(float exponent, int i, int k, int n) {
    return n == 0 && i % 4 == 2 * k ? exp2_by_parts(exponent) : exp2_fast(exponent);
}

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

// Sums over the threads that own numbers of the same channel; the first of them (own_t = 0) gets the sum.
INLINE float sum_over_owners(float v, float* scratch) {
    __syncthreads();
    scratch[threadIdx.x] = v;
    __syncthreads();
    float sum = 0.0f;
    if (threadIdx.x + (OWNERS - 1) * OWNERS_APART < THREADS)
#pragma unroll
        for (int k = 0; k < OWNERS; ++k) sum += scratch[threadIdx.x + k * OWNERS_APART];
    return sum;
}

// Which steps of a tile from t0 on begin another sequence, a bit each.
INLINE uint32 resets_of_tile(const int* sequence, int64 t0, int64 stop, int lane) {
    int64 t = t0 + lane;
    bool reset = lane < TILE && t < stop && t > 0 && sequence[t] != sequence[t - 1];
    return __ballot_sync(FULL_WARP, reset);
}
