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

DESCRIBED, KNOWN = "source_product_id_in_silver.products", "source_line_in_silver.products"
"""The rules of silver.orders here. A line is named after the product that was asked for, whatever came in its place."""


def product(severity: Literal["reject", "warn"], column: str = "product_id") -> Reference:
    return Reference(("source", column), "silver.products", severity)


ORDERS = TABLES["silver.orders"]
REFERRING = replace(ORDERS, table=replace(ORDERS.table, references=(product("reject"), product("warn", "line"))))
"""silver.orders, whose products must be described; those that were asked for should be."""


def describing(folder: Path) -> dict[str, Any]:
    """The shop, in whose files a note is the name of the product."""
    source = shop(folder)
    columns = {"product_id": "item", "name": "note", "updated_at": "at"}
    source["entities"]["lines"]["columns"] |= {"note": {"label": "PUBLIC"}, "item": {"label": "PUBLIC"}}
    source["tables"]["products"] = [{"from": "lines", "where": "note != ''", "columns": columns}]
    return source


def opened(spark: SparkSession, root: Path, *files: TableFile) -> Store:
    """A store whose silver.orders refers to silver.products, with more tables."""
    tables = {**TABLES, **{file.name: file for file in (REFERRING, *files)}}
    return open_store(spark, root, str(root / "shop.yaml"), tables=tables)


def take_in(spark: SparkSession, root: Path) -> tuple[Store, Outcome]:
    with opened(spark, root) as store:
        store.ingest(str(root / "shop.yaml"), "lines")
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


@pytest.fixture(scope="module")
def root(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with one product, two orders of it, one of which was to be another, and one of a product that nobody described."""
    root = tmp_path_factory.mktemp("references")
    write_csv(
        root,
        "1.csv",
        "1,p1,u1,p1,2024-03-01 10:00:00,2,1.50,Apple",
        "2,p1,u1,p2,2024-03-01 10:00:00,2,1.50,",
        "6,p6,u1,p1,2024-03-01 10:00:00,2,1.50,",
    )
    write_source(root, describing(root))
    store, outcome = take_in(spark, root)
    assert (hits(store), kept(store), outcome.account.rejected) == ({DESCRIBED: 1, KNOWN: 1}, ["1", "6"], 1)
    reasons = store.rejected("silver.orders").collect()[0]["_violations"]
    assert [(r["rule"], r["severity"], r["value"]) for r in reasons] == [
        (DESCRIBED, "reject", '{"source":"shop","product_id":"p2"}')
    ]
    return root


def test_orphans_are_counted_or_rejected_and_come_back_with_what_they_refer_to(spark: SparkSession, root: Path) -> None:
    write_csv(
        root,
        "2.csv",
        "3,p1,u1,p1,2024-03-02 10:00:00,2,1.50,Green apple",
        "4,p9,u1,p9,2024-03-02 10:00:00,2,1.50,",  # rejected, so that its line is an orphan counts for nothing
        "7,p7,u1,p1,2024-03-02 10:00:00,2,1.50,",
        "8,p8,u1,p1,2024-03-02 10:00:00,2,1.50,",
    )
    store, outcome = take_in(spark, root)
    assert outcome.status == "changed", "no product came or went"
    assert (hits(store), kept(store)) == ({DESCRIBED: 1, KNOWN: 2}, ["1", "3", "6", "7", "8"]), "of the rows that it wrote"

    reasons = {row["_raw"]: row["_violations"] for row in store.rejected("silver.orders").collect()}
    assert sorted([r["rule"] for r in told] for told in reasons.values()) == [[DESCRIBED], [DESCRIBED]]

    write_csv(root, "3.csv", "5,p1,u1,p2,2024-03-03 10:00:00,2,1.50,Pear")
    store, outcome = take_in(spark, root)
    assert outcome.why == "the keys of silver.products have changed, to which rows have to refer"
    assert (kept(store), outcome.account.rejected) == (["1", "2", "3", "5", "6", "7", "8"], 1)
    with opened(spark, root) as again:
        assert again.refresh("silver.orders").status == "unchanged"
    rows = store.read("meta.lineage").where("table = 'silver.orders' AND source_table = 'silver.products'").collect()
    assert {(row["column"], row["source_column"], row["steps"]) for row in rows} == {
        (None, "source", "JOIN"),
        (None, "product_id", "JOIN"),
    }


def test_null_is_no_orphan_and_a_rule_that_rejects_counts_as_what_decides_rows(spark: SparkSession, root: Path) -> None:
    def build(silver_orders: DataFrame) -> DataFrame:
        chosen = when(col("order_id") == "6", None).otherwise(col("product_id"))
        return silver_orders.select("source", "order_id", chosen.alias("product_id"))

    columns = (
        Column("source", "string", INTERNAL, "The shop."),
        Column("order_id", "string", INTERNAL, "The order."),
        Column("product_id", "string", CONFIDENTIAL + BEHAVIOUR, "The product."),
    )

    def sold(reference: Reference) -> TableFile:
        table = Table(("source", "order_id"), columns, references=(reference,), strict=True)
        return TableFile("gold.sold", table, build, ("silver.orders",), (), "Sold.", reference.severity)

    with pytest.raises(ShapeError, match=r"silver\.users does not exist"):
        opened(spark, root, sold(replace(product("reject"), table="silver.users"))).refresh("gold.sold")
    with pytest.raises(FlowError) as refused:
        opened(spark, root, sold(product("reject"))).refresh("gold.sold")
    assert "gold.sold.product_id [CONFIDENTIAL + BEHAVIOUR] -> FILTER -> gold.sold.order_id [INTERNAL]" in refused.value.found
    with opened(spark, root, sold(product("warn"))) as store:
        assert store.refresh("gold.sold").account.kept == len(kept(store))
    quality = store.read("meta.quality").where("table = 'gold.sold'").collect()
    assert [row["hits"] for row in quality] == ["{}"]
