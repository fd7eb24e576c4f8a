"""One token of the selective scan on a CPU against the reference in float64."""

import pytest
import torch
from checks import rand
from update_checks import BF16, FP16, FP32, LAYOUTS, NAMES, check_state, inside, make_state, tied

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.cpu.selective_state_update import selective_state_update


def compare(given, softplus=True):
    check_state(selective_state_update, given, softplus)


# Also across blocks of channels.
@pytest.mark.parametrize("states", [1, 3, 5, 16, 40, 256])
@pytest.mark.parametrize(("batch", "dim"), [(1, 7), (3, 33), (2, 300)])
def test_any_number_of_states(states, batch, dim):
    compare(make_state(batch, dim, states))


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize("state", [FP32, FP16, BF16])
def test_dtypes(dtype, state):
    compare(make_state(2, 37, 16, dtype=dtype, state=state))


def test_each_argument_has_its_own_dtype():
    dtypes = dict(zip(NAMES, (FP16, BF16, FP32, BF16, FP16, FP32, FP16, FP32, BF16), strict=True))
    compare({name: m.to(dtypes[name]) for name, m in make_state(2, 9, 8).items()})


@pytest.mark.parametrize("missing", [{"D"}, {"z"}, {"dt_bias"}, {"D", "z", "dt_bias"}])
def test_what_may_be_left_out(missing):
    compare({name: None if name in missing else m for name, m in make_state(2, 5, 16).items()})


def test_step_sizes_without_softplus():
    given = make_state(2, 5, 16, softplus=False)
    compare({**given, "dt_bias": given["dt_bias"].abs()}, softplus=False)


@pytest.mark.parametrize(("heads", "groups"), [((4,), ()), ((4,), (1,)), ((4,), (2,)), ((6,), (6,)), ((), (1,))])
def test_heads_read_their_group(heads, groups):
    compare(make_state(2, 5, 7, heads, groups))


def test_B_and_C_may_have_other_groups():
    compare({**make_state(2, 5, 8, (6,), (2,)), "C": rand(2, 3, 8)})


@pytest.mark.parametrize("dtype", [FP32, FP16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("names", [NAMES, ("state",), ("A",)])
def test_any_strides(dtype, layout, names):
    given = make_state(3, 12, 16, dtype=dtype, state=dtype)
    compare({name: LAYOUTS[layout](m) if name in names else m for name, m in given.items()})


def test_each_argument_has_strides_of_its_own():
    given = make_state(2, 5, 8, (4,), (2,))
    compare({name: inside(m, spare) for spare, (name, m) in enumerate(given.items(), 2)})


def test_tied_arguments():
    compare(tied(make_state(2, 6, 8, (4,), (2,))))


def test_other_rows_of_a_larger_cache_stay():
    given = make_state(4, 6, 16)
    cache = given["state"].clone()
    rest = {name: m[1:-1] if name in ("x", "dt", "B", "C", "z") else m for name, m in given.items()}
    compare({**rest, "state": cache[1:-1]})
    assert torch.equal(cache[[0, -1]], given["state"][[0, -1]])
    assert not torch.equal(cache[1:-1], given["state"][1:-1])


@pytest.mark.parametrize("empty", [{"batch": 0, "dim": 3}, {"batch": 2, "dim": 0}])
def test_nothing_to_do(empty):
    given = make_state(**empty, states=4)
    assert selective_state_update(**given).shape == given["x"].shape


def test_what_it_cannot_take_is_refused():
    given = make_state(2, 6, 8)
    with pytest.raises(BackendError, match="float64"):
        selective_state_update(**{**given, "A": given["A"].double()})
    with pytest.raises(BackendError, match="one device"):
        selective_state_update(**{**given, "D": given["D"].to("meta")})
    for name in NAMES[1:]:
        with pytest.raises(ValueError, match=f"^{name} is"):
            selective_state_update(**{**given, name: given[name][..., :-1]})
