"""Rows that refer to rows of another table: orphans are counted or rejected, also when the other table changes later."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from helpers import open_store, shop, write_csv, write_source
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import col, when
from wares.errors import FlowError, ShapeError
from wares.lake.labels import BEHAVIOUR, CONFIDENTIAL, INTERNAL
from wares.lake.registry import TableFile
from wares.lake.store import Outcome, Store
from wares.lake.table import Column, Reference, Table
from wares.tables import TABLES

RULE = "source_product_id_in_silver.products"


def product(severity: Literal["reject", "warn"]) -> Reference:
    return Reference(("source", "product_id"), "silver.products", severity)


def orders(severity: Literal["reject", "warn"]) -> TableFile:
    """silver.orders, whose products must be described."""
    file = TABLES["silver.orders"]
    return replace(file, table=replace(file.table, references=(product(severity),)), code=severity)


def describing(folder: Path) -> dict[str, Any]:
    """The shop, in whose files a note is the name of the product."""
    source = shop(folder)
    columns = {"product_id": "item", "name": "note", "updated_at": "at"}
    source["entities"]["lines"]["columns"] |= {"note": {"label": "PUBLIC"}, "item": {"label": "PUBLIC"}}
    source["tables"]["products"] = [{"from": "lines", "where": "note != ''", "columns": columns}]
    return source


def take_in(spark: SparkSession, root: Path, path: str, file: TableFile) -> tuple[Store, Outcome]:
    with open_store(spark, root, path, tables={**TABLES, file.name: file}) as store:
        store.ingest(path, "lines")
        outcomes = {
            outcome.table: outcome for outcome in store.refresh_all(["silver.orders", "silver.products"], lambda done: None)
        }
    return store, outcomes["silver.orders"]


def hits(store: Store) -> dict[str, int]:
    """How many rows of this run's silver.orders broke each rule."""
    quality = store.read("meta.quality").where((col("table") == "silver.orders") & (col("run") == store.run_id)).collect()
    return json.loads(quality[0]["hits"])


def kept(store: Store) -> list[str]:
    return sorted(row["order_id"] for row in store.read("silver.orders").collect())


def test_orphans_are_counted_among_the_rows_that_a_run_writes(spark: SparkSession, tmp_path: Path) -> None:
    write_csv(tmp_path, "1.csv", "1,a,u1,p1,2024-03-01 10:00:00,2,1.50,Apple", "2,a,u1,p2,2024-03-01 10:00:00,2,1.50,")
    path = write_source(tmp_path, describing(tmp_path))
    store, outcome = take_in(spark, tmp_path, path, orders("warn"))
    assert (hits(store), kept(store), outcome.account.rejected) == ({RULE: 1}, ["1", "2"], 0)

    write_csv(
        tmp_path,
        "2.csv",
        "3,a,u1,p1,2024-03-02 10:00:00,2,1.50,",
        "4,a,u1,p8,2024-03-02 10:00:00,2,1.50,",
        "5,a,u1,p9,2024-03-02 10:00:00,2,1.50,",
    )
    store, outcome = take_in(spark, tmp_path, path, orders("warn"))
    assert (outcome.status, hits(store), kept(store)) == ("changed", {RULE: 2}, ["1", "2", "3", "4", "5"])


def test_rejected_orphans_come_back_with_what_they_refer_to(spark: SparkSession, tmp_path: Path) -> None:
    write_csv(tmp_path, "1.csv", "1,a,u1,p1,2024-03-01 10:00:00,2,1.50,Apple", "2,a,u1,p2,2024-03-01 10:00:00,2,1.50,")
    path = write_source(tmp_path, describing(tmp_path))
    store, outcome = take_in(spark, tmp_path, path, orders("reject"))
    assert (hits(store), kept(store), outcome.account.rejected) == ({RULE: 1}, ["1"], 1)
    reasons = store.rejected("silver.orders").collect()[0]["_violations"]
    assert [(r["rule"], r["severity"], r["value"]) for r in reasons] == [(RULE, "reject", '{"source":"shop","product_id":"p2"}')]

    write_csv(tmp_path, "2.csv", "3,a,u1,p1,2024-03-02 10:00:00,2,1.50,Green apple", "4,a,u1,p9,2024-03-02 10:00:00,2,1.50,")
    store, outcome = take_in(spark, tmp_path, path, orders("reject"))
    assert (outcome.status, hits(store), kept(store)) == ("changed", {RULE: 1}, ["1", "3"]), "no product came or went"

    write_csv(tmp_path, "3.csv", "5,a,u1,p2,2024-03-03 10:00:00,2,1.50,Pear")
    store, outcome = take_in(spark, tmp_path, path, orders("reject"))
    assert outcome.why == "the keys of silver.products have changed, to which rows have to refer"
    assert (kept(store), outcome.account.rejected) == (["1", "2", "3", "5"], 1)
    assert take_in(spark, tmp_path, path, orders("reject"))[1].status == "unchanged"
    rows = store.read("meta.lineage").where("table = 'silver.orders' AND source_table = 'silver.products'").collect()
    assert {(row["column"], row["source_column"], row["steps"]) for row in rows} == {
        (None, "source", "JOIN"),
        (None, "product_id", "JOIN"),
    }


def test_null_is_no_orphan_and_a_rule_that_rejects_counts_as_what_decides_rows(spark: SparkSession, tmp_path: Path) -> None:
    write_csv(tmp_path, "1.csv", "1,a,u1,p1,2024-03-01 10:00:00,2,1.50,Apple", "2,a,u1,p2,2024-03-01 10:00:00,2,1.50,")
    path = write_source(tmp_path, describing(tmp_path))

    def build(silver_orders: DataFrame) -> DataFrame:
        chosen = when(col("order_id") == "2", None).otherwise(col("product_id"))
        return silver_orders.select("source", "order_id", chosen.alias("product_id"))

    columns = (
        Column("source", "string", INTERNAL, "The shop."),
        Column("order_id", "string", INTERNAL, "The order."),
        Column("product_id", "string", CONFIDENTIAL + BEHAVIOUR, "The product."),
    )

    def sold(severity: Literal["reject", "warn"]) -> TableFile:
        table = Table(("source", "order_id"), columns, references=(product(severity),), strict=True)
        return TableFile("gold.sold", table, build, ("silver.orders",), (), "Sold.", severity)

    with open_store(spark, tmp_path, path, tables={**TABLES, "gold.sold": sold("reject")}) as store:
        store.ingest(path, "lines")
        store.refresh("silver.orders")
        with pytest.raises(ShapeError, match=r"silver\.products does not exist"):
            store.refresh("gold.sold")
        store.refresh("silver.products")
        with pytest.raises(FlowError) as refused:
            store.refresh("gold.sold")
        assert "gold.sold.product_id [CONFIDENTIAL + BEHAVIOUR] -> FILTER -> gold.sold.order_id [INTERNAL]" in refused.value.found
    with open_store(spark, tmp_path, path, tables={**TABLES, "gold.sold": sold("warn")}) as store:
        assert store.refresh("gold.sold").account.kept == 2
    quality = store.read("meta.quality").where("table = 'gold.sold'").collect()
    assert [row["hits"] for row in quality] == ["{}"]
