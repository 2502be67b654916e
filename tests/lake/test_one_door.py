"""Every write goes through one door: shape, lineage, flow, checks, commit. What is refused leaves the table as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from helpers import open_store, shop, write_csv, write_source
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import col, count, lit, sum, when
from wares.errors import ConflictError, FlowError, LineageError, QualityError, SettingsError, ShapeError, WaresError
from wares.lake.declassify import AtLeast
from wares.lake.flow import check_flow
from wares.lake.labels import BEHAVIOUR, CONFIDENTIAL, FINANCIAL, IDENTIFIER, INTERNAL, PUBLIC, Label
from wares.lake.lineage import Lineage, Ref
from wares.lake.registry import TableFile
from wares.lake.store import Given, Store
from wares.lake.table import Check, Column, Table
from wares.tables import TABLES

MONEY = CONFIDENTIAL + BEHAVIOUR + FINANCIAL
PERSON = CONFIDENTIAL + IDENTIFIER
MANY = AtLeast("user_id", "a sum over several users")


def table_file(
    build: Callable[..., DataFrame], *columns: Column, keys: tuple[str, ...] = ("source",), code: str = "1", **more: Any
) -> TableFile:
    """The table gold.report, made by `build` of silver.orders."""
    return TableFile("gold.report", Table(keys=keys, columns=columns, **more), build, ("silver.orders",), (), "A report.", code)


SOURCE = Column("source", "string", INTERNAL, "The shop.")
ORDER = Column("order_id", "string", INTERNAL, "The order.")
VALUE = Column("value", "decimal(18,4)", MONEY, "What it brought in.")


@pytest.fixture(scope="module")
def root(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A lake with six orders of five users."""
    root = tmp_path_factory.mktemp("one_door")
    write_csv(root, "1.csv", *(f"{n},a,u{n % 5},p1,2024-03-01 10:00:00,{n},1.50," for n in range(1, 7)))
    path = write_source(root, shop(root))
    store = open_store(spark, root, path)
    store.ingest(path, "lines")
    store.refresh("silver.orders")
    yield root


def store_with(spark: SparkSession, root: Path, file: TableFile) -> Store:
    return open_store(spark, root, str(root / "shop.yaml"), tables={**TABLES, file.name: file})


@pytest.fixture
def refused(spark: SparkSession, root: Path) -> Callable[[TableFile, type[WaresError]], WaresError]:
    """Refresh gold.report from a file, see that it is refused, and that no commit was made."""

    def refresh(file: TableFile, kind: type[WaresError]) -> WaresError:
        store = store_with(spark, root, file)
        before = store.version("gold.report"), store.version("gold.report_rejected")
        with pytest.raises(kind) as caught:
            store.refresh("gold.report")
        assert (store.version("gold.report"), store.version("gold.report_rejected")) == before
        assert caught.value.found and caught.value.do
        return caught.value

    return refresh


Refused = Callable[[TableFile, type[WaresError]], WaresError]


# Flow


def flow_of(table: Table, direct: dict[str, dict[Ref, set[frozenset[str]]]], labels: dict[str, Label]) -> None:
    flows = {column: {ref: dict.fromkeys(paths, ()) for ref, paths in flow.items()} for column, flow in direct.items()}
    lineage = Lineage(flows, {Ref("silver.orders", "user_id"): {frozenset({"JOIN"}): ("JOIN",)}})
    check_flow("gold.report", table, lineage, lambda ref: labels[ref.column])


def test_flow_is_refused_on_one_way_of_several() -> None:
    """A declassified column takes a value through its declassifier only; one way beside it is a leak, and so is another one."""
    open_column = Column("total", "bigint", INTERNAL, "A total.", MANY)
    table, ref = Table((), (open_column,)), Ref("silver.orders", "value")
    of_many = frozenset({"AGGREGATION", "AT_LEAST(5 silver.orders.user_id)"})
    of_orders = frozenset({"AGGREGATION", "AT_LEAST(5 silver.orders.order_id)"})
    aggregated, plain = frozenset({"AGGREGATION"}), frozenset({"TRANSFORMATION"})
    money, low = {"value": MONEY, "user_id": PERSON}, {"value": INTERNAL, "user_id": PERSON}
    flow_of(table, {"total": {ref: {of_many}}}, money)
    flow_of(table, {"total": {ref: {of_many, plain}}}, low)
    for paths in ({of_many, plain}, {aggregated}, {of_orders}):
        with pytest.raises(FlowError):
            flow_of(table, {"total": {ref: paths}}, money)
    for column in (replace(open_column, declassified=None), replace(open_column, label=PUBLIC)):
        with pytest.raises(FlowError):
            flow_of(Table((), (column,)), {"total": {ref: {of_many}}}, money)
    with pytest.raises(FlowError):
        flow_of(Table((), (replace(open_column, label=CONFIDENTIAL + BEHAVIOUR),)), {"total": {ref: {plain}}}, money)


