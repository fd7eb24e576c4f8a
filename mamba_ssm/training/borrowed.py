"""Start a model from borrowed token vectors: what scripts/borrow_token_table.py wrote."""

from __future__ import annotations

import torch
from torch import Tensor

from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.text.tokenizer import SPECIALS

# Large beside what the layers add, and slow to change: the borrowed vectors generalise, new ones overfit.
TABLE_SCALE = 4.0
TABLE_RATE, ENCODER_RATE = 0.1, 0.5  # shares of the learning rate


@torch.no_grad()
def start(model: MambaLMHeadModel, borrowed: dict[str, Tensor], n_enc: int) -> None:
    """Give a new model the token table (V, D) and, if it has ESI, the idf (V,) as token weights, in place.

    The first n_enc layers begin silent, so that keys begin without context.
    """
    table = model.backbone.embedding.weight
    table.copy_(borrowed["table"].float() * TABLE_SCALE)
    # The special tokens have no text to borrow for. Near zero, they could neither be told apart nor be predicted.
    n, width = len(SPECIALS), table.shape[1]
    table[:n] = torch.randn(n, width) * TABLE_SCALE / width**0.5
    model.backbone.norm_f.weight.fill_(width**-0.5)
    for layer in model.backbone.layers[:n_enc]:
        layer.mixer.out_proj.weight.zero_()
    if model.esi is not None:
        model.esi.search.prior.weight.copy_(borrowed["idf"].clamp(min=0.1).log()[:, None])
