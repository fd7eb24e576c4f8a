#include "scan_tile.cuh"
// Gradients of the selective scan, walking time backwards. With dy = dout silu(z) and the adjoint state
//
//   dh_t = exp(dt_{t+1} A) dh_{t+1} + dy_t C_t                 (after the last step: the gradient of the last state)
//
// they are   dC_t = sum_d dy_t h_t     dB_t = sum_d dt_t u_t dh_t     du_t = dt_t <dh_t, B_t> + D dy_t
//            ddt_t = u_t <dh_t, B_t> + <q_t, A>     dA = sum_t dt_t q_t     with q_t = dh_t exp(dt_t A) h_{t-1}
//
// A tile begins at a state that the forward saved. A first walk through the tile finds the states before every SUB-th
// step; then, last first, SUB steps are walked forwards, their decays kept in registers, and backwards. Sums over channels
// and over rows are added to one buffer (ATOMIC), in an order that varies from run to run; or each block leaves a partial sum
// that the caller adds.

struct Parameters {
    const U_TYPE* u;
    const DELTA_TYPE* delta;
    const float* A;  // (D, N)
    const B_TYPE* B;
    const C_TYPE* C;
    const float* D;       // (D), or null
    const Z_TYPE* z;      // null where HAS_Z is 0
    const float* bias;    // (D), or null
    const float* saved;   // (B, ceil(L / TILE), D, N): the states before each tile
    const int* sequence;  // (B, L) where PACKED
    const U_TYPE* dout;
    const float* dlast;  // (B, D, N), or null
    U_TYPE* du;
    DELTA_TYPE* ddelta;
    Z_TYPE* dz;
    U_TYPE* out;      // the output of the forward, made again; or null
    // Sums, begun as zeros and without their first dimensions where ATOMIC:
    float* dA;        // (B * chunks, D, N)
    float* dBC;       // (blocks of a group, 2, B, groups, L, LANES * NS)
    float* dD;        // (B * chunks, D), or null
    float* dbias;     // (B * chunks, D), or null
    float* dinitial;  // (B, D, N), or null
    float* carry;     // (B, chunks, D, N): what each chunk adds to the adjoint state before it
    float* decay;     // (B, chunks, D): the sum of dt over each chunk; -1 where a sequence began in it
    int64 u_b, u_d, u_t, delta_b, delta_d, delta_t, z_b, z_d, z_t, dout_b, dout_d, dout_t;
    int64 du_b, du_d, du_t, ddelta_b, ddelta_d, ddelta_t, dz_b, dz_d, dz_t, out_b, out_d, out_t;
    int64 B_b, B_g, B_n, B_t, C_b, C_g, C_n, C_t;
    int64 batch, dim, group_dim, length, chunk_length, chunks;
};

constexpr int SLOTS = 32 / LANES;       // pairs of channels of a warp
constexpr int PADDED_N = LANES * NS;    // states, the unused ones of the last lane included
constexpr int HELD = SUB * 2 / LANES;   // sums over states that a lane holds after SUB steps
static_assert(HELD >= 1 && TILE % SUB == 0 && SUB % 2 == 0, "a lane holds whole sums");

struct Warp {
    float states[TILE / SUB][2 * NS][32];
    float parts[2][SUB][SLOTS * PADDED_N + 16];  // dB and dC of SUB steps, a sum for each pair of channels; 16 for the banks
    float sums[2][TILE][PADDED_N];         // the same of the whole tile and warp
};

struct __align__(16) Shared {
    float BC[TILE][BC_ROW];
    float2 dtx[BLOCK_CHANNELS][PAIR_ROW];
    float dy[BLOCK_CHANNELS][ROW];  // of steps still to come; <q, A> of those that are done
    float y[BLOCK_CHANNELS][ROW];
    float dx[BLOCK_CHANNELS][ROW];  // <dh, B>
    Warp warps[WARPS];
};

DECLARE_SHARED(Shared);

// What the first walk needs of SUB steps: the decay of each state, and what is added to it.
struct Walk {
    float decay[SUB][2][NS], added[SUB][2][NS];
};

// What two steps of time need of a lane's two channels: index [step][channel].
struct TwoSteps {
    float dt[2][2], x[2][2], dy[2][2];

