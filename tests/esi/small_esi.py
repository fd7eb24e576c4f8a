"""A small model with ESI whose gates are open, as after training."""

import torch

from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

VOCABULARY = 101
SIZES = {
    "n_enc": 1,
    "d_search": 16,
    "segment": 24,
    "warmup": 8,
    "window": 8,
    "top_k": 3,
    "d_read": 16,
    "n_read": 1,
    "d_state": 4,
    "n_heads": 2,
    "question": 4,
}


def small_model(esi: dict[str, int] | None = SIZES, gates: float = 0.7, seed: int = 0) -> MambaLMHeadModel:
    torch.manual_seed(seed)
    config = MambaConfig(d_model=16, n_layer=3, vocab_size=VOCABULARY, ssm_cfg={"d_state": 4}, esi=esi)
    model = MambaLMHeadModel(config, initializer_cfg={"initializer_range": 1.0}).eval()
    if model.esi is not None:
        with torch.no_grad():
            model.esi.injection.gate.fill_(gates)
            model.esi.injection.copy_gate.fill_(gates)
    return model


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))
