import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_ssm.ops.triton import layer_norm, layernorm
from mamba_ssm.ops.triton.layer_norm import RMSNorm, layer_norm_fn, rms_norm_fn

ROWS, DIM, EPS = 3, 7, 1e-3


def make(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    x, residual = torch.randn(2, 2, ROWS, DIM).to(dtype)
    weight, bias = torch.randn(2, DIM)
    return x, weight, bias, residual


def by_loops(x: Tensor, weight: Tensor, bias: Tensor | None, rms: bool) -> Tensor:
    out = torch.empty(x.shape, dtype=torch.float64)
    for index in torch.cartesian_prod(torch.arange(2), torch.arange(ROWS)).tolist():
        row = [value.item() for value in x[tuple(index)]]
        mean = 0.0 if rms else sum(row) / DIM
        scale = 1 / math.sqrt(sum((value - mean) ** 2 for value in row) / DIM + EPS)
        for i, value in enumerate(row):
            y = (value - mean) * scale * weight[i].item()
            out[(*index, i)] = y + (0.0 if bias is None else bias[i].item())
    return out


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_loops(backend_name: str, rms: bool, with_bias: bool) -> None:
    x, weight, bias, residual = make()
    bias = bias if with_bias else None
    out = layer_norm_fn(x, weight, bias, eps=EPS, is_rms_norm=rms)
    torch.testing.assert_close(out, by_loops(x, weight, bias, rms).float())
    out, stream = layer_norm_fn(x, weight, bias, residual, EPS, prenorm=True, is_rms_norm=rms)
    torch.testing.assert_close(stream, x + residual)
    torch.testing.assert_close(out, by_loops(x.double() + residual, weight, bias, rms).float())
    if rms:
        torch.testing.assert_close(rms_norm_fn(x, weight, bias, residual, eps=EPS), out)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("in_fp32", [False, True])
def test_the_residual_keeps_its_precision(backend_name: str, dtype: torch.dtype, in_fp32: bool) -> None:
    x, weight, _, residual = make(dtype)
    out, stream = rms_norm_fn(x, weight, None, prenorm=True, residual_in_fp32=in_fp32)
    assert out.dtype == dtype
    assert stream.dtype == (torch.float32 if in_fp32 else dtype)
    assert torch.equal(stream.to(dtype), x)
    out, stream = rms_norm_fn(x, weight, None, residual.float(), prenorm=True, residual_in_fp32=True)
    assert out.dtype == dtype
    assert torch.equal(stream, x.float() + residual.float())


@pytest.mark.parametrize("rms", [False, True])
def test_gradients_are_the_derivatives(rms: bool) -> None:
    inputs = [m.double().requires_grad_() for m in make()]

    def run(x, weight, bias, residual):
        return layer_norm_fn(x, weight, bias, residual, prenorm=True, is_rms_norm=rms)

    assert torch.autograd.gradcheck(run, inputs)


def test_rms_norm_module() -> None:
    norm = RMSNorm(DIM, eps=EPS, dtype=torch.float32)
    assert list(norm.state_dict()) == ["weight"]
    x, weight, _, residual = make()
    torch.testing.assert_close(norm(x), F.rms_norm(x, (DIM,), eps=EPS))
    norm.load_state_dict({"weight": weight})
    out, stream = norm(x, residual, prenorm=True, residual_in_fp32=True)
    torch.testing.assert_close(out, F.rms_norm(stream, (DIM,), weight, EPS))


def test_large_means_do_not_cancel(backend_name: str) -> None:
    x, weight, bias, _ = make()
    out = layer_norm_fn(x + 4096, weight, bias, eps=EPS)
    torch.testing.assert_close(out, by_loops(x + 4096, weight, bias, rms=False).float(), rtol=1e-3, atol=1e-3)


def test_empty_inputs(backend_name: str) -> None:
    _, weight, bias, _ = make()
    assert layer_norm_fn(torch.empty(0, DIM), weight, bias).shape == (0, DIM)


def test_both_of_the_original_s_paths_lead_here() -> None:
    assert layernorm.RMSNorm is layer_norm.RMSNorm
