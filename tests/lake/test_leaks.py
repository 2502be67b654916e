"""Attempts to let a value out, every one refused; and honest work, every piece of it accepted.

Both go the way of a write as far as the flow check, on tables that are read from Delta. What the store adds to that is
tested in test_one_door.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from helpers import frame_of
from pyspark.sql import Column as Expression
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql.functions import col, expr, lit, when
from wares.errors import FlowError, LineageError
from wares.lake.declassify import AtLeast, Band, Declassifier, Mask, Prefix, Pseudonym
from wares.lake.flow import check_flow
from wares.lake.guard import no_jobs
from wares.lake.labels import (
    BEHAVIOUR,
    CLOSED,
    CONFIDENTIAL,
    CONTACT,
    DEMOGRAPHIC,
    FINANCIAL,
    IDENTIFIER,
    INTERNAL,
    LOCATION,
    PUBLIC,
    RESTRICTED,
    Label,
)
from wares.lake.lineage import Leaves, relation_alias, trace
from wares.lake.table import Check, Column, Table

PERSON = CONFIDENTIAL + IDENTIFIER
PHONE = CONFIDENTIAL + CONTACT
PLACE = CONFIDENTIAL + LOCATION
BORN = CONFIDENTIAL + DEMOGRAPHIC
INCOME = CONFIDENTIAL + FINANCIAL
LABELS = {
    "silver.people": {
        "number": INTERNAL,
        "team": INTERNAL,
        "city": PUBLIC,
        "customer": PERSON,
        "visit": PERSON + BEHAVIOUR,
        "phone": PHONE,
        "postcode": PLACE,
        "born": BORN,
        "income": INCOME,
        "secret": CLOSED,
    },
    "silver.cities": {"city": PUBLIC, "size": PUBLIC, "income": PUBLIC},
}

MANY = AtLeast("customer", "a number about several people")
MASK, PREFIX, BAND = Mask(2, "to tell two calls apart"), Prefix(3, "the district"), Band(1000, "a rough idea")
MONTH, PSEUDONYM = Band("month", "the season"), Pseudonym("to join by")


@dataclass
class Lake:
    """The two tables, as Delta folders, and what hands them out."""

    spark: SparkSession
    folder: Path
    leaves: Leaves

    def given(self) -> Given:
        """The parameters of a build."""
        return Given(*(self.leaves.hand_out(self.read(name), f"silver.{name}", 0) for name in ("people", "cities")), self)

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def read(self, name: str) -> DataFrame:
        return self.spark.read.format("delta").load(self.path(name))

    def alias(self, name: str) -> str:
        """The alias that the store gives a table, as a build can read it in its frames' plans."""
        return relation_alias(f"silver.{name}", 0, self.leaves.token)


@dataclass
class Given:
    """What a build is given, and the lake, which a leak may turn to."""

    people: DataFrame
    cities: DataFrame
    lake: Lake


Build = Callable[[Given], DataFrame]


