"""How much of a GPU a training step uses."""

from __future__ import annotations

import torch
from torch import nn

# Dense products in bf16, in FLOP/s, from the makers' data sheets; the first name that is part of a device's counts.
PEAKS = (
    ("B200", 2250e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("A40", 149.7e12),
    ("MI300X", 1307e12),
)


def peak_flops(device: torch.device) -> float | None:
    """Of products in bf16 on this device; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS if part in name), None)


def matrix_parameters(model: nn.Module) -> int:
    """Parameters that each token is multiplied with; the embedding counts as the head.

    A training step takes 6 operations for each of them and each token (Kaplan et al. 2020, arXiv 2001.08361, 2.1).
    """
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
