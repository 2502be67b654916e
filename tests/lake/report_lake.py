"""A lake with one small report, whose making has changed once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from helpers import open_store, shop, write_csv, write_source
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import col, sum
from wares.lake.labels import BEHAVIOUR, CONFIDENTIAL, FINANCIAL, INTERNAL
from wares.lake.registry import TableFile
from wares.lake.store import Store
from wares.lake.table import Column, Table
from wares.tables import TABLES

MONEY = CONFIDENTIAL + BEHAVIOUR + FINANCIAL
SOURCE = Column("source", "string", INTERNAL, "The shop.")


def gold(column: Column, build: Callable[..., DataFrame], code: str) -> dict[str, TableFile]:
    """The tables of the project, and gold.report, made of silver.orders."""
    file = TableFile("gold.report", Table(("source",), (SOURCE, column)), build, ("silver.orders",), (), "A report.", code)
    return {**TABLES, file.name: file}


def counted(silver_orders: DataFrame) -> DataFrame:
    return silver_orders.groupBy("source").agg(sum("quantity").cast("decimal(18,4)").alias("value"))


def total(silver_orders: DataFrame) -> DataFrame:
    bought = silver_orders.where(col("kind") == "purchase")
    return bought.groupBy("source").agg(sum("value").cast("decimal(18,4)").alias("value"))


EARLIER = gold(Column("value", "decimal(18,4)", CONFIDENTIAL + BEHAVIOUR, "How much was sold."), counted, "1")
NOW = gold(Column("value", "decimal(18,4)", MONEY, "What it brought in."), total, "2")


def make_lake(spark: SparkSession, root: Path) -> None:
    """A lake in which gold.report was made of `quantity` first, and then of `value`."""
    write_csv(root, "1.csv", "1,a,u1,p1,2024-03-01 10:00:00,2,1.50,")
    path = write_source(root, shop(root))
    with open_store(spark, root, path, tables=EARLIER) as store:
        store.ingest(path, "lines")
        store.refresh("silver.orders")
        store.refresh("gold.report")
    with store_of(spark, root) as store:
        assert store.refresh("gold.report").version == 1


def store_of(spark: SparkSession, root: Path, tables: dict[str, TableFile] = NOW) -> Store:
    """A store on the lake under `root`."""
    return open_store(spark, root, str(root / "shop.yaml"), tables=tables)
