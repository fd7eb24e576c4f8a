"""Context parallelism: one sequence in parts, one after the other, on the ranks of a process group.

A scan is h_t = a_t h_{t-1} + b_t with a_t = exp(Δ_t A) and b_t = Δ_t B_t x_t (Gu & Dao 2023, arXiv 2312.00752,
equation 2a). Two such steps are one: (a', b') after (a, b) is (a' a, a' b + b'), which is associative (Blelloch 1990,
"Prefix Sums and Their Applications", section 1.4; Smith et al. 2023, S5, arXiv 2208.04933, appendix H). So a whole part
is one step as well: with S its last state when it begins at zero,

    h_end = P h_begin + S,    P = prod_t exp(Δ_t A) = exp(A sum_t Δ_t).

All ranks scan their parts from zero at the same time, tell one another S and sum_t Δ_t, compose the steps of the ranks
before them to h_begin, and scan once more from there. The convolution needs the W inputs before a part, and what they
are is a composition, too: shift by the part's length, then add the part's own last W. What a layer sends is thus a
state for each row, whatever the length; a number a channel more, and the W inputs. Where a packed sequence begins in
a part, or with it, the part forgets what was before: P and the shifted inputs are zero.

The backward pass is that of these very formulas: the gather's is the sum of all ranks' gradients, so a gradient flows
from a part to those before it, and again all ranks work at the same time.

Shapes: B batch, L length of this rank's part, D channels, N state, W width of the convolution, R ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

# PyTorch itself imports this at some later time; what it defines then holds the default group as it is at that moment,
# whose threads would thus outlive destroy_process_group and abort a process that ends before they have let go a tensor.
import torch.distributed.nn
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from mamba_ssm.ops.selective_scan_interface import selective_scan_fn


class _Gather(torch.autograd.Function):
    """What each rank holds, (...), stacked: (R, ...)."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        gathered = own.new_empty(dist.get_world_size(group), *own.shape)
        dist.all_gather(list(gathered), own.contiguous(), group=group)
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Not reduce_scatter, which gloo lacks in older versions.
        of_own = torch.empty_like(gradient, memory_format=torch.contiguous_format)
        dist.all_to_all_single(of_own, gradient.contiguous(), group=ctx.group)
        return of_own.sum(0), None


