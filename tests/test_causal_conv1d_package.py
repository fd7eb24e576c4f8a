"""The package causal_conv1d of this distribution: what programs that were written for the original import and call."""

import inspect
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from packaging.version import Version

import causal_conv1d
from causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from causal_conv1d.causal_conv1d_interface import causal_conv1d_fn as by_its_path

BATCH, DIM, LENGTH, WIDTH = 2, 6, 9, 4


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_names_and_version():
    assert by_its_path is causal_conv1d_fn
    assert Version("1.4") < Version(causal_conv1d.__version__) < Version("2")


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (
            causal_conv1d_fn,
            "x weight bias seq_idx initial_states return_final_states final_states_out activation",
        ),
        (causal_conv1d_update, "x conv_state weight bias activation cache_seqlens conv_state_indices"),
    ],
)
def test_signatures(function, names):
    assert list(inspect.signature(function).parameters) == names.split()


def test_a_prompt_and_a_step():
    x, weight, bias = torch.randn(BATCH, DIM, LENGTH), torch.randn(DIM, WIDTH), torch.randn(DIM)
    expected = F.silu(F.conv1d(F.pad(x, (WIDTH - 1, 0)), weight[:, None], bias, groups=DIM))
    torch.testing.assert_close(causal_conv1d_fn(x, weight, bias, activation="silu"), expected)
    state = x[..., :-1][..., -WIDTH:].clone()
    torch.testing.assert_close(causal_conv1d_update(x[..., -1], state, weight, bias, "silu"), expected[..., -1])
    assert torch.equal(state, x[..., -WIDTH:])


@pytest.mark.parametrize("name", ["cache_seqlens", "conv_state_indices"])
def test_what_it_does_not_take_is_said(name):
    with pytest.raises(NotImplementedError, match=name):
        causal_conv1d_update(
            torch.randn(BATCH, DIM),
            torch.zeros(BATCH, DIM, WIDTH),
            torch.randn(DIM, WIDTH),
            **{name: torch.zeros(BATCH, dtype=torch.int32)},
        )


def test_importing_needs_torch_alone():
    code = (
        "import sys, causal_conv1d; heavy = {'triton', 'transformers', 'numba', 'typer', 'tokenizers', 'safetensors'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
