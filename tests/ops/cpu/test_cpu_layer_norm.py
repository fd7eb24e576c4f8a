"""The CPU's norms against the reference in float64, values and all gradients."""

from functools import partial

import pytest
import torch
from checks import TOLERANCE, check, rand

from mamba_ssm.ops.cpu import layer_norm as cpu
from mamba_ssm.ops.reference import layer_norm as reference

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16


@pytest.mark.parametrize("rms", [True, False])
@pytest.mark.parametrize("residual", [None, FP32, BF16])
@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 19, 65), (40, 768)])
def test_values_and_gradients(shape, dtype, residual, rms):
    weight, bias = rand(shape[-1], shift=1.0), None if rms else rand(shape[-1])
    added = None if residual is None else rand(*shape, dtype=residual)
    inputs = [rand(*shape, dtype=dtype, shift=0.5), weight, bias, added]
    options = {"eps": 1e-3, "prenorm": True, "residual_in_fp32": residual is None, "is_rms_norm": rms}
    tolerance = max(TOLERANCE[m] for m in (dtype, residual) if m is not None)
    check(partial(cpu.layer_norm_fn, **options), partial(reference.layer_norm_fn, **options), inputs, 2 * tolerance)


def test_only_the_output_when_nobody_asks_for_the_sum():
    x, weight = rand(4, 33, dtype=BF16).requires_grad_(), rand(33)
    y = cpu.layer_norm_fn(x, weight, None, is_rms_norm=True)
    (got,) = torch.autograd.grad(y.sum(), x)
    exact = x.detach().double().requires_grad_()
    want = reference.layer_norm_fn(exact, weight.double(), None, is_rms_norm=True)
    torch.testing.assert_close(y.double(), want, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(got.double(), torch.autograd.grad(want.sum(), exact)[0], rtol=1e-2, atol=1e-2)
