"""The kernels of the CPU's selective scan: a block of channels walks through time, forwards, or backwards by tiles.

Letters: B batch, D channels, L length, N state, G groups, E = D / G channels of a group, w channels of a block.
"""

from typing import Any

import numpy as np
from numba import carray

from mamba_ssm.ops.cpu.arithmetic import (
    LN2,
    ask_for,
    bits_of_float,
    exp2,
    exp2_of_product,
    fast,
    float_of_bits,
    floats,
    largest,
    load,
    pointer,
    sigmoid,
    size_of,
    softplus,
    store,
)
from mamba_ssm.ops.cpu.kernel import kernel, record, row_fields, thread, thread_count, use_wide_vectors

LANES = 16  # floats of the widest vector
WIDEST = 128  # channels of a block
AHEAD = 8
TILE = 16  # steps between the states that the backward pass starts from
ZERO, ONE = np.float32(0), np.float32(1)

SCAN = "batch dim length states groups width segments seq A B C D bias softplus kept last "
FORWARD = record(SCAN + "initial dt_sum " + row_fields("u delta z out"))
BACKWARD = record(SCAN + "d_last dA dB dC dD d_bias d_initial " + row_fields("u delta z dout du ddelta dz"))


def block_floats(states: int, width: int) -> int:
    return (2 * states + 8) * (width + LANES)


def tile_floats(states: int, width: int) -> int:
    return ((2 * TILE + 5) * states + 7 * TILE + 16) * width


# Rows of a block's scratch, each of as many floats as channels: dt, dt u, y, u, z, D, delta's bias, the sum of dt; then
# for each state its row, and A's. The functions below are inlined with a width that LLVM knows, so that it sees that
# rows do not overlap, and with indices that need not be looked at for being negative.
_u = np.uint64
APART = _u(LANES)  # between rows, lest an address ends as those of other states do, which a load would wait for
DT, V, Y, U, Z, SKIP, BIAS, TOTAL, FIRST = map(_u, range(9))


@fast
def begin_step(S: Any, w: Any, softplus_on: Any) -> Any:
    """dt, dt u and y = D u of w channels, and the largest |dt|, or NaN where there is one."""
    use_wide_vectors()
    r = w + APART
    top = np.int32(0)
    for j in range(w):
        x, dt = S[U * r + j], S[DT * r + j] + S[BIAS * r + j]
        dt = softplus(dt) if softplus_on else dt
        S[DT * r + j] = dt
        S[V * r + j] = dt * x
        S[Y * r + j] = S[SKIP * r + j] * x
        S[TOTAL * r + j] += dt
        top = max(top, bits_of_float(abs(dt)))
    return float_of_bits(top)


@fast
def four_states(S: Any, n: Any, B: Any, C: Any, w: Any) -> None:
    """States n to n + 3 of w channels by one step, for dt A from -126 on, and their share of y."""
    use_wide_vectors()
    r = w + APART
    b0, b1, b2, b3 = B[n], B[n + 1], B[n + 2], B[n + 3]
    c0, c1, c2, c3 = C[n], C[n + 1], C[n + 2], C[n + 3]
    own = (FIRST + _u(2 * n)) * r
    for j in range(w):
        dt, v, h = S[DT * r + j], S[V * r + j], own + j
        h0 = exp2_of_product(dt, S[h + r]) * S[h] + v * b0
        h1 = exp2_of_product(dt, S[h + _u(3) * r]) * S[h + _u(2) * r] + v * b1
        h2 = exp2_of_product(dt, S[h + _u(5) * r]) * S[h + _u(4) * r] + v * b2
        h3 = exp2_of_product(dt, S[h + _u(7) * r]) * S[h + _u(6) * r] + v * b3
        S[h], S[h + _u(2) * r], S[h + _u(4) * r], S[h + _u(6) * r] = h0, h1, h2, h3
        S[Y * r + j] += (h0 * c0 + h1 * c1) + (h2 * c2 + h3 * c3)


@fast
def a_state(S: Any, n: Any, B: Any, C: Any, w: Any) -> None:
    """State n of w channels by one step, and its share of y."""
    use_wide_vectors()
    r = w + APART
    b, c, own = B[n], C[n], (FIRST + _u(2 * n)) * r
    for j in range(w):
        h = exp2(S[DT * r + j] * S[own + r + j]) * S[own + j] + S[V * r + j] * b
        S[own + j] = h
        S[Y * r + j] += h * c


