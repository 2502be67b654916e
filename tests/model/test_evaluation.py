from __future__ import annotations

import math
import re
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers import rows_of
from pyspark.ml.recommendation import ALS
from pyspark.sql import SparkSession
from wares.model import baselines
from wares.model.baselines import Factors, Lists, Neighbours, Past, baseline_lists, factors, neighbours, pasts
from wares.model.encoding import Encoding
from wares.model.evaluation import (
    _by_activity,
    _interval,
    _kept_promises,
    _listwise,
    _Measure,
    _places,
    _pointwise,
    _rankers,
    _report,
    groups_by_activity,
    surely_better,
    table,
)
from wares.model.network import build_network
from wares.model.scorer import Network, top
from wares.model.spec import Spec
from wares.model.training import is_better
from wares.tables.gold import pair_features

MOMENT = datetime(2024, 3, 1)


def lists_of(logits: np.ndarray, bought: np.ndarray) -> Lists:
    """The model's lists, of all products and of those not bought before."""
    return {"all": {"wide_deep": top(logits, 10)}, "first_time": {"wide_deep": top(logits, 10, bought)}}


def listwise(logits: np.ndarray, truth: np.ndarray, bought: np.ndarray) -> dict[str, Any]:
    """The metrics of the model's lists, where product 2n and 2n + 1 are of one type, and product n is in 2^-n of all baskets."""
    places = np.arange(len(logits))
    return _listwise(lists_of(logits, bought), truth, bought, places // 2, places.astype(np.float64))


def test_list_metrics_by_hand() -> None:
    logits, bought = np.array([9, 8, 7, 6, 5, 4, 3, 2, 1, 0, -1, -2], np.float32), np.array([3])
    row = listwise(logits, truth=np.array([1, 3, 11]), bought=bought)
    best = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert row["all_wide_deep_ndcg"] == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / best)
    assert row["all_wide_deep_recall"] == pytest.approx(2 / 3)
    assert row["all_wide_deep_map"] == pytest.approx((1 / 2 + 2 / 4) / 3)
    # Without what was bought before, 11 moves up to the last place but one.
    assert row["first_time_wide_deep_top"] == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert row["first_time_wide_deep_recall"] == pytest.approx(1 / 2)
    assert row["all_wide_deep_novelty"] == pytest.approx(4.5)
    assert row["all_wide_deep_diversity"] == pytest.approx(80 / 90)  # five pairs are alike, seen from both sides
    assert row["first_time_wide_deep_novelty"] == pytest.approx((0 + 1 + 2 + 4 + 5 + 6 + 7 + 8 + 9 + 10) / 10)


def test_a_user_without_new_purchases_has_no_first_time_metrics() -> None:
    row = listwise(np.arange(12, dtype=np.float32), truth=np.array([3]), bought=np.array([3]))
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
        lately = dict(zip(bought.tolist(), random.choice([0.1, 0.5, 2.5], len(bought)).tolist(), strict=True))
        near = random.choice(products, random.integers(0, products + 1), replace=False)
        ease = dict(zip(near.tolist(), random.choice([-0.5, 0.0, 1.5], len(near)).tolist(), strict=True))
        logits = random.integers(0, 9, products).astype(np.float32)
        orders = {
            "wide_deep": sorted(range(products), key=lambda place: (-logits[place], place)),
            "popularity": popular,
            "frequency": sorted(range(products), key=lambda place: (-often.get(place, 0), rank[place])),
            "decayed": sorted(range(products), key=lambda place: (-lately.get(place, 0), rank[place])),
            "ease": sorted(range(products), key=lambda place: (-ease.get(place, -9), rank[place])),
        }
        user = Past(bought, *(np.array(list(found.values())) for found in (often, lately)), near, np.array(list(ease.values())))
        lists = baseline_lists(user, np.array(popular), np.argsort(popular))
        for purchases, found in lists_of(logits.copy(), bought).items():
            lists[purchases] |= found
        for ranker, order in orders.items():
            assert lists["all"][ranker].tolist() == order[:10]
            assert lists["first_time"][ranker].tolist() == [place for place in order if place not in often][:10]


