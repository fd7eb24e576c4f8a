"""On a CPU a token goes through all blocks in one call, and the result is that of calling them one by one."""

import copy
import pickle

import pytest
import torch
from torch import nn

from mamba_ssm.models import planned_steps
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.utils.generation import InferenceParams

V = 50


def build(**options):
    torch.manual_seed(0)
    model = MambaLMHeadModel(MambaConfig(**{"d_model": 24, "n_layer": 3, "vocab_size": V, **options})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith(".D"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture
def planned(monkeypatch):
    """Counts the calls that took all blocks at once."""
    taken, step = [], planned_steps.step

    def counting(*args):
        made = step(*args)
        taken.append(made is not None)
        return made

    monkeypatch.setattr(planned_steps, "step", counting)
    return taken


def tokens(model, ids, params, at):
    """Logits of ids[:, at:], one token after the other."""
    out = []
    for i in range(at, ids.shape[1]):
        params.seqlen_offset = i
        out.append(model(ids[:, i : i + 1], inference_params=params).logits)
    params.seqlen_offset = ids.shape[1]
    return torch.cat(out, dim=1)


@torch.no_grad()
def check(model, ids, params, at, tolerance=1e-5):
    torch.testing.assert_close(
        tokens(model, ids, params, at), model(ids).logits[:, at:], rtol=tolerance, atol=tolerance
    )


@torch.no_grad()
def begin(model, rows=1, length=9, at=4):
    ids, params = torch.randint(V, (rows, length)), InferenceParams(20, rows)
    model(ids[:, :at], inference_params=params)
    return ids, params


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("options", [{}, {"rms_norm": False}, {"residual_in_fp32": False}, {"n_layer": 1}])
def test_gives_what_the_whole_text_gives(planned, rows, options):
    model = build(**options)
    ids, params = begin(model, rows)
    check(model, ids, params, 4)
    assert planned == [False, *[True] * 5]


def test_a_batch_may_own_some_rows_of_the_cache(planned):
    model = build()
    ids, params = begin(model, 3)
    with torch.no_grad():
        whole = model(ids).logits
        for start, stop in ((0, 2), (2, 3)):
            params.batch_size_offset = start
            torch.testing.assert_close(
                tokens(model, ids[start:stop], params, 4), whole[start:stop, 4:], rtol=1e-5, atol=1e-5
            )
    assert sum(planned) == 10


@pytest.mark.parametrize("where", ["backbone.layers.1", "backbone.layers.1.mixer", "backbone.layers.2.mixer.out_proj"])
def test_a_hook_that_is_set_within_a_text_is_called(planned, where):
    model = build()
    ids, params = begin(model)
    check(model, ids[:, :6], params, 4)
    seen = []
    handle = model.get_submodule(where).register_forward_hook(lambda *_: seen.append(1))
    tokens(model, ids[:, :7], params, 6)
    assert seen
    handle.remove()
    count = len(seen)
    check(model, ids[:, :9], params, 7)
    assert planned == [False, True, True, False, True, True]
    assert len(seen) == count


class Adapted(nn.Linear):
    """Has a weight, and does something else."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("name", ["in_proj", "x_proj", "out_proj"])
def test_a_projection_that_was_replaced_by_another_class_is_called(name):
    model = build()
    ids, params = begin(model)
    check(model, ids[:, :6], params, 4)
    mixer = model.backbone.layers[1].mixer
    linear = getattr(mixer, name)
    other = Adapted(linear.in_features, linear.out_features, bias=False)
    other.weight = linear.weight
    setattr(mixer, name, other)
    doubled = build()
    with torch.no_grad():
        getattr(doubled.backbone.layers[1].mixer, name).weight.mul_(2)
        # The states before are of the model as it was, for both.
        again = InferenceParams(20, 1, key_value_memory_dict=copy.deepcopy(params.key_value_memory_dict))
        again.seqlen_offset = params.seqlen_offset
        torch.testing.assert_close(tokens(model, ids, params, 6), tokens(doubled, ids, again, 6))
        torch.testing.assert_close(model(ids).logits, doubled(ids).logits)


@torch.no_grad()
@pytest.mark.parametrize("what", ["weight", "parameter", "block", "states"])
def test_what_is_replaced_within_a_text_is_seen(what):
    model, other = build(), build()
    for parameter in other.parameters():
        parameter.mul_(1.1)
    ids, params = begin(model)
    tokens(model, ids[:, :6], params, 4)
    if what == "weight":
        model.backbone.layers[1].mixer.in_proj.weight.copy_(other.backbone.layers[1].mixer.in_proj.weight)
    elif what == "parameter":
        model.backbone.layers[1].mixer.in_proj.weight = other.backbone.layers[1].mixer.in_proj.weight
    elif what == "block":
        model.backbone.layers[1] = other.backbone.layers[1]
    else:
        fresh = model.allocate_inference_cache(1, 20)
        params.key_value_memory_dict.update(
            {i: (torch.ones_like(c), torch.ones_like(h)) for i, (c, h) in fresh.items()}
        )
    again = copy.deepcopy(params)
    got = tokens(model, ids, params, 6)
    one_by_one, planned_steps.step = planned_steps.step, lambda *_: None
    try:
        want = tokens(model, ids, again, 6)
    finally:
        planned_steps.step = one_by_one
    torch.testing.assert_close(got, want)


@torch.no_grad()
def test_a_text_and_its_model_can_be_copied_and_pickled(planned):
    model = build()
    ids, params = begin(model)
    tokens(model, ids[:, :6], params, 4)
    for copied in (copy.deepcopy(params), pickle.loads(pickle.dumps(params))):  # noqa: S301
        check(copy.deepcopy(model), ids, copied, 6)
    check(model, ids, params, 6)
    with pytest.raises(ValueError, match="bfloat16"):
        tokens(model.bfloat16(), ids, params, 8)
