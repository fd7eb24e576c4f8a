"""The kernels' own functions against float64, where it is easy to lose digits."""

import numpy as np
import torch
from numba import njit

from mamba_ssm.ops.cpu import arithmetic

XS = np.concatenate([np.linspace(-130, 130, 40001), np.linspace(-1e-3, 1e-3, 2001)]).astype(np.float32)


def over(function):
    @njit
    def run(xs, ys):
        for i in range(xs.size):
            ys[i] = function(xs[i])

    ys = np.empty_like(XS)
    run(XS, ys)
    return torch.from_numpy(ys).double(), torch.from_numpy(XS).double()


def test_exp2():
    got, x = over(arithmetic.exp2)
    assert ((got / torch.exp2(x) - 1).abs()[(x > -126) & (x < 128)] < 2e-7).all()
    assert got[x >= 128].isinf().all()
    assert (got[x < -126] < 1.2e-38).all()


def test_softplus_and_sigmoid():
    # An exponential is as exact as its argument, which fp32 rounds.
    got, x = over(arithmetic.softplus)
    right = torch.logaddexp(x, torch.zeros_like(x))
    assert ((got / right - 1).abs() < (4 + x.abs()) * 1.2e-7)[x > -80].all()
    got, x = over(arithmetic.sigmoid)
    assert ((got / torch.sigmoid(x) - 1).abs() < (4 + x.abs()) * 1.2e-7)[x > -80].all()


def test_bfloat16_rounds_as_pytorch_does():
    @njit
    def run(xs, ys):
        for i in range(xs.size):
            ys[i] = arithmetic.bfloat_of_float(xs[i])

    bits = torch.randint(-(2**31), 2**31 - 1, (100_000,), dtype=torch.int32)
    x = torch.cat([bits.view(torch.float32), torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0])])
    ys = np.empty(x.numel(), np.int16)
    run(x.numpy(), ys)
    got, want = torch.from_numpy(ys).view(torch.bfloat16), x.to(torch.bfloat16)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.view(torch.int16)[~want.isnan()], want.view(torch.int16)[~want.isnan()])
