"""One token through a block is what the block itself does with a cache."""

from functools import partial

import pytest
import torch
from torch import nn

from mamba_ssm import MambaLMHeadModel
from mamba_ssm.models import mixer_seq_simple
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.modules import block as block_module
from mamba_ssm.modules.block import Block
from mamba_ssm.modules.mamba_simple import Mamba
from mamba_ssm.ops import backend
from mamba_ssm.ops.block_step import block_step, norm_head
from mamba_ssm.ops.layer_norm import RMSNorm
from mamba_ssm.ops.reference.block_step import block_step as reference
from mamba_ssm.ops.reference.block_step import norm_head as reference_head
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


@pytest.fixture
def heads(fused, monkeypatch):
    """The model believes in that back-end too: the shapes that its last norm and head were called with as one op."""
    calls = []

    def answer(hidden, *args):
        calls.append(hidden.shape)
        return reference_head(hidden, *args)

    monkeypatch.setattr(mixer_seq_simple, "norm_head", answer)
    return calls


def model(**config):
    config = {"vocab_size": 30, "pad_vocab_size_multiple": 1, "rms_norm": True, "residual_in_fp32": True, **config}
    made = MambaLMHeadModel(MambaConfig(d_model=12, n_layer=2, **config)).eval()
    with torch.no_grad():
        for parameter in made.backbone.norm_f.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return made


def read(lm, ids, lengths, **how):
    params, parts = InferenceParams(20, ids.shape[0]), []
    for chunk in ids.split(lengths, dim=1):
        parts.append(lm(chunk, inference_params=params, **how).logits)
        params.seqlen_offset += chunk.shape[1]
    return parts


@pytest.mark.parametrize("config", [{}, {"rms_norm": False}, {"tie_embeddings": False, "residual_in_fp32": False}])
def test_a_model_takes_norm_and_head_as_one_op_where_its_blocks_are_one(fused, heads, config):
    lm, ids = model(**config), torch.randint(0, 30, (3, 6))
    with torch.no_grad():
        (whole,) = read(lm, ids, [6])
        assert not heads
        torch.testing.assert_close(torch.cat(read(lm, ids, [1, 2, 1, 1, 1]), 1), whole)
        assert heads == [(3, 12)] * 3
        assert read(lm, ids, [5, 1], num_last_tokens=1, attention_mask=None)[-1].shape == (3, 1, 30)
        assert len(heads) == 4


def test_where_a_block_is_not_one_op_neither_is_the_head(fused, heads):
    lm, ids = model(), torch.randint(0, 30, (3, 2))
    first, second = ids.split(1, dim=1)
    params = InferenceParams(20, 3)
    with torch.no_grad():
        lm(first, inference_params=params)
        params.seqlen_offset = 1
        lm(second)
        lm(second, inference_params=params, attention_mask=torch.ones(3, 1, dtype=torch.bool))
        with torch.autocast("cpu", torch.bfloat16):
            lm(second, inference_params=params)
    lm(second, inference_params=params).logits.sum().backward()
    apart = model(fused_add_norm=False)
    with torch.no_grad():
        read(apart, ids, [1, 1])
        assert not heads
        assert not fused
        lm.lm_head = nn.Sequential(lm.lm_head, nn.Identity())  # as an adapter would
        read(lm, ids, [1, 1])
        assert not heads
        assert len(fused) == 2


@pytest.mark.parametrize("function", [norm_head, reference_head])
@pytest.mark.parametrize("norm", [RMSNorm, nn.LayerNorm])
@pytest.mark.parametrize("residual", [None, torch.float32, torch.bfloat16])
@torch.no_grad()
def test_norm_and_head_are_the_norm_and_the_head(function, norm, residual):
    before, head = norm(12), torch.randn(30, 12)
    for parameter in before.parameters():
        parameter.add_(torch.randn(12) * 0.3)
    hidden, added = torch.randn(3, 12), None if residual is None else torch.randn(3, 12).to(residual)
    want = before(hidden if added is None else hidden + added.float()) @ head.T
    got = function(hidden, added, before.weight, before.bias, head, before.eps, norm is RMSNorm)
    torch.testing.assert_close(got, want)
    half = [None if t is None else t.bfloat16() for t in (hidden, added, before.weight, before.bias, head)]
    assert function(*half, before.eps, norm is RMSNorm).dtype == torch.bfloat16
