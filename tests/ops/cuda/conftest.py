"""The CUDA kernels: on a GPU compiled by NVRTC, elsewhere by g++ against an emulator."""

import emulator
import pytest
import torch

from mamba_ssm.ops.cuda import compiler


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels run on CPU tensors."""
    if emulator.COMPILER is None:
        pytest.skip("the emulator needs g++")
    monkeypatch.setattr(compiler, "kernel", emulator.kernel)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """Where a test's tensors go: the GPU in tests marked gpu, else a CPU with emulated kernels."""
    if request.node.get_closest_marker("gpu"):
        assert torch.cuda.is_available(), "tests marked gpu need a CUDA device"
        return "cuda"
    request.getfixturevalue("emulated")
    return "cpu"
