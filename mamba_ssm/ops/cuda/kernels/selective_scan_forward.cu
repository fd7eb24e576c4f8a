#include "scan_tile.cuh"
// The selective scan forward (Gu & Dao 2023, arXiv 2312.00752, equation 4 and algorithm 2). For each row of the batch and
// each channel, over time, with N states h:
//
//   dt = softplus(delta + bias)    h <- exp(dt A) h + (dt u) B    y = <C, h> + D u    out = y silu(z)
//
// Bound: N + 3 special functions a number of u, 16 a clock and multiprocessor, so 1.1e11 numbers a second at N = 16 on an
// H100; 8 bytes of bf16 move a number, which at 3 TB/s is 3.7e11. The kernel must hence spend few other instructions: two
// channels share each B and C that is read, softplus and gate are computed once a number by the lane that loads it, and
// the sums over states are scattered over lanes, one shuffle an output and lane.

struct Parameters {
    const U_TYPE* u;
    const DELTA_TYPE* delta;
    const float* A;  // (D, N)
    const B_TYPE* B;
    const C_TYPE* C;
    const float* D;        // (D), or null
    const Z_TYPE* z;       // null where HAS_Z is 0
    const float* bias;     // (D), or null
    const float* initial;  // (B, D, N), or null
    const int* sequence;   // (B, L) where PACKED
    U_TYPE* out;
    float* last;   // (B, D, N): the state after the last step
    float* saved;  // (B, ceil(L / SAVE_EVERY), D, N): the states before every SAVE_EVERY-th step; or null
    float* carry;  // (B, chunks, D, N): the state that each chunk adds
    float* decay;  // (B, chunks, D): the sum of dt over each chunk; -1 where a sequence began in it
    int64 u_b, u_d, u_t, delta_b, delta_d, delta_t, z_b, z_d, z_t, out_b, out_d, out_t;
    int64 B_b, B_g, B_n, B_t, C_b, C_g, C_n, C_t;
    int64 batch, dim, group_dim, length, chunk_length, chunks;
};

struct __align__(16) Shared {
    float BC[TILE][BC_ROW];
    float2 dtx[BLOCK_CHANNELS][PAIR_ROW];
    float y[BLOCK_CHANNELS][ROW];
};

DECLARE_SHARED(Shared);

// What GROUP steps need that does not depend on the state: decays and inputs of a lane's two channels, its B and C.
struct Group {
    float decay[GROUP][2][NS], x[GROUP][2];
    Pack<float, 2 * NS> BC[GROUP];
};

