"""How a (B, D, L) tensor lies in memory."""

from torch import Tensor


def channel_last(x: Tensor) -> bool:
    """Whether neighbouring channels of x (B, D, L) are nearer in memory than neighbouring steps."""
    return x.stride(1) <= x.stride(2)


def empty_like_layout(x: Tensor) -> Tensor:
    """Unwritten dense tensor of x's shape (B, D, L) whose fastest axis is x's."""
    if channel_last(x):
        return x.new_empty(x.shape[0], x.shape[2], x.shape[1]).transpose(1, 2)
    return x.new_empty(x.shape)
