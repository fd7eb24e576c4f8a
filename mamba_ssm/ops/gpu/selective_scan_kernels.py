"""Triton kernels of the selective scan (Gu & Dao 2023, arXiv 2312.00752, equation 4 and algorithm 2).

For every batch row b and channel d, with N states and time t (indices b, d left out):

    dt_t = softplus(delta_t + delta_bias)                 h_t = exp(dt_t A) * h_{t-1} + (dt_t u_t) B_t
    y_t  = <C_t, h_t> + D u_t                             out_t = y_t * silu(z_t)

Layout: a program walks BLOCK_D channels serially through time. State tiles are (N, BLOCK_D): lanes lie along the
channels and a lane owns all N states of its channel, so <C, h> needs no exchange between lanes. When batch * channels
are too few to fill the chip, time is split into chunks that run as programs of their own: `chunk_carry_kernel` finds
the state that each chunk adds and its total decay, and the main kernels fold these into the state they start from.

States, carries and sums are fp32 whatever the inputs are: a recurrence rounds once a step, so in half precision its
error would grow with the length.

Conditions on a pointer being None are settled when the kernel is compiled, so they stand apart from run-time ones.
"""
# ruff: noqa: SIM102
# mypy: disable-error-code="assignment,var-annotated"

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_fp32(ptr, mask):
    return tl.load(ptr, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def step_size(raw, mask, SOFTPLUS: tl.constexpr):
    """dt from delta + bias. A masked step gets dt = 0, which makes it the identity: exp(0 A) = 1 and dt u B = 0."""
    dt = raw
    if SOFTPLUS:
        # log(1 + e) alone loses all digits of a small e, and trained step sizes are 1e-3: dividing by the e that 1 + e
        # really holds cancels that rounding (Goldberg 1991, theorem 4).
        e = tl.exp(tl.minimum(raw, 20.0))
        w = 1.0 + e
        dt = tl.where(raw > 20.0, raw, tl.where(w == 1.0, e, tl.log(w) * (e / tl.where(w == 1.0, 1.0, w - 1.0))))
    return tl.where(mask, dt, 0.0)


@triton.jit
def locate(B_groups, d_per_group, n_chunks, BLOCK_D: tl.constexpr):
    """(batch row, chunk, group, channel block, channels, their mask) of this program; batch row and channels 64-bit."""
    pid = tl.program_id(0)
    blocks_per_group = tl.cdiv(d_per_group, BLOCK_D)
    n_blocks = B_groups * blocks_per_group
    block = pid % n_blocks
    chunk = (pid // n_blocks) % n_chunks
    row = (pid // n_blocks // n_chunks).to(tl.int64)
    group = block // blocks_per_group
    in_group = (block % blocks_per_group) * BLOCK_D + tl.arange(0, BLOCK_D)
    channels = (group * d_per_group + in_group).to(tl.int64)
    return row, chunk, group.to(tl.int64), block.to(tl.int64), channels, in_group < d_per_group


@triton.jit
def time_pointer(ptr, strides, row, index, t):
    """Address of (row, index, t) in a (B, X, L) tensor; t may be large, so its offset is 64-bit."""
    return ptr + row * strides[0] + index * strides[1] + tl.cast(t, tl.int64) * strides[2]


@triton.jit
def token_pointer(ptr, strides, row, group, n, t):
    """Addresses of (row, group, :, t) in B or C by token, (B, G, N, L)."""
    return ptr + row * strides[0] + group * strides[1] + n * strides[2] + tl.cast(t, tl.int64) * strides[3]


@triton.jit
def load_constant(ptr, strides, d, n, mask, VARIABLE: tl.constexpr):
    """A constant B or C (D, N), strides (0, channel, state, 0), as a state tile."""
    if VARIABLE:
        return 0.0
    else:
        return load_fp32(ptr + d[None, :] * strides[1] + n[:, None] * strides[2], mask)


@triton.jit
def load_token(constant, ptr, mask, VARIABLE: tl.constexpr):
    """B or C of one token, (N, 1); or the constant one, (N, BLOCK_D)."""
    if VARIABLE:
        return load_fp32(ptr, mask)[:, None]
    else:
        return constant


@triton.jit
def chunk_carry_kernel(
    x_ptr, delta_ptr, V_ptr, A_ptr, z_ptr, bias_ptr, carry_ptr, decay_ptr,
    x_strides, delta_strides, V_strides, z_strides, A_strides,
    groups, d_per_group, n_states, length, chunk_len, n_chunks,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, VARIABLE: tl.constexpr,
    N: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """What one chunk adds to the state that leaves it, and sum(dt), which gives its decay exp(A sum(dt)).

    Forward: x = u, V = B, carry h <- exp(dt A) h + dt u B over ascending time.
    REVERSE: x = dout, V = C, carry dh <- exp(dt A) (dh + dy C) over descending time, with dy = dout silu(z).
    carry (B, n_chunks, N, D) and decay (B, n_chunks, D), fp32.
    """
    row, chunk, group, _, d, d_mask = locate(groups, d_per_group, n_chunks, BLOCK_D)
    n = tl.arange(0, N)
    nd_mask = (n < n_states)[:, None] & d_mask[None, :]
    A2 = load_fp32(A_ptr + d[None, :] * A_strides[0] + n[:, None] * A_strides[1], nd_mask) * LOG2E
    bias = tl.zeros([BLOCK_D], tl.float32)
    if bias_ptr is not None:
        bias = load_fp32(bias_ptr + d, d_mask)
    V_constant = load_constant(V_ptr, V_strides, d, n, nd_mask, VARIABLE)
    start = chunk * chunk_len
    stop = tl.minimum(start + chunk_len, length)
    h = tl.zeros([N, BLOCK_D], tl.float32)
    dt_sum = tl.zeros([BLOCK_D], tl.float32)
    n_tiles = tl.cdiv(stop - start, TILE)
    for tile in range(0, n_tiles):
        t0 = start + tile * TILE
        if REVERSE:
            t0 = start + (n_tiles - 1 - tile) * TILE
        x_at = time_pointer(x_ptr, x_strides, row, d, t0)
        delta_at = time_pointer(delta_ptr, delta_strides, row, d, t0)
        if z_ptr is not None:
            z_at = time_pointer(z_ptr, z_strides, row, d, t0)
        V_at = token_pointer(V_ptr, V_strides, row, group, n, t0)
        for i in tl.static_range(TILE):
            k = TILE - 1 - i if REVERSE else i
            mask = d_mask & (t0 + k < stop)
            dt = step_size(load_fp32(delta_at + k * delta_strides[2], mask) + bias, mask, SOFTPLUS)
            x = load_fp32(x_at + k * x_strides[2], mask)
            V = load_token(V_constant, V_at + k * V_strides[3], (n < n_states) & (t0 + k < stop), VARIABLE)
            a = tl.exp2(A2 * dt[None, :])
            if REVERSE:
                if z_ptr is not None:
                    z = load_fp32(z_at + k * z_strides[2], mask)
                    x *= z * tl.sigmoid(z)
                h = a * (h + x[None, :] * V)
            else:
                h = a * h + (dt * x)[None, :] * V
            dt_sum += dt
    n_channels = groups * d_per_group
    at = row * n_chunks + chunk
    tl.store(carry_ptr + (at * n_states + n[:, None]) * n_channels + d[None, :], h, mask=nd_mask)
    tl.store(decay_ptr + at * n_channels + d, dt_sum, mask=d_mask)


@triton.jit
def fold_carry(h, carry_ptr, decay_ptr, A2, row, chunk, n_chunks, n, d, nd_mask, d_mask, n_states, n_channels):
    """The state after `chunk`, from the state h before it."""
    at = row * n_chunks + chunk
    decay = tl.load(decay_ptr + at * n_channels + d, mask=d_mask, other=0.0)
    carry = tl.load(carry_ptr + (at * n_states + n[:, None]) * n_channels + d[None, :], mask=nd_mask, other=0.0)
    return tl.exp2(A2 * decay[None, :]) * h + carry


@triton.jit
def scan_forward_kernel(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, initial_ptr, carry_ptr, decay_ptr,
    out_ptr, last_ptr, saved_ptr,
    u_strides, delta_strides, A_strides, B_strides, C_strides, z_strides, initial_strides, out_strides,
    groups, d_per_group, n_states, length, chunk_len, n_chunks,
    SOFTPLUS: tl.constexpr, VARIABLE_B: tl.constexpr, VARIABLE_C: tl.constexpr,
    N: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr, SAVE_EVERY: tl.constexpr,
):  # fmt: skip
    """out (B, D, L) and last state (B, D, N); for the backward, the state before every SAVE_EVERY-th step
    in saved (B, ceil(L / SAVE_EVERY), N, D)."""
    row, chunk, group, _, d, d_mask = locate(groups, d_per_group, n_chunks, BLOCK_D)
    n_channels = groups * d_per_group
    n = tl.arange(0, N)
    n_mask = n < n_states
    nd_mask = n_mask[:, None] & d_mask[None, :]
    A2 = load_fp32(A_ptr + d[None, :] * A_strides[0] + n[:, None] * A_strides[1], nd_mask) * LOG2E
    bias = tl.zeros([BLOCK_D], tl.float32)
    if bias_ptr is not None:
        bias = load_fp32(bias_ptr + d, d_mask)
    skip = tl.zeros([BLOCK_D], tl.float32)
    if D_ptr is not None:
        skip = load_fp32(D_ptr + d, d_mask)
    B_constant = load_constant(B_ptr, B_strides, d, n, nd_mask, VARIABLE_B)
    C_constant = load_constant(C_ptr, C_strides, d, n, nd_mask, VARIABLE_C)
    h = tl.zeros([N, BLOCK_D], tl.float32)
    if initial_ptr is not None:
        initial_at = initial_ptr + row * initial_strides[0] + d[None, :] * initial_strides[1]
        h = load_fp32(initial_at + n[:, None] * initial_strides[2], nd_mask)
    if carry_ptr is not None:
        for j in range(0, chunk):
            h = fold_carry(h, carry_ptr, decay_ptr, A2, row, j, n_chunks, n, d, nd_mask, d_mask, n_states, n_channels)

    start = chunk * chunk_len
    stop = tl.minimum(start + chunk_len, length)
    for t0 in range(start, stop, TILE):
        if saved_ptr is not None:
            if t0 % SAVE_EVERY == 0:
                at = row * tl.cdiv(length, SAVE_EVERY) + t0 // SAVE_EVERY
                tl.store(saved_ptr + (at * n_states + n[:, None]) * n_channels + d[None, :], h, mask=nd_mask)
        u_at = time_pointer(u_ptr, u_strides, row, d, t0)
        delta_at = time_pointer(delta_ptr, delta_strides, row, d, t0)
        out_at = time_pointer(out_ptr, out_strides, row, d, t0)
        B_at = token_pointer(B_ptr, B_strides, row, group, n, t0)
        C_at = token_pointer(C_ptr, C_strides, row, group, n, t0)
        # All loads of the tile come before their first use: the recurrence is a chain, so its latency is hidden here.
        us, dts, gates, ys = (), (), (), ()
        for i in tl.static_range(TILE):
            mask = d_mask & (t0 + i < stop)
            us += (load_fp32(u_at + i * u_strides[2], mask),)
            dts += (load_fp32(delta_at + i * delta_strides[2], mask),)
        if z_ptr is not None:
            z_at = time_pointer(z_ptr, z_strides, row, d, t0)
            for i in tl.static_range(TILE):
                gates += (load_fp32(z_at + i * z_strides[2], d_mask & (t0 + i < stop)),)
        for i in tl.static_range(TILE):
            inside = t0 + i < stop
            dt = step_size(dts[i] + bias, d_mask & inside, SOFTPLUS)
            B = load_token(B_constant, B_at + i * B_strides[3], n_mask & inside, VARIABLE_B)
            C = load_token(C_constant, C_at + i * C_strides[3], n_mask & inside, VARIABLE_C)
            h = tl.exp2(A2 * dt[None, :]) * h + (dt * us[i])[None, :] * B
            y = tl.sum(h * C, axis=0) + skip * us[i]
            if z_ptr is not None:
                y *= gates[i] * tl.sigmoid(gates[i])
            ys += (y,)
        for i in tl.static_range(TILE):
            tl.store(out_at + i * out_strides[2], ys[i].to(out_ptr.dtype.element_ty), mask=d_mask & (t0 + i < stop))
    if last_ptr is not None:
        if chunk == n_chunks - 1:
            tl.store(last_ptr + (row * n_channels + d[None, :]) * n_states + n[:, None], h, mask=nd_mask)


@triton.jit
def scan_backward_kernel(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, saved_ptr, carry_ptr, decay_ptr,
    dout_ptr, dlast_ptr, du_ptr, ddelta_ptr, dz_ptr, dA_ptr, dB_ptr, dC_ptr, dD_ptr, dbias_ptr, dinitial_ptr,
    u_strides, delta_strides, A_strides, B_strides, C_strides, z_strides, dout_strides, dlast_strides,
    du_strides, ddelta_strides, dz_strides,
    groups, d_per_group, n_states, length, chunk_len, n_chunks,
    SOFTPLUS: tl.constexpr, VARIABLE_B: tl.constexpr, VARIABLE_C: tl.constexpr,
    N: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr, SAVE_EVERY: tl.constexpr,
):  # fmt: skip
    """Gradients, walking time backwards. With dy_t = dout_t silu(z_t) and the adjoint state

        dh_t = exp(dt_{t+1} A) dh_{t+1} + dy_t C_t         (after the last step: the gradient of the last state)

    they are dC_t = sum_d dy_t h_t, dB_t = sum_d dt_t u_t dh_t, du_t = dt_t <dh_t, B_t> + D dy_t,
    ddt_t = u_t <dh_t, B_t> + <dh_t exp(dt_t A) h_{t-1}, A>, dA = sum_t dt_t dh_t exp(dt_t A) h_{t-1}.

    The states of one tile are rebuilt in registers from the saved ones. Sums over time (dA, dD, dbias, and dB, dC where
    they are constant) leave one partial a program (B, n_chunks, [N,] D); sums over channels leave one partial a block,
    (B, blocks, L, N); the caller adds the partials, so the order of the additions never varies.
    """
    row, chunk, group, block, d, d_mask = locate(groups, d_per_group, n_chunks, BLOCK_D)
    n_channels = groups * d_per_group
    n = tl.arange(0, N)
    n_mask = n < n_states
    nd_mask = n_mask[:, None] & d_mask[None, :]
    A2 = load_fp32(A_ptr + d[None, :] * A_strides[0] + n[:, None] * A_strides[1], nd_mask) * LOG2E
    bias = tl.zeros([BLOCK_D], tl.float32)
    if bias_ptr is not None:
        bias = load_fp32(bias_ptr + d, d_mask)
    skip = tl.zeros([BLOCK_D], tl.float32)
    if D_ptr is not None:
        skip = load_fp32(D_ptr + d, d_mask)
    B_constant = load_constant(B_ptr, B_strides, d, n, nd_mask, VARIABLE_B)
    dB_sum = tl.zeros([N, BLOCK_D], tl.float32)
    C_constant = load_constant(C_ptr, C_strides, d, n, nd_mask, VARIABLE_C)
    dC_sum = tl.zeros([N, BLOCK_D], tl.float32)
    dh = tl.zeros([N, BLOCK_D], tl.float32)
    if dlast_ptr is not None:
        dlast_at = dlast_ptr + row * dlast_strides[0] + d[None, :] * dlast_strides[1]
        dh = load_fp32(dlast_at + n[:, None] * dlast_strides[2], nd_mask)
    if carry_ptr is not None:
        for later in range(0, n_chunks - 1 - chunk):
            j = n_chunks - 1 - later
            dh = fold_carry(dh, carry_ptr, decay_ptr, A2, row, j, n_chunks, n, d, nd_mask, d_mask, n_states, n_channels)

    dA = tl.zeros([N, BLOCK_D], tl.float32)
    dD = tl.zeros([BLOCK_D], tl.float32)
    dbias = tl.zeros([BLOCK_D], tl.float32)
    n_blocks = groups * tl.cdiv(d_per_group, BLOCK_D)
    start = chunk * chunk_len
    stop = tl.minimum(start + chunk_len, length)
    n_tiles = tl.cdiv(stop - start, TILE)
    for tile in range(0, n_tiles):
        t0 = start + (n_tiles - 1 - tile) * TILE
        saved_at = row * tl.cdiv(length, SAVE_EVERY) + t0 // SAVE_EVERY
        h = tl.load(saved_ptr + (saved_at * n_states + n[:, None]) * n_channels + d[None, :], mask=nd_mask, other=0.0)
        # From the saved state to the state before this tile.
        for w0 in range(t0 // SAVE_EVERY * SAVE_EVERY, t0, TILE):
            u_at = time_pointer(u_ptr, u_strides, row, d, w0)
            delta_at = time_pointer(delta_ptr, delta_strides, row, d, w0)
            B_at = token_pointer(B_ptr, B_strides, row, group, n, w0)
            for i in tl.static_range(TILE):
                u = load_fp32(u_at + i * u_strides[2], d_mask)
                dt = step_size(load_fp32(delta_at + i * delta_strides[2], d_mask) + bias, d_mask, SOFTPLUS)
                B = load_token(B_constant, B_at + i * B_strides[3], n_mask, VARIABLE_B)
                h = tl.exp2(A2 * dt[None, :]) * h + (dt * u)[None, :] * B

        u_at = time_pointer(u_ptr, u_strides, row, d, t0)
        delta_at = time_pointer(delta_ptr, delta_strides, row, d, t0)
        dout_at = time_pointer(dout_ptr, dout_strides, row, d, t0)
        du_at = time_pointer(du_ptr, du_strides, row, d, t0)
        ddelta_at = time_pointer(ddelta_ptr, ddelta_strides, row, d, t0)
        if z_ptr is not None:
            z_at = time_pointer(z_ptr, z_strides, row, d, t0)
            dz_at = time_pointer(dz_ptr, dz_strides, row, d, t0)
        B_at = token_pointer(B_ptr, B_strides, row, group, n, t0)
        dB_at = dB_ptr + ((row * n_blocks + block) * length + t0) * n_states + n
        C_at = token_pointer(C_ptr, C_strides, row, group, n, t0)
        dC_at = dC_ptr + ((row * n_blocks + block) * length + t0) * n_states + n

        us, raws, dts, decayed = (), (), (), ()
        for i in tl.static_range(TILE):
            mask = d_mask & (t0 + i < stop)
            us += (load_fp32(u_at + i * u_strides[2], mask),)
            raws += (load_fp32(delta_at + i * delta_strides[2], mask) + bias,)
        for i in tl.static_range(TILE):
            dts += (step_size(raws[i], d_mask & (t0 + i < stop), SOFTPLUS),)
            B = load_token(B_constant, B_at + i * B_strides[3], n_mask & (t0 + i < stop), VARIABLE_B)
            decayed += (tl.exp2(A2 * dts[i][None, :]) * h,)
            h = decayed[i] + (dts[i] * us[i])[None, :] * B

        for k in tl.static_range(TILE - 1, -1, -1):
            inside = t0 + k < stop
            mask = d_mask & inside
            u, dt = us[k], dts[k]
            x = dt * u
            dy = load_fp32(dout_at + k * dout_strides[2], mask)
            B = load_token(B_constant, B_at + k * B_strides[3], n_mask & inside, VARIABLE_B)
            C = load_token(C_constant, C_at + k * C_strides[3], n_mask & inside, VARIABLE_C)
            h = decayed[k] + x[None, :] * B
            if z_ptr is not None:
                z = load_fp32(z_at + k * z_strides[2], mask)
                gate = tl.sigmoid(z)
                y = tl.sum(h * C, axis=0) + skip * u
                dz = dy * y * gate * (1.0 + z * (1.0 - gate))
                tl.store(dz_at + k * dz_strides[2], dz.to(dz_ptr.dtype.element_ty), mask=mask)
                dy *= z * gate
            dh += dy[None, :] * C
            if VARIABLE_C:
                tl.store(dC_at + k * n_states, tl.sum(dy[None, :] * h, axis=1), mask=n_mask & inside)
            else:
                dC_sum += dy[None, :] * h
            if VARIABLE_B:
                tl.store(dB_at + k * n_states, tl.sum(dh * x[None, :], axis=1), mask=n_mask & inside)
            else:
                dB_sum += dh * x[None, :]
            dx = tl.sum(dh * B, axis=0)
            through_decay = dh * decayed[k]
            ddelta = dx * u + tl.sum(through_decay * A2, axis=0) * LN2
            if SOFTPLUS:
                ddelta = tl.where(raws[k] > 20.0, ddelta, ddelta * tl.sigmoid(raws[k]))
            dA += through_decay * dt[None, :]
            dbias += tl.where(mask, ddelta, 0.0)
            dD += dy * u
            tl.store(du_at + k * du_strides[2], (dx * dt + skip * dy).to(du_ptr.dtype.element_ty), mask=mask)
            tl.store(ddelta_at + k * ddelta_strides[2], ddelta.to(ddelta_ptr.dtype.element_ty), mask=mask)
            dh *= tl.exp2(A2 * dt[None, :])

    at = row * n_chunks + chunk
    nd_at = (at * n_states + n[:, None]) * n_channels + d[None, :]
    tl.store(dA_ptr + nd_at, dA, mask=nd_mask)
    if not VARIABLE_B:
        tl.store(dB_ptr + nd_at, dB_sum, mask=nd_mask)
    if not VARIABLE_C:
        tl.store(dC_ptr + nd_at, dC_sum, mask=nd_mask)
    if dD_ptr is not None:
        tl.store(dD_ptr + at * n_channels + d, dD, mask=d_mask)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + at * n_channels + d, dbias, mask=d_mask)
    if dinitial_ptr is not None:
        if chunk == 0:
            tl.store(dinitial_ptr + (row * n_channels + d[None, :]) * n_states + n[:, None], dh, mask=nd_mask)