def test_pasts_hold_what_the_catalogue_has() -> None:
    def lists(names: tuple[str, ...], types: tuple[pa.DataType, ...], users: list[list[tuple[Any, ...]] | None]) -> pa.Array:
        rows = [user and [dict(zip(names, row, strict=True)) for row in user] for user in users]
        return pa.array(rows, pa.list_(pa.struct(dict(zip(names, types, strict=True)))))

    users = pa.record_batch(
        {
            "pairs": lists(
                ("product_id", "baskets", "steady"),
                (pa.string(), pa.int32(), pa.float32()),
                [[("b", 2, 0.5), ("gone", 9, 9.0)], None, [("a", 1, 0.25)]],
            ),
            "affinities": lists(("product_id", "ease"), (pa.string(), pa.float32()), [[("a", 0.75)], [("gone", 1.0)], None]),
        }
    )
    found = [[values.tolist() for values in vars(past).values()] for past in pasts(users, pa.array(["a", "b"]))]
    assert found == [[[1], [2], [0.5], [0], [0.75]], [[], [], [], [], []], [[0], [1], [0.25], [], []]]


def past_of(*bought: int, baskets: tuple[int, ...] = ()) -> Past:
    """Of a user who bought some products, once each if it is not said how often."""
    nothing = np.empty(0)
    return Past(np.array(bought, np.intp), np.array(baskets or [1] * len(bought)), nothing, nothing, nothing)


def test_neighbours_are_those_whose_buyers_are_most_alike(spark: SparkSession) -> None:
    """Milk has 4 buyers; bread 2, both of whom bought milk; tea 1, who bought both; salt 1, who bought nothing else."""
    buyers = {"milk": "abcd", "bread": "ab", "tea": "a", "salt": "e"}
    rows = [{"source": "s", "user_id": user, "product_id": name, "moment": MOMENT} for name in buyers for user in buyers[name]]
    scores = neighbours(rows_of(spark, pair_features.TABLE, *rows)).scores(pa.array(["bread", "gone", "milk", "salt", "tea"]))
    of_milk = [2 / math.sqrt(8), 0, 1, 0, 1 / 2]
    of_tea = [1 / math.sqrt(2), 0, 1 / 2, 0, 1]
    assert scores(past_of(2)) == pytest.approx(of_milk)
    assert scores(past_of(2, 1, 4)) == pytest.approx(np.add(of_milk, of_tea))
    assert scores(past_of(3)) == pytest.approx([0, 0, 0, 1, 0])
    assert scores(past_of()).tolist() == [0] * 5


def test_only_the_nearest_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "NEIGHBOURS", 2)
    monkeypatch.setattr(baselines, "BLOCK", 2)
    found = baselines.nearest(pa.table({"user_id": list("aabbb"), "product_id": ["x", "y", "x", "y", "z"]}))
    rows = {row["product_id"]: (set(row["near"]), sorted(row["alike"])) for row in found.to_pylist()}
    assert rows["x"] == rows["y"] == ({0, 1}, [pytest.approx(1)] * 2)
    assert rows["z"][1] == [pytest.approx(1 / math.sqrt(2)), pytest.approx(1)]


