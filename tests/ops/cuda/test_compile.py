"""Every kind of kernel that the ops launch compiles for the oldest GPU that we support, and for newer ones.

NVRTC needs no GPU. The ops run on CPU tensors with a launcher that launches nothing and notes what was asked for.
"""

from collections.abc import Callable, Iterator

import pytest
import torch

from mamba_ssm.ops.cuda import (
    block_step,
    causal_conv1d,
    compiler,
    layer_norm,
    linear_cross_entropy,
    selective_scan,
    selective_state_update,
    topk_search,
)
from mamba_ssm.utils.cache import cache_folder

pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings and nvidia-cuda-nvrtc")

Asked = dict[tuple[str, tuple[tuple[str, object], ...]], None]
HALF = [torch.bfloat16, torch.float16]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, no_plans: None) -> Asked:
    """The kernels that were asked for: their files and constants."""
    noted: Asked = {}

    def kernel(file: str, name: str, device: torch.device, constants: compiler.Constants) -> Callable[..., None]:
        noted[file, tuple(constants.items())] = None
        return lambda *_: None

    monkeypatch.setattr(compiler, "kernel", kernel)
    monkeypatch.setenv("MAMBA_CACHE", str(tmp_path_factory.mktemp("cubins")))
    return noted


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def scans(dtype: torch.dtype) -> None:
    for last in (True, False):
        u = tensor(2, 64, 64, dtype=dtype).transpose(1, 2) if last else tensor(2, 64, 64, dtype=dtype)
        B = tensor(2, 64, 16, dtype=dtype).transpose(1, 2) if last else tensor(2, 16, 64, dtype=dtype)
        A, D, initial = tensor(64, 16).requires_grad_(), tensor(64), tensor(2, 64, 16)
        out = selective_scan.selective_scan_fn(u, u, A, B, B, D, u, D, True, False, initial)
        out.sum().backward()
        sequence = torch.zeros(2, 64, dtype=torch.int32)
        selective_scan.selective_scan_fn(u, u, A.detach(), B, B, None, None, None, False, True, None, sequence)
    for states in (40, 256):
        B = tensor(1, 64, states, dtype=dtype).transpose(1, 2)
        A = tensor(64, states).requires_grad_()
        selective_scan.selective_scan_fn(u[:1], u[:1], A, B, B).sum().backward()


def convolutions(dtype: torch.dtype) -> None:
    for last in (True, False):
        x = tensor(2, 64, 64, dtype=dtype).transpose(1, 2) if last else tensor(2, 64, 64, dtype=dtype)
        for width in (2, 4):
            weight = tensor(64, width).requires_grad_()
            causal_conv1d.causal_conv1d_fn(x, weight, tensor(64), activation="silu").sum().backward()
        sequence = torch.zeros(2, 64, dtype=torch.int32)
        causal_conv1d.causal_conv1d_fn(x, weight, None, sequence, tensor(2, 64, 3), activation="silu").sum().backward()


def norms(dtype: torch.dtype) -> None:
    for dim in (768, 2560):
        weight = tensor(dim).requires_grad_()
        args = (tensor(4, dim, dtype=dtype), weight, None, tensor(4, dim))
        y, stream = layer_norm.layer_norm_fn(*args, prenorm=True, is_rms_norm=True)
        (y.sum() + stream.sum()).backward()
    layer_norm.layer_norm_fn(tensor(4, 768, dtype=dtype), tensor(768).requires_grad_(), tensor(768)).sum().backward()


def steps(dtype: torch.dtype) -> None:
    M, D, N, R, W = 64, 128, 16, 8, 4
    for batch in (1, 2, 8, 32):
        block_step.block_step(
            tensor(batch, M, dtype=dtype),
            tensor(batch, M),
            tensor(batch, D, W, dtype=dtype),
            tensor(batch, D, N),
            tensor(M, dtype=dtype),
            None,
            tensor(2 * D, M, dtype=dtype),
            None,
            tensor(D, W, dtype=dtype),
            tensor(D, dtype=dtype),
            tensor(R + 2 * N, D, dtype=dtype),
            tensor(D, R, dtype=dtype),
            tensor(D, dtype=dtype),
            tensor(D, N),
            tensor(D),
            tensor(M, D, dtype=dtype),
            None,
        )


def updates(dtype: torch.dtype) -> None:
    for width, kept in ((2, 1), (4, 4)):
        causal_conv1d.causal_conv1d_update(tensor(2, 64, dtype=dtype), tensor(2, 64, kept), tensor(64, width), None)
    for states in (1, 5, 16, 128, 256):
        x, B = tensor(2, 64, dtype=dtype), tensor(2, states, dtype=dtype)
        for state in (torch.float32, dtype):
            h, A, D = tensor(2, 64, states, dtype=state), tensor(64, states), tensor(64)
            selective_state_update.selective_state_update(h, x, x, A, B, B, D, x, D, True)


def heads(dtype: torch.dtype) -> None:
    logits, losses, targets = tensor(4, 50280, dtype=dtype), tensor(4), torch.zeros(4, dtype=torch.long)
    for gradient in (False, True):
        linear_cross_entropy.cross_entropy_(logits, targets, losses, -100, gradient)


def searches(dtype: torch.dtype) -> None:
    inputs = tensor(1, 16, 128), tensor(1, 16), tensor(256, 128, dtype=dtype), 32
    topk_search.window_scores(*inputs)
    topk_search.window_scores_above(*inputs, tensor(1, 16, 8))


def jobs() -> Iterator[tuple[Callable[[torch.dtype], None], torch.dtype]]:
    for ask in (scans, convolutions, norms, steps, updates, heads, searches):
        for dtype in (torch.float32, *HALF):
            yield ask, dtype


@pytest.mark.parametrize(("ask", "dtype"), list(jobs()), ids=lambda value: getattr(value, "__name__", str(value)))
def test_compiles_for_every_architecture(asked: Asked, ask: Callable[[torch.dtype], None], dtype: torch.dtype) -> None:
    ask(dtype)
    assert asked
    for file, constants in asked:
        for architecture in ("sm_80", "sm_90", "sm_100"):
            assert compiler.compile_cubin(file, dict(constants), architecture).startswith(b"\x7fELF")


def test_a_mistake_in_a_kernel_is_told_with_the_compilers_words(asked: Asked) -> None:
    with pytest.raises(compiler.BackendError, match=r"layer_norm\.cu does not compile for sm_90"):
        compiler.compile_cubin("layer_norm.cu", {"X_TYPE": "no_such_type"}, "sm_90")


def test_what_was_compiled_is_kept(asked: Asked) -> None:
    norms(torch.float32)
    (file, constants), *_ = asked
    first = compiler.compile_cubin(file, dict(constants), "sm_90")
    (kept,) = cache_folder().iterdir()
    kept.write_bytes(b"from the disk")
    assert compiler.compile_cubin(file, dict(constants), "sm_90") == b"from the disk"
    kept.unlink()
    assert compiler.compile_cubin(file, dict(constants), "sm_90") == first
