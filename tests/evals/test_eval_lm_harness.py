"""The harness's command on local tasks in the shapes of the published ones, and its numbers against the model's own."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")

import lm_harness_eval
from lm_eval.api.instance import Instance
from lm_eval.models.mamba_lm import MambaLMWrapper

from mamba_ssm.errors import CheckpointError
from mamba_ssm.models.convert import convert
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
TASKS = "local_multiple_choice,local_fill_in,local_last_word,local_generation,local_rolling"


def arguments_of(model, model_args, batch_size, out):
    """The command line on all local tasks."""
    asked = f"--model {model} --model_args {model_args} --tasks {TASKS} --device cpu --batch_size {batch_size}"
    return [*asked.split(), *f"--include_path tests/evals/tasks --log_samples --output_path {out}".split()]


def written(out):
    """The results that a command wrote, and the samples of each task."""
    (results,) = out.rglob("results_*.json")
    samples = {
        file.name.split("_2")[0].removeprefix("samples_local_"): sorted(
            map(json.loads, file.read_text(encoding="utf-8").splitlines()), key=lambda sample: sample["doc_id"]
        )
        for file in out.rglob("samples_*.jsonl")
    }
    return json.loads(results.read_text())["results"], samples


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Run the script's command line; returns what it wrote."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.chdir(ROOT)

    def run(model, folder, batch_size):
        out = tmp_path / f"{model}{batch_size}"
        arguments = arguments_of(model, f"pretrained={folder}", batch_size, out)
        monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments])
        lm_harness_eval.cli_evaluate()
        return written(out)

    return run


def declare_tokenizer(folder):
    """What transformers needs beside tokenizer.json."""
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="session")
def open_gates(tiny_model, tmp_path_factory):
    """The folder of a model with ESI weights whose gates, zero before training, let through what was found."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("open") / "model")
    model = MambaLMHeadModel.from_pretrained(folder)
    for gate in (model.esi.injection.gate, model.esi.injection.copy_gate):
        torch.nn.init.ones_(gate)
    model.save_pretrained(folder)
    return str(folder)


@functools.cache
def load(folder):
    return MambaLMHeadModel.from_pretrained(folder), Tokenizer.from_folder(folder)


@torch.no_grad()
def log_likelihood(folder, context, continuation, question=None):
    model, tokenizer = load(folder)

    def encode(text):
        return torch.tensor(tokenizer.encode(text).ids.tolist()) if text else torch.tensor([tokenizer.end_of_text])

    ids, after = encode(context), encode(continuation)
    extra = {} if question is None else {"question_ids": encode(question)[None]}
    logits = model(torch.cat([ids, after])[None], **extra).logits[0, len(ids) - 1 : -1]
    return logits.log_softmax(-1).gather(1, after[:, None]).sum().item()


@torch.no_grad()
def continuation(folder, context, question=None):
    """24 tokens, each the likeliest after reading all before it anew."""
    model, tokenizer = load(folder)
    ids = tokenizer.encode(context).ids.tolist()
    extra = {} if question is None else {"question_ids": torch.tensor([tokenizer.encode(question).ids.tolist()])}
    new: list[int] = []
    while len(new) < 24 and (not new or new[-1] != tokenizer.end_of_text):
        new.append(model(torch.tensor([ids + new]), num_last_tokens=1, **extra).logits[0, -1].argmax().item())
    text = tokenizer.decode(new)
    return text.partition("\n")[0].partition("Question:")[0]


def generation(context, until, **how):
    return Instance("generate_until", {}, (context, {"until": until, "max_gen_toks": 24, **how}), 0)


def check_numbers(folder, samples, off=1e-3):
    for sample in samples["multiple_choice"]:
        doc = sample["doc"]
        for text, ((value, _),) in zip(doc["choices"]["text"], sample["resps"], strict=True):
            assert float(value) == pytest.approx(
                log_likelihood(folder, f"Question: {doc['question']}\nAnswer:", f" {text}"), abs=off
            )
    for sample in samples["fill_in"]:
        before, after = sample["doc"]["sentence"].split("_")
        for option, ((value, _),) in zip(("option1", "option2"), sample["resps"], strict=True):
            assert float(value) == pytest.approx(log_likelihood(folder, before + sample["doc"][option], after), abs=off)
    for sample in samples["last_word"]:
        context, _, word = sample["doc"]["text"].rpartition(" ")
        ((value, _),) = sample["resps"][0]
        assert float(value) == pytest.approx(log_likelihood(folder, context, f" {word}"), abs=off)


@pytest.mark.parametrize(("model", "batch_size"), [("mamba", 1), ("mamba", 4), ("mamba_esi", 4)])
def test_numbers_are_the_models_own(command, plain_model, model, batch_size):
    results, samples = command(model, plain_model, batch_size)
    check_numbers(plain_model, samples)
    rolling = [log_likelihood(plain_model, "", sample["doc"]["text"]) for sample in samples["rolling"]]
    words = sum(len(sample["doc"]["text"].split()) for sample in samples["rolling"])
    perplexity = torch.tensor(-sum(rolling) / words).exp().item()
    assert results["local_rolling"]["word_perplexity,none"] == pytest.approx(perplexity, rel=1e-3)
    for sample in samples["generation"]:
        context, (answer,) = sample["arguments"]["gen_args_0"]["arg_0"], sample["resps"][0]
        assert answer == continuation(plain_model, context)


def test_hf_gives_a_converted_checkpoint_the_same_numbers(command, plain_model, tmp_path):
    folder = tmp_path / "model"
    convert(plain_model, folder, "transformers")
    declare_tokenizer(folder)
    check_numbers(plain_model, command("hf", folder, 4)[1])


