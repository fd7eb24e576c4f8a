"""One token through a Mamba block in CUDA C++ against the reference in float64."""

import pytest
import torch
from checks import rand

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.cuda.block_step import block_step
from mamba_ssm.ops.reference.block_step import block_step as reference

# Relative error of the norm: fp32 sums, and half precision between the kernels.
TOLERANCE = {torch.float32: 4e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


def parameters(width, channels, states, conv, rank, dtype, device, bias=False, fixed=torch.float32):
    """The block's weights, in the order of the arguments, at a scale that keeps activations near one."""

    def weight(*shape):
        return (rand(*shape) * shape[-1] ** -0.5).to(dtype).to(device)

    def maybe(n):
        return weight(n) if bias else None

    return [
        rand(width, dtype=dtype, device=device, shift=1.0),
        maybe(width),
        weight(2 * channels, width),
        maybe(2 * channels),
        weight(channels, conv),
        rand(channels, dtype=dtype, device=device),
        weight(rank + 2 * states, channels),
        weight(channels, rank),
        rand(channels, dtype=dtype, device=device, shift=-3.0),
        (rand(channels, states).abs() + 0.5).log().to(fixed).to(device),
        rand(channels, dtype=fixed, device=device),
        weight(width, channels),
        maybe(width),
    ]


def states_of(rows, channels, states, conv, dtype, device, conv_dtype=None, spare=0):
    """Both states, as rows of larger tensors if spare is not 0."""
    kept = rand(rows + 2 * spare, channels, conv, dtype=conv_dtype or dtype, device=device)
    h = rand(rows + 2 * spare, channels, states, device=device)
    return kept[spare : spare + rows], h[spare : spare + rows]


def compare(
    device,
    rows,
    width=32,
    channels=64,
    states=16,
    conv=4,
    rank=8,
    dtype=torch.float16,
    residual=torch.float32,
    in_fp32=True,
    rms=True,
    bias=False,
    fixed=torch.float32,
    conv_dtype=None,
    spare=0,
    steps=2,
):
    torch.manual_seed(0)
    weights = parameters(width, channels, states, conv, rank, dtype, device, bias, fixed)
    kept, h = states_of(rows, channels, states, conv, dtype, device, conv_dtype, spare)
    exact_kept, exact_h = kept.double(), h.double()
    exact_weights = [None if w is None else w.double() for w in weights]
    before = None if residual is None else rand(rows, width, dtype=residual, device=device)
    for _ in range(steps):
        hidden = rand(rows, width, dtype=dtype, device=device)
        with torch.no_grad():
            out, stream = block_step(hidden, before, kept, h, *weights, 1e-5, rms, in_fp32)
            want, want_stream = reference(
                hidden.double(), None if before is None else before.double(), exact_kept, exact_h, *exact_weights,
                1e-5, rms, in_fp32,
            )  # fmt: skip
        assert out.dtype == dtype
        assert stream.dtype == (residual or (torch.float32 if in_fp32 else dtype))
        for name, got, exact, least in [
            ("out", out, want, dtype),
            ("residual", stream, want_stream, stream.dtype),
            ("conv_state", kept, exact_kept, dtype),
            ("ssm_state", h, exact_h, dtype),
        ]:
            error = (got.double() - exact).norm() / exact.norm()
            assert error < TOLERANCE[least], f"{name}: relative error {error:.1e}"
        exact_kept, exact_h = kept.double(), h.double()  # each step is judged by itself


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8, 9, 16, 17, 33, 128])
def test_any_number_of_rows(device, rows):
    compare(device, rows)


