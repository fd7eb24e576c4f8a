"""Choosing a token from logits (B, V)."""

from __future__ import annotations

import torch
from torch import Tensor


def modify_logit_for_repetition_penalty(
    logits: Tensor, prev_output_tokens: Tensor, repetition_penalty: float
) -> Tensor:
    """Make tokens of prev_output_tokens (B, L) less likely, in place (CTRL, arXiv:1909.05858, section 4.1).

    Logits are divided by the penalty where positive and multiplied where not, so a penalty over 1 always lowers them.
    """
    if repetition_penalty <= 0:
        raise ValueError(f"repetition_penalty is {repetition_penalty}: it must be above 0")
    seen = torch.gather(logits, 1, prev_output_tokens)
    return logits.scatter_(
        1, prev_output_tokens, torch.where(seen < 0, seen * repetition_penalty, seen / repetition_penalty)
    )


def modify_logits_for_top_k_filtering(logits: Tensor, top_k: int) -> None:
    """Forbid, in place, all but the top_k likeliest tokens."""
    kth = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
    logits.masked_fill_(logits < kth, -torch.inf)


def modify_logits_for_top_p_filtering(logits: Tensor, top_p: float) -> None:
    """Forbid, in place, all but the fewest tokens that hold top_p of the mass (Holtzman et al. 2020, section 3.1)."""
    if top_p <= 0 or top_p >= 1:
        return
    descending, order = logits.sort(dim=-1, descending=True)
    mass = descending.softmax(dim=-1)
    enough_before = mass.cumsum(dim=-1) - mass >= top_p
    enough_before[:, 0] = False  # a top_p that rounds to 0 still keeps one
    logits.masked_fill_(enough_before.scatter(1, order, enough_before), -torch.inf)


def modify_logits_for_min_p_filtering(logits: Tensor, min_p: float) -> None:
    """Forbid, in place, tokens less likely than min_p times the likeliest (Nguyen et al. 2024, arXiv:2407.01082)."""
    if min_p <= 0:
        return
    probabilities = logits.softmax(dim=-1)
    logits.masked_fill_(probabilities < min_p * probabilities.amax(dim=-1, keepdim=True), -torch.inf)


def sample(
    logits: Tensor,
    top_k: int = 1,
    top_p: float = 0.0,
    min_p: float = 0.0,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Tokens (B,) from logits (B, V): the likeliest for top_k 1, else drawn after temperature and the three limits."""
    if top_k == 1:
        return logits.argmax(dim=-1)
    if top_k < 0 or not 0 <= top_p <= 1 or not 0 <= min_p <= 1 or not temperature > 0:
        raise ValueError(
            f"top_k {top_k} must be at least 0, top_p {top_p} and min_p {min_p} within 0 and 1, "
            f"and temperature {temperature} above 0 (for the likeliest token, top_k=1)"
        )
    logits = logits.float() / temperature
    if top_k > 0:
        modify_logits_for_top_k_filtering(logits, top_k)
    modify_logits_for_top_p_filtering(logits, top_p)
    modify_logits_for_min_p_filtering(logits, min_p)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(1)


def draw(logits: Tensor, temperature: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    """Tokens (B,) from logits (B, V), each row by its own temperature, top_p and number in [0, 1), all (B,).

    By inversion of the distribution function, so a row's token depends on that row alone. top_p 1 does not limit; its
    values are looked at, so on a GPU's tensors they had better be on the CPU.
    """
    logits = logits.float() / temperature.unsqueeze(1)
    for row, limit in enumerate(top_p.tolist()):
        if limit < 1:
            modify_logits_for_top_p_filtering(logits[row : row + 1], limit)
    mass = logits.softmax(dim=-1).cumsum(dim=-1)
    total = mass[:, -1:]
    # The product may round up to the total. right: the first token above it, so never one that has no mass.
    at = (uniform.unsqueeze(1) * total).minimum(torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(mass, at, right=True).squeeze(1)