def test_the_harness_without_the_script(plain_model, tmp_path):
    """Its command with nothing but the folder: the tokenizer is then the published checkpoints', and half precision the
    default."""
    hub = tmp_path / "hub" / "models--EleutherAI--gpt-neox-20b"
    snapshot = hub / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    shutil.copy(Path(plain_model) / "tokenizer.json", snapshot)  # not theirs: it has to fit the tiny model
    declare_tokenizer(snapshot)
    (snapshot / "config.json").write_text('{"model_type": "gpt_neox"}')
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("0" * 40)
    places = {"HF_HUB_CACHE": str(hub.parent), "HF_DATASETS_CACHE": str(tmp_path / "datasets"), "HF_HUB_OFFLINE": "1"}
    arguments = arguments_of("mamba_ssm", f"pretrained={plain_model}", 1, tmp_path / "out")
    command = [sys.executable, "-m", "lm_eval", *arguments]
    done = subprocess.run(command, env=os.environ | places, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    _, samples = written(tmp_path / "out")
    check_numbers(plain_model, samples, off=0.1)
    answers = [sample["resps"][0][0] for sample in samples["generation"]]
    assert len(answers) == 2
    assert not any("\n" in answer or "Question:" in answer for answer in answers)


def test_generation_ends_a_row_at_its_stop_string(plain_model):
    lm = lm_harness_eval.MambaLM(plain_model, device="cpu", batch_size=2)
    contexts = ["The ferry leaves the north pier at seven.", "Salt"]
    whole = lm.generate_until([generation(context, []) for context in contexts], disable_tqdm=True)
    stop = whole[0][8:11]
    lengths = []
    generate = lm.model.generate
    lm.model.generate = lambda *args, **kwargs: lengths.append((out := generate(*args, **kwargs)).shape[1]) or out
    for context, text in zip(contexts, whole, strict=True):
        assert lm.generate_until([generation(context, [stop])], disable_tqdm=True) == [text.partition(stop)[0]]
    assert lengths[0] < lm.tok_batch_encode(contexts[:1])[0].shape[1] + 24


def open_model(kind, folder):
    """The script's class, or the harness's own."""
    tokenizer = lm_harness_eval.folder_tokenizer(folder)
    return kind(folder, tokenizer=tokenizer, dtype="float32", device="cpu", batch_size=1)


def test_the_harness_own_class_cuts_at_stop_strings(plain_model):
    lm = open_model(MambaLMWrapper, plain_model)
    context = "The ferry leaves the north pier at seven."
    (whole,) = lm.generate_until([generation(context, ["\n", "Question:"])], disable_tqdm=True)
    assert whole == continuation(plain_model, context)
    stop = whole[8:11]
    assert lm.generate_until([generation(context, [stop])], disable_tqdm=True) == [whole.partition(stop)[0]]


@pytest.mark.parametrize("kind", [lm_harness_eval.MambaLM, MambaLMWrapper])
def test_tasks_that_sample(plain_model, kind):
    lm = open_model(kind, plain_model)
    how = {"do_sample": True, "temperature": 0.9, "top_p": 0.9, "top_k": 50}

    def sampled(seed, until):
        torch.manual_seed(seed)
        return lm.generate_until([generation("Salt", until, **how)], disable_tqdm=True)[0]

    texts = [sampled(seed, []) for seed in range(3)]
    assert len(set(texts)) > 1
    stop = texts[0][6:8]
    assert sampled(0, [stop]) == texts[0].partition(stop)[0]


def test_the_question_searches_the_context(open_gates, book_text):
    lm = lm_harness_eval.MambaESILM(open_gates, device="cpu", batch_size=2)
    text, questions = book_text[:1200], ["How many trees did gardener 7 plant?", "Where?"]
    # Two of the questions are the document's, and the others are the last line but the cue.
    requests = [
        Instance("loglikelihood", {"question": question} if known else {}, (f"{text}\n{question}\nAnswer:", after), 0)
        for question in questions
        for known, after in ((True, " seven"), (False, " near Zürich"))
    ]
    found = lm.loglikelihood(requests, disable_tqdm=True)
    plain = lm_harness_eval.MambaLM(open_gates, device="cpu").loglikelihood(requests, disable_tqdm=True)
    for index, request in enumerate(requests):
        context, after = request.args
        expected = log_likelihood(open_gates, context, after, questions[index // 2])
        assert found[index][0] == pytest.approx(expected, abs=1e-3)
        assert abs(expected - plain[index][0]) > 0.01
    generated = lm.generate_until([generation(request.args[0], []) for request in requests[::2]], disable_tqdm=True)
    assert generated == [
        continuation(open_gates, request.args[0], question)
        for request, question in zip(requests[::2], questions, strict=True)
    ]


@pytest.mark.parametrize(
    ("doc", "context", "question"),
    [
        ({"question": "Where?"}, "A pier.\n\nQuestion: Where is it?\nAnswer:", "Where?"),
        ({"question": {"stem": "Where?"}}, "A pier.\nQuestion: Where is it?\n\nAnswer: ", "Question: Where is it?"),
        ({"goal": "Mend it"}, "Question: Mend it\nAnswer:", "Question: Mend it"),
        ({"sentence": "..."}, "The jug would not fit because the jug", "The jug would not fit because the jug"),
        ({}, "Answer:\n", "Answer:\n"),
    ],
)
def test_where_the_question_is_found(doc, context, question):
    assert lm_harness_eval.question_of(Instance("loglikelihood", doc, (context, " x"), 0)) == question


def test_a_tokenizer_without_an_end_of_text_is_refused(tmp_path):
    empty = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(empty))
    with pytest.raises(CheckpointError, match=r"<\|endoftext\|>"):
        lm_harness_eval.folder_tokenizer(str(tmp_path))
    assert lm_harness_eval.folder_tokenizer("state-spaces/mamba-130m") is None
