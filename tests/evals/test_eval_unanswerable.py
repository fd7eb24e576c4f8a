"""What tells questions with an answer from those without."""

import numpy as np
import pytest
import unanswerable


def test_the_area_is_the_share_of_pairs_in_order():
    own, other, right = np.array([0.2, 0.5, 0.9, 0.9]), np.array([0.1, 0.5]), np.array([0, 0, 1, 1])
    # Of 8 pairs 6 are in order, one is level, one is not.
    assert unanswerable.compare(own, other, right)["area_under_curve"] == pytest.approx(6.5 / 8)


def test_thresholds_leave_the_shares_that_were_asked_for_below_them():
    own, right = np.arange(1000.0), (np.arange(1000) >= 100).astype(float)
    for row, share in zip(unanswerable.compare(own, own - 500, right)["thresholds"], unanswerable.SHARES, strict=True):
        assert row["answerable_below"] == pytest.approx(share, abs=1e-3)
        assert row["unanswerable_below"] == pytest.approx(share + 0.5, abs=1e-3)
        assert row["of_these_right"] == pytest.approx(max(0, share - 0.1) / share, abs=1e-2)
