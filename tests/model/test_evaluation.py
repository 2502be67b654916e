from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from wares.model.evaluation import _interval, _lists, _listwise, _places, _pointwise
from wares.model.scorer import Scored


def scored(logits: np.ndarray, bought: np.ndarray) -> Scored:
    return Scored(0, logits, bought, np.ones(len(bought), np.int32))


def test_list_metrics_by_hand() -> None:
    logits, bought, order = np.array([9, 8, 7, 6, 5, 4, 3, 2, 1, 0, -1, -2], np.float32), np.array([3]), np.arange(12)
    row = _listwise(_lists(scored(logits, bought), order, order), truth=np.array([1, 3, 11]), bought=bought)
    best = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert row["all_wide_deep_ndcg"] == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / best)
    assert row["all_wide_deep_recall"] == pytest.approx(2 / 3)
    assert row["all_wide_deep_map"] == pytest.approx((1 / 2 + 2 / 4) / 3)
    # Without what was bought before, 11 moves up to the last place but one.
    assert row["first_time_wide_deep_top"] == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert row["first_time_wide_deep_recall"] == pytest.approx(1 / 2)


def test_a_user_without_new_purchases_has_no_first_time_metrics() -> None:
    bought, order = np.array([3]), np.arange(12)
    row = _listwise(_lists(scored(np.arange(12, dtype=np.float32), bought), order, order), truth=np.array([3]), bought=bought)
    assert row["first_time_wide_deep_ndcg"] is None


def test_lists_are_those_of_full_sorts() -> None:
    """Ties go to the later place in popularity, to the more popular product in frequency, to the earlier place in logits."""
    random = np.random.default_rng(5)
    for _ in range(200):
        products = int(random.integers(1, 60))
        baskets = random.integers(0, 8, products)
        popular = sorted(range(products), key=lambda place: (-baskets[place], -place))
        rank = {place: n for n, place in enumerate(popular)}
        bought = random.choice(products, random.integers(0, products + 1), replace=False)
        often = dict(zip(bought.tolist(), random.integers(1, 4, len(bought)).tolist(), strict=True))
        logits = random.integers(0, 9, products).astype(np.float32)
        orders = {
            "wide_deep": sorted(range(products), key=lambda place: (-logits[place], place)),
            "popularity": popular,
            "frequency": sorted(range(products), key=lambda place: (-often.get(place, 0), rank[place])),
        }
        user = Scored(0, logits.copy(), bought, np.array(list(often.values()), np.int32))
        lists = _lists(user, np.array(popular), np.argsort(popular))
        for ranker, order in orders.items():
            assert lists["all"][ranker].tolist() == order[:10]
            assert lists["first_time"][ranker].tolist() == [place for place in order if place not in often][:10]


def test_places_of_each_list() -> None:
    lists = pa.array([["x"], ["c", "a"], [], ["b"]])[1:]
    assert [places.tolist() for places in _places(lists, pa.array(["a", "b", "c"]))] == [[2, 0], [], [1]]


def test_auc_and_log_loss_by_hand() -> None:
    logits = np.array([2.0, 0.0, 1.0, -1.0], np.float32)
    found = _pointwise(logits, truth=np.array([1, 0]))
    assert found["auc"] == pytest.approx((1 / 2 + 2 / 2) / 2)
    chance = 1 / (1 + np.exp(-logits))
    assert found["log_loss"] == pytest.approx(-np.log([chance[0], chance[1], 1 - chance[2], 1 - chance[3]]).mean())


def test_auc_and_log_loss_of_many() -> None:
    random = np.random.default_rng(6)
    logits = np.append(random.normal(-7, 5, 4000), [-120, 120]).astype(np.float32)
    truth = random.choice(len(logits), 40, replace=False)
    label = np.isin(np.arange(len(logits)), truth)
    found = _pointwise(logits, truth)
    assert found["auc"] == pytest.approx((logits[label][:, None] > logits[~label]).mean())
    exact = logits.astype(np.float64)
    assert found["log_loss"] == pytest.approx(np.where(label, np.logaddexp(0, -exact), np.logaddexp(0, exact)).mean(), rel=1e-6)


def test_interval_holds_the_mean() -> None:
    found = _interval(pa.chunked_array([[0.0, 1.0, None, 0.5] * 50]), np.random.default_rng(1))
    assert found["mean"] == pytest.approx(0.5)
    assert 0.4 < found["low"] < 0.5 < found["high"] < 0.6
