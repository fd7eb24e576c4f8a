import pytest
import torch
from checks import TOLERANCE, check, rand

from mamba_ssm.ops import backend
from mamba_ssm.ops.cuda.mamba_inner import mamba_inner_fn as fused
from mamba_ssm.ops.selective_scan_interface import mamba_inner_ref


def make(batch, dim, length, states, rank, out, device, dtype=torch.float32, bias=True, channel_last=True):
    """Inputs in the order of the fused function, of sizes that keep the output near 1."""
    torch.manual_seed(0)
    xz = rand(batch, length, 2 * dim, dtype=dtype, device=device).transpose(1, 2)
    return [
        xz if channel_last else xz.contiguous(),
        rand(dim, 4, device=device),
        rand(dim, device=device) if bias else None,
        (rand(rank + 2 * states, dim, device=device) / dim**0.5).to(dtype),
        (rand(dim, rank, device=device) / rank**0.5).to(dtype),
        (rand(out, dim, device=device) / dim**0.5).to(dtype),
        rand(out, dtype=dtype, device=device) if bias else None,
        -rand(dim, states, device=device).exp(),
        rand(dim, device=device),
        rand(dim, device=device, shift=-3.0),
    ]


def specified(xz, conv_weight, conv_bias, x_proj, dt_proj, out_proj, out_bias, A, D, dt_bias):
    weights = (conv_weight.unsqueeze(1), conv_bias, x_proj, dt_proj, out_proj, out_bias)
    return mamba_inner_ref(xz, *weights, A, D=D, delta_bias=dt_bias, delta_softplus=True)


@pytest.mark.parametrize(("length", "bias", "channel_last"), [(1, True, True), (37, True, False), (70, False, True)])
def test_values_and_gradients(length, bias, channel_last, device):
    inputs = make(2, 6, length, 5, 3, 7, device, bias=bias, channel_last=channel_last)
    check(lambda *args: fused(*args, True), specified, inputs, 5 * TOLERANCE[torch.float32])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_sizes(dtype, device, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    inputs = make(2, 192, 515, 16, 12, 96, device, dtype)
    check(lambda *args: fused(*args, True), specified, inputs, 6 * TOLERANCE[dtype])


@pytest.mark.gpu
def test_a_layer_under_autocast_equals_its_reference(device):
    from mamba_ssm import Mamba

    torch.manual_seed(0)
    layer = Mamba(96).to(device)
    x = torch.randn(2, 300, 96, device=device, requires_grad=True)

    def run():
        with torch.autocast("cuda", torch.bfloat16):
            y = layer(x)
        return [y, *torch.autograd.grad(y.float().square().sum(), [x, *layer.parameters()])]

    got = run()
    with backend.use("reference"):
        want = run()
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype
        assert (g.double() - w.double()).norm() / w.double().norm() < 3e-2
