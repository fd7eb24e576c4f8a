"""The selective scan, and the inner part of a Mamba block that stands on it: the door."""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_ssm.ops import backend
from mamba_ssm.ops.causal_conv1d import causal_conv1d_fn
from mamba_ssm.ops.layer_norm import rms_norm_fn
from mamba_ssm.ops.library import define_operator
from mamba_ssm.ops.reference.selective_scan import selective_scan_fn as selective_scan_ref

__all__ = ["mamba_inner_fn", "mamba_inner_ref", "selective_scan_fn", "selective_scan_ref"]

MOST_STATES = 256  # of the kernels


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> Any:
    """Scan u (B, D, L): out (B, D, L) in u's dtype, or (out, last_state (B, D, N) in fp32).

    Shapes, dtypes and the mathematics: `mamba_ssm/ops/reference/selective_scan.py`. Complex A has no fast path.
    """
    if torch.compiler.is_compiling():
        out, last = _operator(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, seq_idx)
        return (out, last) if return_last_state else out
    run = _backend_for(u, A, B, C, seq_idx)
    return run(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state, initial_state, seq_idx)


def _backend_for(u: Tensor, A: Tensor, B: Tensor, C: Tensor, seq_idx: Tensor | None) -> Callable[..., Any]:
    """The selective_scan_fn of the back-end that takes a scan of these."""
    if A.is_complex():
        return selective_scan_ref
    wide = A.shape[1] > MOST_STATES
    lacks = {"cuda": wide or B.dim() == 2 or C.dim() == 2, "triton": wide or seq_idx is not None}
    without = frozenset(name for name, lack in lacks.items() if lack)
    return backend.module("selective_scan", u, without).selective_scan_fn


def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
) -> tuple[Tensor, Tensor]:
    run = _backend_for(u, A, B, C, seq_idx)
    return run(u, delta, A, B, C, D, z, delta_bias, delta_softplus, True, initial_state, seq_idx)


def _fake_scan(u: Tensor, delta: Tensor, A: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(u.dtype, torch.complex64 if A.is_complex() else torch.float32)
    return torch.empty_like(u), u.new_empty(*u.shape[:2], A.shape[1], dtype=dtype)


_operator = define_operator(
    "selective_scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias,"
    " bool delta_softplus, Tensor? initial_state, Tensor? seq_idx) -> (Tensor, Tensor)",
    _scan,
    _fake_scan,
)


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """Convolution, projections, selective scan, gate and output projection of a Mamba block (arXiv 2312.00752, fig. 3).

    Letters: E width of the output, R rank of delta, N state (2N numbers for complex A).

    Args:
        xz: (B, 2D, L). conv1d_weight: (D, 1, W). conv1d_bias: (D,). x_proj_weight: (R + N + N, D), without the N of a B
            or C that is given. delta_proj_weight: (D, R). out_proj_weight: (E, D). out_proj_bias: (E,).
        A, B, C, D, delta_bias, delta_softplus: as in `selective_scan_fn`; B and C None come from x_proj_weight, plus
            B_proj_bias and C_proj_bias (N,).
        checkpoint_lvl: accepted for the original's sake: a back-end decides what it keeps for its backward.
        b_rms_weight, c_rms_weight, dt_rms_weight: (N,), (N,) and (D,), weights of an RMS norm of B, of C and of delta
            before its bias, as FalconMamba has them (arXiv 2410.05355); b_c_dt_rms_eps is their epsilon.
            delta is normalised after its projection, as in the original, where transformers' own FalconMamba does so
            before: a warning says what to call.

    Returns:
        (B, L, E).

    Raises:
        ValueError: a norm of a B or C that is given, or with complex A.
    """
    normed = any(m is not None for m in (b_rms_weight, c_rms_weight, dt_rms_weight))
    if normed and (B is not None or C is not None or A.is_complex()):
        raise ValueError("RMS norms are for real A, and B and C from x_proj_weight: leave out the *_rms_weight")
    if dt_rms_weight is not None:
        warnings.warn(
            "mamba_inner_fn normalises delta after its projection, as the original does; when it infers, transformers' "
            "FalconMamba does so before: call mamba_ssm.integrations.transformers.use_ops() to train that function",
            stacklevel=2,
        )
    if out_proj_bias is not None:  # transformers hands it over in fp32 whatever the weights are
        out_proj_bias = out_proj_bias.to(out_proj_weight.dtype)
    made = B is None and C is None and B_proj_bias is None and C_proj_bias is None and not A.is_complex()
    if made and not normed and _trains_on_cuda(xz, conv1d_weight, A):
        from mamba_ssm.ops.cuda.mamba_inner import mamba_inner_fn as fused

        weights = (conv1d_weight.squeeze(1), conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight)
        return fused(xz, *weights, out_proj_bias, A, D, delta_bias, delta_softplus)
    x, z = xz.chunk(2, dim=1)
    x = causal_conv1d_fn(x, conv1d_weight.squeeze(1), conv1d_bias, activation="silu")
    state = A.shape[1] * (2 if A.is_complex() else 1)
    rank = delta_proj_weight.shape[1]
    widths = [rank] + [state for m in (B, C) if m is None]
    dt, *rest = F.linear(x.transpose(1, 2), x_proj_weight).split(widths, dim=-1)
    selected = list(rest)  # torch.compile takes the starred rest for a tuple
    delta = _rms_norm(F.linear(dt, delta_proj_weight), dt_rms_weight, b_c_dt_rms_eps)
    if B is None:
        B = _to_state_first(selected.pop(0), B_proj_bias, b_rms_weight, b_c_dt_rms_eps, A.is_complex())
    if C is None:
        C = _to_state_first(selected.pop(0), C_proj_bias, c_rms_weight, b_c_dt_rms_eps, A.is_complex())
    y = selective_scan_fn(x, delta.transpose(1, 2), A, B, C, D, z, delta_bias, delta_softplus)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def _trains_on_cuda(xz: Tensor, conv1d_weight: Tensor, A: Tensor) -> bool:
    """Whether this call wants gradients, and the CUDA back-end has all its parts: then one function keeps less."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and 2 <= conv1d_weight.shape[-1] <= 4
        and A.shape[1] <= MOST_STATES
        and backend.choose("selective_scan", xz.device, xz.dtype).backend == "cuda"
    )


@wraps(mamba_inner_fn)
def mamba_inner_ref(*args: Any, **kwargs: Any) -> Tensor:
    """`mamba_inner_fn` on the reference back-end."""
    with backend.use("reference"):
        return mamba_inner_fn(*args, **kwargs)


def _rms_norm(m: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return m if weight is None else rms_norm_fn(m, weight, None, eps=eps)


def _to_state_first(
    m: Tensor, bias: Tensor | None, norm_weight: Tensor | None, eps: float, interleaved: bool
) -> Tensor:
    """Bias and norm, and (B, L, N) to (B, N, L), or, pairs of real and imaginary parts, (B, L, 2N) to (B, N, 2L)."""
    if bias is not None:
        m = m + bias.to(m.dtype)
    m = _rms_norm(m, norm_weight, eps)
    if not interleaved:
        return m.transpose(1, 2)
    return m.unflatten(-1, (-1, 2)).transpose(1, 2).flatten(2)
