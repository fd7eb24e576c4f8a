import pytest
import torch
from checks import check
from triton_checks import TOLERANCE, rand

from mamba_ssm.ops.gpu import layer_norm as gpu
from mamba_ssm.ops.reference import layer_norm as reference


def compare(shape, dtype, residual_dtype, rms, prenorm=True):
    torch.manual_seed(0)
    residual = None if residual_dtype is None else rand(*shape, dtype=residual_dtype)
    options = {"eps": 1e-5, "prenorm": prenorm, "residual_in_fp32": True, "is_rms_norm": rms}
    check(
        gpu.layer_norm_fn,
        reference.layer_norm_fn,
        [rand(*shape, dtype=dtype, shift=0.5), rand(shape[-1]), rand(shape[-1]), residual],
        TOLERANCE[dtype],
        **options,
    )


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize(
    ("dtype", "residual_dtype"),
    [
        (torch.float32, None),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_values_and_gradients(dtype, residual_dtype, rms):
    compare((2, 5, 37), dtype, residual_dtype, rms)


def test_without_prenorm_or_bias():
    torch.manual_seed(0)
    inputs = [rand(9, 40), rand(40), None, rand(9, 40)]
    check(gpu.layer_norm_fn, reference.layer_norm_fn, inputs, 1e-5, is_rms_norm=True)


def test_a_stream_given_back_unchanged_is_the_input():
    x = rand(3, 8)
    assert gpu.layer_norm_fn(x, rand(8), None, prenorm=True, is_rms_norm=True)[1] is x


@pytest.mark.gpu
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("dim", [768, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_training_sizes(dim, dtype, rms):
    compare((3, 333, dim), dtype, torch.float32, rms)
