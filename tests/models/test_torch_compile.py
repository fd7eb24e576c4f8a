"""torch.compile, torch.export, activation checkpointing and autocast: the same model with the same gradients."""

import io
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim
from torch.utils.checkpoint import checkpoint

from mamba_ssm import Mamba, MambaLMHeadModel
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MixerModel
from mamba_ssm.modules.block import Block
from mamba_ssm.ops.layer_norm import RMSNorm
from mamba_ssm.utils.generation import InferenceParams

WIDTH, VOCABULARY = 8, 20


def new_block() -> Block:
    torch.manual_seed(0)
    torch._dynamo.reset()
    mixer = partial(Mamba, d_state=3)
    return Block(WIDTH, mixer, norm_cls=RMSNorm, fused_add_norm=True, residual_in_fp32=True)


def new_model() -> MambaLMHeadModel:
    torch.manual_seed(0)
    torch._dynamo.reset()
    return MambaLMHeadModel(MambaConfig(d_model=WIDTH, n_layer=2, vocab_size=VOCABULARY, ssm_cfg={"d_state": 3}))


def ids(batch: int, length: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (batch, length))


def assert_same(run: Callable[..., Any], eager: nn.Module, *inputs: Tensor, tolerance: float = 2e-5) -> None:
    """Results, and gradients of inputs and weights, of `run` against the module's own: relative errors of the norm."""

    def all_of(function: Callable[..., Any]) -> list[Tensor]:
        given = [m.detach().requires_grad_(m.is_floating_point()) for m in inputs]
        results = function(*given)
        results = list(results) if isinstance(results, tuple) else [results]
        leaves = [m for m in (*given, *eager.parameters()) if m.requires_grad]
        loss = torch.stack(
            [(m.float() * torch.linspace(-1, 1, m.numel(), device=m.device).view_as(m)).sum() for m in results]
        ).sum()
        return [*results, *torch.autograd.grad(loss, leaves, materialize_grads=True)]

    for got, expected in zip(all_of(run), all_of(eager), strict=True):
        assert got.dtype == expected.dtype
        assert (got - expected).norm() <= tolerance * expected.norm() + 1e-7


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_a_compiled_block_trains_as_in_eager_mode(dtype):
    block = new_block()
    x, residual = torch.randn(2, 6, WIDTH), torch.randn(2, 6, WIDTH)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        run = torch.compile(block, fullgraph=True, backend="aot_eager")
        assert_same(run, block, x, residual, tolerance=2e-5 if dtype is None else 2e-2)


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor compiles with g++")
def test_inductor_makes_the_same_layer():
    layer = new_block().mixer
    assert_same(torch.compile(layer, fullgraph=True, dynamic=True), layer, torch.randn(2, 5, WIDTH))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_inductor_makes_the_same_block_on_a_gpu(dtype):
    block = new_block().cuda()
    x = torch.randn(2, 100, WIDTH, device="cuda")
    with torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None):
        run = torch.compile(block, fullgraph=True)
        assert_same(run, block, x, torch.randn_like(x), tolerance=1e-4 if dtype is None else 2e-2)


def test_lengths_that_vary_compile_twice_at_most():
    model = new_model().backbone
    assert isinstance(model, MixerModel)
    backend = CompileCounterWithBackend("aot_eager")
    run = torch.compile(model, fullgraph=True, backend=backend)
    for length in (5, 7, 12, 31, 64):
        assert_same(run, model, ids(2, length))
    assert backend.frame_count <= 2
    with torch.no_grad():
        torch.testing.assert_close(run(ids(2, 9)).shape, torch.Size([2, 9, WIDTH]))


def test_a_compiled_model_takes_padding_packing_states_and_a_cache():
    model = new_model()
    run = torch.compile(model, fullgraph=True, backend="aot_eager")
    tokens = ids(2, 9)
    mask, seq_idx = torch.arange(9) >= torch.tensor([[0], [3]]), (torch.arange(9) // 3).expand(2, 9)
    states = model(tokens, return_states=True).states
    for how in (
        {"attention_mask": mask, "seq_idx": seq_idx, "initial_states": states, "return_states": True},
        {"num_last_tokens": 2},
    ):
        torch.testing.assert_close(run(tokens, **how), model(tokens, **how))
    row, cu_seqlens = tokens[:1], torch.tensor([0, 4, 9])
    torch.testing.assert_close(run(row, cu_seqlens=cu_seqlens).logits, model(row, cu_seqlens=cu_seqlens).logits)
    params, cached = InferenceParams(9, 2), []
    with torch.no_grad():
        for part in tokens.split([4, 1, 1, 3], dim=1):
            cached.append(run(part, inference_params=params).logits)
            params.seqlen_offset += part.shape[1]
    torch.testing.assert_close(torch.cat(cached, 1), model(tokens).logits, atol=1e-5, rtol=1e-4)


def save_and_load(program: torch.export.ExportedProgram) -> nn.Module:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


@pytest.mark.parametrize("gradients", [False, True])
def test_an_exported_decoding_step_of_a_layer_moves_its_states_on(gradients):
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Mamba(WIDTH, d_state=3)

        def forward(self, x: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.layer.step(x, conv_state, ssm_state)

    step, inputs = Step(), (torch.randn(2, 1, WIDTH), torch.randn(2, 16, 4), torch.randn(2, 16, 3))
    with torch.set_grad_enabled(gradients):
        exported = save_and_load(torch.export.export(step, inputs))
    with torch.no_grad():
        ours, theirs = ([m.clone() for m in inputs] for _ in range(2))
        for _ in range(3):
            torch.testing.assert_close(exported(*ours), step(*theirs))
            torch.testing.assert_close(ours, theirs)
    assert not torch.equal(ours[2], inputs[2])


def test_an_exported_step_of_a_model_gives_logits_and_states():
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = new_model()

        def forward(self, ids: Tensor, states: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Any]:
            out = self.model(ids, initial_states=states, return_states=True)
            return out.logits, out.states

    step = Step()
    tokens = ids(2, 9)
    states = step.model(tokens[:, :5], return_states=True).states
    exported = save_and_load(torch.export.export(step, (tokens[:, :1], states)))
    logits = []
    for token in tokens[:, 5:].split(1, dim=1):
        out, states = exported(token, states)
        logits.append(out)
    torch.testing.assert_close(torch.cat(logits, 1), step.model(tokens).logits[:, 5:], atol=1e-5, rtol=1e-4)


def test_an_exported_model_takes_any_batch_and_length():
    model = new_model().backbone
    shapes = {0: Dim("batch", min=1, max=64), 1: Dim("length", min=2, max=4096)}
    exported = torch.export.export(model, (ids(2, 9),), dynamic_shapes=(shapes,))
    for batch, length in ((1, 2), (3, 40)):
        tokens = ids(batch, length)
        torch.testing.assert_close(exported.module()(tokens), model(tokens))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_activation_checkpointing_changes_no_gradient(dtype):
    block = new_block()
    x, residual = torch.randn(2, 6, WIDTH), torch.randn(2, 6, WIDTH)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        again = partial(checkpoint, block, use_reentrant=False)
        assert_same(again, block, x, residual)
        if dtype is None:
            assert_same(torch.compile(again, fullgraph=True, backend="aot_eager"), block, x, residual)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains_in_half_precision_near_the_exact_gradients(dtype):
    model = new_model()

    def half(tokens: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype):
            logits = model(tokens).logits
        assert logits.dtype == dtype
        return logits.float()

    class Exact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: Tensor) -> Tensor:
            return self.model(tokens).logits

    assert_same(half, Exact(), ids(2, 16), tolerance=5e-2)
