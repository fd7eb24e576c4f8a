"""How a (B, D, L) tensor lies in memory, and its end."""

import torch
from torch import Tensor


def channel_last(x: Tensor) -> bool:
    """Whether neighbouring channels of x (B, D, L) are nearer in memory than neighbouring steps."""
    return x.stride(1) <= x.stride(2)


def empty_like_layout(x: Tensor) -> Tensor:
    """Unwritten dense tensor of x's shape (B, D, L) whose fastest axis is x's."""
    if channel_last(x):
        return x.new_empty(x.shape[0], x.shape[2], x.shape[1]).transpose(1, 2)
    return x.new_empty(x.shape)


def last_inputs(x: Tensor, before: Tensor | None, count: int, seq_idx: Tensor | None = None) -> Tensor:
    """The last `count` columns (B, D, count) of before (zero if None) and x (B, D, L), one after the other.

    With seq_idx (B, L), those of another sequence than the last token are zero.
    """
    length = x.shape[-1]
    if before is None:
        before = x.new_zeros(*x.shape[:2], count)
    recent = x[..., max(0, length - count) :]
    new = recent.shape[-1]
    final = torch.cat([before.to(x.dtype), recent], dim=-1)[..., new:]
    if seq_idx is not None and length > 0:
        ids = torch.cat([seq_idx[:, :1].expand(-1, count), seq_idx[:, length - new :]], dim=-1)
        final = final * (ids[:, new:] == ids[:, -1:])[:, None]
    return final
