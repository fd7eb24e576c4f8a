"""The benchmark of the whole model, dry."""

import json

import model as benchmark
import pytest
import torch


def test_the_dry_run_checks_times_and_writes(tmp_path, capsys):
    assert benchmark.main(["--small", "--profile", "--out", str(tmp_path)]) == 0
    train, prefill = (json.loads((tmp_path / f"model_{part}.json").read_text()) for part in ("train", "prefill"))
    assert [(row["batch"], row["length"]) for row in train["rows"]] == [(2, 12)]
    assert [(row["batch"], row["length"], row["way"]) for row in prefill["rows"]] == [
        (1, 10, "eager"),
        (2, 20, "eager"),
        (1, 32, "chunks of 16"),
        (1, 64, "chunks of 16"),
    ]
    for found in (train, prefill):
        assert all(check["correct"] for check in found["checks"])
        assert set(found["backends"].values()) == {"reference"}
        for row in found["rows"]:
            assert row["tokens_per_second"] == pytest.approx(row["batch"] * row["length"] / row["ms"] * 1e3)
    for part in ("train", "prefill"):
        table = (tmp_path / f"model_{part}_kernels.txt").read_text().splitlines()
        shares = [float(line.split()[1].rstrip("%")) for line in table[2:]]
        assert sum(shares) == pytest.approx(100, abs=3)
        assert any("addmm" in line or "aten::mm" in line for line in table)
    assert capsys.readouterr().out.count("tokens/s") == 5


def test_one_part_alone(tmp_path):
    assert benchmark.main(["--small", "--parts", "train", "--out", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model_train.json"]


def test_wrong_logits_fail_and_nothing_is_timed(monkeypatch, capsys):
    monkeypatch.setitem(benchmark.TOLERANCE, torch.bfloat16, -1.0)
    assert benchmark.main(["--small", "--parts", "train"]) == 1
    said = capsys.readouterr().out
    assert "WRONG" in said
    assert "tokens/s" not in said


def test_matrix_parameters_of_the_published_geometry():
    with torch.device("meta"):
        model = benchmark.MambaLMHeadModel(benchmark.PUBLISHED.models["130m"])
    d, inner, rank, states = 768, 1536, 48, 16
    layer = d * 2 * inner + inner * (rank + 2 * states) + rank * inner + inner * d
    assert benchmark.matrix_parameters(model) == 24 * layer + 50280 * d


def test_without_a_gpu_it_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.main([]) == 1
    assert "--small" in capsys.readouterr().err


def test_a_profile_needs_a_folder(capsys):
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(["--small", "--profile"])
    assert "--out" in capsys.readouterr().err