def test_a_value_cannot_go_where_more_people_may_read(refused: Refused) -> None:
    leaking = table_file(
        lambda silver_orders: silver_orders.select(
            "source", "order_id", (col("value") * 2).cast("decimal(18,4)").alias("double")
        ),
        SOURCE,
        ORDER,
        Column("double", "decimal(18,4)", INTERNAL, "Twice the value."),
        keys=("source", "order_id"),
    )
    error = refused(leaking, FlowError)
    assert "gold.report" in error.wrong
    assert f"silver.orders.value [{MONEY}]" in error.found
    assert "gold.report.double [INTERNAL]" in error.found and "TRANSFORMATION" in error.found
    assert f"label double {MONEY}" in error.do and "declassified" in error.do


def test_a_condition_on_a_sensitive_column_leaks_it(refused: Refused) -> None:
    flag = Column("is_ann", "boolean", PUBLIC, "Whether it was Ann.")
    chosen = table_file(
        lambda silver_orders: silver_orders.select(
            "source", "order_id", when(col("user_id") == "u1", True).otherwise(False).alias("is_ann")
        ),
        SOURCE,
        ORDER,
        flag,
        keys=("source", "order_id"),
    )
    error = refused(chosen, FlowError)
    assert f"silver.orders.user_id [{CONFIDENTIAL + IDENTIFIER}]" in error.found and "CONDITIONAL" in error.found
    assert f"label is_ann {CONFIDENTIAL + IDENTIFIER}" in error.do


def test_a_declassified_column_without_an_aggregate_is_refused(refused: Refused) -> None:
    plain = table_file(
        lambda silver_orders: silver_orders.select("source", "order_id", "value"),
        SOURCE,
        ORDER,
        replace(VALUE, label=INTERNAL, declassified=replace(MANY, why="trust me")),
        keys=("source", "order_id"),
    )
    error = refused(plain, FlowError)
    assert f"silver.orders.value [{MONEY}] -> as it is -> gold.report.value [INTERNAL]" in error.found
    assert "every way" in error.do and "trust me" in error.do


def total(silver_orders: DataFrame) -> DataFrame:
    return silver_orders.groupBy("source").agg(sum("value").cast("decimal(18,4)").alias("value"))


def guarded_total(silver_orders: DataFrame) -> DataFrame:
    return silver_orders.groupBy("source").agg(MANY.sum("value").cast("decimal(18,4)").alias("value"))


def test_written_then_left_alone_then_relabelled_then_refused(spark: SparkSession, root: Path) -> None:
    """The life of a table: it follows its inputs and its file, and a leaking change of the file leaves it as it was."""
    declassified = replace(VALUE, label=INTERNAL, declassified=MANY)
    store = store_with(spark, root, table_file(guarded_total, SOURCE, declassified))
    outcome = store.refresh("gold.report")
    assert (outcome.status, outcome.version, outcome.account.rows_in, outcome.account.kept) == ("written", 0, 1, 1)
    assert store.read("gold.report").schema["value"].metadata["label"] == "INTERNAL"
    assert store.read("gold.report").collect()[0]["value"] == Decimal("31.5000")
    store = store_with(spark, root, table_file(guarded_total, SOURCE, declassified))
    assert store.refresh("gold.report").status == "unchanged"

    store = store_with(spark, root, table_file(total, SOURCE, VALUE, code="2"))  # another text of the file
    assert store.refresh("gold.report").version == 1
    assert store.read("gold.report").schema["value"].metadata == {"label": str(MONEY), "comment": "What it brought in."}
    assert store.read("gold.report", 0).schema["value"].metadata["label"] == "INTERNAL"

    why = {"value": "a sum over several users, wanted by all"}
    leaking = table_file(total, SOURCE, replace(VALUE, label=PUBLIC), code="3", relabel=why)
    with pytest.raises(FlowError), store_with(spark, root, leaking) as store:
        store.refresh("gold.report")
    assert store.version("gold.report") == 1
    failed = store.read("meta.runs").where("status = 'failed'").collect()
    assert [row["error"] for row in failed] == [
        "The write of gold.report is refused: a value would flow into a column that more people may read."
    ]


# Shape


@pytest.mark.parametrize(
    ("build", "found"),
    [
        (lambda silver_orders: silver_orders.select("source", "order_id"), "value is missing (declared decimal(18,4))"),
        (lambda silver_orders: silver_orders.select("source", "order_id", "value", "kind"), "kind (string) is not declared"),
        (
            lambda silver_orders: silver_orders.select("source", "order_id", col("value").cast("double")),
            "value is double, declared decimal(18,4)",
        ),
        (
            lambda silver_orders: silver_orders.select("source", "order_id", "value", lit(1).alias("order_id")),
            "order_id is there twice",
        ),
    ],
)
def test_columns_are_those_that_are_declared(refused: Refused, build: Callable[..., DataFrame], found: str) -> None:
    error = refused(table_file(build, SOURCE, ORDER, VALUE, keys=("source", "order_id")), ShapeError)
    assert found in error.found
    assert "tables/gold/report.py" in error.do


