from functools import partial

import pytest
import torch
from checks import TOLERANCE, check, rand

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.cuda import layer_norm as cuda
from mamba_ssm.ops.reference import layer_norm as reference

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
rms_norm = partial(cuda.layer_norm_fn, is_rms_norm=True)


def compare(
    shape,
    device,
    dtype=FP32,
    residual_dtype=FP32,
    weight_dtype=FP32,
    bias_dtype=FP32,
    rms=True,
    prenorm=True,
    residual_in_fp32=True,
):
    torch.manual_seed(0)

    def make(*size, dtype, shift=0.0):
        return None if dtype is None else rand(*size, dtype=dtype, device=device, shift=shift)

    inputs = [
        make(*shape, dtype=dtype, shift=0.5),
        make(shape[-1], dtype=weight_dtype),
        make(shape[-1], dtype=bias_dtype),
        make(*shape, dtype=residual_dtype),
    ]
    options = {"eps": 1e-5, "prenorm": prenorm, "residual_in_fp32": residual_in_fp32, "is_rms_norm": rms}
    tolerance = max(TOLERANCE[m] for m in (dtype, residual_dtype, weight_dtype, bias_dtype) if m is not None)
    check(partial(cuda.layer_norm_fn, **options), partial(reference.layer_norm_fn, **options), inputs, tolerance)


@pytest.mark.parametrize(
    ("dtype", "residual_dtype", "bias_dtype", "rms"),
    [
        (FP32, None, FP32, False),
        (FP32, FP32, None, True),
        (FP16, FP32, None, True),
        (FP16, None, FP32, True),
        (BF16, FP32, FP32, False),
        (BF16, FP32, None, False),
        (BF16, BF16, FP32, True),
        (BF16, BF16, None, False),
        (BF16, None, None, True),
        (FP32, BF16, FP32, False),
    ],
)
def test_values_and_gradients(device, dtype, residual_dtype, bias_dtype, rms):
    compare((2, 9, 40), device, dtype, residual_dtype, bias_dtype=bias_dtype, rms=rms)


@pytest.mark.parametrize(("dim", "rms"), [(1, True), (7, False), (100, True), (130, False), (768, True), (1023, False)])
def test_a_warp_a_row(device, dim, rms):
    compare((3, 7, dim), device, BF16, FP32, rms=rms)


@pytest.mark.parametrize(("dim", "rms"), [(1027, False), (2560, True), (8200, False), (8200, True)])
def test_a_block_a_row(device, dim, rms):
    compare((2, 3, dim), device, FP32, FP32, rms=rms)


def test_half_weights(device):
    compare((5, 96), device, BF16, FP32, weight_dtype=BF16, bias_dtype=FP16)
    compare((5, 96), device, FP32, FP32, weight_dtype=BF16, bias_dtype=None)


@pytest.mark.parametrize(("dtype", "residual_dtype"), [(FP32, FP32), (BF16, None), (BF16, FP32)])
def test_without_prenorm(device, dtype, residual_dtype):
    compare((9, 40), device, dtype, residual_dtype, prenorm=False)


def test_without_gradients(device):
    x, weight, residual = rand(6, 40, dtype=BF16, device=device), rand(40, device=device), rand(6, 40, device=device)
    y, stream = rms_norm(x, weight, None, residual, prenorm=True)
    assert (y.dtype, stream.dtype) == (BF16, FP32)
    assert torch.equal(stream, x.float() + residual)
    torch.testing.assert_close(
        y, reference.layer_norm_fn(x, weight, None, residual, is_rms_norm=True), rtol=8e-3, atol=1e-5
    )
    assert rms_norm(x, weight.requires_grad_(), None).requires_grad
    with torch.no_grad():
        assert not rms_norm(x, weight, None).requires_grad


def test_a_stream_given_back_unchanged_is_the_input(device):
    x, half = rand(3, 8, device=device), rand(3, 8, dtype=FP16, device=device)
    weight = rand(8, device=device)
    assert rms_norm(x, weight, None, prenorm=True)[1] is x
    assert rms_norm(x, weight, None, prenorm=True, residual_in_fp32=True)[1] is x
    assert rms_norm(half, weight, None, prenorm=True)[1] is half