    INLINE void load(const Shared& shared, int first, int second, int t) {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            const int c = k ? second : first;
            const float4 pairs = *reinterpret_cast<const float4*>(&shared.dtx[c][t]);
            const float2 dys = *reinterpret_cast<const float2*>(&shared.dy[c][t]);
            dt[0][k] = pairs.x, x[0][k] = pairs.y, dt[1][k] = pairs.z, x[1][k] = pairs.w;
            dy[0][k] = dys.x, dy[1][k] = dys.y;
        }
    }
};

// A sum of this block's: added to that of the others, or the block's own.
INLINE void leave(float* p, float sum) {
    if (ATOMIC)
        atomicAdd(p, sum);
    else
        *p = sum;
}

template <bool STATE_ONLY> INLINE void scan(const Parameters& p) {
    Shared& shared = SHARED_POOL(Shared);
    const Lane me;
    Warp& mine = shared.warps[me.warp];

    const Part part(p.dim, p.group_dim, p.chunks);
    const int64 row = part.row, chunk = part.chunk, group = part.group, block = part.block;
    if (STATE_ONLY && chunk == 0) return;
    const int in_group = int(block) * BLOCK_CHANNELS;
    const int64 d0 = group * p.group_dim + in_group;
    const int channels = int(p.group_dim) - in_group;
    const int64 start = chunk * p.chunk_length, stop = min(start + p.chunk_length, p.length);
    const int64 last_tile = start + (stop - start - 1) / TILE * TILE;

    const int own_channels = channels - me.own_c;
    const int64 own_d = d0 + me.own_c, own_t = last_tile + me.own_t;
    Place u_at(row, p.u_b, p.u_d, step_of(U_STEP, p.u_t), own_d, own_channels, own_t);
    Place z_at(row, p.z_b, p.z_d, step_of(Z_STEP, p.z_t), own_d, own_channels, own_t);
    Place delta_at = SAME ? u_at : Place(row, p.delta_b, p.delta_d, p.delta_t, own_d, own_channels, own_t);
    Place dout_at = SAME ? u_at : Place(row, p.dout_b, p.dout_d, p.dout_t, own_d, own_channels, own_t);
    const int64 B_t = step_of(B_STEP, p.B_t), C_t = step_of(C_STEP, p.C_t);
    const B_TYPE* B_at = StatesB::first(p.B + row * p.B_b + group * p.B_g + last_tile * B_t, p.B_n, B_t);
    const C_TYPE* C_at = StatesC::first(p.C + row * p.C_b + group * p.C_g + last_tile * C_t, p.C_n, C_t);
    float bias[OWN_C], skip[OWN_C], dt_sum[OWN_C], dD[OWN_C], dbias[OWN_C];
#pragma unroll
    for (int c = 0; c < OWN_C; ++c) {
        bias[c] = p.bias && c < own_channels ? p.bias[own_d + c] : 0.0f;
        skip[c] = p.D && c < own_channels ? p.D[own_d + c] : 0.0f;
        dt_sum[c] = dD[c] = dbias[c] = 0.0f;
    }

    float A2[2][NS], dh[2][NS], dA[2][NS];
    int64 state_at[2];
    bool state_in[2][NS];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
        state_at[k] = (d0 + me.channel(k)) * STATES + me.slot * NS;
#pragma unroll
        for (int n = 0; n < NS; ++n) {
            state_in[k][n] = me.channel(k) < channels && me.slot * NS + n < STATES;
            A2[k][n] = state_in[k][n] ? p.A[state_at[k] + n] * LOG2E : 0.0f;
            dh[k][n] = dA[k][n] = 0.0f;
            if (!STATE_ONLY && p.dlast && state_in[k][n]) dh[k][n] = p.dlast[row * p.dim * STATES + state_at[k] + n];
        }
    }
    if (!STATE_ONLY)
        for (int64 j = (row + 1) * p.chunks - 1; j > row * p.chunks + chunk; --j)
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                float sum = me.channel(k) < channels ? p.decay[j * p.dim + d0 + me.channel(k)] : 0.0f;
#pragma unroll
                for (int n = 0; n < NS; ++n)
                    if (state_in[k][n])
                        dh[k][n] = (sum < 0.0f ? 0.0f : exp2_fast(A2[k][n] * sum) * dh[k][n]) +
                                   p.carry[j * p.dim * STATES + state_at[k] + n];
            }

    auto move_back = [&] {
        u_at.move(-TILE), delta_at.move(-TILE), dout_at.move(-TILE), z_at.move(-TILE);
        B_at -= TILE * B_t, C_at -= TILE * C_t;
    };
    bool began = false;
    const int first = me.channel(0), second = me.channel(1), pair = me.channels % WARP_CHANNELS / 2 * PADDED_N;
    Own<U_TYPE, U_LAYOUT> u;
    Own<U_TYPE, DOUT_LAYOUT> dout;
    Own<DELTA_TYPE, DELTA_LAYOUT> delta;
    Own<Z_TYPE, Z_LAYOUT> z;
    for (int64 t0 = last_tile; t0 >= start; t0 -= TILE) {
        const int left = int(min(stop - t0, int64(TILE)));
        {
            StatesB B;
            StatesC C;
            C.load(C_at, p.C_n, C_t, left);
            delta.load(p.delta, delta_at, me, left);
            dout.load(p.dout, dout_at, me, left);
            if (HAS_Z) z.load(p.z, z_at, me, left);
            if (!STATE_ONLY) u.load(p.u, u_at, me, left);
            if (STATE_ONLY) {
                store_states(shared.BC, C, 1);
            } else {
                B.load(B_at, p.B_n, B_t, left);
                store_states(shared.BC, B, C);
            }
        }
        if (t0 > start) {
            // Registers are too few to load the next tile now; its way to the L2 cache is the longer part.
            prefetch_tile(p.delta, delta_at, me, -TILE, 0);
            prefetch_tile(p.dout, dout_at, me, -TILE, 1);
            if (HAS_Z) prefetch_tile(p.z, z_at, me, -TILE, 2);
            if (!STATE_ONLY) prefetch_tile(p.u, u_at, me, -TILE, 3);
        }
        {
            float dt[OWNED], x[OWNED], dy[OWNED];
#pragma unroll
            for (int i = 0; i < OWNED; ++i) {
                const float raw = delta[i] + bias[i / OWN_T];
                dt[i] = SOFTPLUS ? softplus<sizeof(DELTA_TYPE) == 4>(raw) : raw;
                dy[i] = dout[i];
                if (HAS_Z) dy[i] *= silu(z[i]);
            }
            if (left < TILE || own_channels < OWN_C)  // sums over channels and steps must not see what is outside
#pragma unroll
                for (int i = 0; i < OWNED; ++i)
                    if (me.own_t + i % OWN_T >= left || i / OWN_T >= own_channels) dt[i] = dy[i] = 0.0f;
#pragma unroll
            for (int i = 0; i < OWNED; ++i) {
                x[i] = STATE_ONLY ? 0.0f : dt[i] * u[i];
                if (STATE_ONLY) dt_sum[i / OWN_T] += dt[i];
            }
            write_pairs(shared.dtx, me, dt, x);
            write_row(shared.dy, me, dy);
        }
        uint32 resets = 0;
        if (PACKED) resets = resets_of_tile(p.sequence + row * p.length, t0, stop, me.lane);
        if (PACKED && resets) began = true;
        float h[2][NS];
        if (!STATE_ONLY) {
            const int64 at = (row * ((p.length + TILE - 1) / TILE) + t0 / TILE) * p.dim * STATES;
#pragma unroll
            for (int k = 0; k < 2; ++k)
#pragma unroll
                for (int n = 0; n < NS; ++n) h[k][n] = state_in[k][n] ? p.saved[at + state_at[k] + n] : 0.0f;
        }
        __syncthreads();

        if (STATE_ONLY) {
#pragma unroll 4
            for (int t = TILE - 2; t >= 0; t -= 2) {
                TwoSteps two;
                two.load(shared, first, second, t);
#pragma unroll
                for (int i = 1; i >= 0; --i) {
                    const auto C = load_pack<float, NS>(&shared.BC[t + i][(me.slot * 2 + 1) * NS]);
#pragma unroll
                    for (int k = 0; k < 2; ++k)
#pragma unroll
                        for (int n = 0; n < NS; ++n) {
                            const float decay = decay_of_state_walk(two.dt[i][k] * A2[k][n], t + i, k, n);
                            dh[k][n] = fmaf(two.dy[i][k], C.at[n], dh[k][n]) * decay;
                            if (PACKED && resets >> (t + i) & 1) dh[k][n] = 0.0f;
                        }
                }
            }
            __syncthreads();
            move_back();
            continue;
        }

        // The first walk. The decays of the next steps do not wait for the states of these.
        auto load_sub = [&](int s) {
            Walk walk;
#pragma unroll
            for (int i = 0; i < SUB; i += 2) {
                const int t = s * SUB + i;
#pragma unroll
                for (int k = 0; k < 2; ++k) {
                    const float4 two = *reinterpret_cast<const float4*>(&shared.dtx[k ? second : first][t]);
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        const auto B = load_pack<float, NS>(&shared.BC[t + j][me.slot * 2 * NS]);
#pragma unroll
                        for (int n = 0; n < NS; ++n) {
                            walk.decay[i + j][k][n] = exp2_fast((j ? two.z : two.x) * A2[k][n]);
                            walk.added[i + j][k][n] = (j ? two.w : two.y) * B.at[n];
                        }
                    }
                }
            }
            return walk;
        };
        Walk next = load_sub(0);
