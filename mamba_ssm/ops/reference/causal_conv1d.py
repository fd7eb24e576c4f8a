"""Causal depthwise convolution over time in plain PyTorch, with state in and out.

Letters: B batch, D channels, L length, W width of the kernel. Signatures are those of the causal-conv1d package.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


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
    batch, dim, length = x.shape
    width = weight.shape[1]
    if initial_states is None:
        initial_states = x.new_zeros(batch, dim, width - 1)
    padded = torch.cat([initial_states.to(x.dtype), x], dim=-1)
    work = torch.promote_types(x.dtype, torch.float32)
    seen, w = padded.to(work), weight.to(work)
    y = torch.zeros_like(x, dtype=work) if bias is None else bias.to(work)[:, None].expand(batch, dim, length)
    ids = None
    if seq_idx is not None and length > 0:
        ids = torch.cat([seq_idx[:, :1].expand(batch, width - 1), seq_idx], dim=-1)
    for k in range(width):
        term = seen[..., k : k + length] * w[:, k, None]
        y = y + (term if ids is None else term * (ids[:, k : k + length] == ids[:, width - 1 :])[:, None])
    if activation is not None:
        y = F.silu(y)
    if ids is not None:
        y = y * (ids[:, width - 1 :] >= 0)[:, None]
    out = y.to(x.dtype)
    if not return_final_states:
        return out
    final = padded[..., length:]
    if ids is not None:
        final = final * (ids[:, length:] == ids[:, -1:])[:, None]
    return out, final.clone() if final_states_out is None else final_states_out.copy_(final)


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
    new = x.unsqueeze(-1) if x.dim() == 2 else x
    width, kept = weight.shape[1], conv_state.shape[-1]
    state = conv_state[..., kept - (width - 1) :]
    out = causal_conv1d_fn(new, weight, bias, initial_states=state, activation=activation)
    assert isinstance(out, Tensor)
    conv_state.copy_(torch.cat([conv_state, new.to(conv_state.dtype)], dim=-1)[..., new.shape[-1] :])
    return out.view_as(x)
