"""ESI trained for a checkpoint on a few questions: it learns, and the checkpoint stays what it was."""

import json

import pytest
import torch

from mamba_ssm.book import Engine, open_book
from mamba_ssm.book.answers import plain_prompt
from mamba_ssm.esi.config import ESIConfig
from mamba_ssm.esi.module import EmbeddingSearcher
from mamba_ssm.training.config import BACKBONE_RATE
from mamba_ssm.training.esi_training import add_esi, tune
from mamba_ssm.training.questions import cut, load_questions

SMALL = ESIConfig(n_enc=1, d_search=32, d_read=32, n_read=1)
IDS = torch.arange(100, 160)[None]
STEPS, SEARCHED, READ = 60, 12, 48  # in all; when the search is trained, and the reader


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """A book of towns, and a question about every fifth."""
    folder = tmp_path_factory.mktemp("questions")
    towns = [f"Town {n} was founded by Gardener {n * 7 % 61} in the year {1200 + 3 * n}." for n in range(60)]
    (folder / "towns.txt").write_text("\n".join(towns), encoding="utf-8")
    rows = [
        {"book": "towns.txt", "question": f"When was Town {n} founded?", "answer": str(1200 + 3 * n)}
        for n in range(0, 60, 5)
    ]
    path = folder / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def train(plain_model, questions):
    def train(backbone_rate, steps, lr):
        engine = Engine.load(plain_model)
        examples = cut(load_questions(questions, engine.tokenizer)[0], 384)
        add_esi(engine.model, SMALL)
        losses = []
        tune(
            engine.model,
            examples,
            engine.tokenizer,
            steps,
            lr=lr,
            batch=8,
            backbone_rate=backbone_rate,
            log=lambda line: None,
            report=lambda loss: losses.append(float(loss)),
        )
        return engine.model, losses

    return train


@pytest.fixture(scope="module")
def frozen(train):
    return train(backbone_rate=0.0, steps=STEPS, lr=1e-2)


def test_the_losses_fall(frozen):
    _, losses = frozen
    assert len(losses) == STEPS
    assert sum(losses[SEARCHED - 3 : SEARCHED]) < 0.8 * sum(losses[:3])
    assert sum(losses[READ - 3 : READ]) < 0.5 * sum(losses[SEARCHED : SEARCHED + 3])
    assert sum(losses[-3:]) < sum(losses[READ : READ + 3])


def test_the_checkpoint_stays_as_it_is_to_the_bit(frozen, plain_model, tmp_path):
    model, _ = frozen
    plain = Engine.load(plain_model).model
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in plain.state_dict().items())
    assert torch.equal(model(IDS).logits, plain(IDS).logits)
    assert model.esi.injection.gate.item() != 0
    assert model.esi.injection.copy_gate.item() != 0


def test_what_was_trained_answers_from_its_folder(frozen, plain_model, questions, tmp_path):
    model, _ = frozen
    model.save_esi(tmp_path / "esi")
    engine = Engine.load(plain_model, esi=tmp_path / "esi")
    book = questions.parent / "towns.txt"
    answer = open_book(book, engine).ask("When was Town 5 founded?")
    again = open_book(book, Engine(model, engine.tokenizer, plain_model)).ask("When was Town 5 founded?")
    assert answer.start is not None  # it was copied: the checkpoint alone generates
    assert (answer.text, answer.evidence) == (again.text, again.evidence)
    # Without search it is the checkpoint, which knows no special tokens, and is asked in words.
    alone = Engine.load(plain_model)
    assert plain_prompt(engine, "When?") == plain_prompt(alone, "When?")
    without = [open_book(book, e).ask("When was Town 5 founded?", esi=False, max_new_tokens=4) for e in (engine, alone)]
    assert without[0].text == without[1].text


def test_with_the_backbone_all_of_it_learns(train, plain_model, tmp_path):
    model, losses = train(backbone_rate=BACKBONE_RATE, steps=8, lr=1e-3)
    before = Engine.load(plain_model).model.state_dict()
    changed = {key for key, tensor in before.items() if not torch.equal(tensor, model.state_dict()[key])}
    assert {"backbone.embedding.weight", "backbone.layers.2.mixer.A_log"} <= changed
    assert len(losses) == 8
    model.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path)(IDS).logits, model(IDS).logits)


@pytest.mark.gpu
def test_steps_that_a_gpu_replays_learn_what_a_cpu_does(plain_model, questions):
    """Of the search, whose batches are the same; in bf16."""
    losses = {}
    for device in ("cpu", "cuda"):
        engine = Engine.load(plain_model, device)
        examples = cut(load_questions(questions, engine.tokenizer)[0], 384)
        add_esi(engine.model, SMALL)
        seen = losses[device] = []
        tune(
            *(engine.model, examples, engine.tokenizer, 20),
            batch=8,
            log=lambda line: None,
            report=lambda loss, seen=seen: seen.append(float(loss)),
        )
    assert losses["cuda"][:4] == pytest.approx(losses["cpu"][:4], rel=5e-2)
    assert sum(losses["cuda"][12:16]) < sum(losses["cuda"][4:8])


def test_a_new_search_weighs_tokens_as_the_one_without_training(plain_model):
    model = Engine.load(plain_model).model
    question = torch.tensor([[300, 5, 20000, 1]])
    untrained = EmbeddingSearcher(model.backbone.embedding.weight.detach(), SMALL).ask(question).query
    add_esi(model, SMALL)
    added = model.searcher().ask(question).query
    assert torch.allclose(added.weights[:, :4], untrained.weights, rtol=1e-4)
    assert not added.weights[:, 4:].any()


def test_esi_that_is_there_goes_on_from_where_it_is(tiny_model, questions):
    engine = Engine.load(tiny_model)
    before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    examples = cut(load_questions(questions, engine.tokenizer)[0], 384)
    tune(engine.model, examples, engine.tokenizer, steps=3, lr=1e-6, batch=4, log=lambda line: None)
    for name, parameter in engine.model.named_parameters():
        assert torch.allclose(parameter, before[name], atol=1e-5)