#pragma unroll
        for (int s = 0; s < TILE / SUB - 1; ++s) {
            const Walk now = next;
            if (s < TILE / SUB - 2) next = load_sub(s + 1);
#pragma unroll
            for (int k = 0; k < 2; ++k)
#pragma unroll
                for (int n = 0; n < NS; ++n) mine.states[s][k * NS + n][me.lane] = h[k][n];
#pragma unroll
            for (int i = 0; i < SUB; ++i)
#pragma unroll
                for (int k = 0; k < 2; ++k)
#pragma unroll
                    for (int n = 0; n < NS; ++n)
                        h[k][n] = PACKED && resets >> (s * SUB + i) & 1
                                      ? now.added[i][k][n]
                                      : fmaf(now.decay[i][k][n], h[k][n], now.added[i][k][n]);
        }

#pragma unroll 4
        for (int s = TILE / SUB - 1; s >= 0; --s) {
            if (s < TILE / SUB - 1)
#pragma unroll
                for (int k = 0; k < 2; ++k)
#pragma unroll
                    for (int n = 0; n < NS; ++n) h[k][n] = mine.states[s][k * NS + n][me.lane];
            float a[SUB][2][NS], decayed[SUB][2][NS];
            TwoSteps loaded[SUB / 2];  // kept for the way back, like a and decayed
            Pack<float, 2 * NS> BC[SUB];
            {
                float y[2][SUB];
#pragma unroll
                for (int i = 0; i < SUB; ++i) {
                    const int t = s * SUB + i;
                    if (i % 2 == 0) loaded[i / 2].load(shared, first, second, t);
                    const TwoSteps& two = loaded[i / 2];
                    const float(&dt)[2] = two.dt[i % 2], (&x)[2] = two.x[i % 2], (&dy)[2] = two.dy[i % 2];
                    BC[i] = load_pack<float, 2 * NS>(&shared.BC[t][me.slot * 2 * NS]);
                    const auto& bc = BC[i];
#pragma unroll
                    for (int k = 0; k < 2; ++k)
#pragma unroll
                        for (int n = 0; n < NS; ++n) {
                            a[i][k][n] = exp2_fast(dt[k] * A2[k][n]);
                            decayed[i][k][n] = PACKED && resets >> t & 1 ? 0.0f : a[i][k][n] * h[k][n];
                            h[k][n] = fmaf(x[k], bc.at[n], decayed[i][k][n]);
                        }
                    Pack<float, NS> dC;
#pragma unroll
                    for (int n = 0; n < NS; ++n) {
                        dC.at[n] = fmaf(dy[1], h[1][n], dy[0] * h[0][n]);
#pragma unroll
                        for (int k = 0; k < 2; ++k)
                            y[k][i] = n == 0 ? h[k][n] * bc.at[NS] : fmaf(h[k][n], bc.at[NS + n], y[k][i]);
                    }
                    store_pack<float, NS>(&mine.parts[1][i][pair + me.slot * NS], dC);
                }
                if (HAS_Z) {
                    sum_over_states<SUB>(y, me);
#pragma unroll
                    for (int i = 0; i < HELD; ++i) shared.y[first][s * SUB + first_step<SUB>(me) + i] = y[0][i];
                }
            }
            float dx[2][SUB], dd[2][SUB];
#pragma unroll
            for (int i = SUB - 1; i >= 0; --i) {
                const int t = s * SUB + i;
                const TwoSteps& two = loaded[i / 2];
                const float(&dt)[2] = two.dt[i % 2], (&x)[2] = two.x[i % 2], (&dy)[2] = two.dy[i % 2];
                const auto& bc = BC[i];
                Pack<float, NS> dB;
#pragma unroll
                for (int n = 0; n < NS; ++n) {
#pragma unroll
                    for (int k = 0; k < 2; ++k) {
                        dh[k][n] = fmaf(dy[k], bc.at[NS + n], dh[k][n]);
                        const float q = dh[k][n] * decayed[i][k][n];
                        dx[k][i] = n == 0 ? dh[k][n] * bc.at[0] : fmaf(dh[k][n], bc.at[n], dx[k][i]);
                        dd[k][i] = n == 0 ? q * A2[k][0] : fmaf(q, A2[k][n], dd[k][i]);
                        dA[k][n] = fmaf(dt[k], q, dA[k][n]);
                        dB.at[n] = k == 0 ? x[0] * dh[0][n] : fmaf(x[1], dh[1][n], dB.at[n]);
                    }
#pragma unroll
                    for (int k = 0; k < 2; ++k)
                        dh[k][n] = PACKED && resets >> t & 1 ? 0.0f : dh[k][n] * a[i][k][n];
                }
                store_pack<float, NS>(&mine.parts[0][i][pair + me.slot * NS], dB);
            }
            sum_over_states<SUB>(dx, me);
            sum_over_states<SUB>(dd, me);
            __syncwarp();  // every lane has read dy of these steps, which dd replaces
#pragma unroll
            for (int i = 0; i < HELD; ++i) {
                const int t = s * SUB + first_step<SUB>(me) + i;
                shared.dx[first][t] = dx[0][i];
                shared.dy[first][t] = dd[0][i];
            }
            __syncwarp();
            constexpr int FOURS = 2 * SUB * PADDED_N / 4;
#pragma unroll
            for (int j = 0; j < (FOURS + 31) / 32; ++j) {
                const int four = me.lane + j * 32;
                if (FOURS % 32 && four >= FOURS) break;
                const int n = four % (PADDED_N / 4) * 4, i = four / (PADDED_N / 4) % SUB, of = four / (PADDED_N / 4 * SUB);
                float4 sum = *reinterpret_cast<const float4*>(&mine.parts[of][i][n]);
#pragma unroll
                for (int slot = 1; slot < SLOTS; ++slot) {
                    const float4 more = *reinterpret_cast<const float4*>(&mine.parts[of][i][slot * PADDED_N + n]);
                    sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
                }
                *reinterpret_cast<float4*>(&mine.sums[of][s * SUB + i][n]) = sum;
            }
            __syncwarp();
        }
        __syncthreads();

        {
            float y[OWNED], dx[OWNED], dd[OWNED], dz[OWNED], dt[OWNED], x[OWNED];
            if (HAS_Z) read_row(shared.y, me, y);
            read_row(shared.dx, me, dx);
            read_row(shared.dy, me, dd);
            read_pairs(shared.dtx, me, dt, x);
#pragma unroll
            for (int i = 0; i < OWNED; ++i) {
                const int c = i / OWN_T;
                const float ui = u[i];
                float dy = dout[i];
                if (HAS_Z) {
                    const float zi = z[i], gate = sigmoid(zi), silu = zi * gate;
                    y[i] = fmaf(skip[c], ui, y[i]);
                    dz[i] = dy * y[i] * gate * fmaf(zi, 1.0f - gate, 1.0f);
                    y[i] *= silu;
                    dy *= silu;
                }
                float slope = fmaf(dx[i], ui, dd[i] * LN2);
                if (SOFTPLUS)  // its derivative is a sigmoid; 1 - exp(-dt) is too, to the precision of half of the bits
                    slope *= sizeof(DELTA_TYPE) == 4 ? sigmoid(delta[i] + bias[c]) : 1.0f - exp2_fast(-LOG2E * dt[i]);
                dx[i] = fmaf(dx[i], dt[i], skip[c] * dy);
                dd[i] = slope;
                const bool inside = me.own_t + i % OWN_T < left;
                dD[c] += inside ? dy * ui : 0.0f;
                dbias[c] += inside ? slope : 0.0f;
            }
            const int64 t = t0 + me.own_t;
            auto place = [&](int64 b, int64 d, int64 step) { return Place(row, b, d, step, own_d, own_channels, t); };
            const Place du_at = SAME ? u_at : place(p.du_b, p.du_d, p.du_t);
            store_own<U_TYPE, DU_LAYOUT>(p.du, du_at, dx, me, left, own_channels);
            const Place ddelta_at = SAME ? u_at : place(p.ddelta_b, p.ddelta_d, p.ddelta_t);
            store_own<DELTA_TYPE, DDELTA_LAYOUT>(p.ddelta, ddelta_at, dd, me, left, own_channels);
            if (HAS_Z) {
                const Place dz_at = SAME_Z ? z_at : place(p.dz_b, p.dz_d, p.dz_t);
                store_own<Z_TYPE, DZ_LAYOUT>(p.dz, dz_at, dz, me, left, own_channels);
            }
            if (HAS_Z && p.out) {
                const Place out_at = SAME ? u_at : place(p.out_b, p.out_d, p.out_t);
                store_own<U_TYPE, OUT_LAYOUT>(p.out, out_at, y, me, left, own_channels);
            }
            move_back();
        }
        const int64 sums_row = ((ATOMIC ? 0 : block) * 2 * p.batch + row) * part.groups + group;
        float* const sums_to = p.dBC + (sums_row * p.length + t0) * PADDED_N;