template <bool STATE_ONLY> INLINE void scan(const Parameters& p) {
    Shared& shared = SHARED_POOL(Shared);
    const Lane me;

    const Part part(p.dim, p.group_dim, p.chunks);
    const int64 row = part.row, chunk = part.chunk, group = part.group;
    if (STATE_ONLY && chunk == p.chunks - 1) return;
    const int in_group = int(part.block) * BLOCK_CHANNELS;
    const int64 d0 = group * p.group_dim + in_group;   // the block's first channel
    const int channels = int(p.group_dim) - in_group;  // how many there are from it on
    const int64 start = chunk * p.chunk_length, stop = min(start + p.chunk_length, p.length);

    const int own_channels = channels - me.own_c;
    const int64 own_d = d0 + me.own_c, own_t = start + me.own_t;
    Place u_at(row, p.u_b, p.u_d, step_of(U_STEP, p.u_t), own_d, own_channels, own_t);
    Place delta_at = SAME ? u_at : Place(row, p.delta_b, p.delta_d, p.delta_t, own_d, own_channels, own_t);
    Place z_at(row, p.z_b, p.z_d, step_of(Z_STEP, p.z_t), own_d, own_channels, own_t);
    Place out_at = SAME ? u_at : Place(row, p.out_b, p.out_d, p.out_t, own_d, own_channels, own_t);
    const int64 B_t = step_of(B_STEP, p.B_t), C_t = step_of(C_STEP, p.C_t);
    const B_TYPE* B_at = StatesB::first(p.B + row * p.B_b + group * p.B_g + start * B_t, p.B_n, B_t);
    const C_TYPE* C_at = StatesC::first(p.C + row * p.C_b + group * p.C_g + start * C_t, p.C_n, C_t);


    float bias[OWN_C], skip[OWN_C], dt_sum[OWN_C];
#pragma unroll
    for (int c = 0; c < OWN_C; ++c) {
        bias[c] = p.bias && c < own_channels ? p.bias[own_d + c] : 0.0f;
        skip[c] = p.D && c < own_channels ? p.D[own_d + c] : 0.0f;
        dt_sum[c] = 0.0f;
    }

    float A2[2][NS], h[2][NS];
    int64 state_at[2];  // of the lane's first state, in an array (D, N)
    bool state_in[2][NS];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
        state_at[k] = (d0 + me.channel(k)) * STATES + me.slot * NS;
#pragma unroll
        for (int n = 0; n < NS; ++n) {
            state_in[k][n] = me.channel(k) < channels && me.slot * NS + n < STATES;
            A2[k][n] = state_in[k][n] ? p.A[state_at[k] + n] * LOG2E : 0.0f;
            h[k][n] = 0.0f;
            if (!STATE_ONLY && p.initial && state_in[k][n]) h[k][n] = p.initial[row * p.dim * STATES + state_at[k] + n];
        }
    }
    if (!STATE_ONLY)
        for (int64 j = row * p.chunks; j < row * p.chunks + chunk; ++j)
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                float sum = me.channel(k) < channels ? p.decay[j * p.dim + d0 + me.channel(k)] : 0.0f;
#pragma unroll
                for (int n = 0; n < NS; ++n)
                    if (state_in[k][n])
                        h[k][n] = (sum < 0.0f ? 0.0f : exp2_fast(A2[k][n] * sum) * h[k][n]) +
                                  p.carry[j * p.dim * STATES + state_at[k] + n];
            }

    Own<U_TYPE, U_LAYOUT> u_next;
    Own<DELTA_TYPE, DELTA_LAYOUT> delta_next;
    Own<Z_TYPE, Z_LAYOUT> z_next;
    StatesB B_next;
    StatesC C_next;
    bool began = false;
    // Loads the tile from t0 on, and moves on.
    auto fetch = [&](int64 t0) {
        const int left = int(min(stop - t0, int64(TILE)));
        u_next.load(p.u, u_at, me, left), u_at.move(TILE);
        delta_next.load(p.delta, delta_at, me, left), delta_at.move(TILE);
        B_next.load(B_at, p.B_n, B_t, left), B_at += TILE * B_t;
        if (STATE_ONLY) return;
        if (HAS_Z) z_next.load(p.z, z_at, me, left), z_at.move(TILE);
        C_next.load(C_at, p.C_n, C_t, left), C_at += TILE * C_t;
    };
    fetch(start);
    for (int64 t0 = start; t0 < stop; t0 += TILE) {
        if (STATE_ONLY)
            store_states(shared.BC, B_next, 0);
        else
            store_states(shared.BC, B_next, C_next);
        const int left = int(min(stop - t0, int64(TILE)));
        const auto u_now = u_next;
        const auto z_now = z_next;
        float dt[OWNED], x[OWNED];
#pragma unroll
        for (int i = 0; i < OWNED; ++i) {
            const float raw = delta_next[i] + bias[i / OWN_T];
            dt[i] = SOFTPLUS ? softplus<sizeof(DELTA_TYPE) == 4>(raw) : raw;
        }
        if (left < TILE)
#pragma unroll
            for (int i = 0; i < OWNED; ++i) dt[i] = me.own_t + i % OWN_T < left ? dt[i] : 0.0f;
#pragma unroll
        for (int i = 0; i < OWNED; ++i) {
            x[i] = dt[i] * u_now[i];
            if (STATE_ONLY) dt_sum[i / OWN_T] += dt[i];
        }
        write_pairs(shared.dtx, me, dt, x);
        if (t0 + TILE < stop) fetch(t0 + TILE);
        if (!STATE_ONLY && p.saved && t0 % SAVE_EVERY == 0) {
            const int64 at = (row * ((p.length + SAVE_EVERY - 1) / SAVE_EVERY) + t0 / SAVE_EVERY) * p.dim * STATES;
#pragma unroll
            for (int k = 0; k < 2; ++k)
#pragma unroll
                for (int n = 0; n < NS; ++n)
                    if (state_in[k][n]) p.saved[at + state_at[k] + n] = h[k][n];
        }
        uint32 resets = 0;
        if (PACKED) resets = resets_of_tile(p.sequence + row * p.length, t0, stop, me.lane);
        if (PACKED && resets) began = true;
        __syncthreads();

        const float2* const first = shared.dtx[me.channel(0)];
        const float2* const second = shared.dtx[me.channel(1)];
        auto load_group = [&](int g) {
            Group group;
#pragma unroll
            for (int i = 0; i < GROUP; ++i) {
                group.BC[i] = load_pack<float, 2 * NS>(&shared.BC[g + i][me.slot * 2 * NS]);
                if (i % 2) continue;
#pragma unroll
                for (int k = 0; k < 2; ++k) {
                    const float4 two = *reinterpret_cast<const float4*>((k ? second : first) + g + i);
                    group.x[i][k] = two.y, group.x[i + 1][k] = two.w;
#pragma unroll
                    for (int n = 0; n < NS; ++n) {
                        const float now = two.x * A2[k][n], later = two.z * A2[k][n];
                        group.decay[i][k][n] = STATE_ONLY ? decay_of_state_walk(now, i, k, n) : exp2_fast(now);
                        group.decay[i + 1][k][n] = STATE_ONLY ? decay_of_state_walk(later, i + 1, k, n) : exp2_fast(later);
                    }
                }
            }
            return group;
        };
        auto walk = [&](const Group& group, int g) {
            float y[2][GROUP];
#pragma unroll
            for (int i = 0; i < GROUP; ++i) {
                if (PACKED && resets >> (g + i) & 1) {
#pragma unroll
                    for (int k = 0; k < 2; ++k)
#pragma unroll
                        for (int n = 0; n < NS; ++n) h[k][n] = 0.0f;
                }
#pragma unroll
                for (int k = 0; k < 2; ++k)
#pragma unroll
                    for (int n = 0; n < NS; ++n) {
                        h[k][n] = fmaf(group.decay[i][k][n], h[k][n], group.x[i][k] * group.BC[i].at[n]);
                        if (!STATE_ONLY) {
                            const float c = group.BC[i].at[NS + n];
                            y[k][i] = n == 0 ? h[k][n] * c : fmaf(h[k][n], c, y[k][i]);
                        }
                    }
            }
            if (!STATE_ONLY) {
                sum_over_states<GROUP>(y, me);
                shared.y[me.channel(0)][g + first_step<GROUP>(me)] = y[0][0];
            }
        };
        // The next group's decays do not wait for this one's states: two groups are under way at once.
        Group next = load_group(0);
#pragma unroll
        for (int g = 0; g < TILE - GROUP; g += GROUP) {
            const Group now = next;
            next = load_group(g + GROUP);
            walk(now, g);
        }
        walk(next, TILE - GROUP);
        __syncthreads();

        if (!STATE_ONLY) {
            float y[OWNED];
            read_row(shared.y, me, y);
#pragma unroll
            for (int i = 0; i < OWNED; ++i) {
                y[i] = fmaf(skip[i / OWN_T], u_now[i], y[i]);
                if (HAS_Z) y[i] *= silu(z_now[i]);
            }
            store_own<U_TYPE, OUT_LAYOUT>(p.out, out_at, y, me, left, own_channels);
            out_at.move(TILE);
        }
    }

    float* const end = STATE_ONLY ? p.carry + (row * p.chunks + chunk) * p.dim * STATES : p.last + row * p.dim * STATES;
    if (STATE_ONLY || chunk == p.chunks - 1)
#pragma unroll
        for (int k = 0; k < 2; ++k)
#pragma unroll
            for (int n = 0; n < NS; ++n)
                if (state_in[k][n]) end[state_at[k] + n] = h[k][n];
    if (STATE_ONLY) {
#pragma unroll
        for (int c = 0; c < OWN_C; ++c) {
            float sum = sum_over_owners(dt_sum[c], &shared.BC[0][0]);
            if (me.own_t == 0 && c < own_channels)
                p.decay[(row * p.chunks + chunk) * p.dim + own_d + c] = began ? -1.0f : sum;
        }
    }
}

// What each chunk but the last adds to the state, from a state of zero.
extern "C" __global__ void __launch_bounds__(THREADS) scan_chunks(const Parameters p) { scan<true>(p); }

extern "C" __global__ void __launch_bounds__(THREADS) scan_forward(const Parameters p) { scan<false>(p); }
