"""A declaration that changes while there is data: what can follow it does, and what would lose data is refused.

No store here is left as it should be, since nothing is asked of the meta tables.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from helpers import HEADER, open_store, shop, write_csv, write_source
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import col
from wares.errors import SourceError
from wares.lake.labels import BEHAVIOUR, CONFIDENTIAL, INTERNAL
from wares.lake.registry import TableFile
from wares.lake.store import Store
from wares.lake.table import Column, Table, by_key
from wares.tables import TABLES

ORDERS = TABLES["silver.orders"]


def totals(silver_orders: DataFrame) -> DataFrame:
    return (
        silver_orders.groupBy("source", "order_id")
        .agg({"quantity": "sum"})
        .select("source", "order_id", col("sum(quantity)").cast("decimal(18,3)").alias("units"))
    )


TOTALS = TableFile(
    "gold.totals",
    Table(
        ("source", "order_id"),
        (
            Column("source", "string", INTERNAL, "The shop."),
            Column("order_id", "string", INTERNAL, "The order."),
            Column("units", "decimal(18,3)", CONFIDENTIAL + BEHAVIOUR, "How many."),
        ),
        refresh=by_key("source", "order_id"),
    ),
    totals,
    ("silver.orders",),
    (),
    "Totals.",
    "1",
)
"""A table that follows the change feed of silver.orders."""


def widened() -> TableFile:
    """silver.orders with a wider column and a new one."""

    def build(bronze_orders: DataFrame) -> DataFrame:
        rows = ORDERS.build(bronze_orders)
        return rows.withColumns({"quantity": col("quantity").cast("decimal(20,3)"), "at_night": col("ordered_at") < "2024-03-02"})

    columns = [replace(c, type="decimal(20,3)") if c.name == "quantity" else c for c in ORDERS.table.columns]
    night = Column("at_night", "boolean", CONFIDENTIAL + BEHAVIOUR, "Whether it was ordered at night.")
    return replace(ORDERS, table=replace(ORDERS.table, columns=(*columns, night)), build=build, code="2")


def test_a_table_and_the_readers_of_its_change_feed_follow_its_file(spark: SparkSession, tmp_path: Path) -> None:
    write_csv(tmp_path, "1.csv", "1,a,u1,p1,2024-03-01 10:00:00,2,1.50,", "1,b,u1,p1,2024-03-01 10:00:00,3,1.50,")
    path = write_source(tmp_path, shop(tmp_path))

    def opened(orders: TableFile) -> Store:
        return open_store(spark, tmp_path, path, tables={**TABLES, "silver.orders": orders, "gold.totals": TOTALS})

    def take_in(store: Store) -> list[tuple[str, str]]:
        store.ingest(path, "lines")
        outcomes = [store.refresh(name) for name in ("silver.orders", "gold.totals")]
        assert store.read("gold.totals").schema["units"].dataType.simpleString() == "decimal(18,3)"
        assert {row["order_id"]: int(row["units"]) for row in store.read("gold.totals").collect()}["1"] == 5
        return [(outcome.status, outcome.why) for outcome in outcomes]

    assert take_in(opened(ORDERS)) == [("written", ""), ("written", "")]
    store = opened(widened())
    assert take_in(store) == [
        ("written", "its table file has changed"),
        ("unchanged", "the columns of silver.orders changed in version 1"),
    ]
    orders = store.read("silver.orders")
    assert orders.schema["quantity"].dataType.simpleString() == "decimal(20,3)"
    assert [row["at_night"] for row in orders.collect()] == [True, True]
    write_csv(tmp_path, "2.csv", "2,a,u1,p1,2024-03-02 10:00:00,7,1.50,")
    assert take_in(store) == [("changed", ""), ("changed", "")]

    lake = store.lake
    assert lake.lost_changes("silver.orders", 1, 2) == ""
    assert lake.lost_changes("silver.orders", 0, 2) == "the columns of silver.orders changed in version 1"
    lake.checkpoint("silver.orders", clean_log=False)
    (tmp_path / "lake" / "silver" / "orders" / "_delta_log" / f"{0:020}.json").unlink()
    assert lake.lost_changes("silver.orders", 0, 2) == "version 0 of silver.orders can no longer be read"


# Bronze, which cannot be built again


def coloured(folder: Path, optional: bool = False) -> dict[str, Any]:
    """The shop, whose newer files have a colour, which stands for the store."""
    source = shop(folder)
    source["entities"]["lines"]["columns"]["colour"] = {"label": "PUBLIC", "optional": optional}
    source["tables"]["orders"][0]["columns"]["store_id"] = "colour"
    return source


def test_a_raw_column_that_comes_later(spark: SparkSession, tmp_path: Path) -> None:
    write_csv(tmp_path, "1.csv", "1,a,u1,p1,2024-03-01 10:00:00,2,1.50,", "2,a,u1,p1,2024-03-01 10:00:00,2,1.50,")
    path = write_source(tmp_path, shop(tmp_path))
    store = open_store(spark, tmp_path, path)
    store.ingest(path, "lines")
    store.refresh("silver.orders")
    write_source(tmp_path, coloured(tmp_path))
    store = open_store(spark, tmp_path, path)
    assert store.ingest(path, "lines").status == "unchanged"
    assert store.refresh("silver.orders").why == "the columns of bronze.shop_lines changed in version 1"
    assert {row["store_id"] for row in store.read("silver.orders").collect()} == {None}

    header = f"colour,{HEADER}"
    write_csv(
        tmp_path,
        "2.csv",
        "red,3,a,u1,p1,2024-03-01 10:00:00,2,1.50,",
        "blue,4,a,u1,p1,2024-03-01 10:00:00,2,1.50,",
        header=header,
    )
    assert store.ingest(path, "lines").account.rows_in == 2
    assert store.refresh("silver.orders").status == "changed"
    expected = {("1", None, 0), ("2", None, 1), ("3", "red", 0), ("4", "blue", 1)}

    def found(root: Path) -> set[tuple[str, str | None, int]]:
        rows = open_store(spark, root).read("silver.orders").collect()
        return {(row["order_id"], row["store_id"], row["_position"]) for row in rows}

    assert found(tmp_path) == expected
    column = open_store(spark, tmp_path).read("bronze.shop_lines").schema["colour"]
    assert column.metadata["label"] == "PUBLIC"

    # Another lake meets old and new files at once.
    anew = tmp_path / "anew"
    with pytest.raises(SourceError, match=r"1\.csv.*\n.*missing: colour"):
        open_store(spark, anew, path).ingest(path, "lines")
    write_source(tmp_path, coloured(tmp_path, optional=True))
    store = open_store(spark, anew, path)
    store.ingest(path, "lines")
    store.refresh("silver.orders")
    assert found(anew) == expected


def test_a_raw_column_that_goes(spark: SparkSession, tmp_path: Path) -> None:
    write_csv(tmp_path, "1.csv", "1,a,u1,p1,2024-03-01 10:00:00,2,1.50,kept")
    path = write_source(tmp_path, shop(tmp_path))
    open_store(spark, tmp_path, path).ingest(path, "lines")
    write_csv(tmp_path, "2.csv", "2,a,u1,p1,2024-03-01 10:00:00,2,1.50", header=HEADER.removesuffix(",note"))
    source = shop(tmp_path)
    del source["entities"]["lines"]["columns"]["note"]
    write_source(tmp_path, source)
    with pytest.raises(SourceError, match="values of files taken in before would be lost") as refused:
        open_store(spark, tmp_path, path).ingest(path, "lines")
    assert refused.value.found == "note is string in the lake, gone" and "optional: true" in refused.value.do

    source["entities"]["lines"]["columns"]["note"] = {"optional": True}
    write_source(tmp_path, source)
    store = open_store(spark, tmp_path, path)
    assert store.ingest(path, "lines").account.kept == 1
    notes = {row["number"]: row["note"] for row in store.read("bronze.shop_lines").collect()}
    assert notes == {"1": "kept", "2": None}


def test_a_raw_type_that_changes(spark: SparkSession, tmp_path: Path) -> None:
    def declare(**types: str) -> str:
        source = shop(tmp_path)
        columns = {name: {"type": type, "label": "INTERNAL"} for name, type in types.items()}
        source["entities"]["lines"] = {"path": f"{tmp_path}/*.parquet", "format": "parquet", "columns": columns}
        source["tables"] = {}
        return write_source(tmp_path, source)

    def deliver(name: str, number: list[Any], type: pyarrow.DataType) -> None:
        pyarrow.parquet.write_table(pyarrow.table({"number": pyarrow.array(number, type)}), tmp_path / name)

    deliver("1.parquet", [1, 2], pyarrow.int32())
    path = declare(number="int")
    open_store(spark, tmp_path, path).ingest(path, "lines")
    deliver("2.parquet", [2**40], pyarrow.int64())
    deliver("3.parquet", [3], pyarrow.int32())
    with pytest.raises(SourceError, match=r"2\.parquet has another type"):
        open_store(spark, tmp_path, path).ingest(path, "lines")

    declare(number="bigint", colour="string")
    with pytest.raises(SourceError, match="missing: colour"):
        open_store(spark, tmp_path, path).ingest(path, "lines")
    declare(number="bigint")
    store = open_store(spark, tmp_path, path)
    outcome = store.ingest(path, "lines")
    assert (outcome.version, outcome.account.rows_in) == (1, 2), "the new rows, though the old ones are written anew"
    assert store.ingest(path, "lines").status == "unchanged"
    assert sorted(row["number"] for row in store.read("bronze.shop_lines").collect()) == [1, 2, 3, 2**40]
    assert store.read("bronze.shop_lines").schema["number"].dataType.simpleString() == "bigint"

    deliver("4.parquet", [4], pyarrow.int32())
    declare(number="int")
    with pytest.raises(SourceError, match="would be lost") as refused:
        open_store(spark, tmp_path, path).ingest(path, "lines")
    assert refused.value.found == "number is bigint in the lake, declared int"
    assert store.version("bronze.shop_lines") == 1