#pragma unroll
        for (int of = 0; of < 2; ++of)
            for (int four = threadIdx.x; four < TILE * PADDED_N / 4; four += THREADS) {
                if (four >= left * (PADDED_N / 4)) break;
                float4 sum = reinterpret_cast<const float4*>(shared.warps[0].sums[of])[four];
#pragma unroll
                for (int w = 1; w < WARPS; ++w) {
                    const float4 more = reinterpret_cast<const float4*>(shared.warps[w].sums[of])[four];
                    sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
                }
                float* const to = sums_to + of * p.batch * part.groups * p.length * PADDED_N + four * 4;
                if (ATOMIC)
                    atomic_add_four(to, sum);
                else
                    *reinterpret_cast<float4*>(to) = sum;
            }
    }

    if (STATE_ONLY) {
#pragma unroll
        for (int k = 0; k < 2; ++k)
#pragma unroll
            for (int n = 0; n < NS; ++n)
                if (state_in[k][n]) p.carry[(row * p.chunks + chunk) * p.dim * STATES + state_at[k] + n] = dh[k][n];
#pragma unroll
        for (int c = 0; c < OWN_C; ++c) {
            float sum = sum_over_owners(dt_sum[c], &shared.BC[0][0]);
            if (me.own_t == 0 && c < own_channels)
                p.decay[(row * p.chunks + chunk) * p.dim + own_d + c] = began ? -1.0f : sum;
        }
        return;
    }
    const int64 sums_at = ATOMIC ? 0 : row * p.chunks + chunk;
#pragma unroll
    for (int k = 0; k < 2; ++k)
#pragma unroll
        for (int n = 0; n < NS; ++n)
            if (state_in[k][n]) {
                leave(p.dA + sums_at * p.dim * STATES + state_at[k] + n, dA[k][n]);
                if (p.dinitial && chunk == 0) p.dinitial[row * p.dim * STATES + state_at[k] + n] = dh[k][n];
            }
#pragma unroll
    for (int c = 0; c < OWN_C; ++c) {
        float sum_D = sum_over_owners(dD[c], &shared.BC[0][0]), sum_bias = sum_over_owners(dbias[c], &shared.BC[0][0]);
        if (me.own_t == 0 && c < own_channels) {
            const int64 at = sums_at * p.dim + own_d + c;
            if (p.dD) leave(p.dD + at, sum_D);
            if (p.dbias) leave(p.dbias + at, sum_bias);
        }
    }
}

// What each chunk but the first adds to the adjoint state before it, from an adjoint of zero after it.
extern "C" __global__ void __launch_bounds__(THREADS) scan_chunks(const Parameters p) { scan<true>(p); }

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) scan_backward(const Parameters p) { scan<false>(p); }
