"""Inject retrieved windows into the model's state, and let its output copy from them.

Shapes: B batch, T positions, K windows, W tokens of a window, D model width, E reader width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_ssm.esi.reader import PAD, Memory

MAX_POINTER = 30.0


class Injection(nn.Module):
    """x_t + gate * W_o sum_c softmax_c(S_c + s_{t,c}) attend_c(x_t).

    s_{t,c} is the logsumexp of the attention logits in window c. That product of two softmaxes is one softmax over all
    retrieved tokens with the window's score as a bias, and is computed so.
    Both gates start at zero: a model that was not trained with ESI keeps its output to the bit.
    """

    def __init__(self, d_model: int, d_read: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm = nn.LayerNorm(d_model)
        self.query = nn.Linear(d_model, d_read, bias=False)
        self.key_value = nn.Linear(d_read, 2 * d_read, bias=False)
        self.out = nn.Linear(d_read, d_model, bias=False)
        self.pointer = nn.Linear(d_model, d_read, bias=False)
        self.gate = nn.Parameter(torch.zeros(()))
        self.copy_gate = nn.Parameter(torch.zeros(()))
        for layer in (self.query, self.key_value, self.out, self.pointer):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """x (B, T, D) -> what to add to it (B, T, D)."""
        q = self.query(self.norm(x)).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        kv = self.key_value(memory.states.flatten(1, 2)).unflatten(-1, (2, self.n_heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4)
        bias = memory.scores.repeat_interleave(memory.ids.shape[2], 1)[:, None, None].to(q.dtype)
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(-1, 1, q.shape[2], -1))
        return self.gate.to(x.dtype) * self.out(found.transpose(1, 2).flatten(2)).to(x.dtype)

    def copy(self, logits: Tensor, x: Tensor, memory: Memory) -> Tensor:
        """Raise the logits (B, T, V) of retrieved tokens, x (B, T, D) the model's last states.

        logit_v + gate * log(1 + sum of exp(pointer_i) over the retrieved tokens i that are v): generate or copy
        (after pointer-generator networks, See et al. 2017, arXiv 1704.04368, as a product of experts).
        """
        pointer = self.pointer(x).float() @ memory.states.flatten(1, 2).mT.float() / memory.states.shape[-1] ** 0.5
        bias = memory.scores.repeat_interleave(memory.ids.shape[2], 1)[:, None]
        mass = (pointer + bias - bias.amax(-1, keepdim=True)).clamp(max=MAX_POINTER).exp()
        ids = memory.ids.flatten(1)[:, None].expand(-1, x.shape[1], -1)
        mass = mass.masked_fill(ids == PAD, 0.0)
        boost = torch.zeros_like(logits, dtype=torch.float32).scatter_add(2, ids, mass).log1p()
        return logits + (self.copy_gate * boost).to(logits.dtype)
