"""The matrices against their closed forms written down another way, and the rows that are made of their scores."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pyarrow as pa
import pytest
from helpers import rows_of
from pyspark.sql import SparkSession
from wares.tables.gold import affinities, moments, pair_features

MOMENT = datetime(2024, 3, 1)


def bought(
    baskets: np.ndarray, month: np.ndarray | None = None, lasting: np.ndarray | None = None, is_now: bool = False
) -> pa.Table:
    """Users' baskets with products, [users, products], as the group of one source and moment; users and products by number.

    Args:
        month: Those of the last month; none if not given.
        lasting: Their sums, halved every 60 days; the baskets themselves if not given.
    """
    month = np.zeros_like(baskets) if month is None else month
    lasting = baskets if lasting is None else lasting
    user, product = np.nonzero(baskets)
    order = np.random.default_rng(0).permutation(len(user))
    rows = {
        "source": ["shop"] * len(user),
        "is_now": [is_now] * len(user),
        "moment": [MOMENT] * len(user),
        "user_id": [f"u{n:03}" for n in user[order]],
        "product_id": [f"p{n:03}" for n in product[order]],
        "baskets": pa.array(baskets[user, product][order], pa.int32()),
        "baskets_month": pa.array(month[user, product][order], pa.int32()),
        "lasting": pa.array(lasting[user, product][order], pa.float32()),
        "days_known": pa.array(np.where(baskets > month, 100, 20)[user, product][order], pa.int32()),
    }
    return pa.table(rows)


def expected(baskets: np.ndarray, teachers: np.ndarray | None = None, held: float | None = None, times: float = 1) -> np.ndarray:
    """X B, column by column: B's column j is the ridge regression of product j on all others."""
    held = affinities.EASE if held is None else held
    x = np.log1p(times * baskets.astype(np.float64))
    taught = x if teachers is None else x[teachers]
    scores = np.zeros_like(x)
    for j in range(x.shape[1]):
        others = np.delete(np.arange(x.shape[1]), j)
        gram = taught[:, others].T @ taught[:, others] + held * np.eye(len(others))
        scores[:, j] = x[:, others] @ np.linalg.solve(gram, taught[:, others].T @ taught[:, j])
    return scores


def tried_scores(baskets: np.ndarray, month: np.ndarray, held: float, teachers: np.ndarray | None = None) -> np.ndarray:
    """The ridge regression, product by product, from what was bought earlier to what was bought for the first time."""
    earlier, now = (np.log1p((baskets - less).astype(np.float64)) for less in (month, 0))
    tried = ((baskets > 0) & (baskets == month)).astype(np.float64)
    taught, came = (earlier, tried) if teachers is None else (earlier[teachers], tried[teachers])
    return now @ np.linalg.inv(taught.T @ taught + held * np.eye(baskets.shape[1])) @ taught.T @ came


def found(table: pa.Table, column: str = "ease") -> dict[tuple[int, int], tuple[float, bool]]:
    return {(int(row["user_id"][1:]), int(row["product_id"][1:])): (row[column], row["is_new"]) for row in table.to_pylist()}


@pytest.mark.parametrize("shape", [(12, 30), (40, 9)], ids=["fewer users", "more users"])
def test_scores_are_those_of_a_regression_on_all_other_products(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinities, "EASE", 3.0)
    monkeypatch.setattr(affinities, "BLOCK", 7)
    baskets = np.random.default_rng(1).poisson(0.7, shape)
    baskets[0], baskets[:, 0] = 0, 1
    scores, rows = expected(baskets), found(affinities.affinities(bought(baskets)))
    assert len(rows) == baskets.size
    for (user, product), (ease, is_new) in rows.items():
        assert ease == pytest.approx(scores[user, product], abs=1e-4)
        assert is_new == (baskets[user, product] == 0)


@pytest.mark.parametrize("shape", [(12, 30), (40, 9)], ids=["fewer users", "more users"])
def test_late_purchases_and_first_ones_have_scores_of_their_own(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinities, "LATELY", 2.0)
    monkeypatch.setattr(affinities, "TRIAL", 5.0)
    monkeypatch.setattr(affinities, "BLOCK", 7)
    random = np.random.default_rng(4)
    baskets = random.poisson(0.9, shape)
    baskets[:, 0] += 1
    month, lasting = random.binomial(baskets, 0.5), baskets * random.uniform(0.1, 1, shape)
    table = affinities.affinities(bought(baskets, month, lasting))
    for column, scores in (
        ("ease_lately", expected(lasting, held=2.0, times=4)),
        ("trial", tried_scores(baskets, month, 5.0)),
    ):
        rows = found(table, column)
        assert len(rows) == baskets.size
        for place, (score, _) in rows.items():
            assert score == pytest.approx(scores[place], abs=1e-4)