def test_any_memory_layout(device):
    """Transposed rows, and rows that begin at an address no vector can be loaded from."""
    weight, wide = rand(40, device=device), rand(40, 7, device=device)
    shifted = rand(7 * 40 + 1, device=device)[1:].view(7, 40)
    got = cuda.layer_norm_fn(wide.t(), weight, None, shifted)
    torch.testing.assert_close(got, reference.layer_norm_fn(wide.t(), weight, None, shifted))


def test_large_means_do_not_cancel(device):
    x, weight = rand(3, 64, device=device, shift=4096.0), rand(64, device=device)
    want = reference.layer_norm_fn(x.double(), weight, None)
    torch.testing.assert_close(cuda.layer_norm_fn(x, weight, None).double(), want, rtol=1e-3, atol=1e-3)


def test_a_gradient_of_the_stream_alone(device):
    x, weight = rand(5, 40, device=device).requires_grad_(), rand(40, device=device)
    residual = rand(5, 40, device=device).requires_grad_()
    stream = rms_norm(x, weight, None, residual, prenorm=True)[1]
    seed = rand(5, 40, device=device)
    dx, dresidual = torch.autograd.grad(stream, (x, residual), seed)
    assert torch.equal(dx, seed)
    assert torch.equal(dresidual, seed)


def test_no_rows(device):
    x, weight = rand(0, 40, device=device).requires_grad_(), rand(40, device=device).requires_grad_()
    y = rms_norm(x, weight, None)
    assert y.shape == (0, 40)
    dx, dweight = torch.autograd.grad(y.sum(), (x, weight))
    assert dx.shape == (0, 40)
    assert not dweight.any()


def test_what_it_does_not_take(device):
    x, weight = rand(2, 8, device=device), rand(8, device=device)
    with pytest.raises(BackendError, match="fp64"):
        rms_norm(x.double(), weight, None)
    with pytest.raises(BackendError, match="16384"):
        rms_norm(rand(1, 16385, device=device), rand(16385, device=device), None)
    with pytest.raises(ValueError, match="x's shape"):
        rms_norm(x, weight, None, x[:1])
    with pytest.raises(ValueError, match="8 features"):
        rms_norm(x, weight[:4], None)


@pytest.mark.gpu
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("dim", [256, 768, 1000, 1024, 2560, 5001, 8192, 16384])
@pytest.mark.parametrize(("dtype", "residual_dtype"), [(FP32, FP32), (FP16, FP32), (BF16, FP32), (BF16, BF16)])
@pytest.mark.parametrize("bias_dtype", [None, FP32])
def test_training_sizes(device, dim, dtype, residual_dtype, bias_dtype, rms):
    compare((3, 1333, dim), device, dtype, residual_dtype, bias_dtype=bias_dtype, rms=rms)


@pytest.mark.gpu
def test_more_numbers_than_32_bits_count(device):
    rows, dim = (1 << 31) // 16384 + 7, 16384
    x = torch.zeros(rows, dim, dtype=BF16, device=device)
    x[-1] = rand(dim, dtype=BF16, device=device)
    weight = rand(dim, device=device).requires_grad_()
    y = rms_norm(x, weight, None)
    want = reference.layer_norm_fn(x[-1:], weight, None, is_rms_norm=True)
    torch.testing.assert_close(y[-1:], want, rtol=8e-3, atol=1e-5)
    (dweight,) = torch.autograd.grad(y, weight, torch.ones_like(y))
    torch.testing.assert_close(dweight, torch.autograd.grad(want.float().sum(), weight)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_the_same_bits_each_time(device):
    x, weight = rand(5000, 768, dtype=BF16, device=device).requires_grad_(), rand(768, device=device).requires_grad_()
    dy = rand(5000, 768, dtype=BF16, device=device)
    first, again = (torch.autograd.grad(rms_norm(x, weight, None), (x, weight), dy) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