def test_factors_of_users_are_those_that_als_solves_for(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the products' factors and the past alone, without Spark's own factors of the users."""
    monkeypatch.setattr(baselines, "RANK", 2)
    monkeypatch.setattr(baselines, "ROUNDS", 1)
    own: list[Any] = []
    fit = ALS.fit
    monkeypatch.setattr(ALS, "fit", lambda self, rated: own.append(fit(self, rated)) or own[0])
    rows = [("ann", "milk", 3), ("ann", "tea", 1), ("bob", "milk", 1), ("bob", "bread", 7), ("eve", "tea", 2)]
    names = ("user_id", "product_id", "baskets")
    pairs = rows_of(spark, pair_features.TABLE, *(dict(zip(names, row, strict=True)) for row in rows))
    found = factors(pairs, 1)
    of_products = dict(zip(found.ids.to_pylist(), found.values, strict=True))
    of_users = {row.id: np.array(row.features) for row in own[0].userFactors.collect()}  # in the order of their names
    catalogue = ["tea", "unsold", "milk", "bread"]
    scores = found.scores(pa.array(catalogue))(past_of(2, 0, baskets=(3, 1)))
    assert scores == pytest.approx([of_users[1] @ of_products.get(name, np.zeros(2)) for name in catalogue], abs=1e-4)


def test_fitted_baselines_rank_the_whole_catalogue(spec: Spec, encoding: Encoding, users: pa.Table, products: pa.Table) -> None:
    """Those of which they know nothing come by popularity; what was bought is left out of first-time lists."""
    weights = {variable.path: variable.numpy() for variable in build_network(spec, encoding, 3).variables}
    near = Neighbours(pa.array(["p7", "p8"]), np.array([[1], [0]], np.int32), np.array([[0.5], [0.5]], np.float32))
    as_values = np.linspace(1, 2, products.num_rows, dtype=np.float32)[:, None]
    taught = {"item_knn": near, "als": Factors(products["product_id"].combine_chunks(), as_values)}
    truth = pa.array([["p1"]] * users.num_rows)
    pairs = users["pairs"].combine_chunks()
    batch = users.append_column("truth", truth).combine_chunks().to_batches()[0]
    rows = pa.Table.from_batches(list(_Measure({"wide_deep": Network(spec, encoding, weights)}, products, taught)(iter([batch]))))
    assert rows.num_rows == len(pairs)
    by_name = products.sort_by([("type", "ascending"), ("product_id", "ascending")])["product_id"].to_pylist()
    for row, past in zip(rows.to_pylist(), pairs.to_pylist(), strict=True):
        bought = {pair["product_id"] for pair in past or []}
        listed = [by_name[place] for place in row["all_item_knn_top"]]
        popular = [by_name[place] for place in row["all_popularity_top"]]
        first = [name for name, other in (("p8", "p7"), ("p7", "p8")) if other in bought]
        assert listed == [*first, *(name for name in popular if name not in first)][:10]
        assert row["all_als_top"] == row["all_popularity_top"] if not bought else listed_by_place(row, by_name)
        if row["first_time_als_top"]:
            assert not bought & {by_name[place] for place in row["first_time_als_top"]}


def listed_by_place(row: dict[str, Any], by_name: list[str]) -> bool:
    """Whether ALS lists the products of the largest factors."""
    return {by_name[place] for place in row["all_als_top"]} == {f"p{n}" for n in range(290, 300)}


def test_promises_are_held_against_purchases() -> None:
    found = _kept_promises(np.log(np.array([3.0, 1.0, 1 / 3], np.float32)), listed=np.array([0, 2]), truth=np.array([0, 1]))
    assert found == {"promised": pytest.approx(3 / 4 + 1 / 4), "kept": 1.0}


def test_users_who_had_never_bought_are_measured_apart(
    spec: Spec, encoding: Encoding, users: pa.Table, products: pa.Table
) -> None:
    """The first of the users has 0 baskets, and bought what is most popular; the others bought what is least so."""
    weights = {variable.path: variable.numpy() for variable in build_network(spec, encoding, 3).variables}
    by_sales = products.sort_by([("baskets", "descending")])["product_id"].to_pylist()
    truth = pa.array([by_sales[:3]] + [by_sales[-1:]] * (users.num_rows - 1))
    batch = users.append_column("truth", truth).combine_chunks().to_batches()[0]
    measured = _Measure({"wide_deep": Network(spec, encoding, weights)}, products, {})(iter([batch]))
    found = _report(pa.Table.from_batches(list(measured)), _rankers(["wide_deep"], {}), 300, np.random.default_rng(1))
    assert found["users"] == found["all"]["users"] == users.num_rows - 1
    assert found["all"]["popularity"]["ndcg@10"]["mean"] == 0
    assert found["activity"][0]["baskets"] == [1, 4]
    assert found["cold"]["users"] == 1
    assert found["cold"]["popularity"]["ndcg@10"]["mean"] > 0.9  # some sold equally often
    assert re.search(r"^  0 baskets before +not shown of fewer than 5 users$", table(found), re.MULTILINE)
    found["cold"]["users"] = 5
    assert re.search(r"^  0 baskets before .*, popularity 0\.9.*, of 5 users$", table(found), re.MULTILINE)


@pytest.mark.parametrize(
    ("ranker", "low", "warned"), [("ease", 0.61, True), ("ease", 0.59, False), ("champion", 0.9, False), ("ease", None, False)]
)
def test_a_baseline_that_is_surely_better_is_told_of(ranker: str, low: float | None, warned: bool) -> None:
    mean = None if low is None else 0.5
    model = {"ndcg@10": {"mean": mean, "low": 0.4, "high": 0.6}}
    assert surely_better({"wide_deep": model, ranker: {"ndcg@10": {"low": low}}}) == (["ease"] if warned else [])


def test_groups_by_activity_are_equally_large() -> None:
    baskets, ndcg = pa.chunked_array([[9, 1, 5, 2, 7]]), pa.chunked_array([[0.9, 0.1, 0.5, 0.3, 0.7]])
    found = _by_activity(baskets, ndcg, np.random.default_rng(1))
    assert [(group["baskets"], group["users"], group["ndcg@10"]["mean"]) for group in found] == [
        ([1, 2], 2, pytest.approx(0.2)),
        ([5, 7], 2, pytest.approx(0.6)),
        ([9, 9], 1, pytest.approx(0.9)),
    ]


def test_groups_by_activity_name_no_single_users_number() -> None:
    """The most active user has 760 baskets, and the first group has too few users to tell of them."""
    ndcg = {"mean": 0.5, "low": 0.4, "high": 0.6}
    found = [{"baskets": baskets, "users": 40, "ndcg@10": ndcg} for baskets in ([1, 32], [32, 71], [71, 760])]
    names = ["up to 32 baskets before", "32-71 baskets before", "71 or more baskets before"]
    assert groups_by_activity({"activity": found}) == [(name, ndcg) for name in names]
    found[0]["users"] = 4
    assert [name for name, _ in groups_by_activity({"activity": found})] == names[1:]
    assert groups_by_activity({"activity": found[1:2]}) == [("any number of baskets before", ndcg)]


@pytest.mark.parametrize(
    ("gain", "better"),
    [(None, True), ((0.01, 0.001), True), ((0.01, -0.001), False), ((0.0, 0.0), False), ((None, None), False)],
)
def test_only_a_model_that_is_better_beyond_chance_is_the_champion(
    gain: tuple[float | None, float | None] | None, better: bool
) -> None:
    found = {} if gain is None else {"gain": {"mean": gain[0], "low": gain[1], "high": 0.02}}
    assert is_better({"all": found}) is better


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


def test_a_champion_ranks_the_same_users(spec: Spec, encoding: Encoding, users: pa.Table, products: pa.Table) -> None:
    """A network whose logits are those of another turned round has its lists from the other end; both are measured alike."""
    weights = {variable.path: variable.numpy() for variable in build_network(spec, encoding, 3).variables}
    turned = {name: -values if name in ("deep/kernel", "deep/bias") else values for name, values in weights.items()}
    network, other = (Network(spec, encoding, found) for found in (weights, turned))
    truth = pa.array([[f"p{n}", f"p{n + 7}"] for n in range(users.num_rows)])
    batch = users.append_column("truth", truth).combine_chunks().to_batches()[0]
    rows = pa.Table.from_batches(list(_Measure({"wide_deep": network, "champion": network}, products, {})(iter([batch]))))
    assert rows.num_rows == users.num_rows
    assert rows["all_wide_deep_top"] == rows["all_champion_top"]
    assert rows["baskets"] == users["baskets"]
    rows = pa.Table.from_batches(list(_Measure({"wide_deep": network, "champion": other}, products, {})(iter([batch]))))
    alone = pa.Table.from_batches(list(_Measure({"wide_deep": other}, products, {})(iter([batch]))))
    assert rows["all_champion_ndcg"] == alone["all_wide_deep_ndcg"]
    assert rows["all_wide_deep_top"] != rows["all_champion_top"]


def test_interval_holds_the_mean() -> None:
    found = _interval(pa.chunked_array([[0.0, 1.0, None, 0.5] * 50]), np.random.default_rng(1))
    assert found["mean"] == pytest.approx(0.5)
    assert 0.4 < found["low"] < 0.5 < found["high"] < 0.6
