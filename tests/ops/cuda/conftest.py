"""The CUDA kernels: on a GPU compiled by NVRTC, elsewhere by g++ against an emulator."""

import sys
from collections.abc import Iterator

import emulator
import pytest
import torch

from mamba_ssm.ops.cuda import compiler


@pytest.fixture
def no_plans() -> Iterator[None]:
    """Plans hold the kernels that they were made with: none outlives a test that replaces kernels."""

    def forget() -> None:
        for name, module in list(sys.modules.items()):
            if name.startswith("mamba_ssm.ops.cuda.") and hasattr(getattr(module, "_plan", None), "cache_clear"):
                module._plan.cache_clear()

    forget()
    yield
    forget()


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch, no_plans: None) -> None:
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