def test_only_the_best_of_what_was_not_bought_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinities, "BEST", 4)
    random = np.random.default_rng(2)
    baskets = random.poisson(0.4, (9, 25)) + np.eye(9, 25, dtype=np.int64)
    baskets[0] += 1
    month = random.binomial(baskets, 0.5)
    rows = found(affinities.affinities(bought(baskets, month)))
    scores, trials = expected(baskets), tried_scores(baskets, month, affinities.TRIAL)
    for user in range(9):
        mine = {product: is_new for (who, product), (_, is_new) in rows.items() if who == user}
        assert {product for product, is_new in mine.items() if not is_new} == set(np.flatnonzero(baskets[user]))
        new = np.flatnonzero(baskets[user] == 0)
        best = {*new[np.argsort(-scores[user, new])[:4]], *new[np.argsort(-trials[user, new])[:4]]}
        assert {product for product, is_new in mine.items() if is_new} == best


def test_products_and_teachers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinities, "PRODUCTS", 5)
    monkeypatch.setattr(affinities, "TEACHERS", 10)
    monkeypatch.setattr(affinities, "BLOCK", 8)
    random = np.random.default_rng(3)
    baskets = random.poisson(np.linspace(0.5, 2, 11), (25, 11))
    baskets[:, 0] += 1
    month = random.binomial(baskets, 0.5)
    most = np.sort(np.argsort(-baskets.sum(0), kind="stable")[:5])
    table, teachers = affinities.affinities(bought(baskets, month)), np.arange(0, 25, 3)
    for column, scores in (
        ("ease", expected(baskets[:, most], teachers)),
        ("trial", tried_scores(baskets[:, most], month[:, most], affinities.TRIAL, teachers)),
    ):
        rows = found(table, column)
        assert {product for _, product in rows} == set(most.tolist())
        for (user, product), (score, _) in rows.items():
            assert score == pytest.approx(scores[user, most.tolist().index(product)], abs=1e-4)


@pytest.mark.parametrize("shape", [(12, 30), (40, 9)], ids=["fewer users", "more users"])
def test_what_goes_with_a_product_is_what_adds_most_to_its_score(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken from a user's history one at a time, since EASE's scores are sums over it; only at the moment that is scored."""
    monkeypatch.setattr(affinities, "EASE", 3.0)
    monkeypatch.setattr(affinities, "BLOCK", 7)
    baskets = np.random.default_rng(6).poisson(0.8, shape)
    baskets[:, 0] += 1
    table = affinities.affinities(bought(baskets, is_now=True))
    rows = {(int(row["user_id"][1:]), int(row["product_id"][1:])): row for row in table.to_pylist()}
    x, scores = np.log1p(baskets), expected(baskets)
    weights = weights_of(x, 3.0)
    seen = 0
    for (user, product), row in rows.items():
        assert row["ease"] == pytest.approx(scores[user, product], abs=1e-4)
        if row["goes_with"] is not None:
            other = int(row["goes_with"][1:])
            assert baskets[user, other] and other != product
            added = x[user, :, None] * weights
            assert added[other, product] == pytest.approx(added[:, product].max(), abs=1e-5)
            seen += 1
    assert seen > len(rows) / 2
    then = affinities.affinities(bought(baskets))
    assert then["goes_with"].null_count == then.num_rows


def weights_of(x: np.ndarray, held: float) -> np.ndarray:
    """B column by column: what each other product adds in the ridge regression of a product on all others."""
    weights = np.zeros((x.shape[1], x.shape[1]))
    for j in range(x.shape[1]):
        others = np.delete(np.arange(x.shape[1]), j)
        gram = x[:, others].T @ x[:, others] + held * np.eye(len(others))
        weights[others, j] = np.linalg.solve(gram, x[:, others].T @ x[:, j])
    return weights


def test_each_source_and_moment_stands_alone(spark: SparkSession) -> None:
    later = datetime(2024, 4, 1)
    pairs = [
        ("shop", "ann", "milk", MOMENT, 1),
        ("shop", "ann", "bread", MOMENT, 1),
        ("shop", "eve", "milk", MOMENT, 1),
        ("shop", "ann", "milk", later, 2),
        ("other", "bob", "tea", MOMENT, 1),
    ]
    names = ("source", "user_id", "product_id", "moment", "baskets")
    others = {"baskets_month": 0, "lasting": 0.5, "days_known": 40}
    rows_before = ({**dict(zip(names, pair, strict=True)), **others} for pair in pairs)
    at = [("shop", MOMENT, "test"), ("shop", later, "now"), ("other", MOMENT, "now")]
    when = rows_of(spark, moments.TABLE, *(dict(zip(("source", "moment", "role"), each, strict=True)) for each in at))
    built = affinities.build(rows_of(spark, pair_features.TABLE, *rows_before), when)
    rows = {(row.source, row.user_id, row.product_id, row.moment): row for row in built.collect()}
    assert {key: row.is_new for key, row in rows.items()} == {
        ("shop", "ann", "milk", MOMENT): False,
        ("shop", "ann", "bread", MOMENT): False,
        ("shop", "eve", "milk", MOMENT): False,
        ("shop", "eve", "bread", MOMENT): True,
        ("shop", "ann", "milk", later): False,
        ("other", "bob", "tea", MOMENT): False,
    }
    log = np.log(2)
    # Bread by milk alone: the regression has one number on each side.
    assert rows["shop", "eve", "bread", MOMENT].ease == pytest.approx(log * log**2 / (2 * log**2 + 200), rel=1e-4)