def test_silver_rows_must_know_where_they_stood(spark: SparkSession, root: Path) -> None:
    file = replace(
        TABLES["silver.orders"],
        build=lambda bronze_orders: TABLES["silver.orders"].build(bronze_orders).drop("_position", "_raw"),
        code="2",
    )
    store = open_store(spark, root, str(root / "shop.yaml"), tables={**TABLES, "silver.orders": file})
    with pytest.raises(ShapeError) as caught:
        store.refresh("silver.orders")
    assert "_position is missing" in caught.value.found and "_raw did not come through build" in caught.value.found
    assert store.version("silver.orders") == 0


def test_keys_name_one_row(refused: Refused) -> None:
    repeated = table_file(lambda silver_orders: silver_orders.select("source", "order_id"), SOURCE, ORDER, keys=("source",))
    assert "1 keys (source) with more than one row" in refused(repeated, ShapeError).found


def test_an_origin_that_cannot_be_told_is_refused(spark: SparkSession, refused: Refused) -> None:
    invented = table_file(lambda silver_orders: spark.createDataFrame([("s",)], "source string"), SOURCE)
    refused(invented, LineageError)


# Checks


def test_too_many_rejected_rows_stop_the_write(refused: Refused) -> None:
    cheap = Check("not_cheap", "value >= 4")
    orders = lambda silver_orders: silver_orders.select("source", "order_id", "value")  # noqa: E731 - a build in one line
    strict = table_file(orders, SOURCE, ORDER, VALUE, keys=("source", "order_id"), checks=(cheap,), max_rejected=0.3)
    error = refused(strict, QualityError)
    assert "2 of 6 rows rejected, at most 30% allowed: not_cheap 2" in error.found
    assert "max_rejected" in error.do


def test_as_many_rejected_rows_as_allowed_are_set_aside(spark: SparkSession, root: Path, tmp_path: Path) -> None:
    def orders(silver_orders: DataFrame) -> DataFrame:
        return silver_orders.select("source", "order_id", "value")

    checks = (Check("not_cheap", "value >= 4"), Check("not_dear", "value < 6", severity="warn"))
    file = replace(table_file(orders, SOURCE, ORDER, VALUE, keys=("source", "order_id"), checks=checks), name="gold.orders")
    store = store_with(spark, root, file)
    outcome = store.refresh("gold.orders")
    account = outcome.account
    assert (account.rows_in, account.kept, account.rejected, account.merged) == (6, 4, 2, 0)
    assert {row["order_id"] for row in store.read("gold.orders").collect()} == {"3", "4", "5", "6"}
    reasons = [
        [(v["rule"], v["severity"], v["value"]) for v in row["_violations"]] for row in store.rejected("gold.orders").collect()
    ]
    assert sorted(reasons) == [[("not_cheap", "reject", '{"value":1.5000}')], [("not_cheap", "reject", '{"value":3.0000}')]]


# Given values and strangers


def test_a_given_value_takes_part_in_what_is_new(spark: SparkSession, root: Path) -> None:
    def counted(silver_orders: DataFrame, scorer: int) -> DataFrame:
        return silver_orders.groupBy("source").agg((count(lit(1)) + scorer).alias("n"))

    columns = (SOURCE, Column("n", "bigint", INTERNAL, "Rows."))
    file = TableFile("gold.given", Table(("source",), columns), counted, ("silver.orders",), ("scorer",), "Given.", "1")
    store = store_with(spark, root, file)
    with pytest.raises(SettingsError, match="needs more than tables") as caught:
        store.refresh("gold.given")
    assert "scorer" in caught.value.found
    assert store.refresh("gold.given", {"scorer": Given(10, "model@1")}).status == "written"
    assert store.refresh("gold.given", {"scorer": Given(10, "model@1")}).status == "unchanged"
    assert store.refresh("gold.given", {"scorer": Given(20, "model@2")}).version == 1
    assert store.read("gold.given").collect()[0]["n"] == 26


def test_a_table_of_somebody_else_is_not_overwritten(spark: SparkSession, root: Path) -> None:
    file = replace(table_file(total, SOURCE, VALUE), name="gold.foreign")
    store = store_with(spark, root, file)
    spark.range(1).write.format("delta").save(store.location("gold.foreign"))
    with pytest.raises(ConflictError, match="gold.foreign was not written by the store"):
        store.refresh("gold.foreign")
    assert store.version("gold.foreign") == 0
