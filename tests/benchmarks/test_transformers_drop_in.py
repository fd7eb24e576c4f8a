"""The benchmark of transformers on this package's ops, dry."""

import json

import pytest
import torch

pytest.importorskip("transformers")
import transformers_drop_in as benchmark


def test_the_dry_run_checks_times_and_writes(tmp_path, capsys):
    out = tmp_path / "results" / "drop_in.json"
    assert benchmark.main(["--small", "--repeats", "1", "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("ok")
    report = json.loads(out.read_text())
    assert [row["part"] for row in report["rows"]] == ["prefill", "decode", "train"]
    for row in report["rows"]:
        assert row["ratio"] == pytest.approx(row["transformers_ms"] / row["ours_ms"])
    assert report["transformers"]
    assert report["backends"]["selective_scan"] == "cpu"


def test_one_part_alone(capsys):
    assert benchmark.main(["--small", "--repeats", "1", "--parts", "decode"]) == 0
    assert capsys.readouterr().out.count("ours") == 1


def test_where_they_differ_nothing_is_timed(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "TOLERANCE", 0.0)
    assert benchmark.main(["--small"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_ours_against_ours_is_no_comparison(monkeypatch, capsys):
    own, fast, _ = benchmark.build(benchmark.SMALL, "cpu")
    assert benchmark.check(own, fast, benchmark.SMALL, "cpu")
    assert not benchmark.check(fast, fast, benchmark.SMALL, "cpu")
    assert not benchmark.check(own, own, benchmark.SMALL, "cpu")
    assert capsys.readouterr().out.count("WRONG our scan ran") == 2


def test_without_a_gpu_it_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.main(["--device", "cuda"]) == 1
    assert "--device cpu" in capsys.readouterr().err
