"""Where there is no GPU, Triton runs the kernels in Python: slow, but the same source."""

import os
import sys

import pytest
import torch

# Triton reads this when it is first imported, for its own functions too.
if not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ.setdefault("TRITON_INTERPRET", "1")


pytest.importorskip("triton")