@fast
def take_step(S: Any, N: Any, w: Any, B: Any, C: Any, softplus_on: Any, top_A: Any) -> None:
    """u and delta, which S holds, to y; all states by one step."""
    top = begin_step(S, w, True) if softplus_on else begin_step(S, w, False)
    # Without a bound to check, exp2 is an eighth cheaper.
    fours = N // 4 * 4 if top * top_A < 126 else 0
    for n in range(0, fours, 4):
        four_states(S, n, B, C, w)
    for n in range(fours, N):
        a_state(S, n, B, C, w)


@fast
def gate_step(S: Any, w: Any) -> None:
    use_wide_vectors()
    r = w + APART
    for j in range(w):
        z = S[Z * r + j]
        S[Y * r + j] *= z * sigmoid(z)


@kernel(FORWARD)
def scan_forward(where: Any) -> None:
    use_wide_vectors()
    p = carray(where, (1,), FORWARD)[0]
    N, E = p.states, p.dim // p.groups
    blocks = -(-E // p.width)
    span = -(-p.length // p.segments)
    scratch = p.scratch + thread(p) * p.scratch_bytes
    for item in range(thread(p), p.batch * p.groups * blocks * p.segments, thread_count(p)):
        segment, rest = item % p.segments, item // p.segments
        block, rest = rest % blocks, rest // blocks
        g, b = rest % p.groups, rest // p.groups
        d = g * E + block * p.width
        count = min(p.width, E - block * p.width)
        w = (count + LANES - 1) & ~(LANES - 1)
        r = w + LANES
        S = floats(scratch, (8 + 2 * N) * r)
        dt, y, u, z = S[:w], S[2 * r :][:w], S[3 * r :][:w], S[4 * r :][:w]
        skip, bias, total, own = S[5 * r :][:w], S[6 * r :][:w], S[7 * r :][:w], S[8 * r :]
        state_at = ((b * p.segments + segment) * N * p.dim + d) * 4
        top_A = ZERO
        for n in range(N):
            h, a = own[2 * n * r :][:w], own[(2 * n + 1) * r :][:w]
            load(a, p.A + (n * p.dim + d) * 4, count, 0)
            top_A = max(top_A, largest(a, w))
            if p.initial != 0:
                load(h, p.initial + state_at + n * p.dim * 4, count, 0)
            else:
                for j in range(w):
                    h[j] = ZERO
        load(skip, p.D + d * 4, count, 0)
        load(bias, p.bias + d * 4, count, 0)
        for j in range(w):
            total[j] = ZERO
        begin, end = segment * span, min(p.length, (segment + 1) * span)
        for t in range(begin, end):
            if p.seq != 0 and t > 0:
                seq = carray(pointer(p.seq + b * p.length * 4), (p.length,), np.int32)
                if seq[t] != seq[t - 1]:
                    for n in range(N):
                        for j in range(w):
                            own[2 * n * r + j] = ZERO
                    for j in range(w):
                        total[j] = np.float32(np.inf)
            if p.kept != 0 and t % TILE == 0:
                tiles = -(-p.length // TILE)
                for n in range(N):
                    to = p.kept + (((b * tiles + t // TILE) * N + n) * p.dim + d) * 4
                    store(to, own[2 * n * r :][:w], count, 0)
            ask_for(p.u + b * p.u_b + (t + AHEAD) * p.u_t + d * size_of(p.u_kind), count * size_of(p.u_kind))
            ask_for(
                p.delta + b * p.delta_b + (t + AHEAD) * p.delta_t + d * size_of(p.delta_kind),
                count * size_of(p.delta_kind),
            )
            if p.z != 0:
                ask_for(p.z + b * p.z_b + (t + AHEAD) * p.z_t + d * size_of(p.z_kind), count * size_of(p.z_kind))
            load(u, p.u + b * p.u_b + t * p.u_t + d * size_of(p.u_kind), count, p.u_kind)
            load(dt, p.delta + b * p.delta_b + t * p.delta_t + d * size_of(p.delta_kind), count, p.delta_kind)
            at = ((b * p.length + t) * p.groups + g) * N * 4
            B, C = floats(p.B + at, N), floats(p.C + at, N)
            if w == WIDEST:
                take_step(S, N, _u(WIDEST), B, C, p.softplus != 0, top_A)
            else:
                take_step(S, N, _u(w), B, C, p.softplus != 0, top_A)
            if p.z != 0:
                load(z, p.z + b * p.z_b + t * p.z_t + d * size_of(p.z_kind), count, p.z_kind)
                if w == WIDEST:
                    gate_step(S, _u(WIDEST))
                else:
                    gate_step(S, _u(w))
            if p.out != 0:
                store(p.out + b * p.out_b + t * p.out_t + d * size_of(p.out_kind), y, count, p.out_kind)
        for n in range(N):
            store(p.last + state_at + n * p.dim * 4, own[2 * n * r :][:w], count, 0)
        if p.dt_sum != 0:
            store(p.dt_sum + ((b * p.segments + segment) * p.dim + d) * 4, total, count, 0)


@kernel(BACKWARD)
def scan_backward(where: Any) -> None:
    use_wide_vectors()
    p = carray(where, (1,), BACKWARD)[0]
    N, E = p.states, p.dim // p.groups
    blocks = -(-E // p.width)
    tiles = -(-p.length // TILE)
    scratch = p.scratch + thread(p) * p.scratch_bytes
    dBC_at = thread(p) * p.batch * p.length * p.groups * N * 4  # each thread adds to sums of its own
    for item in range(thread(p), p.batch * p.groups * blocks, thread_count(p)):
        block, rest = item % blocks, item // blocks
        g, b = rest % p.groups, rest // p.groups
        d = g * E + block * p.width
        count = min(p.width, E - block * p.width)
        w = (count + LANES - 1) & ~(LANES - 1)
        S = floats(scratch, ((2 * TILE + 5) * N + 7 * TILE + 16) * w)
        # Of each step: all states before it and their decays. The state after a tile's last step follows its last one.
        hs, decays = 0, (TILE + 1) * N * w
        As = decays + TILE * N * w
        gs = As + N * w  # the gradient of the states
        dAs = gs + N * w
        of_step = dAs + N * w  # seven rows of each step
        row = of_step + 7 * TILE * w
        skip, bias, dD, d_bias = S[row : row + w], S[row + w :][:w], S[row + 2 * w :][:w], S[row + 3 * w :][:w]
        dv, ddt = S[row + 4 * w :][:w], S[row + 5 * w :][:w]
        for n in range(N):
            load(S[As + n * w : As + n * w + w], p.A + (n * p.dim + d) * 4, count, 0)
            load(S[gs + n * w : gs + n * w + w], p.d_last + ((b * N + n) * p.dim + d) * 4, count, 0)
            for j in range(w):
                S[dAs + n * w + j] = ZERO
        load(skip, p.D + d * 4, count, 0)
        load(bias, p.bias + d * 4, count, 0)
        for j in range(w):
            dD[j] = ZERO
            d_bias[j] = ZERO
        for tile in range(tiles - 1, -1, -1):
            first = tile * TILE
            steps = min(TILE, p.length - first)
            for n in range(N):
                load(S[n * w : n * w + w], p.kept + (((b * tiles + tile) * N + n) * p.dim + d) * 4, count, 0)
            for i in range(steps):
                t = first + i
                reset = False
                if p.seq != 0 and t > 0:
                    seq = carray(pointer(p.seq + b * p.length * 4), (p.length,), np.int32)
                    reset = seq[t] != seq[t - 1]
                r = of_step + 7 * i * w
                dt, x, v, y = S[r : r + w], S[r + w : r + 2 * w], S[r + 2 * w : r + 3 * w], S[r + 3 * w : r + 4 * w]
                dy, z, slope = S[r + 4 * w : r + 5 * w], S[r + 5 * w : r + 6 * w], S[r + 6 * w : r + 7 * w]
                load(x, p.u + b * p.u_b + t * p.u_t + d * size_of(p.u_kind), count, p.u_kind)
                load(dt, p.delta + b * p.delta_b + t * p.delta_t + d * size_of(p.delta_kind), count, p.delta_kind)
                load(dy, p.dout + b * p.dout_b + t * p.dout_t + d * size_of(p.dout_kind), count, p.dout_kind)
                if p.softplus != 0:
                    for j in range(w):
                        slope[j] = sigmoid(dt[j] + bias[j])
                        dt[j] = softplus(dt[j] + bias[j])
                else:
                    for j in range(w):
                        slope[j] = ONE
                        dt[j] += bias[j]
                for j in range(w):
                    v[j] = dt[j] * x[j]
                    y[j] = skip[j] * x[j]
                at = ((b * p.length + t) * p.groups + g) * N * 4
                B, C = floats(p.B + at, N), floats(p.C + at, N)
                for n in range(N):
                    b_n, c_n = B[n], C[n]
                    before = S[hs + (i * N + n) * w : hs + (i * N + n + 1) * w]
                    after = S[hs + ((i + 1) * N + n) * w : hs + ((i + 1) * N + n + 1) * w]
                    decay = S[decays + (i * N + n) * w : decays + (i * N + n + 1) * w]
                    a = S[As + n * w : As + n * w + w]
                    if reset:
                        for j in range(w):
                            decay[j] = ZERO
                            after[j] = v[j] * b_n
                            y[j] += after[j] * c_n
                    else:
                        for j in range(w):
                            factor = exp2(dt[j] * a[j])
                            new = factor * before[j] + v[j] * b_n
                            decay[j] = factor
                            after[j] = new
                            y[j] += new * c_n
                if p.z != 0:
                    load(z, p.z + b * p.z_b + t * p.z_t + d * size_of(p.z_kind), count, p.z_kind)
                    for j in range(w):
                        s = sigmoid(z[j])
                        dz = dy[j] * y[j] * s * (ONE + z[j] * (ONE - s))
                        dy[j] *= z[j] * s
                        z[j] = dz
                    store(p.dz + b * p.dz_b + t * p.dz_t + d * size_of(p.dz_kind), z, count, p.dz_kind)
            for i in range(steps - 1, -1, -1):
                t = first + i
                r = of_step + 7 * i * w
                dt, x, v, du = S[r : r + w], S[r + w : r + 2 * w], S[r + 2 * w : r + 3 * w], S[r + 3 * w : r + 4 * w]
                dy, slope = S[r + 4 * w : r + 5 * w], S[r + 6 * w : r + 7 * w]
                at = ((b * p.length + t) * p.groups + g) * N * 4
                B, C = floats(p.B + at, N), floats(p.C + at, N)
                dB, dC = floats(p.dB + dBC_at + at, N), floats(p.dC + dBC_at + at, N)
                for j in range(w):
                    dv[j] = ZERO
                    ddt[j] = ZERO
                for n in range(N):
                    b_n, c_n = B[n], C[n]
                    before = S[hs + (i * N + n) * w : hs + (i * N + n + 1) * w]
                    after = S[hs + ((i + 1) * N + n) * w : hs + ((i + 1) * N + n + 1) * w]
                    decay = S[decays + (i * N + n) * w : decays + (i * N + n + 1) * w]
                    a, grad = S[As + n * w : As + n * w + w], S[gs + n * w : gs + n * w + w]
                    dA = S[dAs + n * w : dAs + n * w + w]
                    to_B, to_C = ZERO, ZERO
                    for j in range(w):
                        dh = grad[j] + c_n * dy[j]
                        to_C += dy[j] * after[j]
                        to_B += dh * v[j]
                        dv[j] += dh * b_n
                        carried = dh * decay[j]
                        q = carried * before[j]
                        ddt[j] += q * a[j]
                        dA[j] += q * dt[j]
                        grad[j] = carried
                    dB[n] += to_B
                    dC[n] += to_C
                for j in range(w):
                    slope[j] *= LN2 * ddt[j] + dv[j] * x[j]
                    d_bias[j] += slope[j]
                    dD[j] += dy[j] * x[j]
                    du[j] = dv[j] * dt[j] + dy[j] * skip[j]
                store(p.du + b * p.du_b + t * p.du_t + d * size_of(p.du_kind), du, count, p.du_kind)
                store(
                    p.ddelta + b * p.ddelta_b + t * p.ddelta_t + d * size_of(p.ddelta_kind), slope, count, p.ddelta_kind
                )
        for n in range(N):
            at = ((b * N + n) * p.dim + d) * 4
            store(p.dA + at, S[dAs + n * w : dAs + n * w + w], count, 0)
            store(p.d_initial + at, S[gs + n * w : gs + n * w + w], count, 0)
        store(p.dD + (b * p.dim + d) * 4, dD, count, 0)
        store(p.d_bias + (b * p.dim + d) * 4, d_bias, count, 0)
