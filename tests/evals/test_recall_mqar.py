"""MQAR: the counts of the paper, and that every query can be answered from what stands before it."""

import numpy as np
import pytest

from mamba_ssm.training.recall.mqar import IGNORE, TEST, TRAIN, VOCABULARY, Size, mqar

SIZES = [Size(64, 4, 50), Size(64, 16, 50), Size(256, 64, 20), Size(1024, 256, 5)]


def test_the_sizes_are_the_paper_s():
    assert sum(size.rows for size in TRAIN) == 180_000
    assert {size[:2] for size in TRAIN} == {(64, 4), (128, 8), (256, 16), (256, 32), (256, 64)}
    assert TEST[-1] == (1024, 256, 1000)


@pytest.mark.parametrize("size", SIZES)
def test_every_row_asks_each_of_its_keys_once_and_after_it_came(size):
    data = mqar(size, seed=1)
    assert data.inputs.shape == data.targets.shape == (size.rows, size.length)
    assert 0 <= data.inputs.min() <= data.inputs.max() < VOCABULARY
    for row, targets in zip(data.inputs.tolist(), data.targets.tolist(), strict=True):
        pairs = dict(zip(row[0 : 2 * size.pairs : 2], row[1 : 2 * size.pairs : 2], strict=True))
        assert len(pairs) == len(set(pairs.values())) == size.pairs
        assert all(0 < key < VOCABULARY // 2 <= value for key, value in pairs.items())
        asked = [place for place, target in enumerate(targets) if target != IGNORE]
        assert all(place >= 2 * size.pairs and place % 2 == 0 for place in asked)
        assert {row[place]: targets[place] for place in asked} == pairs
        assert len(asked) == size.pairs


@pytest.mark.parametrize("size", SIZES[:2])
def test_a_question_holds_its_value_at_the_place_that_it_says(size):
    data = mqar(size, seed=2)
    asked = list(data.questions())
    assert len(asked) == size.rows * size.pairs
    for context, key, value, place in asked:
        assert context[place - 1] == key
        assert context[place] == value


def test_queries_are_placed_by_the_power_law():
    data = mqar(Size(64, 1, 40_000), seed=3)
    places = np.bincount((data.queries[:, 0] - 2) // 2, minlength=31) / 40_000
    expected = np.arange(1, 32) ** (0.01 - 1)
    assert places == pytest.approx(expected / expected.sum(), abs=0.01)


def test_seeds_repeat_and_differ():
    first, again, other = (mqar(Size(64, 4, 10), seed).inputs for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("size", [Size(65, 4, 1), Size(64, 17, 1)])
def test_what_does_not_fit_is_refused(size):
    with pytest.raises(ValueError, match="pairs"):
        mqar(size, 0)