def own_part(whole: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """This rank's part of whole (B, length), the same on all ranks: ids, targets or seq_idx, (B, L).

    Parts differ by one token at most. Make targets of the whole text first: a part's last one is in the next part.
    """
    return whole.tensor_split(dist.get_world_size(group), dim=1)[dist.get_rank(group)]


class ContextParallel:
    """What the ranks of a group know of one another's parts of a batch: the ``context`` of a layer or a model.

    Outputs are those of the whole sequence at this rank's positions. Gradients of inputs are whole; those of parameters
    are this rank's share: sum them over the ranks. Each rank has to call the layers alike, and a backward pass of what
    came out of them, for ranks wait for one another.

    Args:
        part: (B, L), this rank's ids, or anything of that shape on the device where the group communicates; L may
            differ from rank to rank, and be 0.
        seq_idx: (B, L), the sequence that each token belongs to, for packed rows; on all ranks or on none. One goes on
            in the next part where the numbers agree.
        group: by default the default group, in which rank 0 holds the beginning.

    Raises:
        ValueError: parts that do not fit together.
    """

    def __init__(self, part: Tensor, seq_idx: Tensor | None = None, group: dist.ProcessGroup | None = None) -> None:
        self.group, self.rank, self.seq_idx = group, dist.get_rank(group), seq_idx
        self.shape = part.shape[:2]
        if seq_idx is not None and seq_idx.shape != self.shape:
            raise ValueError(f"seq_idx {tuple(seq_idx.shape)} must name a sequence for each token, {tuple(self.shape)}")
        facts = [*self.shape, int(seq_idx is not None)]
        told = self._gather(torch.tensor(facts, device=part.device)).tolist()
        if any(other[::2] != told[0][::2] for other in told):
            raise ValueError(
                f"the ranks hold {told} (rows, tokens, packed): all need the same rows, and seq_idx or none"
            )
        self.lengths = [length for _, length, _ in told]
        # (R, B): whether the first token of a part goes on with the text before it, and whether its last one does.
        self._first: Tensor | None = None
        self._through: Tensor | None = None
        if seq_idx is not None:
            self._first, self._through = self._links(seq_idx)

    def _gather(self, own: Tensor) -> Tensor:
        gathered: Tensor = _Gather.apply(own, self.group)
        return gathered

    def _links(self, seq_idx: Tensor) -> tuple[Tensor, Tensor]:
        ids = seq_idx.long()
        if ids.shape[1]:
            ends = torch.stack([ids[:, 0], ids[:, -1], (ids == ids[:, :1]).all(1).long()])
        else:
            ends = ids.new_ones(3, len(ids))
        first, through, before = [], [], None
        for length, (begin, end, whole) in zip(self.lengths, self._gather(ends), strict=True):
            goes_on = torch.ones_like(whole, dtype=torch.bool)
            if length:
                goes_on = goes_on if before is None else begin == before
                before = end
            first.append(goes_on)
            through.append(goes_on & whole.bool())
        return torch.stack(first), torch.stack(through)

    def _compose(self, nothing: Tensor, steps: list[Callable[[Tensor], Tensor]]) -> Tensor:
        """What is before this rank's part: the ranks' steps after one another, from nothing (B, D, ...) on."""
        before = [nothing]
        for rank, step in enumerate(steps[:-1]):
            kept = before[-1]
            before.append(step(kept if self._through is None else kept * self._through[rank, :, None, None]))
        # All ranks compose all, and choose here: one that left a step out would be missing in its backward pass.
        chosen = torch.stack(before)[self.rank]
        return chosen if self._first is None else chosen * self._first[self.rank, :, None, None]

    def columns_before(self, x: Tensor, width: int) -> Tensor:
        """The last ``width`` columns (B, D, W) before x (B, D, L), zero where there is none of the same sequence."""
        last = x[..., -width:]
        if self.seq_idx is not None:
            last = last.masked_fill((self.seq_idx[:, -width:] != self.seq_idx[:, -1:])[:, None], 0)
        own = F.pad(last, (width - last.shape[-1], 0))

        def shift(columns: Tensor, length: int) -> Callable[[Tensor], Tensor]:
            new = columns[..., max(width - length, 0) :]
            return lambda before: torch.cat([before, new], -1)[..., -width:]

        steps = [shift(*part) for part in zip(self._gather(own), self.lengths, strict=True)]
        return self._compose(torch.zeros_like(own), steps)

    def state_before(self, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, delta_bias: Tensor) -> Tensor:
        """The state (B, D, N) that this part's scan begins with; arguments as of selective_scan_fn, with softplus."""
        _, last = selective_scan_fn(
            x, delta, A, B, C, None, None, delta_bias, True, return_last_state=True, seq_idx=self.seq_idx
        )
        # Made again for the backward pass: softplus would keep one more (B, D, L) in fp32.
        total = checkpoint(_total, delta, delta_bias, last.dtype, use_reentrant=False, preserve_rng_state=False)

        def scan(told: Tensor) -> Callable[[Tensor], Tensor]:
            last, total = told[..., :-1], told[..., -1:]
            return lambda before: torch.exp(A * total) * before + last

        steps = [scan(told) for told in self._gather(torch.cat([last, total], -1))]
        return self._compose(torch.zeros_like(last), steps)


def _total(delta: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """sum_t softplus(delta + bias), (B, D, 1)."""
    return F.softplus(delta.to(dtype) + bias.to(dtype)[:, None]).sum(-1, keepdim=True)