@pytest.mark.parametrize("rows", [2, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rms", [True, False])
def test_dtypes_and_norms(device, rows, dtype, rms):
    compare(device, rows, dtype=dtype, rms=rms, bias=True, residual=dtype)
    compare(device, rows, dtype=dtype, rms=rms, residual=None, in_fp32=not rms)


@pytest.mark.parametrize("rows", [3, 10])
@pytest.mark.parametrize(
    "sizes",
    [
        {"width": 7, "channels": 14, "rank": 1, "states": 1},
        {"width": 20, "channels": 37, "rank": 5, "states": 5, "conv": 3},
        {"width": 24, "channels": 48, "rank": 40, "states": 24, "conv": 2},
        {"width": 40, "channels": 70, "rank": 33, "states": 36},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_odd_sizes(device, rows, sizes, dtype):
    compare(device, rows, dtype=dtype, **sizes)


@pytest.mark.parametrize("rms", [True, False])
@pytest.mark.parametrize(
    ("rows", "width", "channels"),
    [(1, 776, 264), (2, 359, 362), (3, 359, 362), (7, 264, 360)],  # several warps a block, several chunks a thread
)
def test_sums_over_warps_and_chunks(device, rows, width, channels, rms):
    compare(device, rows, width, channels, rank=24, rms=rms, bias=not rms)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_rows_of_odd_sizes(device, dtype):
    compare(device, 16, width=72, channels=44, rank=9, states=5, dtype=dtype, bias=True)
    compare(device, 20, width=40, channels=70, rank=33, states=12, conv=3, dtype=dtype, conv_dtype=torch.float32)
    compare(device, 12, width=36, channels=72, rank=72, dtype=dtype, bias=True)  # states come after the rank


@pytest.mark.parametrize("rows", [2, 12])
def test_states_are_rows_of_larger_tensors_and_the_others_stay(device, rows):
    compare(device, rows, spare=1)
    weights = parameters(32, 64, 16, 4, 8, torch.float16, device)
    kept, h = states_of(rows + 2, 64, 16, 4, torch.float16, device)
    others = kept[0].clone(), kept[-1].clone(), h[0].clone(), h[-1].clone()
    hidden = rand(rows, 32, dtype=torch.float16, device=device)
    block_step(hidden, None, kept[1:-1], h[1:-1], *weights)
    assert all(torch.equal(a, b) for a, b in zip(others, (kept[0], kept[-1], h[0], h[-1]), strict=True))


def test_mixed_dtypes(device):
    compare(device, 2, dtype=torch.bfloat16, fixed=torch.bfloat16, conv_dtype=torch.float32)
    compare(device, 9, dtype=torch.float16, fixed=torch.float16, conv_dtype=torch.float32, residual=torch.float16)


def test_what_it_cannot_take_is_refused(device):
    weights = parameters(32, 64, 16, 4, 8, torch.float16, device)
    kept, h = states_of(2, 64, 16, 4, torch.float16, device)
    with pytest.raises(BackendError, match="weights"):
        block_step(rand(2, 32, device=device), None, kept, h, *weights)
    with pytest.raises(BackendError, match="fp32"):
        block_step(rand(2, 32, dtype=torch.float16, device=device), None, kept, h.half(), *weights)
    turned = [*weights[:2], weights[2].t().contiguous().t(), *weights[3:]]
    with pytest.raises(BackendError, match="contiguous weights"):
        block_step(rand(2, 32, dtype=torch.float16, device=device), None, kept, h, *turned)
    halves = torch.cat([h, h], dim=-1)[..., :16]
    with pytest.raises(BackendError, match="rows"):
        block_step(rand(2, 32, dtype=torch.float16, device=device), None, kept, halves, *weights)


PUBLISHED = {"130m": (768, 1536, 48), "2.8b": (2560, 5120, 160)}


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 2, 4, 8, 9, 33, 128, 256])
@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_published_sizes(device, rows, name, dtype):
    width, channels, rank = PUBLISHED[name]
    compare(device, rows, width, channels, rank=rank, dtype=dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 3, 9, 33, 130])
def test_odd_sizes_on_a_gpu(device, rows):
    for sizes in (
        {"width": 7, "channels": 14, "rank": 1, "states": 1},
        {"width": 20, "channels": 37, "rank": 5, "states": 5, "conv": 3},
        {"width": 40, "channels": 70, "rank": 33, "states": 36, "rms": False, "bias": True},
        {"width": 1032, "channels": 2072, "rank": 65, "states": 24, "spare": 1},
    ):
        compare(device, rows, **sizes)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 16, 128])
def test_steps_repeat_bit_for_bit(device, rows):
    """Also what a captured graph gives."""
    width, channels, rank = PUBLISHED["130m"]
    weights = parameters(width, channels, 16, 4, rank, torch.float16, device)
    hidden = rand(rows, width, dtype=torch.float16, device=device)
    kept, h = states_of(rows, channels, 16, 4, torch.float16, device)
    results = []

    def twice(kept, h):
        with torch.no_grad():
            out, stream = block_step(hidden, None, kept, h, *weights, residual_in_fp32=True)
            return *block_step(out, stream, kept, h, *weights), kept, h

    for _ in range(3):
        results.append(twice(kept.clone(), h.clone()))
    held = kept.clone(), h.clone()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        twice(*(m.clone() for m in held))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = twice(*held)
    graph.replay()
    torch.cuda.synchronize()
    for other in (*results[1:], captured):
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
