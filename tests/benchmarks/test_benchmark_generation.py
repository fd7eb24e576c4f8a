"""The generation benchmark as people run it: the original's arguments, offline, and figures that fit one another."""

import json

import benchmark_generation_mamba_simple as benchmark
import pytest
import torch

from mamba_ssm import MambaLMHeadModel
from mamba_ssm.utils import hf

NAME = "state-spaces/mamba-tiny"
SHORT = ["--device", "cpu", "--promptlen", "12", "--genlen", "9", "--repeats", "2"]


@pytest.fixture
def tiny_geometry(monkeypatch):
    """The published ones take too long here."""
    monkeypatch.setitem(hf.PUBLISHED, NAME, (8, 2))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args: pytest.fail("it wanted to download"))


@pytest.fixture
def calls(monkeypatch):
    """What generate() is asked for; it still runs."""
    seen, generate = [], MambaLMHeadModel.generate

    def spy(self, input_ids, max_length, **kwargs):
        seen.append({"shape": tuple(input_ids.shape), "max_length": max_length, **kwargs})
        return generate(self, input_ids, max_length, **kwargs)

    monkeypatch.setattr(MambaLMHeadModel, "generate", spy)
    return seen


def run(capsys, *arguments):
    status = benchmark.main([*SHORT, *map(str, arguments)])
    return status, capsys.readouterr()


def test_random_weights_of_a_published_name_need_no_network(tiny_geometry, calls, capsys):
    status, said = run(capsys, "--model-name", NAME, "--random-weights", "--batch", "2", "--genlen", "40", "--json")
    assert status == 0
    found = json.loads(said.out)
    seconds, rates = found["seconds"], found["tokens_per_second"]
    assert (found["batch"], found["prompt_tokens"], found["new_tokens"]) == (2, 12, 40)
    assert 0 < seconds["prompt"] < seconds["total"]
    assert seconds["prompt"] + 39 * seconds["per_token"] == pytest.approx(seconds["total"])
    assert rates["decoding"] == pytest.approx(2 / seconds["per_token"])
    assert rates["prompt"] == pytest.approx(24 / seconds["prompt"])
    assert found["parameters"] > 8 * 50280
    assert found["peak_memory"] is None or found["peak_memory"] > 50 * 2**20  # PyTorch alone is more
    assert (found["dtype"], found["cuda_graph"], found["sampling"]["greedy"]) == ("float32", False, True)
    # One run that is not counted, two of the prompt alone, two in full; padding is never sampled.
    assert [call["max_length"] for call in calls] == [52, 13, 13, 52, 52]
    assert {call["shape"] for call in calls} == {(2, 12)}
    assert {call["vocab_size"] for call in calls} == {50277}


def test_int8_is_for_a_cpu(tiny_geometry, capsys):
    status, said = run(capsys, "--model-name", NAME, "--random-weights", "--dtype", "int8", "--json")
    assert status == 0
    assert json.loads(said.out)["dtype"] == "int8"


def test_the_originals_arguments_reach_generate(tiny_geometry, calls, capsys):
    limits = ["--temperature", "0.7", "--topk", "5", "--topp", "0.9", "--minp", "0.05", "--repetition-penalty", "1.2"]
    status, said = run(capsys, "--model-name", NAME, "--random-weights", *limits, "--dtype", "bfloat16")
    assert status == 0
    expected = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.2}
    assert expected.items() <= calls[0].items()
    lines = dict(line.split(maxsplit=1) for line in said.out.splitlines())
    assert lines["model"].startswith(NAME)
    assert lines["model"].endswith("bfloat16")
    assert lines["generation"] == "temperature 0.7, topk 5, topp 0.9, minp 0.05, repetition penalty 1.2"
    assert {"prompt", "per", "peak"} <= lines.keys()


def test_defaults_are_the_originals():
    expected = {
        "prompt": None,
        "promptlen": 100,
        "genlen": 100,
        "temperature": 1.0,
        "topk": 1,
        "topp": 1.0,
        "minp": 0.0,
    }
    expected |= {"model_name": "state-spaces/mamba-130m", "repetition_penalty": 1.0, "batch": 1}
    assert expected.items() <= vars(benchmark.parse([])).items()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line(tiny_geometry, capsys):
    status, said = run(capsys, "--model-name", NAME, "--random-weights", "--device", "cuda")
    assert (status, said.out) == (1, "")
    assert "--device cpu" in said.err
    assert said.err.count("\n") == 1


def test_one_new_token_has_no_time_per_token(tiny_geometry, capsys):
    status, said = run(capsys, "--model-name", NAME, "--random-weights", "--genlen", "1", "--json")
    assert status == 0
    assert json.loads(said.out)["seconds"]["per_token"] is None
    assert run(capsys, "--model-name", NAME, "--random-weights", "--genlen", "1")[0] == 0


def test_a_prompt_takes_the_tokenizer_of_the_folder(plain_model, calls, capsys):
    status, said = run(capsys, "--model-name", plain_model, "--prompt", "The gardener planted", "--json")
    assert status == 0
    found = json.loads(said.out)
    assert 0 < found["prompt_tokens"] < 12
    assert calls[0]["shape"] == (1, found["prompt_tokens"])
    assert isinstance(found["text"], str)


def test_a_folder_without_a_prompt_needs_no_tokenizer(plain_model, tmp_path, capsys):
    MambaLMHeadModel.from_pretrained(plain_model).save_pretrained(tmp_path)
    assert run(capsys, "--model-name", tmp_path)[0] == 0
    status, said = run(capsys, "--model-name", tmp_path, "--prompt", "Why?")
    assert status == 1
    assert "no tokenizer.json" in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model-name", "state-spaces/mamba-130", "--random-weights"], "did you mean state-spaces/mamba-130m?"),
        (["--model-name", NAME, "--random-weights", "--topk", "0", "--temperature", "0"], "temperature 0.0"),
        (["--model-name", "/no/such/folder"], "no folder /no/such/folder"),
    ],
)
def test_what_cannot_be_run_is_one_line(tiny_geometry, capsys, arguments, words):
    status, said = run(capsys, *arguments)
    assert (status, said.out) == (1, "")
    assert words in said.err
    assert said.err.count("\n") == 1


def test_counts_below_one_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        run(capsys, "--batch", "0")
    assert "at least 1" in capsys.readouterr().err
