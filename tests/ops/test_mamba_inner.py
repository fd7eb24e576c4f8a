import inspect

import pytest
import torch
import torch.nn.functional as F

from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn, mamba_inner_ref

BATCH, DIM, LENGTH, STATE, RANK, OUT, WIDTH = 2, 4, 7, 3, 2, 5, 4


def make(complex_A: bool = False) -> dict[str, torch.Tensor]:
    A = -torch.rand(DIM, STATE)
    shapes = {
        "xz": (BATCH, 2 * DIM, LENGTH),
        "conv1d_weight": (DIM, 1, WIDTH),
        "conv1d_bias": (DIM,),
        "x_proj_weight": (RANK + 2 * STATE * (2 if complex_A else 1), DIM),
        "delta_proj_weight": (DIM, RANK),
        "out_proj_weight": (OUT, DIM),
        "out_proj_bias": (OUT,),
        "D": (DIM,),
        "delta_bias": (DIM,),
    }
    return {name: torch.randn(shape) for name, shape in shapes.items()} | {
        "A": torch.complex(A, torch.randn_like(A)) if complex_A else A
    }


@pytest.mark.parametrize("complex_A", [False, True])
def test_equals_its_parts(backend_name: str, complex_A: bool) -> None:
    made = make(complex_A)
    x, z = made["xz"].chunk(2, dim=1)
    x = F.silu(F.conv1d(F.pad(x, (WIDTH - 1, 0)), made["conv1d_weight"], made["conv1d_bias"], groups=DIM))
    width = STATE * (2 if complex_A else 1)
    h, outs = torch.zeros(BATCH, DIM, STATE, dtype=made["A"].dtype), []
    for t in range(LENGTH):
        dt, B, C = (x[:, :, t] @ made["x_proj_weight"].t()).split([RANK, width, width], dim=-1)
        if complex_A:
            B, C = (torch.view_as_complex(m.reshape(BATCH, STATE, 2)) for m in (B, C))
        step = F.softplus(dt @ made["delta_proj_weight"].t() + made["delta_bias"])[..., None]
        h = torch.exp(step * made["A"]) * h + step * B[:, None] * x[:, :, t, None]
        y = (h * C[:, None]).sum(-1)
        y = 2 * y.real if complex_A else y
        outs.append((y + made["D"] * x[:, :, t]) * F.silu(z[:, :, t]))
    expected = torch.stack(outs, 1) @ made["out_proj_weight"].t() + made["out_proj_bias"]
    torch.testing.assert_close(mamba_inner_fn(**made), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mamba_inner_ref(**made), expected, rtol=1e-4, atol=1e-4)


def test_B_and_C_may_be_given_or_biased(backend_name: str) -> None:
    made = make()
    B, C = torch.randn(2, STATE)
    dt_alone, no_B = made["x_proj_weight"].clone(), made["x_proj_weight"].clone()
    dt_alone[RANK:] = 0
    biased = mamba_inner_fn(**{**made, "x_proj_weight": dt_alone}, B_proj_bias=B, C_proj_bias=C)
    given = {"B": B.expand(DIM, STATE), "C": C[None, :, None].expand(BATCH, STATE, LENGTH)}
    constant = mamba_inner_fn(**{**made, "x_proj_weight": dt_alone[:RANK]}, **given)
    torch.testing.assert_close(constant, biased)
    no_B[RANK : RANK + STATE] = 0
    one = mamba_inner_fn(**{**made, "x_proj_weight": no_B}, B_proj_bias=B)
    other = mamba_inner_fn(
        **{**made, "x_proj_weight": torch.cat([no_B[:RANK], no_B[RANK + STATE :]])}, B=B.expand(DIM, STATE)
    )
    torch.testing.assert_close(other, one)


def rms_normed(m: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    return m if weight is None else m / (m.square().mean(-1, keepdim=True) + eps).sqrt() * weight


@pytest.mark.filterwarnings("ignore:mamba_inner_fn normalises")
@pytest.mark.parametrize("normed", [("b", "c", "dt"), ("b",), ("c",), ("dt",)])
def test_norms_of_B_C_and_delta(backend_name: str, normed: tuple[str, ...]) -> None:
    made = {name: m.requires_grad_() for name, m in make().items()}
    widths = {"b": STATE, "c": STATE, "dt": DIM}
    weights = {name: torch.randn(widths[name], requires_grad=True) for name in normed}
    eps = 0.1  # large, so that it shows
    x, z = made["xz"].chunk(2, dim=1)
    x = F.silu(F.conv1d(F.pad(x, (WIDTH - 1, 0)), made["conv1d_weight"], made["conv1d_bias"], groups=DIM))
    h, outs = torch.zeros(BATCH, DIM, STATE), []
    for t in range(LENGTH):
        dt, B, C = (x[:, :, t] @ made["x_proj_weight"].t()).split([RANK, STATE, STATE], dim=-1)
        delta = rms_normed(dt @ made["delta_proj_weight"].t(), weights.get("dt"), eps)
        B, C = rms_normed(B, weights.get("b"), eps), rms_normed(C, weights.get("c"), eps)
        step = F.softplus(delta + made["delta_bias"])[..., None]
        h = torch.exp(step * made["A"]) * h + step * B[:, None] * x[:, :, t, None]
        outs.append(((h * C[:, None]).sum(-1) + made["D"] * x[:, :, t]) * F.silu(z[:, :, t]))
    expected = torch.stack(outs, 1) @ made["out_proj_weight"].t() + made["out_proj_bias"]
    by_keyword = {f"{name}_rms_weight": weight for name, weight in weights.items()}
    found = mamba_inner_fn(**made, **by_keyword, b_c_dt_rms_eps=eps)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    leaves, direction = [*made.values(), *weights.values()], torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, leaves, direction)
    torch.testing.assert_close(torch.autograd.grad(found, leaves, direction), wanted, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_normed_is_refused() -> None:
    weight = torch.ones(STATE)
    with pytest.raises(ValueError, match="real A"):
        mamba_inner_fn(**make(complex_A=True), b_rms_weight=weight)
    with pytest.raises(ValueError, match="leave out"):
        mamba_inner_fn(**make(), B=torch.randn(DIM, STATE), c_rms_weight=weight)


def test_a_bias_in_fp32_beside_weights_in_half_precision() -> None:
    """As transformers gives it."""
    made = {name: m.bfloat16() for name, m in make().items()}
    made["A"] = made["A"].float()
    out = mamba_inner_fn(**{**made, "out_proj_bias": made["out_proj_bias"].float()})
    assert torch.equal(out, mamba_inner_fn(**made))


def test_fn_and_ref_have_one_signature() -> None:
    assert inspect.signature(mamba_inner_fn) == inspect.signature(mamba_inner_ref)
