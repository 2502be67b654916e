from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from wares.model.evaluation import _interval, _listwise, _pointwise


def test_list_metrics_by_hand() -> None:
    scores = {"wide_deep": np.array([9, 8, 7, 6, 5, 4, 3, 2, 1, 0, -1, -2], np.float32)}
    row = _listwise(scores, truth=np.array([1, 3, 11]), bought=np.array([3]))
    best = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert row["all_wide_deep_ndcg"] == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / best)
    assert row["all_wide_deep_recall"] == pytest.approx(2 / 3)
    assert row["all_wide_deep_map"] == pytest.approx((1 / 2 + 2 / 4) / 3)
    # Without what was bought before, 11 moves up to the last place but one.
    assert row["first_time_wide_deep_top"] == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert row["first_time_wide_deep_recall"] == pytest.approx(1 / 2)


def test_a_user_without_new_purchases_has_no_first_time_metrics() -> None:
    row = _listwise({"wide_deep": np.arange(12, dtype=np.float32)}, truth=np.array([3]), bought=np.array([3]))
    assert row["first_time_wide_deep_ndcg"] is None


def test_auc_and_log_loss_by_hand() -> None:
    logits = np.array([2.0, 0.0, 1.0, -1.0], np.float32)
    found = _pointwise(logits, truth=np.array([1, 0]))
    assert found["auc"] == pytest.approx((1 / 2 + 2 / 2) / 2)
    chance = 1 / (1 + np.exp(-logits))
    assert found["log_loss"] == pytest.approx(-np.log([chance[0], chance[1], 1 - chance[2], 1 - chance[3]]).mean())


def test_interval_holds_the_mean() -> None:
    found = _interval(pa.chunked_array([[0.0, 1.0, None, 0.5] * 50]), np.random.default_rng(1))
    assert found["mean"] == pytest.approx(0.5)
    assert 0.4 < found["low"] < 0.5 < found["high"] < 0.6
