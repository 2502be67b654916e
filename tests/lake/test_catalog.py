"""A lake whose tables a catalogue names, with `lake.catalog`: the session's own catalogue, which is gone with the session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import open_store, shop, write_csv, write_source
from pyspark.sql import SparkSession
from wares.lake.lineage_query import ask
from wares.lake.openlineage import events
from wares.lake.store import Outcome, Store
from wares.tables import TABLES

FIRST = (
    "1,a,u1,p1,2024-03-01 10:00:00,2,1.50,",
    "1,b,u1,p2,2024-03-01 10:00:00,x,1.50,",
    "2,a,u2,p1,2024-03-01 11:00:00,1,1.50,",
)
SECOND = (
    "1,a,u1,p1,2024-03-01 10:00:00,3,1.50,",
    "3,a,u3,p2,2024-03-02 10:00:00,1,1.50,",
    "3,b,u3,p2,2024-03-02 10:00:00,x,1.50,",
)
REFRESHED = ["silver.orders", "silver.products", "gold.product_profiles", "gold.histories"]


@pytest.fixture
def catalog(spark: SparkSession) -> Iterator[str]:
    yield "spark_catalog"
    for layer in ("bronze", "silver", "gold", "meta"):
        spark.sql(f"DROP SCHEMA IF EXISTS spark_catalog.{layer} CASCADE")


def opened(spark: SparkSession, root: Path, catalog: str | None) -> Store:
    return open_store(spark, root, str(root / "shop.yaml"), catalog=catalog)


def take_in(store: Store) -> dict[str, Outcome]:
    outcomes: list[Outcome] = []
    store.ingest_all(outcomes.append)
    store.refresh_all(REFRESHED, outcomes.append)
    return {outcome.table: outcome for outcome in outcomes}


def held(store: Store) -> dict[str, list[str]]:
    """The rows of all tables, and those that silver.orders left out."""
    frames = {name: store.read(name) for name in REFRESHED} | {"rejected": store.rejected("silver.orders").drop("_run")}
    return {name: sorted(map(str, frame.collect())) for name, frame in frames.items()}


def test_new_rows_follow_in_a_catalogue(spark: SparkSession, tmp_path: Path, catalog: str) -> None:
    path = write_source(tmp_path, shop(tmp_path))
    found = []
    for number, lines in enumerate((FIRST, SECOND)):
        write_csv(tmp_path, f"{number}.csv", *lines)
        with opened(spark, tmp_path, catalog) as store:
            store.ingest(path, "lines")
            outcome = store.refresh("silver.orders")
        found.append((outcome.status, outcome.rows, outcome.account.rejected))
    assert found == [("written", (2, 0, 0), 1), ("changed", (1, 1, 0), 2)]
    rows = spark.sql(f"SELECT order_id, string(quantity) FROM {catalog}.silver.orders ORDER BY order_id").collect()
    assert [tuple(row) for row in rows] == [("1", "3.000"), ("2", "1.000"), ("3", "1.000")]
    assert store.rejected("silver.orders").count() == 2
    upstream = {str(edge.source) for edge in ask(store, "silver.orders.value").edges}
    assert {"files.shop_lines.price", "files.shop_lines.quantity"} <= upstream


@pytest.mark.slow
def test_a_catalogue_holds_what_a_folder_would(spark: SparkSession, tmp_path: Path, catalog: str) -> None:
    write_source(tmp_path, shop(tmp_path))
    for number, lines in enumerate((FIRST, SECOND)):
        write_csv(tmp_path, f"{number}.csv", *lines)
        with opened(spark, tmp_path, None) as by_folder:
            expected = take_in(by_folder)
        with opened(spark, tmp_path, catalog) as store:
            outcomes = take_in(store)
        assert held(store) == held(by_folder)
        for name, outcome in outcomes.items():
            assert (outcome.status, outcome.rows) == (expected[name].status, expected[name].rows), name
    assert outcomes["silver.orders"].status == "changed"
    assert spark.sql(f"SELECT count(*) FROM {catalog}.silver.orders").first()[0] == len(held(store)["silver.orders"]) == 3
    with opened(spark, tmp_path, catalog) as again:
        assert {outcome.status for outcome in take_in(again).values()} == {"unchanged"}
        assert again.meta.read("quality").count() == by_folder.meta.read("quality").count()
        upstream = {str(edge.source) for edge in ask(again, "gold.product_profiles.revenue").edges}
        assert "files.shop_lines.price" in upstream
        assert sum(1 for _ in events(again)) == sum(1 for _ in events(by_folder))
        again.maintain_all(lambda done: None)
        assert held(again) == held(store)


def test_a_run_that_died_once_the_catalogue_knew_the_table(spark: SparkSession, tmp_path: Path, catalog: str) -> None:
    write_source(tmp_path, shop(tmp_path))
    write_csv(tmp_path, "1.csv", *FIRST)
    died = opened(spark, tmp_path, catalog)
    died.lake.begin("silver.orders").stage(spark.range(1), "overwrite")  # and never committed
    assert spark.catalog.tableExists(f"{catalog}.silver.orders")
    assert not died.exists("silver.orders")
    path = str(tmp_path / "shop.yaml")
    with opened(spark, tmp_path, catalog) as store:
        store.ingest(path, "lines")
        assert store.refresh("silver.orders").status == "written"
    assert store.read("silver.orders").columns == [*TABLES["silver.orders"].table.by_name, "_file", "_position"]
    assert store.read("silver.orders").count() == 2
