"""Causal depthwise convolution over time in plain PyTorch, with state in and out.

Letters: B batch, D channels, L length, W width of the kernel. Signatures are those of the causal-conv1d package.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_ssm.ops.layout import last_inputs
from mamba_ssm.ops.steps import update_by


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """y_t = act(bias + Σ_w weight_w x_{t-W+1+w}), each channel by itself (arXiv 2312.00752, section 3.4).

    Args:
        x: (B, D, L), any strides. weight: (D, W). bias: (D,).
        seq_idx: (B, L) integers: the sequence that a token belongs to, in a row that packs several one after the
            other. No token sees another sequence; outputs where it is negative (padding) are zero.
        initial_states: (B, D, W-1), the inputs before the first token (of the first token's sequence); else zero.
        return_final_states: also return the last W-1 inputs, (B, D, W-1), zero where they belong to another sequence
            than the last token; written into final_states_out when given.
        activation: None, "silu" or "swish" (the same).

    Returns:
        out (B, D, L) in x's dtype, or (out, final_states). Computed in fp32, or in fp64 when x is.
    """
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"activation is None, 'silu' or 'swish', not {activation!r}")
    length, width = x.shape[-1], weight.shape[1]
    work = torch.promote_types(x.dtype, torch.float32)
    xs, w = x.to(work), weight.to(work).t().contiguous()[:, :, None]
    before = xs.new_zeros(*x.shape[:2], width - 1) if initial_states is None else initial_states.to(work)
    y = xs * w[width - 1] if bias is None else torch.addcmul(bias.to(work)[:, None], xs, w[width - 1])
    for k in range(1, width):
        # x_{t-k} is in x from t = k on, and in the state before it; in place, for a text is too large to copy W times.
        near, far = xs[..., : max(0, length - k)], before[..., width - 1 - k :][..., :length]
        if seq_idx is not None:
            near = near * (seq_idx[:, k:] == seq_idx[:, : max(0, length - k)])[:, None]
            far = far * (seq_idx[:, :k] == seq_idx[:, :1])[:, None]
        y[..., k:].addcmul_(near, w[width - 1 - k])
        y[..., :k].addcmul_(far, w[width - 1 - k])
    if activation is not None:
        y = F.silu(y)
    if seq_idx is not None:
        y = y * (seq_idx >= 0)[:, None]
    out = y.to(x.dtype)
    if not return_final_states:
        return out
    final = last_inputs(x, initial_states, width - 1, seq_idx)
    return out, final if final_states_out is None else final_states_out.copy_(final)


def causal_conv1d_update(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """Continue a convolution by one token, or by some.

    Args:
        x: (B, D), or (B, D, L). weight: (D, W). bias: (D,).
        conv_state: (B, D, S) with S >= W-1, the last S inputs; shifted in place.
        activation: None, "silu" or "swish".

    Returns:
        out, of x's shape and dtype.
    """
    return update_by(causal_conv1d_fn, x, conv_state, weight, bias, activation)
