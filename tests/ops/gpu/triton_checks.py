"""Where Triton kernels are tested, and how near to float64 they come."""

from functools import partial

import checks
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Relative error of the norm: fp32 sums, and outputs rounded once to half precision (the interpreter cuts off instead).
_ROUNDING = 1 if DEVICE == "cuda" else 3
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-4 * _ROUNDING, torch.bfloat16: 4e-3 * _ROUNDING}

rand = partial(checks.rand, device=DEVICE)
