"""What somebody else did to a lake, and what Spark and the file system say of it: each is one error that says what to do."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import forbid, open_store, shop, write_csv, write_source
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import col, pandas_udf
from wares.cli import explain
from wares.errors import ConflictError, QualityError, SettingsError, StorageError, WaresError
from wares.lake.labels import BEHAVIOUR, CONFIDENTIAL, INTERNAL
from wares.lake.registry import TableFile
from wares.lake.store import Store
from wares.lake.table import Check, Column, Table
from wares.tables import TABLES

GOOD = "2024-03-01 10:00:00,2,1.50,"


@pytest.fixture(scope="module")
def made(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with silver.orders in two versions, which no test changes."""
    root = tmp_path_factory.mktemp("made")
    path = write_source(root, shop(root / "files"))
    with open_store(spark, root, path) as store:
        for number in (1, 2):
            write_csv(root / "files", f"{number}.csv", f"{number},a,u1,p1,{GOOD}")
            store.ingest(path, "lines")
            store.refresh("silver.orders")
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy of that lake, for one test."""
    shutil.copytree(made / "lake", tmp_path / "lake")
    return tmp_path


def opened(spark: SparkSession, made: Path, root: Path, *files: TableFile) -> Store:
    tables = {**TABLES, **{file.name: file for file in files}}
    return open_store(spark, root, str(made / "shop.yaml"), tables=tables)


def sold(rule: str = "true", casts: bool = False) -> TableFile:
    """A table of silver.orders with a check."""

    def build(silver_orders: DataFrame) -> DataFrame:
        product = col("product_id").cast("int").cast("string") if casts else col("product_id")
        return silver_orders.select("source", "order_id", product.alias("product_id"))

    columns = (
        Column("source", "string", INTERNAL, "The shop."),
        Column("order_id", "string", INTERNAL, "The order."),
        Column("product_id", "string", CONFIDENTIAL + BEHAVIOUR, "The product."),
    )
    table = Table(("source", "order_id"), columns, checks=(Check("rule", rule),))
    return TableFile("gold.sold", table, build, ("silver.orders",), (), "Sold.", rule)


# Tables that somebody else changed


def test_a_table_that_somebody_else_changed(spark: SparkSession, made: Path, root: Path) -> None:
    place = root / "lake" / "silver" / "orders"
    spark.sql(f"OPTIMIZE delta.`{place}`")  # changes no row
    with opened(spark, made, root) as store:
        assert store.refresh("silver.orders").status == "unchanged"
    spark.sql(f"DELETE FROM delta.`{place}` WHERE order_id = '1'")
    with pytest.raises(ConflictError, match="Somebody else than the store has changed the table silver.orders") as refused:
        store.refresh("silver.orders")
    assert f"(DELETE) at {place}" in refused.value.found and "move the table away" in refused.value.do
    shutil.rmtree(place)
    assert opened(spark, made, root).refresh("silver.orders").account.kept == 2


def test_a_table_that_somebody_else_made_in_the_place_of_the_stores(spark: SparkSession, made: Path, root: Path) -> None:
    place = root / "lake" / "silver" / "orders"
    stored = spark.read.format("delta").load(str(place))
    rows = spark.createDataFrame(stored.collect(), stored.schema)
    shutil.rmtree(place)
    rows.write.format("delta").save(str(place))
    with pytest.raises(ConflictError, match="silver.orders was not written by the store"):
        opened(spark, made, root).refresh("silver.orders")


def test_a_bronze_table_that_was_dropped_does_not_empty_the_silver_one(spark: SparkSession, made: Path, root: Path) -> None:
    shutil.rmtree(root / "lake" / "bronze" / "shop_lines")
    store = opened(spark, made, root)
    with pytest.raises(ConflictError, match="silver.orders was made of is gone") as refused:
        store.refresh("silver.orders")
    assert "bronze/shop_lines" in refused.value.found and "jobs/bronze.py" in refused.value.do
    assert store.ingest(str(made / "shop.yaml"), "lines").account.rows_in == 2
    assert store.refresh("silver.orders").account.kept == 2


# Files that are missing


def test_a_log_with_a_missing_file(spark: SparkSession, made: Path, root: Path) -> None:
    log = root / "lake" / "silver" / "orders" / "_delta_log"
    (log / f"{0:020}.json").unlink()
    with pytest.raises(StorageError, match="Files of a table are missing") as refused:
        opened(spark, made, root).refresh("silver.orders")
    assert refused.value.found and "makes it anew" in refused.value.do


def test_a_table_with_a_missing_file(spark: SparkSession, made: Path, root: Path) -> None:
    for file in (root / "lake" / "silver" / "orders").glob("*.parquet"):
        file.unlink()
    with pytest.raises(StorageError, match="Files of a table are missing: gold.sold") as refused:
        opened(spark, made, root, sold()).refresh("gold.sold")
    assert refused.value.found.endswith(".parquet") and "silver/orders" in refused.value.found


# Expressions that throw


@pytest.mark.parametrize(
    ("file", "found"),
    [
        (sold("1 / (length(product_id) - 2) > 0"), "DIVIDE_BY_ZERO in: 1 / (length(product_id) - 2)"),
        (sold("cast(product_id AS int) > 0"), "CAST_INVALID_INPUT in: cast(product_id AS int)"),
        (sold(casts=True), "CAST_INVALID_INPUT, in build"),
    ],
)
def test_an_expression_that_throws(
    spark: SparkSession, made: Path, file: TableFile, found: str, capfd: pytest.CaptureFixture[str]
) -> None:
    store = opened(spark, made, made, file)
    with pytest.raises(QualityError, match="An expression of gold.sold throws") as refused:
        store.refresh("gold.sold")
    assert refused.value.found == found and "try_cast" in refused.value.do
    assert store.version("gold.sold") is None
    assert "p1" not in "".join(capfd.readouterr()), "values may be secret"


def with_tripping_function(frame: DataFrame) -> DataFrame:
    def trip(names: pd.Series) -> pd.Series:
        raise ValueError(f"cannot do {names[0]}")

    return frame.select("source", "order_id", pandas_udf(trip, "string")("product_id").alias("product_id"))


@pytest.mark.parametrize(
    ("build", "type", "wrong", "found"),
    [
        (lambda f: f.select("source", "nope"), "string", "The build of gold.sold fails", "AnalysisException in line "),
        (lambda f: None, "string", "The build of gold.sold returns no frame", "NoneType"),
        (lambda f: f.nope(), "string", "The build of gold.sold fails", "PySparkAttributeError in line "),
        (lambda f: f, "strng", "TABLE of gold.sold declares a type that there is not", "[PARSE_SYNTAX_ERROR]"),
        (with_tripping_function, "string", "A Python function of gold.sold throws for some row", "ValueError"),
    ],
    ids=["column", "nothing", "method", "type", "Python"],
)
def test_a_build_that_fails(
    spark: SparkSession,
    made: Path,
    build: Callable[[DataFrame], Any],
    type: str,
    wrong: str,
    found: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The table is named, and what is wrong with its file; values of rows are not."""
    file = sold()
    product = Column("product_id", type, CONFIDENTIAL + BEHAVIOUR, "The product.")
    table = replace(file.table, columns=(*file.table.columns[:2], product))
    store = opened(spark, made, made, replace(file, table=table, build=lambda silver_orders: build(silver_orders)))
    with pytest.raises(WaresError, match=wrong) as refused:
        store.refresh("gold.sold")
    assert refused.value.found.startswith(found) and refused.value.do
    assert store.version("gold.sold") is None
    assert "p1" not in str(refused.value) + "".join(capfd.readouterr())


