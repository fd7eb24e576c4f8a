"""Where there is no GPU, Triton runs the kernels in Python: slow, but the same source.

Triton reads TRITON_INTERPRET when it is first imported, and other tests import it through transformers, so without a
GPU these tests run in a process of their own, which test_interpreter.py starts. To run some of them by hand:
TRITON_INTERPRET=1 pytest tests/ops/gpu/test_triton_layer_norm.py
"""

import os

import pytest
import torch

pytest.importorskip("triton")

HERE = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = ["test_interpreter.py"] if HERE else ["test_triton_*.py"]
