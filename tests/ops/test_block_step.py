"""One token through a block is what the block itself does with a cache."""

from functools import partial

import pytest
import torch
from torch import nn

from mamba_ssm.modules import block as block_module
from mamba_ssm.modules.block import Block
from mamba_ssm.modules.mamba_simple import Mamba
from mamba_ssm.ops import backend
from mamba_ssm.ops.block_step import block_step
from mamba_ssm.ops.layer_norm import RMSNorm
from mamba_ssm.ops.reference.block_step import block_step as reference
from mamba_ssm.utils.generation import InferenceParams


def make(norm=RMSNorm, in_fp32=True, dtype=torch.float32, **options):
    factory = {"dtype": dtype}
    block = Block(
        12,
        partial(Mamba, layer_idx=0, **options, **factory),
        norm_cls=partial(norm, **factory),
        fused_add_norm=True,
        residual_in_fp32=in_fp32,
    )
    with torch.no_grad():
        for parameter in (*block.norm.parameters(), block.mixer.D):
            parameter.add_(torch.randn(parameter.shape).to(parameter.dtype) * 0.3)
    return block


def arguments(block):
    mixer = block.mixer
    return [
        block.norm.weight,
        block.norm.bias,
        mixer.in_proj.weight,
        mixer.in_proj.bias,
        mixer.conv1d.weight.squeeze(1),
        mixer.conv1d.bias,
        mixer.x_proj.weight,
        mixer.dt_proj.weight,
        mixer.dt_proj.bias,
        mixer.A_log,
        mixer.D,
        mixer.out_proj.weight,
        mixer.out_proj.bias,
        block.norm.eps,
        isinstance(block.norm, RMSNorm),
        block.residual_in_fp32,
    ]


@pytest.mark.parametrize("function", [block_step, reference])
@pytest.mark.parametrize("norm", [RMSNorm, nn.LayerNorm])
@pytest.mark.parametrize("in_fp32", [True, False])
@pytest.mark.parametrize("options", [{}, {"bias": True, "d_state": 5, "d_conv": 3}, {"conv_bias": False}])
@torch.no_grad()
def test_a_step_is_the_block_with_a_cache(function, norm, in_fp32, options):
    block = make(norm, in_fp32, **options)
    params = InferenceParams(20, 3)
    block(torch.randn(3, 4, 12), None, params)
    params.seqlen_offset = 4
    kept, h = (state.clone() for state in params.key_value_memory_dict[0])
    for residual in (None, torch.randn(3, 12)):
        hidden = torch.randn(3, 12)
        with backend.use("reference"):
            out, stream = function(hidden, residual, kept, h, *arguments(block))
        want, want_stream = block(hidden[:, None], None if residual is None else residual[:, None], params)
        torch.testing.assert_close(out, want[:, 0])
        torch.testing.assert_close(stream, want_stream[:, 0])
        for got, exact in zip((kept, h), params.key_value_memory_dict[0], strict=True):
            torch.testing.assert_close(got, exact)


@torch.no_grad()
def test_half_precision_keeps_the_dtypes():
    block = make(dtype=torch.bfloat16)
    kept, h = block.allocate_inference_cache(2, 9)
    hidden = torch.randn(2, 12, dtype=torch.bfloat16)
    out, stream = reference(hidden, None, kept, h, *arguments(block))
    assert (out.dtype, stream.dtype, kept.dtype, h.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16, h.dtype)


@pytest.fixture
def fused(monkeypatch):
    """The block believes in a back-end that fuses it, whose calls are counted; the reference answers."""
    calls, choose = [], backend.choose

    def chosen(op, device, dtype=torch.float32, without=frozenset()):
        found = choose("layer_norm" if op == "block_step" else op, device, dtype, without)
        return found._replace(backend="cuda") if op == "block_step" else found

    def step(*args):
        calls.append(args[0].shape)
        return reference(*args)

    monkeypatch.setattr(backend, "choose", chosen)
    monkeypatch.setattr(block_module, "block_step", step)
    return calls


def test_a_block_takes_the_fused_step_for_one_token_that_continues_and_for_nothing_else(fused):
    block = make()
    x, residual = torch.randn(3, 7, 12), torch.randn(3, 7, 12)

    def run(lengths, **how):
        params, outs, at = InferenceParams(20, 3), [], 0
        for n in lengths:
            outs.append(block(x[:, at : at + n], residual[:, at : at + n], params, **how)[:2])
            at += n
            params.seqlen_offset = at
        return [torch.cat(parts, dim=1) for parts in zip(*outs, strict=True)]

    with torch.no_grad():
        whole = run([7])
        assert not fused
        split = run([1, 3, 1, 1, 1], attention_mask=None)
        assert fused == [(3, 12)] * 3
        for got, want in zip(split, whole, strict=True):
            torch.testing.assert_close(got, want)
        run([6, 1], return_state=True)
        with torch.autocast("cpu", torch.bfloat16):
            run([6, 1])
        assert len(fused) == 3
    run([6, 1])  # with gradients
    assert len(fused) == 3


@torch.no_grad()
def test_a_batch_may_own_some_rows_of_the_cache(fused):
    block = make()
    x = torch.randn(5, 2, 12)
    params = InferenceParams(9, 5)
    block(x[:, :1], None, params)
    params.seqlen_offset = 1
    whole = block(x[:, 1:], None, params)[0]
    again = InferenceParams(9, 5)
    block(x[:, :1], None, again)
    again.seqlen_offset = 1
    for start, stop in ((0, 2), (2, 5)):
        again.batch_size_offset = start
        torch.testing.assert_close(block(x[start:stop, 1:], None, again)[0], whole[start:stop])