# A full disk


@contextmanager
def no_file_grows(spark: SparkSession) -> Iterator[None]:
    """Let no file of the JVM grow, as on a full disk."""
    pid = spark._jvm.java.lang.ProcessHandle.current().pid()
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_a_full_disk(spark: SparkSession, made: Path, root: Path) -> None:
    store = opened(spark, made, root, sold())
    with no_file_grows(spark), pytest.raises(StorageError, match="The disk is full: gold.sold") as refused:
        store.refresh("gold.sold")
    assert refused.value.found == "File too large" and "make room" in refused.value.do
    store.meta.add("access", run=store.run_id, table="gold.sold", column="product_id", reason="none")
    with no_file_grows(spark), pytest.raises(Exception) as unexpected:
        store.meta.commit()
    assert "The disk is full: the lake could not be written." in explain(unexpected.value, debug=False)
    assert store.refresh("gold.sold").status == "written"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "No space left on device" in explain(full, debug=False)


def test_a_lake_that_may_not_be_written(spark: SparkSession, made: Path, root: Path) -> None:
    store = opened(spark, made, root, sold())
    try:
        forbid(root, True)
    except OSError as error:
        pytest.skip(f"this file system forbids nothing to root: {error}")
    try:
        with pytest.raises(StorageError, match="The lake may not be written: gold.sold is as it was.") as refused:
            store.refresh("gold.sold")
    finally:
        forbid(root, False)
    assert "let the user that runs the job write" in refused.value.do
    assert store.refresh("gold.sold").status == "written"


# Two tables that claim one name


def test_two_sources_of_one_name(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    paths = [write_source(folder, shop(tmp_path)) for folder in (tmp_path, tmp_path / "other")]
    with pytest.raises(SettingsError, match="Two sources are named shop") as refused:
        open_store(spark, tmp_path, *paths).sources()
    assert all(path in refused.value.found for path in paths)


def test_two_sources_of_one_table(spark: SparkSession, tmp_path: Path) -> None:
    sources = [shop(tmp_path, "shop"), shop(tmp_path, "shop_lines")]
    sources[0]["entities"]["lines_of"] = sources[0]["entities"]["lines"]
    sources[1]["entities"] = {"of": sources[1]["entities"]["lines"]}
    sources[1]["tables"] = {}
    with pytest.raises(SettingsError, match="Two sources claim one table") as refused:
        open_store(spark, tmp_path, *(write_source(tmp_path, source) for source in sources)).sources()
    assert refused.value.found == "bronze.shop_lines_of, of shop and of shop_lines"
