import pytest
import torch
from checks import TOLERANCE, rand

from mamba_ssm.ops import backend
from mamba_ssm.ops.linear import linear


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 1, 1), (2, 33, 7), (3, 768, 1001)])
def test_is_the_product(rows, inputs, outputs, dtype):
    x, weight = rand(rows, inputs, dtype=dtype), rand(outputs, inputs, dtype=dtype)
    want = x.double() @ weight.double().t()
    for name in ("cpu", "reference"):
        with backend.use(name):
            y = linear(x, weight)
        assert y.dtype == dtype
        assert (y.double() - want).norm() <= TOLERANCE[dtype] * want.norm()


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 1, 1), (2, 33, 7), (3, 768, 1001)])
def test_of_int8_with_a_scale_a_row(rows, inputs, outputs, dtype):
    x, weight = rand(rows, inputs, dtype=dtype), torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    scale = rand(outputs).abs()
    want = x.double() @ (weight * scale.unsqueeze(1)).double().t()
    for name in ("cpu", "reference"):
        with backend.use(name):
            y = linear(x, weight, scale)
        assert y.dtype == dtype
        assert (y.double() - want).norm() <= 2 * TOLERANCE[dtype] * want.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), [(7, 64), (100, 129), (200, 1003), (1536, 5)])
def test_a_row_is_the_same_to_the_last_bit_in_any_batch_of_two_or_more(inputs, outputs, dtype):
    x, weight = rand(7, inputs, dtype=dtype), rand(outputs, inputs, dtype=dtype)
    with backend.use("cpu"):
        whole = linear(x, weight)
        for first, last in ((2, 4), (3, 6), (1, 7)):
            assert torch.equal(linear(x[first:last], weight), whole[first:last])