@pytest.fixture(scope="module")
def lake(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    folder = tmp_path_factory.mktemp("leaks")
    people = [
        (
            n,
            f"team {n % 2}",
            f"city {n % 3}",
            f"c{n // 2}",
            f"v{n}",
            f"+35699{n:06}",
            f"AB{n % 4}{n:03}",
            date(1950 + n, 1 + n % 12, 1),
            Decimal(20000 + 517 * n),
            f"s{n}",
        )
        for n in range(14)
    ]
    columns = (
        "number int, team string, city string, customer string, visit string, phone string, postcode string, born date, "
        "income decimal(18,4), secret string"
    )
    frame_of(spark, people, columns).write.format("delta").save(str(folder / "people"))
    cities = [(f"city {n}", n * 1000, Decimal(n)) for n in range(3)]
    frame_of(spark, cities, "city string, size int, income decimal(18,4)").write.format("delta").save(str(folder / "cities"))
    return Lake(spark, folder, Leaves())


@pytest.fixture(scope="module")
def given(lake: Lake) -> Given:
    """The parameters of the builds that keep to describing rows."""
    return lake.given()


def write(given: Given, build: Build, *columns: Column, **declared: Any) -> None:
    """Go the way of a write as far as the flow check."""
    lake = given.lake
    with no_jobs(lake.spark, "gold.out"):
        built = build(given)
    table = Table(("number",), columns, **declared)
    lineage = trace(built.select(*table.by_name), lake.leaves)
    check_flow("gold.out", table, lineage, lambda ref: LABELS[ref.table][ref.column])


def out(label: Label = INTERNAL, declassified: Declassifier | None = None, name: str = "out") -> Column:
    return Column(name, "string", label, "What a leak puts out.", declassified)


# Builds in few words


def guarded(people: Expression, value: Expression, k: int = 5) -> Expression:
    return when(people >= k, value)


def grouped(frame: DataFrame, expression: Expression) -> DataFrame:
    return frame.groupBy("team").agg(F.max("number").alias("number"), expression.alias("out"))


def by_team(expression: Callable[[], Expression]) -> Build:
    return lambda t: grouped(t.people, expression())


def each(expression: Callable[[], Expression]) -> Build:
    return lambda t: t.people.select("number", expression().alias("out"))


def adding(value: str) -> Expression:
    """The people whose rows add to a sum."""
    return F.count_distinct(when(col(value) != 0, col("customer")))


def there(value: str) -> Expression:
    """The people whose rows have a value, were it 0."""
    return F.count_distinct(when(col(value).isNotNull(), col("customer")))


# Functions in Python, which see whatever they are given


def same_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield from batches


def same_frames(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    yield from frames


def same_values(values: pd.Series) -> pd.Series:
    return values


def same_array(values: pa.Array) -> pa.Array:
    return values


def same_frame(frame: pd.DataFrame) -> pd.DataFrame:
    return frame


# What is computed from a value: refused by the flow check. A Column object needs a session, so each is made when asked for.

BY_TEAM = lambda: Window.partitionBy("team")  # noqa: E731 - as short as what it stands among

EXPRESSIONS: dict[str, Callable[[], Expression]] = {
    "as it is": lambda: col("income"),
    "cast": lambda: col("income").cast("string"),
    "arithmetic": lambda: col("income") - 1 + 1,
    "concat": lambda: F.concat(lit("x"), "phone"),
    "hash without a key": lambda: F.sha2("customer", 256),
    "hash with a key in the plan": lambda: F.sha2(F.concat(lit("a key"), "customer"), 256),
    "fast hash": lambda: F.xxhash64("customer"),
    "encrypted with a key in the plan": lambda: F.base64(F.aes_encrypt("customer", lit("0123456789abcdef"))),
    "struct": lambda: F.struct("city", "income"),
    "field of a struct": lambda: F.struct("income", "city")["income"],
    "nested alias": lambda: F.struct(col("income").alias("a")).alias("b")["a"].alias("c"),
    "array": lambda: F.array("income", lit(0)),
    "element of an array": lambda: F.array(lit(0), "income")[1],
    "map": lambda: F.create_map("city", "income"),
    "explode": lambda: F.explode(F.array("income")),
    "window": lambda: F.max("income").over(BY_TEAM()),
    "window of the row before": lambda: F.lag("income").over(BY_TEAM().orderBy("number")),
    "place in an order": lambda: F.row_number().over(BY_TEAM().orderBy("income")),
    "python udf": lambda: F.udf(lambda value: value, "string")("phone"),
    "pandas udf": lambda: F.pandas_udf(same_values, "string")("phone"),
    "arrow udf": lambda: F.arrow_udf(same_array, "string")("phone"),
    "case": lambda: when(col("income") > 30000, "rich").otherwise("poor"),
    "case that shows it": lambda: when(col("city") == "city 1", col("income")),
    "coalesce": lambda: F.coalesce(lit(None), "income"),
    "nullif": lambda: F.nullif("customer", lit("c1")),
    "nvl2": lambda: expr("nvl2(income, 'has', 'has not')"),
    "greatest": lambda: F.greatest("income", lit(0)),
    "comparison": lambda: col("income") > 30000,
    "membership": lambda: col("customer").isin("c1", "c2"),
    "is null": lambda: col("phone").isNull(),
    "length": lambda: F.length("phone"),
    "one character": lambda: F.substring("phone", 5, 1),
    "split": lambda: F.split("phone", "9")[0],
    "part of a day": lambda: F.year("born"),
    "json": lambda: F.to_json(F.struct("city", "income")),
    "there and back through json": lambda: F.from_json(F.to_json(F.struct("income")), "income string")["income"],
    "json path": lambda: F.get_json_object(F.to_json(F.struct("income")), "$.income"),
    "csv": lambda: F.to_csv(F.struct("income")),
    "regexp": lambda: F.regexp_extract("phone", "([0-9]+)", 1),
    "format": lambda: F.format_string("%s", "phone"),
    "higher-order function": lambda: F.transform(F.array(lit(1)), lambda one: col("income") + one),
    "a raw column that nobody tagged": lambda: col("secret"),
    "a value twice": lambda: F.concat_ws(" ", "city", "customer", "customer"),
}


@pytest.mark.parametrize("leak", EXPRESSIONS)
def test_leak_through_an_expression(given: Given, leak: str) -> None:
    with pytest.raises(FlowError) as refused:
        write(given, lambda t: t.people.select("number", EXPRESSIONS[leak]().alias("out")), out())
    source = next(
        f"silver.people.{name} [{LABELS['silver.people'][name]}] -> "
        for name in LABELS["silver.people"]
        if f"silver.people.{name} " in refused.value.found
    )
    assert refused.value.found.startswith(source) and refused.value.found.endswith(" -> gold.out.out [INTERNAL]")
    assert refused.value.do.startswith("label out ")


# How rows are put together: refused by the flow check


def sql(text: str) -> Build:
    """A build in SQL over views of its parameters."""

    def build(t: Given) -> DataFrame:
        t.people.createOrReplaceTempView("leak_people")
        t.cities.createOrReplaceTempView("leak_cities")
        return t.lake.spark.sql(text)

    return build


BUILDS: dict[str, Build] = {
    "rename": lambda t: t.people.withColumnRenamed("income", "out"),
    "rename of all": lambda t: t.people.select("number", "income").toDF("number", "out"),
    "replaced column": lambda t: t.people.withColumn("out", col("city")).withColumn("out", col("phone")),
    "join back": lambda t: t.people.select("number", "team").join(
        t.people.groupBy("team").agg(F.max("income").alias("out")), "team"
    ),
    "looked up on the other side": lambda t: t.people.select("number").join(
        t.people.select("number", col("income").alias("out")), "number"
    ),
    "full join": lambda t: t.people.select("number", col("income").alias("out")).join(
        t.cities.select(col("size").alias("number"), col("income").alias("out")), ["number", "out"], "full"
    ),
    "cross join": lambda t: t.cities.select(col("size").alias("number")).crossJoin(t.people.select(col("income").alias("out"))),
    "union": lambda t: t.people.selectExpr("number", "city AS out").union(t.people.selectExpr("number", "phone")),
    "union by name": lambda t: t.people.selectExpr("number").unionByName(
        t.people.selectExpr("number", "phone AS out"), allowMissingColumns=True
    ),
    "unpivot": lambda t: t.people.select("number", "city", "phone").unpivot("number", ["city", "phone"], "name", "out"),
    "pivot": lambda t: t.people.groupBy("number").pivot("team", ["out"]).agg(F.max("income")),
    "pivot of the value": lambda t: t.people.groupBy("number").pivot("customer", ["out"]).agg(F.count(lit(1))),
    "collect_list": lambda t: t.people.groupBy("number").agg(F.collect_list("income").alias("out")),
    "collect_set in json": lambda t: t.people.groupBy("number").agg(F.to_json(F.collect_set("income")).alias("out")),
    "first": lambda t: t.people.groupBy("number").agg(F.first("income").alias("out")),
    "max": lambda t: t.people.groupBy("number").agg(F.max("income").alias("out")),
    "max_by": lambda t: t.people.groupBy("number").agg(F.max_by("city", "income").alias("out")),
    "sum over a group of one": lambda t: t.people.groupBy("number").agg(F.sum("income").alias("out")),
    "filtered count": lambda t: t.people.groupBy("number").agg(expr("count(*) FILTER (WHERE income > 30000)").alias("out")),
    "count of different values": lambda t: t.people.groupBy("number").agg(F.count_distinct("income").alias("out")),
    "pandas aggregate": lambda t: t.people.groupBy("number").agg(
        F.pandas_udf(lambda values: values.max(), "string", F.PandasUDFType.GROUPED_AGG)("phone").alias("out")
    ),
    "group key": lambda t: t.people.groupBy(col("income").alias("out")).agg(F.max("number").alias("number")),
    "rollup": lambda t: t.people.rollup("number", col("income").alias("out")).count(),
    "mapInPandas": lambda t: t.people.select("number", "phone").mapInPandas(same_frames, "number int, out string"),
    "mapInArrow": lambda t: t.people.select("number", "phone").mapInArrow(same_batches, "number int, out string"),
    "applyInPandas": lambda t: (
        t.people.select("number", "phone").groupBy("number").applyInPandas(same_frame, "number int, out string")
    ),
    "a python function beside it": lambda t: t.people.select("number", "city", "phone").mapInArrow(
        same_batches, "number int, out string, more string"
    ),
    "SQL string": lambda t: t.lake.spark.sql("SELECT number, income AS out FROM {p}", p=t.people),
    "temp view": sql("SELECT number, income AS out FROM leak_people"),
    "view of a view": lambda t: (
        t.people.createOrReplaceTempView("leak_inner"),
        t.lake.spark.sql("CREATE OR REPLACE TEMP VIEW leak_outer AS SELECT number, income AS out FROM leak_inner"),
        t.lake.spark.table("leak_outer"),
    )[-1],
    "common table": sql(
        "WITH few AS (SELECT number, income AS out FROM leak_people) SELECT a.number, b.out FROM few a JOIN few b USING (number)"
    ),
    "subquery": sql("SELECT number, (SELECT max(income) FROM leak_people) AS out FROM leak_people"),
    "correlated subquery": sql(
        "SELECT number, (SELECT max(p.income) FROM leak_people p WHERE p.number = o.number) AS out FROM leak_people o"
    ),
    "exists": sql("SELECT number, EXISTS (SELECT 1 FROM leak_people p WHERE p.income > o.income) AS out FROM leak_people o"),
    "in": sql("SELECT number, city IN (SELECT city FROM leak_people WHERE income > 30000) AS out FROM leak_people"),
    "lateral column": sql("SELECT number, income AS a, a AS out FROM leak_people"),
    "intersect": sql("SELECT number, income AS out FROM leak_people INTERSECT SELECT number, income FROM leak_people"),
    "except": sql("SELECT number, phone AS out FROM leak_people EXCEPT SELECT number, city FROM leak_people"),
    "lateral view": sql("SELECT number, out FROM leak_people LATERAL VIEW explode(array(income)) AS out"),
    "summary": lambda t: t.people.summary("max").withColumnsRenamed({"income": "out", "summary": "number"}),
}


@pytest.mark.parametrize("leak", BUILDS)
def test_leak_through_rows(given: Given, leak: str) -> None:
    with pytest.raises(FlowError):
        write(given, BUILDS[leak], out())


# Where a value comes from: refused because its origin cannot be told, or because a build may not look


def collected(look: Callable[[DataFrame], Any]) -> Build:
    """A build that writes a value which it looked at into its plan."""
    return lambda t: t.cities.select(col("size").alias("number"), lit(str(look(t.people))).alias("out"))


def variable(value: str) -> Build:
    def build(t: Given) -> DataFrame:
        t.people.createOrReplaceTempView("leak_people")
        t.lake.spark.sql("DECLARE OR REPLACE VARIABLE leak_value STRING DEFAULT 'x'")
        if value:
            t.lake.spark.sql(f"SET VAR leak_value = {value}")
        return t.lake.spark.sql("SELECT number, leak_value AS out FROM leak_people")

    return build


def sql_command(text: str) -> Build:
    """A build that runs an SQL command before it describes its rows."""

    def build(t: Given) -> DataFrame:
        t.people.createOrReplaceTempView("leak_people")
        t.lake.spark.sql(text.format(stolen=t.lake.path("stolen"), cities=t.lake.path("cities")))
        return t.people.selectExpr("number", "city AS out")

    return build


ORIGINS: dict[str, Build] = {
    "localCheckpoint": lambda t: t.people.localCheckpoint().select("number", col("city").alias("out")),
    "lazy localCheckpoint": lambda t: t.people.localCheckpoint(eager=False).select("number", col("city").alias("out")),
    "a re-aliased checkpoint": lambda t: (
        t.people.select(col("income").alias("city"), "number")
        .localCheckpoint(eager=False)
        .alias(t.lake.alias("cities"))
        .select("number", col("city").alias("out"))
    ),
    "createDataFrame": lambda t: t.lake.spark.createDataFrame([(1, "c1")], "number int, out string"),
    "createDataFrame from pandas": lambda t: t.lake.spark.createDataFrame(pd.DataFrame({"number": [1], "out": ["x"]})),
    "VALUES": lambda t: t.lake.spark.sql("SELECT * FROM VALUES (1, 'c1') AS t(number, out)"),
    "createDataFrame joined": lambda t: t.people.select("number").join(
        t.lake.spark.createDataFrame([(1, "c1")], "number int, out string"), "number"
    ),
    "an RDD": lambda t: t.lake.spark.createDataFrame(t.people.select("number", "phone").rdd, "number int, out string"),
    "an unaliased reader": lambda t: t.lake.read("people").select("number", col("city").alias("out")),
    "a reader with an alias of its own": lambda t: (
        t.lake.read("people").alias("silver.cities@0").selectExpr("number", "city AS out")
    ),
    "a reader with a copied alias": lambda t: (
        t.lake.read("people").alias(t.lake.alias("cities")).selectExpr("number", "income AS out")
    ),
    "a table by its path in SQL": lambda t: t.lake.spark.sql(f"SELECT number, city AS out FROM delta.`{t.lake.path('people')}`"),
    "another format's reader": lambda t: t.lake.spark.read.parquet(t.lake.path("people")).selectExpr("number", "city AS out"),
    "SQL variable": variable(""),
    "SQL variable set from the table": variable("(SELECT max(income) FROM leak_people)"),
    "EXECUTE IMMEDIATE": lambda t: (
        variable("")(t),
        t.lake.spark.sql("EXECUTE IMMEDIATE 'SELECT max(phone) FROM leak_people' INTO leak_value"),
        t.lake.spark.sql("SELECT number, leak_value AS out FROM leak_people"),
    )[-1],
    "collect": collected(lambda people: people.collect()[0]["income"]),
    "first": collected(lambda people: people.first()["income"]),
    "take": collected(lambda people: people.take(1)[0]["income"]),
    "tail": collected(lambda people: people.tail(1)[0]["income"]),
    "count": collected(lambda people: people.where("income > 30000").count()),
    "isEmpty": collected(lambda people: people.where("income > 30000").isEmpty()),
    "toPandas": collected(lambda people: people.toPandas()["income"][0]),
    "toArrow": collected(lambda people: people.toArrow()["income"][0]),
    "toLocalIterator": collected(lambda people: next(people.toLocalIterator())["income"]),
    "approxQuantile": collected(
        lambda people: people.withColumn("d", col("income").cast("double")).approxQuantile("d", [1.0], 0)
    ),
    "corr": collected(lambda people: people.selectExpr("double(number) AS a", "double(income) AS b").corr("a", "b")),
    "rdd": collected(lambda people: people.rdd.map(lambda row: row["phone"]).max()),
    "cache": lambda t: (t.people.cache(), t.people.selectExpr("number", "city AS out"))[-1],
    "show": lambda t: (t.people.show(), t.people.selectExpr("number", "city AS out"))[-1],
    "foreach": lambda t: (t.people.foreach(print), t.people.selectExpr("number", "city AS out"))[-1],
    "pivot without values": lambda t: t.people.groupBy("number").pivot("customer").count(),
    "a write of its own": lambda t: (
        t.people.write.parquet(t.lake.path("stolen")),
        t.people.selectExpr("number", "city AS out"),
    )[-1],
    "CREATE TABLE": sql_command("CREATE TABLE delta.`{stolen}` USING delta AS SELECT income FROM leak_people"),
    "INSERT": sql_command("INSERT INTO delta.`{cities}` SELECT phone, 1, income FROM leak_people"),
    "merge update": sql_command(
        "MERGE INTO delta.`{cities}` AS c USING leak_people AS p ON c.city = p.city AND p.number < 3"
        " WHEN MATCHED THEN UPDATE SET c.income = p.income"
    ),
    "order of the rows": lambda t: t.people.orderBy("income").select("number", F.monotonically_increasing_id().alias("out")),
    "observed on the way": lambda t: t.people.observe("seen", F.max("income").alias("top")).selectExpr("number", "city AS out"),
    "the file": lambda t: t.people.select("number", F.input_file_name().alias("out")),
    "the environment": lambda t: t.people.select("number", expr("reflect('java.lang.System', 'getenv', 'PATH')").alias("out")),
}


@pytest.mark.filterwarnings("ignore:toPandas attempted Arrow optimization")
@pytest.mark.parametrize("leak", ORIGINS)
def test_leak_past_the_trace(lake: Lake, leak: str) -> None:
    with pytest.raises(LineageError) as refused:
        write(lake.given(), ORIGINS[leak], out())  # frames of its own: one that was refused stays broken
    assert refused.value.do
    assert not list(Path(lake.path("stolen")).rglob("*.parquet"))
    assert [row["income"] for row in lake.read("cities").orderBy("city").collect()] == [0, 1, 2]


# Declassifiers that do not do what they say: refused by the flow check


DECLASSIFIED: dict[str, tuple[Build, Declassifier]] = {
    "a mask only declared": (each(lambda: col("phone")), MASK),
    "a mask of more than is declared": (each(lambda: Mask(4, "more")("phone")), MASK),
    "a mask that does not look at the length": (each(lambda: F.concat(lit("***"), F.right("phone", lit(2)))), MASK),
    "a mask of half the length": (
        each(lambda: when(F.length("phone") >= 2, F.concat(lit("***"), F.right("phone", lit(2)))).otherwise("***")),
        MASK,
    ),
    "a mask that looks at another text": (
        each(lambda: when(F.length("city") >= 4, F.concat(lit("***"), F.right("phone", lit(2)))).otherwise("***")),
        MASK,
    ),
    "a mask with the value beside it": (each(lambda: F.concat(MASK("phone"), "phone")), MASK),
    "a mask and the other end": (each(lambda: F.concat(Prefix(2, "the rest")("phone"), MASK("phone"))), MASK),
    "a mask of a part": (
        lambda t: (
            t.people.withColumn("part", F.rpad(F.substring("phone", 1, 2), 8, "x"))
            .withColumn("part", F.reverse("part"))
            .select("number", MASK("part").alias("out"))
        ),
        MASK,
    ),
    "a mask that should lower a category": (each(lambda: MASK("income")), MASK),
    "a prefix of a short text": (each(lambda: F.left("postcode", lit(3))), PREFIX),
    "a prefix that is longer than declared": (each(lambda: Prefix(4, "more")("postcode")), PREFIX),
    "a prefix of a prefix's column on one way": (
        lambda t: t.people.select("number", PREFIX("postcode").alias("out")).union(t.people.select("number", "postcode")),
        PREFIX,
    ),
    "a band narrower than declared": (each(lambda: F.floor(col("income") / 10) * 10), BAND),
    "a band of two widths": (each(lambda: F.floor(col("income") / 1) * 1000), BAND),
    "a band and its rest": (each(lambda: BAND("income") + col("income") % 1000), BAND),
    "a band of a multiple": (
        lambda t: t.people.withColumn("more", col("income") * 1000).select("number", BAND("more").alias("out")),
        BAND,
    ),
    "a day for a month": (each(lambda: F.trunc("born", "week")), MONTH),
    "a sum only declared": (by_team(lambda: F.sum("income")), MANY),
    "the max of many": (by_team(lambda: guarded(F.count_distinct("customer"), F.max("income"))), MANY),
    "the first of many": (by_team(lambda: guarded(F.count_distinct("customer"), F.first("income"))), MANY),
    "a list of many": (by_team(lambda: guarded(F.count_distinct("customer"), F.collect_list("income"))), MANY),
    "a sum of different values": (by_team(lambda: guarded(adding("income"), F.sum_distinct("income"))), MANY),
    "too few people": (by_team(lambda: guarded(adding("income"), F.sum("income"), 2)), MANY),
    "a count of rows": (
        by_team(lambda: guarded(F.count(when(col("income").isNotNull(), col("customer"))), F.sum("income"))),
        MANY,
    ),
    "a count of visits": (by_team(lambda: AtLeast("visit", "many visits").sum("income")), MANY),
    "an estimated count": (by_team(lambda: guarded(F.approx_count_distinct("customer"), F.sum("income"))), MANY),
    "people who add nothing": (
        by_team(lambda: guarded(F.count_distinct("customer"), F.sum(when(col("customer") == "c1", col("income"))))),
        MANY,
    ),
    "all but one turned to zero": (by_team(lambda: MANY.sum(when(col("customer") == "c1", col("income")).otherwise(0))), MANY),
    "all but one times zero": (by_team(lambda: MANY.sum(col("income") * (col("customer") == "c1").cast("int"))), MANY),
    "all but one cast to zero": (by_team(lambda: MANY.sum(col("income") * (col("income") / 26000).cast("int"))), MANY),
    "all but one next to nothing": (
        by_team(lambda: MANY.sum(col("income") / (1 + 1e6 * (col("number") - 7) * (col("number") - 7)))),
        MANY,
    ),
    "one far above all others": (by_team(lambda: MANY.sum(col("income") * col("number") * col("number"))), MANY),
    "zeros that count": (by_team(lambda: guarded(there("income"), F.sum("income"))), MANY),
    "zeros that a cast makes": (by_team(lambda: guarded(adding("income"), F.sum(col("income").cast("int")))), MANY),
    "zeros of another value": (by_team(lambda: guarded(adding("number"), F.sum("income"))), MANY),
    "zeros that are texts": (
        by_team(lambda: guarded(F.count_distinct(when(col("income") != lit("0"), col("customer"))), F.sum("income"))),
        MANY,
    ),
    "all but one turned to zero before": (
        lambda t: grouped(
            t.people.withColumn("only", when(col("customer") == "c1", col("income")).otherwise(0)), MANY.sum("only")
        ),
        MANY,
    ),
    "a filter on the sum": (
        by_team(lambda: guarded(adding("income"), expr("sum(income) FILTER (WHERE customer = 'c1')"))),
        MANY,
    ),
    "the value where there are too few": (
        by_team(lambda: F.coalesce(MANY.sum("income"), F.sum("income"))),
        MANY,
    ),
    "people of other rows": (
        lambda t: grouped(
            t.people.where("customer = 'c1'").crossJoin(t.people.select(col("customer").alias("other"))),
            AtLeast("other", "many").sum("income"),
        ),
        AtLeast("other", "many"),
    ),
    "people of other rows of one common table": (
        sql(
            "WITH p AS (SELECT number, team, customer, income FROM leak_people) SELECT max(a.number) AS number, CASE WHEN"
            " count(DISTINCT CASE WHEN b.income IS NOT NULL THEN a.customer END) >= 5 THEN sum(b.income) END AS out"
            " FROM p a JOIN p b ON b.customer = 'c1'"
        ),
        MANY,
    ),
    "one person's sum spread over many": (
        lambda t: grouped(t.people.withColumn("top", F.max("income").over(BY_TEAM())), MANY.sum("top")),
        MANY,
    ),
    "people made up": (
        lambda t: grouped(
            t.people.where("customer = 'c1'")
            .withColumn("copy", F.explode(F.sequence(lit(1), lit(9))))
            .withColumn("id", F.concat("customer", "copy")),
            AtLeast("id", "many").sum("income"),
        ),
        AtLeast("id", "many"),
    ),
    "people of two tables": (
        lambda t: grouped(
            t.people.where("customer = 'c1'")
            .select("number", "team", "customer", "income")
            .union(t.people.select("number", "team", "customer", lit(0))),
            MANY.sum("income"),
        ),
        MANY,
    ),
    "a group key without a threshold": (
        lambda t: t.people.groupBy(col("postcode").alias("out")).agg(
            F.max("number").alias("number"), F.count_distinct("customer").alias("people")
        ),
        MANY,
    ),
    "a group key with a threshold on rows": (
        lambda t: (
            t.people.groupBy(col("postcode").alias("out"))
            .agg(F.max("number").alias("number"), F.count(lit(1)).alias("rows"))
            .where("rows >= 5")
        ),
        MANY,
    ),
    "a group key with a threshold or none": (
        lambda t: (
            t.people.groupBy(col("postcode").alias("out"))
            .agg(F.max("number").alias("number"), F.count_distinct("customer").alias("people"))
            .where("people >= 5 OR number > 3")
        ),
        MANY,
    ),
    "a group key of other rows": (
        lambda t: AtLeast("other", "many").groups(
            t.people.where("customer = 'c1'").crossJoin(t.people.select(col("customer").alias("other"))),
            [col("phone").alias("out")],
            F.max("number").alias("number"),
        ),
        AtLeast("other", "many"),
    ),
    "a number beside enough people": (
        lambda t: MANY.groups(t.people, ["team"], F.max("number").alias("number"), F.sum("income").alias("out")),
        MANY,
    ),
    "a pseudonym of something computed": (each(lambda: F.concat("customer", "city")), PSEUDONYM),
    "a pseudonym of a condition": (each(lambda: (col("customer") == "c1").cast("string")), PSEUDONYM),
    "a pseudonym of what is no name": (each(lambda: col("income")), PSEUDONYM),
}


@pytest.mark.parametrize("leak", DECLASSIFIED)
def test_leak_past_a_declassifier(given: Given, leak: str) -> None:
    build, declared = DECLASSIFIED[leak]
    with pytest.raises(FlowError):
        write(given, build, out(declassified=declared))


@pytest.mark.parametrize(
    "leak",
    [
        (MASK, "phone", PUBLIC),  # a label is lowered by one level at most, and never below INTERNAL
        (MASK, "secret", INTERNAL),
        (BAND, "income", INTERNAL),  # what is rough still is what it is about
        (PREFIX, "postcode", INTERNAL),
    ],
    ids=lambda leak: f"{type(leak[0]).__name__} to {leak[2]}",
)
def test_leak_below_what_a_declassifier_lowers(given: Given, leak: tuple[Any, str, Label]) -> None:
    declared, source, label = leak
    with pytest.raises(FlowError):
        write(given, each(lambda: declared(source)), out(label, declared))


def test_leak_of_two_halves(given: Given) -> None:
    """Each column is legal by itself."""
    two = Prefix(6, "the area")
    halves = out(INTERNAL, Mask(6, "the end")), out(INTERNAL + CONTACT, two, "start")

    def build(t: Given) -> DataFrame:
        return t.people.select("number", halves[0].declassified("phone").alias("out"), two("phone").alias("start"))

    for column in halves:
        write(given, build, column)
    with pytest.raises(FlowError, match="columns show different parts of one source column"):
        write(given, build, *halves)


def test_leak_of_two_halves_of_one_person(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two tables that name the same people."""
    monkeypatch.setitem(LABELS["silver.cities"], "city", PERSON)
    two = Prefix(2, "the region")
    halves = out(INTERNAL, MASK), out(INTERNAL + IDENTIFIER, two, "start")

    def build(t: Given) -> DataFrame:
        same = t.people.join(t.cities.select(col("city").alias("same")), col("customer") == col("same"))
        return same.select("number", MASK("customer").alias("out"), two("same").alias("start"))

    for column in halves:
        write(given, build, column)
    with pytest.raises(FlowError, match="different parts of one source column") as refused:
        write(given, build, *halves)
    assert refused.value.found == (
        "silver.people.customer [CONFIDENTIAL + IDENTIFIER]: MASK(2) as out; "
        "silver.cities.city [CONFIDENTIAL + IDENTIFIER]: PREFIX(2) as start"
    )


# What decides which rows there are: refused on strict tables, accepted on others

STRICT: dict[str, Build] = {
    "filter": lambda t: t.people.where("income > 30000"),
    "join": lambda t: t.people.join(t.cities.select(col("size").alias("income")), "income"),
    "outer join": lambda t: t.people.drop("city").join(t.cities, t.people["income"] == t.cities["size"], "left"),
    "semi join": lambda t: t.people.join(t.cities.select(col("size").alias("income")), "income", "left_semi"),
    "anti join": lambda t: t.people.join(t.cities.select(col("size").alias("income")), "income", "left_anti"),
    "group": lambda t: t.people.groupBy("income", "city").agg(F.min("number").alias("number")),
    "distinct": lambda t: t.people.select("city", "phone", "number").distinct(),
    "one of those alike": lambda t: t.people.dropDuplicates(["phone"]),
    "order and limit": lambda t: t.people.orderBy("income").limit(3),
    "place of a window": lambda t: t.people.withColumn("place", F.row_number().over(BY_TEAM().orderBy("income"))).where(
        "place = 1"
    ),
    "partition of a window": lambda t: t.people.withColumn(
        "number", F.count(lit(1)).over(Window.partitionBy("phone")).cast("int")
    ),
    "number of rows": lambda t: t.people.withColumn("more", F.explode(F.split("phone", "9"))),
    "intersect": sql("SELECT number, city, phone FROM leak_people INTERSECT SELECT number, city, phone FROM leak_people"),
    "exists": sql("SELECT * FROM leak_people o WHERE EXISTS (SELECT 1 FROM leak_people p WHERE p.income > o.income)"),
    "python function": lambda t: t.people.mapInArrow(same_batches, t.people.schema).select("number").join(t.people, "number"),
}
CITY = Column("city", "string", PUBLIC, "Where.")


@pytest.mark.parametrize("leak", STRICT)
def test_leak_by_which_rows_there_are(given: Given, leak: str) -> None:
    write(given, STRICT[leak], CITY)
    with pytest.raises(FlowError) as refused:
        write(given, STRICT[leak], CITY, strict=True)
    assert "gold.out.city [PUBLIC]" in refused.value.found


def test_leak_by_a_rule_that_rejects_rows(given: Given) -> None:
    income = Column("income", "decimal(18,4)", INCOME, "What they earn.")
    rule = Check("not_rich", "income < 30000")
    for table in ({"checks": (rule,)}, {"strict": True}, {"strict": True, "checks": (Check("not_rich", rule.rule, "warn"),)}):
        write(given, lambda t: t.people, CITY, income, **table)
    with pytest.raises(FlowError, match=r"gold.out.income \[CONFIDENTIAL \+ FINANCIAL\] -> FILTER -> gold.out.city \[PUBLIC\]"):
        write(given, lambda t: t.people, CITY, income, strict=True, checks=(rule,))


# Honest work

HONEST_EXPRESSIONS: dict[str, tuple[Callable[[], Expression], Column]] = {
    "as it is": (lambda: col("income"), out(INCOME)),
    "raised": (lambda: col("income"), out(RESTRICTED + FINANCIAL + BEHAVIOUR)),
    "public": (lambda: F.upper("city"), out(PUBLIC)),
    "public in many forms": (lambda: F.to_json(F.struct("city", F.array(F.length("city"), F.hash("city")))), out(PUBLIC)),
    "literal": (lambda: lit("EUR"), out(PUBLIC)),
    "two values under both labels": (lambda: F.concat("customer", "phone"), out(PERSON + CONTACT)),
    "condition under its label": (lambda: when(col("income") > 30000, col("city")), out(INCOME)),
    "public condition": (lambda: when(col("city") == "city 1", 1).otherwise(0), out(PUBLIC)),
    "hash under its label": (lambda: F.sha2("customer", 256), out(PERSON)),
    "python udf of public": (lambda: F.udf(lambda value: value, "string")("city"), out(PUBLIC)),
    "window over a person, of public": (lambda: F.max("city").over(Window.partitionBy("customer")), out(PUBLIC)),
    "place in a public order": (lambda: F.row_number().over(BY_TEAM().orderBy("number")), out()),
    "count in a window": (lambda: F.count(lit(1)).over(BY_TEAM()), out()),
    "raw column that nobody tagged": (lambda: col("secret"), out(CLOSED)),
    "mask": (lambda: MASK("phone"), out(INTERNAL, MASK)),
    "mask, then more": (lambda: F.upper(F.concat(MASK("phone"), lit("/"), "city")), out(INTERNAL, MASK)),
    "mask of an id": (lambda: MASK("customer"), out(INTERNAL, MASK)),
    "prefix": (lambda: PREFIX("postcode"), out(INTERNAL + LOCATION, PREFIX)),
    "band of an amount": (lambda: BAND("income"), out(INTERNAL + FINANCIAL, BAND)),
    "band in words": (lambda: F.concat(lit("from "), BAND("income").cast("string")), out(INTERNAL + FINANCIAL, BAND)),
    "band of days": (lambda: MONTH("born"), out(INTERNAL + DEMOGRAPHIC, MONTH)),
    "pseudonym": (lambda: col("customer"), out(INTERNAL, PSEUDONYM)),
    "condition on a band": (lambda: when(BAND("income") >= 30000, "rich"), out(INTERNAL + FINANCIAL, BAND)),
}

HONEST: dict[str, tuple[Build, Column]] = {
    "join on a public column": (
        lambda t: t.people.join(t.cities.select("city", "size"), "city").withColumnRenamed("size", "out"),
        out(PUBLIC),
    ),
    "join on a person, of public": (
        lambda t: t.people.join(t.people.selectExpr("customer", "city AS out"), "customer"),
        out(PUBLIC),
    ),
    "filter on a value": (lambda t: t.people.where("income > 30000").selectExpr("number", "city AS out"), out(PUBLIC)),
    "order by a value": (lambda t: t.people.orderBy("income").selectExpr("number", "city AS out"), out(PUBLIC)),
    "distinct": (lambda t: t.people.selectExpr("number", "city AS out").distinct(), out(PUBLIC)),
    "semi join": (lambda t: t.people.join(t.cities, "city", "left_semi").selectExpr("number", "city AS out"), out(PUBLIC)),
    "union": (
        lambda t: t.people.selectExpr("number", "city AS out").unionByName(t.cities.selectExpr("size AS number", "city AS out")),
        out(PUBLIC),
    ),
    "explode": (lambda t: t.people.select("number", F.explode(F.split("city", " ")).alias("out")), out(PUBLIC)),
    "pivot": (lambda t: t.people.groupBy("number").pivot("city", ["out"]).agg(F.max("city")), out(PUBLIC)),
    "unpivot": (
        lambda t: t.people.select("number", "city", "team").unpivot("number", ["city", "team"], "name", "out"),
        out(),
    ),
    "count of rows": (
        lambda t: t.people.groupBy("team").agg(F.max("number").alias("number"), F.count(lit(1)).alias("out")),
        out(),
    ),
    "rollup": (lambda t: t.people.rollup("number", "city").count().withColumnRenamed("city", "out"), out(PUBLIC)),
    "self-join": (
        lambda t: (
            t.people.alias("a").join(t.people.alias("b"), expr("a.number = b.number + 1")).selectExpr("a.number", "b.city AS out")
        ),
        out(PUBLIC),
    ),
    "re-aliased parameter": (lambda t: t.people.alias("p").selectExpr("p.number", "p.city AS out"), out(PUBLIC)),
    "hints": (
        lambda t: t.people.repartition(2, "city").join(F.broadcast(t.cities), "city").selectExpr("number", "city AS out"),
        out(PUBLIC),
    ),
    "limit": (lambda t: t.people.orderBy("number").limit(3).selectExpr("number", "city AS out"), out(PUBLIC)),
    "range": (lambda t: t.lake.spark.range(3).selectExpr("int(id) AS number", "'x' AS out"), out(PUBLIC)),
    "view and SQL": (sql("SELECT p.number, c.size AS out FROM leak_people p JOIN leak_cities c USING (city)"), out(PUBLIC)),
    "common table": (sql("WITH few AS (SELECT number, city FROM leak_people) SELECT number, city AS out FROM few"), out(PUBLIC)),
    "subquery": (sql("SELECT number, (SELECT max(size) FROM leak_cities) AS out FROM leak_people"), out()),
    "python function of public": (
        lambda t: t.people.select("number", "city").mapInArrow(same_batches, "number int, out string"),
        out(),
    ),
    "masked in one table of two": (
        lambda t: t.people.select("number", MASK("phone").alias("out")).union(t.cities.selectExpr("size", "city")),
        out(INTERNAL, MASK),
    ),
    "masked after a join": (
        lambda t: (
            t.people.select("number")
            .join(t.people.withColumnRenamed("phone", "p"), "number")
            .select("number", MASK("p").alias("out"))
        ),
        out(INTERNAL, MASK),
    ),
    "pseudonym after a union and a rename": (
        lambda t: t.people.selectExpr("number", "customer AS out").union(t.people.selectExpr("number", "customer")),
        out(INTERNAL, PSEUDONYM),
    ),
    "pseudonym of a group key": (
        lambda t: t.people.groupBy(col("customer").alias("out")).agg(F.max("number").alias("number")),
        out(INTERNAL, PSEUDONYM),
    ),
    "sum over many": (by_team(lambda: MANY.sum("income")), out(INTERNAL, MANY)),
    "mean over many": (by_team(lambda: MANY.mean("income").cast("decimal(18,4)")), out(INTERNAL, MANY)),
    "how many people": (by_team(lambda: MANY.count_distinct("customer")), out(INTERNAL, MANY)),
    "how many phones": (by_team(lambda: MANY.count("phone")), out(INTERNAL, MANY)),
    "ratio of two sums": (by_team(lambda: MANY.sum("income") / MANY.count_distinct("visit")), out(INTERNAL, MANY)),
    "sum of what was cast": (by_team(lambda: MANY.sum(col("income").cast("double"))), out(INTERNAL, MANY)),
    "sum of a sum and a product": (
        by_team(lambda: MANY.sum("income") * 3 + MANY.sum("number") - MANY.sum(lit(1))),
        out(INTERNAL, MANY),
    ),
    "sum under a condition": (by_team(lambda: MANY.sum(when(col("born") > "1955-01-01", col("income")))), out(INTERNAL, MANY)),
    "sum of zero where there are too few": (by_team(lambda: F.coalesce(MANY.sum("income"), lit(0))), out(INTERNAL, MANY)),
    "sum over more than five": (
        by_team(lambda: AtLeast("customer", "many", 6).sum("income")),
        out(INTERNAL, AtLeast("customer", "many", 6)),
    ),
    "sum after a join with public": (
        lambda t: (
            t.people.join(t.cities.select("city", "size"), "city")
            .groupBy("size")
            .agg(F.max("number").alias("number"), MANY.sum("income").alias("out"))
        ),
        out(INTERNAL, MANY),
    ),
    "sum in SQL": (
        sql(
            "SELECT max(number) AS number, CASE WHEN count(DISTINCT CASE WHEN income != 0 THEN customer END) >= 5"
            " THEN sum(income) END AS out FROM leak_people GROUP BY team"
        ),
        out(INTERNAL, MANY),
    ),
    "key of many": (
        lambda t: MANY.groups(t.people, [col("postcode").alias("out")], F.max("number").alias("number")),
        out(INTERNAL, MANY),
    ),
    "computed key of many": (
        lambda t: MANY.groups(t.people, [F.year("born").alias("out")], F.max("number").alias("number")),
        out(INTERNAL, MANY),
    ),
    "key of many in SQL": (
        sql(
            "SELECT postcode AS out, max(number) AS number FROM leak_people GROUP BY postcode"
            " HAVING count(DISTINCT customer) >= 5"
        ),
        out(INTERNAL, MANY),
    ),
    "sum over many, joined back": (
        lambda t: t.people.select("number", "team").join(t.people.groupBy("team").agg(MANY.sum("income").alias("out")), "team"),
        out(INTERNAL, MANY),
    ),
}


@pytest.mark.parametrize("work", HONEST_EXPRESSIONS)
def test_honest_expression(given: Given, work: str) -> None:
    expression, column = HONEST_EXPRESSIONS[work]
    write(given, each(expression), column)


@pytest.mark.parametrize("work", HONEST)
def test_honest_rows(given: Given, work: str) -> None:
    build, column = HONEST[work]
    write(given, build, column)


@pytest.mark.parametrize(
    "build",
    [
        lambda t: t.people.where("number > 3").join(t.cities.select("city", "size"), "city").orderBy("number"),
        lambda t: t.people.groupBy("team", "city").agg(F.min("number").alias("number")),
    ],
    ids=["rows chosen by open columns", "groups of open columns"],
)
def test_honest_strict_table(given: Given, build: Build) -> None:
    write(given, build, Column("city", "string", INTERNAL, "Where."), strict=True)


def test_as_many_as_promised() -> None:
    refused = len(EXPRESSIONS) + len(BUILDS) + len(ORIGINS) + len(DECLASSIFIED) + len(STRICT)
    accepted = len(HONEST_EXPRESSIONS) + len(HONEST)
    assert refused >= 40 and accepted >= 40


# What a refusal says


def test_a_refusal_prints_the_way_both_labels_and_the_cure(given: Given) -> None:
    def build(t: Given) -> DataFrame:
        doubled = t.people.withColumn("doubled", col("income") * 2)
        return doubled.groupBy("number").agg(F.max("doubled").alias("out"))

    with pytest.raises(FlowError) as refused:
        write(given, build, out())
    assert refused.value.found == (
        "silver.people.income [CONFIDENTIAL + FINANCIAL] -> TRANSFORMATION -> doubled -> TRANSFORMATION -> AGGREGATION"
        " -> gold.out.out [INTERNAL]"
    )
    assert refused.value.do == (
        "label out CONFIDENTIAL + FINANCIAL, or declare it `declassified` by AtLeast (wares.lake.declassify), used on every way"
    )


def test_a_refused_job_says_what_was_called(lake: Lake) -> None:
    with pytest.raises(LineageError, match="The build of gold.out runs a Spark job") as refused:
        write(lake.given(), ORIGINS["collect"], out())
    assert refused.value.found == "collectToPython"
    assert lake.read("people").count() == 14  # outside of a build, all is as before


@pytest.mark.parametrize(
    "declare",
    [
        lambda: AtLeast("customer", "few", 4),
        lambda: Mask(0, "none"),
        lambda: Prefix(0, "none"),
        lambda: Band(1, "all"),
        lambda: Band("day", "all"),
        lambda: Mask(2, " "),
    ],
    ids=["few people", "no character", "no prefix", "no band", "no period", "no reason"],
)
def test_declassifiers_that_do_not_hide_are_not_to_be_had(declare: Callable[[], Declassifier]) -> None:
    with pytest.raises(FlowError):
        declare()
