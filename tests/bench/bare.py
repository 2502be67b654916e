"""The same way from raw files to gold written by hand: bare Spark that reads and writes Delta, with no checks, lineage,
labels, or rejected rows. What the store costs is measured against it."""

from __future__ import annotations

from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import expr
from wares.lake.registry import TableFile
from wares.lake.sources import Source
from wares.tables import TABLES

TABLES_TO_GOLD = [name for name in TABLES if name.startswith("silver.")] + [
    "gold.histories",
    "gold.interactions",
    "gold.user_profiles",
    "gold.product_profiles",
    "gold.sales_daily",
]


def build_all(spark: SparkSession, source: Source, folder: Path) -> None:
    """Read the raw files, write them as bronze, and build silver and gold, each with one read and one write."""
    for name, entity in source.entities.items():
        spark.read.parquet(entity.path).write.format("delta").mode("overwrite").save(f"{folder}/bronze/{name}")
    for name in TABLES_TO_GOLD:
        file = TABLES[name]
        frame = _silver(spark, source, folder, file) if file.layer == "silver" else _gold(spark, folder, file)
        if frame is not None:
            frame.write.format("delta").mode("overwrite").save(f"{folder}/{name.replace('.', '/')}")


def _silver(spark: SparkSession, source: Source, folder: Path, file: TableFile) -> DataFrame | None:
    """The rows of the one mapping that provides a table, cast to the table's types."""
    mappings = source.tables.get(file.name.partition(".")[2], [])
    for mapping in mappings:
        raw = spark.read.format("delta").load(f"{folder}/bronze/{mapping.entity}").where(mapping.where)
        columns = {
            column.name: expr(mapping.columns.get(column.name, "NULL")).try_cast(column.type) for column in file.table.columns
        }
        columns["source"] = expr(f"'{source.name}'")
        mapped = raw.select(*(value.alias(name) for name, value in columns.items()))
        mapped = mapped.withColumn("_business_timezone", expr(f"'{source.business_timezone}'"))
        return file.build(mapped).drop("_business_timezone")
    return None


def _gold(spark: SparkSession, folder: Path, file: TableFile) -> DataFrame:
    inputs = {
        name.replace(".", "_", 1): spark.read.format("delta").load(f"{folder}/{name.replace('.', '/')}") for name in file.inputs
    }
    return file.build(**inputs)
