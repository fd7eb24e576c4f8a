"""What the language model's recipe learns, from where, and what it writes."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("accelerate")

from runs import byte_tokenizer, losses, make_corpus, metrics, settings, train
from safetensors.torch import load_file

from mamba_ssm import MambaLMHeadModel
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training.config import LMConfig, NewModel
from mamba_ssm.training.corpus import Corpus, Packed, PackedBatches
from mamba_ssm.training.lm import LanguageModel

SHORT = ("--steps", 2, "--eval-every", 2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("bytes"), byte_tokenizer())


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory):
    return settings(tmp_path_factory.mktemp("lm"), corpus)


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    result = train(config, out, *SHORT)
    assert result.exit_code == 0, result.stderr
    return out


def mean_loss(model, batch):
    """By whole logits, of each document by itself."""
    summed, count = 0.0, 0
    for ids, targets, documents in zip(*batch, strict=True):
        for document in documents.unique():
            here = documents == document
            counted = targets[here] != -100
            if counted.any():
                logits = model(ids[here][None]).logits[0][counted].double()
                summed += float(F.cross_entropy(logits, targets[here][counted], reduction="sum"))
                count += int(counted.sum())
    return summed / count


@torch.no_grad()
def test_what_it_wrote_is_a_checkpoint_with_the_loss_that_was_reported(trained, corpus):
    model = MambaLMHeadModel.from_pretrained(trained)
    assert Tokenizer.from_folder(trained).same_vocabulary(byte_tokenizer())
    held_out = Corpus.open(corpus).split("held_out")
    batches = PackedBatches(held_out, length=48, rows=8, seed=0)
    count = min(2, math.ceil(held_out.tokens / (48 * 8)))
    evaluated = Packed(*(torch.cat(parts) for parts in zip(*map(batches.at, range(count)), strict=True)))
    mean = mean_loss(model, evaluated)
    found = metrics(trained)[2]
    assert found["held_out_loss"] == pytest.approx(mean, rel=1e-5)
    assert found["held_out_perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)


def test_a_checkpoint_is_continued(trained, config, corpus, tmp_path):
    model = MambaLMHeadModel.from_pretrained(trained).requires_grad_(False)
    assert train(config, tmp_path, *SHORT, "--start", trained, "--seed", 5).exit_code == 0
    first = PackedBatches(Corpus.open(corpus).split("train"), length=48, rows=8, seed=5).at(0)
    assert metrics(tmp_path)[1]["loss"] == pytest.approx(mean_loss(model, first), rel=1e-5)


def test_search_and_injection_of_a_checkpoint_stay(tiny_model, tmp_path):
    """Its loss has no part for them, and weight decay must not wear them away."""
    corpus = make_corpus(tmp_path, Tokenizer.from_folder(tiny_model))
    out = tmp_path / "run"
    result = train(settings(tmp_path, corpus), out, *SHORT, "--start", tiny_model)
    assert result.exit_code == 0, result.stderr
    before, after = load_file(f"{tiny_model}/model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) == name.startswith("esi."), name
    MambaLMHeadModel.from_pretrained(out)


def test_a_checkpoint_with_esi_is_not_sharded(tiny_model, tmp_path):
    corpus = make_corpus(tmp_path, Tokenizer.from_folder(tiny_model))
    result = train(settings(tmp_path, corpus), tmp_path / "run", "--start", tiny_model, "--parallel", "fsdp2")
    assert result.exit_code == 1
    assert "which FSDP2 cannot shard" in result.stderr.splitlines()[-1]


def test_a_checkpoint_of_other_tokens_is_refused(config, tiny_model, tmp_path):
    result = train(config, tmp_path / "run", "--start", tiny_model)
    assert result.exit_code == 1
    assert "other tokens" in result.stderr.splitlines()[-1]


def test_what_does_not_decay():
    model = MambaLMHeadModel(MambaConfig(d_model=16, n_layer=1, vocab_size=32, tie_embeddings=False))
    settings_ = LMConfig(out="", data="", steps=1, eval_every=0, weight_decay=0.3)
    recipe = LanguageModel.__new__(LanguageModel)
    recipe.model, recipe.config = model, settings_
    decayed = {id(p) for group in recipe.parameter_groups() if group["weight_decay"] == 0.3 for p in group["params"]}
    names = {name.removeprefix("backbone.layers.0.mixer.") for name, p in model.named_parameters() if id(p) in decayed}
    matrices = {"in_proj.weight", "conv1d.weight", "x_proj.weight", "dt_proj.weight", "out_proj.weight"}
    assert names == matrices | {"lm_head.weight"}


def test_activations_computed_again_change_nothing(trained, config, tmp_path):
    assert train(config, tmp_path, *SHORT, "--checkpoint-activations", "true").exit_code == 0
    assert losses(tmp_path) == losses(trained)


def test_parts_of_a_step_are_summed(trained, config, tmp_path):
    assert train(config, tmp_path, *SHORT, "--accumulate", 8).exit_code == 0
    for step, found in losses(tmp_path).items():
        assert found == pytest.approx(losses(trained)[step], rel=1e-5)


def test_bf16_keeps_parameters_in_fp32(trained, config, tmp_path):
    assert train(config, tmp_path, *SHORT, "--precision", "bf16").exit_code == 0
    tensors = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert losses(tmp_path) != losses(trained)
    assert losses(tmp_path)[2] == pytest.approx(losses(trained)[2], rel=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoints", ["true", "false"])
def test_compiled_blocks_learn_the_same(trained, config, tmp_path, checkpoints):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()  # also what another test compiled
    counters.clear()
    more = ("--compile", "true", "--checkpoint-activations", checkpoints)
    assert train(config, tmp_path, *SHORT, *more).exit_code == 0
    assert counters["stats"]["unique_graphs"] > 0
    for step, found in losses(tmp_path).items():
        assert found == pytest.approx(losses(trained)[step], rel=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("more", [(), ("--compile", "true", "--checkpoint-activations", "true")])
def test_a_gpu_learns_what_a_cpu_does(trained, config, tmp_path, more):
    assert train(config, tmp_path, *SHORT, "--device", "cuda", *more).exit_code == 0
    for step, found in losses(tmp_path).items():
        assert found == pytest.approx(losses(trained)[step], rel=1e-3)


def test_a_batch_without_targets_counts_for_nothing(corpus):
    model = MambaLMHeadModel(MambaConfig(d_model=16, n_layer=1, vocab_size=257))
    settings_ = LMConfig(out="", data="", steps=1, eval_every=0, length=4, rows=1)
    recipe = LanguageModel(model, Corpus.open(corpus), settings_)
    (batch,) = recipe.batches(0, 0, 1)
    batch = batch._replace(targets=torch.full_like(batch.targets, -100))
    (loss,) = recipe.loss(batch).values()
    loss.backward()
    assert loss == 0
    assert list(recipe.weights(batch).values()) == [0]
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rows", 6, "--accumulate", 4), "cannot be shared evenly"),
        (("--new.d-model", 0), "new: d_model is 0"),
        (("--data", "nowhere"), "nowhere is no corpus"),
    ],
)
def test_what_cannot_be_trained(config, tmp_path, arguments, said):
    result = train(config, tmp_path / "run", *arguments)
    assert result.exit_code == 1
    assert said in result.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_damaged_corpus_is_refused(config, tmp_path):
    damaged = make_corpus(tmp_path, byte_tokenizer())
    shard = damaged / "tokens-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    result = train(config, tmp_path / "run", "--data", damaged)
    assert result.exit_code == 1
    assert "tokens-00000.bin" in result.stderr.splitlines()[-1]


def test_sizes_of_a_new_model(trained):
    config = json.loads((trained / "config.json").read_text())
    assert (config["d_model"], config["n_layer"], config["ssm_cfg"]) == (16, 2, {"d_state": 4})
    assert NewModel() == NewModel(d_model=768, n_layer=24, d_state=16)
