"""What is unusual about a run: its rows and nulls beside those of the runs before it, and how old the newest row is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from helpers import open_store, shop, write_csv, write_source
from pyspark.sql import SparkSession
from wares.errors import QualityError
from wares.lake.drift import Drift, Tally, drifts
from wares.lake.store import Store
from wares.lake.table import Freshness
from wares.report import table_line
from wares.tables import TABLES

USUAL = [Tally(rows, {"a": 0.0, "b": share}) for rows, share in ((900, 0.4), (1000, 0.5), (5000, 0.6), (1100, 0.5))]
"""Medians of 1,050 rows, half of them without b. Chance explains 97 rows, and of 1,000 rows 4.7 % nulls."""


@pytest.mark.parametrize(
    ("tally", "rules"),
    [
        (Tally(1000, {"a": 0.0, "b": 0.5}), []),
        (Tally(2197, {}), []),
        (Tally(2198, {}), ["drift_rows"]),
        (Tally(428, {}), []),
        (Tally(427, {}), ["drift_rows"]),
        (Tally(0, {}), ["drift_rows"]),
        (Tally(1000, {"a": 0.097, "b": 0.597}), []),
        (Tally(1000, {"a": 0.098, "b": 0.402}), ["drift_null:a", "drift_null:b"]),
        (Tally(1000, {"new": 1.0}), []),
    ],
)
def test_a_run_beside_the_medians_of_those_before(tally: Tally, rules: list[str]) -> None:
    assert [drift.rule for drift in drifts(tally, USUAL)] == rules
    assert drifts(tally, USUAL[:2]) == [], "too few to tell"


def test_what_is_told_of_drift() -> None:
    before = [Tally(1000, {"a": 0.02})] * 3
    assert drifts(Tally(200, {"a": 0.4}), before) == [
        Drift("drift_rows", 200, "200 rows, 1,000 are usual"),
        Drift("drift_null:a", 80, "a is null in 40% of the rows, 2% is usual"),
    ]


def test_few_rows_that_differ_by_chance_are_no_drift() -> None:
    assert drifts(Tally(4, {"a": 0.25}), [Tally(rows, {"a": 0.0}) for rows in (2, 1, 3)]) == []


@pytest.fixture(scope="module")
def lake(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Store, Path]]:
    """Three days of ten lines each, taken in one after the other, then one of a hundred without a customer, half of which have
    no product."""
    root = tmp_path_factory.mktemp("drift")
    path = write_source(root, shop(root))
    with open_store(spark, root, path) as before:
        for day in range(1, 4):
            write_csv(root, f"{day}.csv", *(f"{day}{n},a,u{n},p1,2024-03-0{day} 10:00:00,2,1.50,new" for n in range(10)))
            assert before.ingest(path, "lines").warnings == ()
            if day == 1:
                before.refresh("silver.orders")
    write_csv(root, "4.csv", *(f"4{n},a,,{'p1' if n % 2 else ''},2024-03-04 10:00:00,2,1.50,new" for n in range(100)))
    with open_store(spark, root, path) as store:
        outcome = store.ingest(path, "lines")
        store.refresh("silver.orders")
    assert outcome.warnings == (
        "100 rows, 10 are usual",
        "customer is null in 100% of the rows, 0% is usual",
        "item is null in 50% of the rows, 0% is usual",
    )
    yield before, store, root


def test_drift_is_told_and_kept(lake: tuple[Store, Store, Path]) -> None:
    before, store, _ = lake
    rows = store.read("meta.quality").where("table = 'bronze.shop_lines'").orderBy("version").collect()
    assert [row["run"] for row in rows] == [before.run_id] * 3 + [store.run_id]
    drift = {"drift_rows": 100, "drift_null:customer": 100, "drift_null:item": 50}
    assert [json.loads(row["hits"]) for row in rows] == [{}, {}, {}, drift]


def test_the_nulls_of_the_rows_that_were_kept(lake: tuple[Store, Store, Path]) -> None:
    before, store, _ = lake
    rows = {row["run"]: row for row in store.read("meta.quality").where("table = 'silver.orders'").collect()}
    found = [(row["way"], row["written"], json.loads(row["nulls"])) for row in (rows[before.run_id], rows[store.run_id])]
    assert [(way, written) for way, written, _ in found] == [("full", 10), ("change", 70)]
    assert found[0][2].keys() == found[1][2].keys() == set(store.read("silver.orders").columns)
    assert {column: share for column, share in found[0][2].items() if share} == {"store_id": 1.0, "discount": 1.0}
    # Two days of ten lines, and fifty that have a product but no user.
    assert {column: share for column, share in found[1][2].items() if share} == {
        "store_id": 1.0,
        "discount": 1.0,
        "user_id": round(50 / 70, 4),
    }


# Freshness


def test_a_table_that_is_too_old(spark: SparkSession, lake: tuple[Store, Store, Path]) -> None:
    """The newest order is of the fourth of March, at ten."""
    *_, root = lake
    orders = TABLES["silver.orders"]

    def store_at(now: datetime, fresh: Freshness) -> Store:
        file = replace(orders, table=replace(orders.table, fresh=fresh))
        store = open_store(spark, root, str(root / "shop.yaml"), tables={**TABLES, "silver.orders": file})
        store.started = now
        return store

    in_time, late = datetime(2024, 3, 6, 9, tzinfo=UTC), datetime(2024, 3, 6, 11, tzinfo=UTC)
    outcome = store_at(in_time, Freshness("ordered_at", 2)).refresh("silver.orders")
    assert (outcome.status, outcome.warnings) == ("unchanged", ())
    outcome = store_at(late, Freshness("ordered_at", 2)).refresh("silver.orders")
    assert (outcome.status, outcome.warnings) == ("unchanged", ("no ordered_at within the last 2 days",))
    assert table_line(outcome).splitlines()[1].strip() == "warning: no ordered_at within the last 2 days"
    assert store_at(in_time, Freshness("ordered_on", 3, "stop")).refresh("silver.orders").warnings == ()
    with pytest.raises(QualityError, match="silver.orders is stale") as refused:
        store_at(late, Freshness("ordered_at", 2, "stop")).refresh("silver.orders")
    assert "2 days" in refused.value.found and "fresh" in refused.value.do
    assert orders.table.fresh is None
