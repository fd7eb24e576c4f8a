import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from mamba_ssm.errors import BackendError
from mamba_ssm.ops import backend

SCAN = "selective_scan"
no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without CUDA")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAMBA_BACKEND", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backend, "_warned", set())


def test_each_op_has_a_back_end_and_a_reason_on_each_device() -> None:
    rows = backend.explain()
    assert {row.op for row in rows if row.device == "cpu"} == set(backend.OPS)
    assert all(row.backend in backend.NAMES and row.reason for row in rows)


def test_use_holds_inside_with_and_nests() -> None:
    before = backend.choose(SCAN, "cpu").backend
    with backend.use("reference"):
        with backend.use("cpu"):
            assert backend.choose(SCAN, "cpu").backend == "cpu"
        assert backend.choose(SCAN, "cpu").backend == "reference"
    assert backend.choose(SCAN, "cpu").backend == before


def test_use_is_undone_after_an_error() -> None:
    with pytest.raises(RuntimeError), backend.use("reference"):
        raise RuntimeError
    assert backend.choose(SCAN, "cpu").backend == "cpu"


def test_use_as_a_call_holds_until_the_next() -> None:
    backend.use("reference")
    try:
        assert backend.choose(SCAN, "cpu").backend == "reference"
    finally:
        backend.use(None)
    assert backend.choose(SCAN, "cpu").backend == "cpu"


def test_the_environment_asks_too_and_the_code_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAMBA_BACKEND", "reference")
    assert backend.choose(SCAN, "cpu").backend == "reference"
    with backend.use("cpu"):
        assert backend.choose(SCAN, "cpu").backend == "cpu"
    monkeypatch.setenv("MAMBA_BACKEND", "fast")
    with pytest.raises(BackendError, match="reference, cpu, cuda, triton"):
        backend.choose(SCAN, "cpu")


@no_cuda
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_gpu_back_end_by_name_without_a_gpu_is_an_error(name: str) -> None:
    with pytest.raises(BackendError, match="CUDA device"):
        backend.use(name)
    assert backend.choose(SCAN, "cpu").backend == "cpu"


def test_triton_by_name_without_triton_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_has_triton", lambda: False)
    with pytest.raises(BackendError, match="pip install triton"):
        backend.use("triton")


def gpu(monkeypatch: pytest.MonkeyPatch, cuda: bool, triton: bool) -> None:
    """As if this machine had a GPU with these back-ends."""
    monkeypatch.setattr(backend, "_why_not_cuda", lambda: None if cuda else "pip install cuda-bindings")
    monkeypatch.setattr(backend, "_has_triton", lambda: triton)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.parametrize("triton", [False, True])
def test_a_slower_back_end_is_announced_once(monkeypatch: pytest.MonkeyPatch, triton: bool) -> None:
    gpu(monkeypatch, cuda=False, triton=triton)
    on_gpu = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    with pytest.warns(UserWarning, match="pip install cuda-bindings"):
        backend.module(SCAN, on_gpu)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backend.module(SCAN, on_gpu)
        backend.module("layer_norm", on_gpu)


def test_kernels_are_the_choice_on_a_gpu_except_for_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, cuda=True, triton=True)
    kernels = set(backend.OPS) - {"linear", "table_scores"}  # PyTorch's own is as fast
    assert all(backend.choose(op, "cuda").backend in ("cuda", "triton") for op in kernels)
    assert backend.choose(SCAN, "cuda").backend == "cuda"
    assert backend.choose(SCAN, "cuda", torch.float64).backend == "reference"
    gpu(monkeypatch, cuda=False, triton=True)
    assert backend.choose(SCAN, "cuda").backend == "triton"
    assert backend.choose("block_step", "cuda").backend == "reference"


def test_a_call_that_the_fastest_does_not_take_goes_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, cuda=True, triton=True)
    assert backend.choose(SCAN, "cuda", without=frozenset({"cuda"})).backend == "triton"
    gpu(monkeypatch, cuda=True, triton=False)
    assert backend.choose(SCAN, "cuda", without=frozenset({"cuda"})).backend == "reference"
    with backend.use("cuda"):
        assert backend.choose(SCAN, "cuda", without=frozenset({"cuda"})).backend == "cuda"


def test_a_back_end_by_name_leaves_the_ops_that_it_lacks_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, cuda=True, triton=True)
    with backend.use("cuda"):
        assert backend.choose("linear", "cuda").backend == "reference"
    with backend.use("triton"):
        assert backend.choose("block_step", "cuda").backend == "reference"
    with backend.use("cpu"):
        assert backend.choose("topk_search", "cpu").backend == "reference"
        with pytest.raises(BackendError, match="needs CPU tensors"):
            backend.choose("layer_norm", "cuda")


def test_without_numba_a_cpu_is_slow_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_has_numba", lambda: False)
    choice = backend.choose(SCAN, "cpu")
    assert (choice.backend, choice.slow) == ("reference", True)
    assert "pip install numba" in choice.reason
    with pytest.raises(BackendError, match="pip install numba"), backend.use("cpu"):
        pass


def test_all_doors_import_without_triton() -> None:
    doors = ["selective_scan_interface", "causal_conv1d", "triton.layer_norm", "triton.selective_state_update"]
    imports = "; ".join(f"import mamba_ssm.ops.{door}" for door in doors)
    subprocess.run([sys.executable, "-c", f"import sys; sys.modules['triton'] = None; {imports}"], check=True)
