"""The load script, for a moment, with the default model."""

import json

import serve


def test_it_checks_counts_and_writes(tmp_path, capsys):
    out = tmp_path / "found.json"
    assert serve.main(["--seconds", "0.5", "--clients", "3", "--tokens", "2", "--prompts", "6", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [phase["clients"] for phase in found["phases"]] == [1, 3]
    for phase in found["phases"]:
        assert phase["lost"] == phase["mixed_up"] == 0
        assert phase["requests"] >= phase["clients"]
        assert 0 < phase["first_seconds"]["p50"] <= phase["request_seconds"]["p50"]
    assert "tokens/s" in capsys.readouterr().out
