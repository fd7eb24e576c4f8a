"""One token of the selective scan in CUDA C++ against the reference in float64."""

import pytest
import torch
from checks import rand
from update_checks import BF16, FP16, FP32, LAYOUTS, NAMES, check_state, inside, make_state, tied

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.cuda.selective_state_update import selective_state_update


def compare(given, softplus=True):
    check_state(selective_state_update, given, softplus)


@pytest.mark.parametrize("states", [1, 3, 4, 5, 12, 16, 20, 64, 100, 128, 130, 256])
@pytest.mark.parametrize(("batch", "dim"), [(1, 7), (3, 33)])
def test_any_number_of_states(device, states, batch, dim):
    compare(make_state(batch, dim, states, device=device))


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize("state", [FP32, FP16, BF16])
@pytest.mark.parametrize("states", [5, 16])
def test_dtypes(device, dtype, state, states):
    compare(make_state(2, 37, states, dtype=dtype, state=state, device=device))


def test_each_argument_has_its_own_dtype(device):
    given = make_state(2, 9, 8, device=device)
    dtypes = dict(zip(NAMES, (FP16, BF16, FP32, BF16, FP16, FP32, FP16, FP32, BF16), strict=True))
    compare({name: m.to(dtypes[name]) for name, m in given.items()})


@pytest.mark.parametrize("missing", [{"D"}, {"z"}, {"dt_bias"}, {"D", "z", "dt_bias"}])
@pytest.mark.parametrize("softplus", [True, False])
def test_what_may_be_left_out(device, missing, softplus):
    given = make_state(2, 5, 16, device=device, softplus=softplus)
    if not softplus and "dt_bias" not in missing:
        given["dt_bias"] = given["dt_bias"].abs()  # else a state may explode
    compare({name: None if name in missing else m for name, m in given.items()}, softplus)


@pytest.mark.parametrize(("heads", "groups"), [((4,), ()), ((4,), (1,)), ((4,), (2,)), ((6,), (6,)), ((), (1,))])
@pytest.mark.parametrize(("dim", "states"), [(5, 7), (17, 32)])
def test_heads_read_their_group(device, heads, groups, dim, states):
    compare(make_state(2, dim, states, heads, groups, device=device))


def test_B_and_C_may_have_other_groups(device):
    given = make_state(2, 5, 8, (6,), (2,), device=device)
    compare({**given, "C": rand(2, 3, 8, device=device)})


@pytest.mark.parametrize("dtype", [FP32, FP16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("names", [NAMES, ("state",), ("A",), ("B", "C")])
def test_any_strides(device, dtype, layout, names):
    given = make_state(3, 12, 16, dtype=dtype, device=device)
    compare({name: LAYOUTS[layout](m) if name in names else m for name, m in given.items()})


def test_each_argument_has_strides_of_its_own(device):
    given = make_state(2, 5, 8, (4,), (2,), device=device)
    compare({name: inside(m, spare) for spare, (name, m) in enumerate(given.items(), 2)})


def test_slices_of_one_projection(device):
    """dt, B and C as a model has them, of which B is aligned for vectors and C for fewer."""
    given = make_state(2, 24, 16, dtype=FP16, device=device)
    projected = rand(2, 64, dtype=FP16, device=device)
    compare({**given, "B": projected[:, 24:40], "C": projected[:, 42:58]})


def test_tied_arguments(device):
    compare(tied(make_state(2, 6, 8, (4,), (2,), device=device)))


def test_other_rows_of_a_larger_cache_stay(device):
    given = make_state(4, 6, 16, device=device)
    cache = given["state"].clone()
    rest = {name: m[1:-1] if name in ("x", "dt", "B", "C", "z") else m for name, m in given.items()}
    compare({**rest, "state": cache[1:-1]})
    assert torch.equal(cache[[0, -1]], given["state"][[0, -1]])
    assert not torch.equal(cache[1:-1], given["state"][1:-1])


@pytest.mark.parametrize("empty", [{"batch": 0, "dim": 3}, {"batch": 2, "dim": 0}])
def test_nothing_to_do(device, empty):
    given = make_state(**empty, states=4, device=device)
    assert selective_state_update(**given).shape == given["x"].shape


def test_what_it_cannot_take_is_refused(device):
    given = make_state(2, 6, 8, device=device)
    with pytest.raises(BackendError, match="float64"):
        selective_state_update(**{**given, "A": given["A"].double()})
    with pytest.raises(BackendError, match="complex64"):
        selective_state_update(**{**given, "A": given["A"].to(torch.complex64)})
    with pytest.raises(BackendError, match="one device"):
        selective_state_update(**{**given, "D": given["D"].to("meta")})
    for name in NAMES[1:]:
        with pytest.raises(ValueError, match=f"^{name} is"):
            selective_state_update(**{**given, name: given[name][..., :-1]})
    heads = make_state(2, 6, 8, (4,), (3,), device=device)
    with pytest.raises(ValueError, match="B has 3 groups"):
        selective_state_update(**heads)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize("batch", [1, 3, 128])
def test_published_sizes(device, dtype, batch):
    compare(make_state(batch, 1536, 16, dtype=dtype, device=device))
    compare(make_state(batch, 64, 128, (24,), (1,), dtype=dtype, device=device))


@pytest.mark.gpu
def test_a_captured_step_is_the_same_bit_for_bit(device):
    given = make_state(3, 1536, 16, dtype=FP16, device=device)
    state = given["state"].clone()
    expected = selective_state_update(**{**given, "state": state})
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = selective_state_update(**given)
    graph.replay()
    assert torch.equal(out, expected)
    assert torch.equal(given["state"], state)
