"""Intervals and records of results."""

import json

import common
import pytest


def test_a_share_lies_in_its_interval_beside_its_target():
    result = common.share([True] * 45 + [False] * 5, 0.95)
    low, high = result["interval_95"]
    assert result["value"] == 0.9
    assert low < 0.9 < high < 1
    assert result["reached"] is False


def test_the_bootstrap_agrees_with_the_normal_interval_where_that_holds():
    values = [0.0, 1.0] * 500
    low, high = common.mean(values)["interval_95"]
    assert low == pytest.approx(0.5 - 1.96 * 0.5 / 1000**0.5, abs=0.003)
    assert high == pytest.approx(0.5 + 1.96 * 0.5 / 1000**0.5, abs=0.003)


def test_a_ratio_resamples_both_sides_together():
    below = [float(i % 7) for i in range(100)]
    result = common.ratio([3 * value for value in below], below, 3.0)
    assert result["interval_95"] == pytest.approx([3.0, 3.0])
    assert result["value"] == pytest.approx(3.0)


def test_a_ratio_to_nothing_is_not_a_number_and_reaches_no_target():
    result = common.ratio([1.0, 1.0], [0.0, 0.0], 3.0)
    assert result["value"] is None
    assert result["reached"] is False


def test_a_result_says_how_it_came_about(tmp_path):
    arguments = common.options("", n=3).parse_args(["--seed", "7"])
    common.write(tmp_path / "results" / "x.json", common.provenance(arguments))
    record = json.loads((tmp_path / "results" / "x.json").read_text())
    assert record["arguments"]["seed"] == 7
    assert {"date", "git_commit", "hardware", "versions"} <= set(record)
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["x.json"]
