"""The decoding benchmark, dry."""

import json

import decode
import pytest
import torch


def test_the_dry_run_checks_times_and_writes(tmp_path, capsys):
    out = tmp_path / "found.json"
    assert decode.main(["--small", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [(row["model"], row["batch"]) for row in found["steps"]] == [("small", 1), ("small", 3)]
    for row in found["steps"]:
        assert row["correct"]
        assert 0 < row["floor_ms"] < row["ms"]
        assert row["tokens_per_second"] == pytest.approx(row["batch"] / row["ms"] * 1e3)
    assert capsys.readouterr().out.count("ms a step") == 2


def test_wrong_logits_fail(monkeypatch):
    monkeypatch.setattr(decode, "check", lambda *args: float("inf"))
    assert decode.main(["--small"]) == 1


def test_without_a_gpu_it_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert decode.main([]) == 1
    assert "--small" in capsys.readouterr().err
