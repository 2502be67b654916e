"""Which inputs of a build can be cut to some keys: rule by rule with answers written by hand, and random plans really cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import reduce
from itertools import cycle, product
from operator import and_, or_
from typing import Any

import pytest
from helpers import frame_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql.functions import (
    array,
    coalesce,
    col,
    count,
    explode,
    expr,
    input_file_name,
    lit,
    max,
    monotonically_increasing_id,
    rand,
    rank,
    row_number,
    sum,
    udf,
    upper,
)
from wares.errors import CutError, LineageError
from wares.lake.cut import key_columns
from wares.lake.lineage import relation_alias

TOKEN = "0123456789abcdef"
USER = ("source", "user_id")
TABLES = {
    "orders": "source STRING, order_id STRING, user_id STRING, product_id STRING, giver_id STRING, value INT",
    "events": "source STRING, event_id STRING, user_id STRING, product_id STRING, tags ARRAY<STRING>",
    "users": "source STRING, user_id STRING, city STRING",
    "products": "source STRING, product_id STRING, category STRING",
}

Frames = dict[str, DataFrame]
Build = Callable[[Frames], DataFrame]


@pytest.fixture(scope="module")
def frames(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Frames:
    """The tables above as the store hands them out, in Parquet; no test reads their rows."""
    folder = tmp_path_factory.mktemp("cut")
    found = {}
    for name, columns in TABLES.items():
        frame_of(spark, [], columns).write.parquet(f"{folder}/{name}")
        found[name] = spark.read.parquet(f"{folder}/{name}").alias(relation_alias(f"silver.{name}", 1, TOKEN))
        found[name].createOrReplaceTempView(f"cut_{name}")
    return found


def by_user(frame: DataFrame) -> DataFrame:
    return frame.groupBy("source", "user_id").agg(count("*").alias("n"))


def by_condition(how: str, *chosen: str) -> Build:
    def build(t: Frames) -> DataFrame:
        left, right = by_user(t["orders"]).alias("l"), by_user(t["events"]).alias("r")
        joined = left.join(right, expr("l.source = r.source AND l.user_id <=> r.user_id AND l.n > 1"), how)
        return joined.withColumn("more", lit(1)).selectExpr(*chosen)

    return build


LEFT, RIGHT = ("l.source", "l.user_id"), ("r.source", "r.user_id")
EITHER = ("coalesce(l.source, r.source) AS source", "coalesce(r.user_id, l.user_id) AS user_id")

ROWS: list[Build] = [
    lambda t: t["orders"],
    lambda t: t["orders"].where("value > 1").orderBy("value").select("user_id", "value", "source"),
    lambda t: t["orders"].withColumn("twice", col("value") * 2).repartition(3, "product_id").hint("rebalance"),
    lambda t: t["orders"].select("*", explode(array("product_id", "giver_id")).alias("one")),
    lambda t: by_user(t["orders"]).where("n > 1"),
    lambda t: t["orders"].groupBy("product_id", "user_id", "source").agg(max("value")),
    lambda t: t["orders"].groupBy(*USER).pivot("product_id", ["x", "y"]).agg(sum("value")),
    lambda t: t["orders"].groupingSets([["source", "user_id", "product_id"], ["source", "user_id"]], *USER, "product_id").count(),
    lambda t: t["orders"].withColumn("place", row_number().over(Window.partitionBy("user_id", "source").orderBy("value"))),
    lambda t: t["orders"].dropDuplicates(["source", "user_id", "product_id"]),
    lambda t: t["orders"].select("source", "user_id", "product_id").distinct(),
    lambda t: t["orders"].join(by_user(t["orders"]), ["source", "user_id"]),
    lambda t: t["orders"].unionByName(t["orders"].where("value = 1")),
]
"""Builds that cut orders, their only input, by (source, user_id)."""


@pytest.mark.parametrize("build", ROWS)
def test_one_input(frames: Frames, build: Build) -> None:
    assert key_columns(build(frames), USER, TOKEN) == {"silver.orders": USER}


def test_keys_come_in_the_order_asked_for_under_the_names_of_the_input(frames: Frames) -> None:
    frame = frames["orders"].select(col("user_id").alias("who"), col("source").alias("shop"))
    assert key_columns(frame, ("shop", "who"), TOKEN) == {"silver.orders": ("source", "user_id")}
    assert key_columns(frame, ("who", "shop"), TOKEN) == {"silver.orders": ("user_id", "source")}
    assert key_columns(frame, ("who",), TOKEN) == {"silver.orders": ("user_id",)}


@pytest.mark.parametrize(
    "build",
    [
        lambda t: t["orders"].join(t["events"], ["source", "user_id"]),
        lambda t: t["orders"].join(by_user(t["events"]), ["source", "user_id"], "left"),
        lambda t: t["orders"].join(by_user(t["events"]), ["source", "user_id"], "right"),
        lambda t: by_user(t["orders"]).join(t["events"], ["source", "user_id"], "full"),
        lambda t: t["orders"].join(t["events"], ["source", "user_id"], "left_semi"),
        lambda t: t["orders"].join(t["events"], ["source", "user_id", "product_id"], "left_anti"),
        by_condition("inner", *LEFT),
        by_condition("inner", *RIGHT),
        by_condition("left", *LEFT),
        by_condition("left", *EITHER),
        by_condition("right", *RIGHT),
        by_condition("full", *EITHER),
        lambda t: by_condition("full", "*")(t).groupBy(*map(expr, EITHER)).agg(count("*")),
        lambda t: (
            by_condition("full", *LEFT, "r.source AS s", "r.user_id AS u")(t)
            .groupBy("source", "user_id", "s", "u")
            .agg(count("*"))
            .selectExpr("coalesce(source, s) AS source", "coalesce(user_id, u) AS user_id")
        ),
        lambda t: t["orders"].select(*USER, "product_id").union(t["events"].select(*USER, "product_id")),
        lambda t: t["orders"].select(*USER).intersect(t["events"].select(*USER)),
        lambda t: t["orders"].select(*USER).exceptAll(t["events"].select(*USER)),
    ],
)
def test_two_inputs_that_are_both_cut(frames: Frames, build: Build) -> None:
    assert key_columns(build(frames), USER, TOKEN) == {"silver.orders": USER, "silver.events": USER}


def test_a_key_that_each_input_calls_otherwise(frames: Frames) -> None:
    orders = frames["orders"].select("source", lit("purchase").alias("kind"), col("order_id").alias("reference"))
    events = frames["events"].select("source", lit("view").alias("kind"), col("event_id").alias("reference"))
    assert key_columns(orders.unionByName(events), ("source", "reference"), TOKEN) == {
        "silver.orders": ("source", "order_id"),
        "silver.events": ("source", "event_id"),
    }


def test_a_filter_makes_columns_equal(frames: Frames) -> None:
    joined = frames["orders"].where("user_id = giver_id").join(frames["users"], ["source"]).select("source", "giver_id")
    assert key_columns(joined, ("source", "giver_id"), TOKEN) == {"silver.orders": ("source", "user_id")}
    by_giver = frames["orders"].where("giver_id <=> user_id").groupBy("source", "giver_id").agg(max("user_id").alias("m"))
    assert key_columns(by_giver, ("source", "giver_id"), TOKEN) == {"silver.orders": ("source", "user_id")}


@pytest.mark.parametrize(
    "build",
    [
        lambda t: t["orders"].join(t["products"], ["source", "product_id"]),
        lambda t: t["orders"].join(t["products"], ["source", "product_id"], "left"),
        lambda t: t["products"].join(t["orders"], ["source", "product_id"], "right"),
        lambda t: t["orders"].join(t["products"], ["source", "product_id"], "left_semi"),
        lambda t: t["orders"].join(t["products"], ["source", "product_id"], "left_anti"),
        lambda t: t["orders"].crossJoin(t["products"].agg(count("*").alias("n"))),
        lambda t: t["orders"].join(t["products"].groupBy("source").agg(count("*").alias("n")), "source"),
        lambda t: t["orders"].where(col("product_id").isin("x") | (col("value") > t["products"].agg(count("*")).scalar())),
        lambda t: t["orders"].join(t["products"].sparkSession.range(3), expr("value = id"), "left"),
        lambda t: t["orders"].select("source", "user_id").exceptAll(t["products"].select("source", upper("category"))),
        lambda t: t["orders"].select("source", "user_id").intersect(t["products"].select("source", upper("category"))),
    ],
)
def test_an_input_without_the_keys_stays_whole(frames: Frames, build: Build) -> None:
    assert key_columns(build(frames), USER, TOKEN) == {"silver.orders": USER}


def same(batches: Iterator[Any]) -> Iterator[Any]:
    yield from batches


def test_an_input_that_is_also_looked_up_by_another_key_stays_whole(frames: Frames) -> None:
    givers = frames["users"].select("source", col("user_id").alias("giver_id"), col("city").alias("giver_city"))
    frame = frames["orders"].join(frames["users"], ["source", "user_id"]).join(givers, ["source", "giver_id"])
    assert key_columns(frame, USER, TOKEN) == {"silver.orders": USER}


def test_an_input_that_is_also_counted_as_a_whole_stays_whole(frames: Frames) -> None:
    share = frames["users"].groupBy("source").agg(count("*").alias("users"))
    frame = frames["orders"].join(frames["users"], ["source", "user_id"]).join(share, "source")
    assert key_columns(frame, USER, TOKEN) == {"silver.orders": USER}


def test_common_tables_and_views(spark: SparkSession, frames: Frames) -> None:
    frame = spark.sql(
        "WITH lines AS (SELECT source, user_id AS who, value FROM cut_orders),"
        " sums AS (SELECT source, who, sum(value) AS total FROM lines GROUP BY source, who)"
        " SELECT who, lines.source, value / total AS share FROM lines JOIN sums USING (source, who)"
        " WHERE EXISTS (SELECT 1 FROM cut_products AS p WHERE p.category = who)"
    )
    assert key_columns(frame, ("source", "who"), TOKEN) == {"silver.orders": USER}


def test_a_column_twice_in_a_union(frames: Frames) -> None:
    other = frames["orders"].select("source", "user_id", "giver_id")
    both = frames["users"].select("source", "user_id", "user_id").union(other).toDF("source", "user_id", "again")
    assert key_columns(both, USER, TOKEN) == {"silver.orders": USER, "silver.users": USER}
    by_again = {"silver.orders": ("source", "giver_id"), "silver.users": USER}
    assert key_columns(both, ("source", "again"), TOKEN) == by_again


def on(condition: str, how: str) -> Build:
    """Orders joined with themselves under the names l and r, with the columns of l."""
    return lambda t: t["orders"].alias("l").join(t["orders"].alias("r"), expr(condition), how).select("l.*")


def lookup(how: str, left: str, right: str) -> Build:
    return lambda t: t[left].join(t[right], ["source", "product_id"], how)


def whole_beside(how: str) -> Build:
    """Rows of products, which have no user, with orders."""

    def build(t: Frames) -> DataFrame:
        rows = t["products"].select("source", upper("category").alias("user_id"))
        orders = t["orders"].select(*USER)
        met = rows.join(orders, list(USER), how) if how.startswith("left") else getattr(rows, how)(orders)
        return met.join(t["orders"], list(USER), "full")

    return build


def window(*columns: str) -> Build:
    return lambda t: t["orders"].withColumn("n", count("*").over(Window.partitionBy(*columns)))


def sql(query: str) -> Build:
    return lambda t: t["orders"].sparkSession.sql(query)


def in_arrow(t: Frames) -> DataFrame:
    return t["orders"].mapInArrow(same, t["orders"].schema)


def in_pandas(t: Frames) -> DataFrame:
    return t["orders"].groupBy(*USER).applyInPandas(lambda rows: rows, t["orders"].schema)


@pytest.mark.parametrize(
    "build",
    [
        in_arrow,
        lambda t: t["orders"].select(*USER, "value").mapInPandas(lambda rows: rows, "user_id STRING, n INT, source STRING"),
        lambda t: in_arrow(t).groupBy(*USER).count(),
        lambda t: in_arrow(t).join(t["products"], ["source", "product_id"], "left_semi"),
    ],
)
def test_python_that_is_said_to_keep_to_the_keys(frames: Frames, build: Build) -> None:
    assert key_columns(build(frames), USER, TOKEN, python_by_key=True) == {"silver.orders": USER}


@pytest.mark.parametrize(
    ("found", "build"),
    [
        # What it is said to do is held against the plan all the same.
        ("user_id is computed by Literal", lambda t: in_arrow(t).select("source", lit("ann").alias("user_id"))),
        (
            "user_id is computed by a Python function",
            lambda t: t["orders"].mapInArrow(same, "source STRING, giver_id STRING").withColumnRenamed("giver_id", "user_id"),
        ),
        (
            "Aggregate over silver.orders goes by source, not by user_id",
            lambda t: in_arrow(t).join(t["orders"].groupBy("source").agg(max("value").alias("most")), "source"),
        ),
        ("has a Python function", lambda t: t["orders"].withColumn("value", udf(lambda value: value)("value"))),
        ("FlatMapGroupsInPandas is a step of which nothing is known", in_pandas),
    ],
)
def test_what_python_is_not_said_to_do(frames: Frames, found: str, build: Build) -> None:
    with pytest.raises(CutError) as caught:
        key_columns(build(frames), USER, TOKEN, python_by_key=True)
    assert found in caught.value.found


def seen_by_anyone(t: Frames) -> DataFrame:
    """Orders of products with events, whoever's, beside the events."""
    seen = t["events"].select("source", "product_id").distinct()
    return t["orders"].join(seen, ["source", "product_id"], "left_semi").join(t["events"], list(USER), "full")


OF_TWO = "over silver.events, silver.orders"
REFUSED: list[tuple[str, Build]] = [
    # Rows of several keys are put together.
    (
        "Aggregate over silver.orders goes by nothing, not by source",
        lambda t: t["orders"].crossJoin(t["orders"].agg(max("value").alias("most"))),
    ),
    (
        "Aggregate over silver.orders goes by source, not by user_id",
        lambda t: t["orders"].join(t["orders"].groupBy("source").agg(max("value").alias("most")), "source"),
    ),
    (
        "Aggregate over silver.orders goes by source, Upper, not by user_id",
        lambda t: t["orders"].groupBy("source", upper("user_id").alias("u")).count().join(t["orders"], "source"),
    ),
    ("Aggregate over silver.orders goes by source, user_id", lambda t: t["orders"].rollup(*USER).agg(sum("value"))),
    ("Window over silver.orders goes by nothing, not by source", window()),
    ("Window over silver.orders goes by source, value, not by user_id", window("source", "value")),
    ("Deduplicate over silver.orders goes by source, not by user_id", lambda t: t["orders"].dropDuplicates(["source"])),
    ("Join over silver.orders (Inner) does not make user_id equal", on("l.source = r.source AND l.value = r.value", "inner")),
    (
        "Join over silver.orders (Inner) does not make user_id equal",
        on("l.source = r.source AND l.user_id = r.giver_id", "inner"),
    ),
    ("(Inner) does not make user_id equal", on("l.source = r.source AND (l.user_id = r.user_id OR l.value = 1)", "inner")),
    ("(LeftSemi) does not make user_id equal", on("l.source = r.source AND l.user_id >= r.user_id", "left_semi")),
    ("(LeftAnti) does not make user_id equal", on("l.source = r.source AND NOT l.user_id = r.user_id", "left_anti")),
    ("Join over silver.orders (Cross) does not make source equal", lambda t: t["orders"].crossJoin(t["orders"])),
    ("Project over silver.events loses user_id", seen_by_anyone),
    # Rows that are not cut stand by themselves.
    ("(LeftOuter) keeps all rows of silver.products, which is not cut", lookup("left", "products", "orders")),
    ("(RightOuter) keeps all rows of silver.products, which is not cut", lookup("right", "orders", "products")),
    ("(FullOuter) keeps all rows of silver.products, which is not cut", lookup("full", "orders", "products")),
    ("(LeftSemi) keeps all rows of silver.products", whole_beside("left_semi")),
    ("(LeftAnti) keeps all rows of silver.products", whole_beside("left_anti")),
    ("Union over silver.orders, silver.products takes all rows of silver.products", whole_beside("union")),
    ("Intersect over silver.orders, silver.products takes all rows of silver.products", whole_beside("intersect")),
    ("Except over silver.orders, silver.products takes all rows of silver.products", whole_beside("exceptAll")),
    # A sub-query is not followed.
    (
        "Filter over silver.orders has a sub-query",
        sql("SELECT * FROM cut_orders WHERE (source, user_id) IN (FROM cut_orders |> SELECT source, user_id)"),
    ),
    (
        "Aggregate over silver.orders goes by nothing",
        sql("SELECT *, (SELECT max(value) FROM cut_orders) AS most FROM cut_orders"),
    ),
    # The output does not hold the keys.
    (
        "source is silver.orders.source; user_id is computed by Upper",
        lambda t: t["orders"].withColumn("user_id", upper("user_id")),
    ),
    ("user_id is computed by Coalesce", lambda t: t["orders"].withColumn("user_id", coalesce("user_id", lit("unknown")))),
    ("user_id is computed by Max", lambda t: t["orders"].groupBy("source").agg(max("user_id").alias("user_id"))),
    (
        "source is silver.products.source; user_id is silver.users.user_id",
        lambda t: t["products"].join(t["users"].drop("source")),
    ),
    ("MapInArrow has a Python function, which may see many rows at once", in_arrow),
    ("FlatMapGroupsInPandas is a step of which nothing is known", in_pandas),
    ("loses user_id", lambda t: t["orders"].select(*USER).union(t["orders"].select("source", "giver_id"))),
    (f"Project {OF_TWO} loses source", by_condition("full", *LEFT)),
    (
        f"the output {OF_TWO} has a source that is not always the key",
        by_condition("left", *RIGHT, "l.source AS s", "l.user_id AS u"),
    ),
    # What is picked depends on all rows, or on the run.
    ("GlobalLimit picks rows by their place", lambda t: t["orders"].limit(3)),
    ("GlobalLimit picks rows by their place", lambda t: t["orders"].join(t["users"].orderBy("city").limit(3), list(USER))),
    ("Offset picks rows by their place", lambda t: t["orders"].offset(3)),
    ("Sample picks rows by their place", lambda t: t["orders"].sample(0.5, seed=1)),
    ("rand in Project is not the same in each run", lambda t: t["orders"].withColumn("any", rand(7) + 1)),
    ("uuid in Filter is not the same in each run", lambda t: t["orders"].where(expr("uuid()") > "a")),
    (
        "monotonically_increasing_id in Project",
        lambda t: t["orders"].withColumn("any", monotonically_increasing_id()).where("any > 1"),
    ),
    ("input_file_name in Project", lambda t: t["orders"].withColumn("file", input_file_name())),
    ("Project looks at the files of an input", lambda t: t["orders"].select("*", "_metadata.file_path")),
    # Python functions, and steps that are not known.
    (
        "Project has a Python function",
        lambda t: t["orders"].withColumn("more", udf(lambda v: v, "int")("value")),
    ),
    ("LateralJoin is a step of which nothing is known", sql("SELECT o.* FROM cut_orders AS o, LATERAL (SELECT o.value)")),
    ("RDD is a step", lambda t: t["orders"].unionByName(t["orders"].localCheckpoint())),
]


@pytest.mark.parametrize(("found", "build"), REFUSED)
def test_refused(frames: Frames, found: str, build: Build) -> None:
    with pytest.raises(CutError) as refused:
        key_columns(build(frames), USER, TOKEN)
    assert found in refused.value.found, refused.value.found
    assert "declare refresh=FULL" in refused.value.do


def test_keys_that_are_no_columns(frames: Frames) -> None:
    for keys in ((), ("source", "customer")):
        with pytest.raises(CutError, match="columns of its own"):
            key_columns(frames["orders"], keys, TOKEN)


def test_only_relations_from_the_store_are_believed(frames: Frames) -> None:
    with pytest.raises(LineageError, match="did not hand out"):
        key_columns(frames["orders"].join(frames["users"], ["source", "user_id"]), USER, "another token")


# Random plans, whose inputs are really cut: small trees of steps over rows (p, q, v) with few values, among them null.

Step = tuple[Any, ...]

VALUES = [None, 1, 2]
HOWS = ["inner", "left", "right", "full", "left_semi", "left_anti"]
MATCHES = [
    ["l.p = r.p", "l.q = r.q"],
    ["l.p = r.p", "l.q <=> r.q"],
    ["l.p <=> r.p", "l.q <=> r.q", "l.v < r.v"],
    ["l.p <=> r.p", "l.q = r.q", "l.q = r.v"],
    ["l.p = r.p"],
    ["l.q = r.q"],
    ["l.q <=> r.p", "l.v = r.v"],
    ["l.p = r.p", "l.p = r.q", "l.p = l.q"],
]
ROWS_ALONE = ["v > 1", "q = 1 OR p = v", "p = v", "p <=> q"]
COLUMNS = ["p q v+1", "p q p", "q p v", "p+0 q v", "p coalesce(q,p) v", "v q p"]


def trees(depth: int) -> st.SearchStrategy[Step]:
    """Trees of which a good share can be cut by (p, q), but many only nearly so."""
    leaf = st.tuples(st.just("leaf"), st.sampled_from("aaabbc"), st.sampled_from([False, False, False, True]))
    if depth == 0:
        return leaf
    below = one_of(leaf, leaf, trees(depth - 1))
    groups = st.sampled_from(["p q", "p q", "p q v", "q p", "p", "q", ""])
    join = st.tuples(
        st.just("join"), st.sampled_from(HOWS), st.sampled_from(MATCHES), st.sampled_from(["l", "r", "l r", "r l"]), below, below
    )
    group = st.tuples(st.sampled_from(["aggregate", "window", "dedupe", "sets"]), groups, below)
    pair = st.tuples(st.sampled_from(["union", "intersect", "exceptAll"]), below, below)
    where = st.tuples(st.just("filter"), st.sampled_from(ROWS_ALONE), below)
    select = st.tuples(st.just("select"), st.sampled_from(COLUMNS), below)
    other = one_of(st.tuples(st.sampled_from(["explode", "distinct"]), below), st.tuples(st.just("scalar"), below, leaf))
    return one_of(join, join, join, group, group, pair, where, select, other)


def one_of(*choices: st.SearchStrategy[Step]) -> st.SearchStrategy[Step]:
    """One of these with equal chances: `st.one_of` would spread them over the choices within."""
    return st.sampled_from(choices).flatmap(lambda chosen: chosen)


def built(step: Step, t: Frames) -> DataFrame:
    """The rows (p, q, v) of a tree of steps."""
    kind, *rest = step
    if kind == "leaf":
        table, swapped = rest
        columns = {"c": ["w AS p", "q", "w AS v"]}.get(table, ["p", "q", "v"])
        return t[table].selectExpr(*columns).selectExpr(*(["q AS p", "p AS q", "v"] if swapped else ["p", "q", "v"]))
    if kind == "join":
        return joined(*rest, t)
    if kind in ("union", "intersect", "exceptAll"):
        return getattr(built(rest[0], t), kind)(built(rest[1], t))
    if kind == "scalar":
        return built(rest[0], t).where(col("v") <= built(rest[1], t).agg(max("v")).scalar())
    below = built(rest[-1], t)
    if kind == "filter":
        return below.where(rest[0])
    if kind == "select":
        return below.selectExpr(*rest[0].split()).toDF("p", "q", "v")
    if kind == "explode":
        return below.withColumn("v", explode(array("v", col("v") + 1)))
    if kind == "distinct":
        return below.distinct()
    groups = rest[0].split()
    if kind == "window":
        within = Window.partitionBy(*groups)
        return below.withColumn("v", coalesce(sum("v").over(within), lit(0)) + rank().over(within.orderBy("p", "q", "v")))
    others = [(sum if name == "v" else max)(name).alias(name) for name in "pqv" if name not in groups]
    if kind == "aggregate":
        return below.groupBy(*groups).agg(count("*"), *others).select("p", "q", "v")
    if kind == "sets":
        sets = [groups, list(dict.fromkeys([*groups, "v"]))]
        others = [max(name).alias(name) for name in "pq" if name not in groups]
        return below.groupingSets(sets, *sets[1]).agg(count("*"), *others).select("p", "q", "v")
    assert kind == "dedupe"
    rows = below.dropDuplicates(groups) if groups else below.dropDuplicates()
    return rows.select(*(col(name) if name in groups else lit(1).cast("bigint").alias(name) for name in "pqv"))


def joined(how: str, conditions: list[str], sides: str, left: Step, right: Step, t: Frames) -> DataFrame:
    rows = built(left, t).alias("l").join(built(right, t).alias("r"), expr(" AND ".join(conditions) or "true"), how)
    if how in ("left_semi", "left_anti"):
        return rows
    keys = (coalesce(*(f"{side}.{name}" for side in sides.split())).alias(name) for name in "pq")
    return rows.select(*keys, (coalesce("l.v", lit(0)) * 3 + coalesce("r.v", lit(0))).alias("v"))


@pytest.fixture(scope="module")
def tables(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Frames:
    """Tables a(p, q, v), b(p, q, v) and c(q, w), with nulls and repeated rows, in a session that wastes no time on code."""
    folder = tmp_path_factory.mktemp("random")
    pairs = list(product(VALUES, VALUES))
    rows = {
        "a": ("p BIGINT, q BIGINT, v BIGINT", [(*pair, v) for pair, v in zip(pairs[:7] + pairs[5:7], count_up(), strict=False)]),
        "b": ("p BIGINT, q BIGINT, v BIGINT", [(*pair, v) for pair, v in zip(pairs[3:] + pairs[::4], count_up(), strict=False)]),
        "c": ("q BIGINT, w BIGINT", [(None, 1), (1, 2), (1, None), (2, 2)]),
    }
    session = spark.newSession()
    for name, value in {
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        "spark.sql.adaptive.enabled": "false",
        "spark.sql.shuffle.partitions": "1",
    }.items():
        session.conf.set(name, value)
    for name, (columns, data) in rows.items():
        frame_of(spark, data, columns).coalesce(1).write.parquet(f"{folder}/{name}")
    return {name: session.read.parquet(f"{folder}/{name}").alias(relation_alias(name, 1, TOKEN)) for name in rows}


def count_up() -> Iterator[int | None]:
    return cycle([1, 2, None, 3])


def is_one_of(columns: tuple[str, ...], keys: set[tuple[int | None, ...]], inside: bool) -> Column:
    """Whether a row's key is one of these (or, not inside, is none of them), with null as a value."""
    each = (reduce(and_, (col(name).eqNullSafe(lit(value)) for name, value in zip(columns, key, strict=True))) for key in keys)
    return reduce(or_, each) == lit(inside)


KINDS = [
    "aggregate",
    "window",
    "dedupe",
    "sets",
    "union",
    "intersect",
    "exceptAll",
    "filter",
    "select",
    "explode",
    "distinct",
    "scalar",
]


@pytest.mark.slow
def test_cutting_the_inputs_restricts_the_output(tables: Frames) -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=90, derandomize=True, deadline=None, database=None)
    @given(st.data(), st.sampled_from([("p", "q"), ("p", "q"), ("p",)]), one_of(trees(1), trees(2)))
    def check(data: st.DataObject, keys: tuple[str, ...], step: Step) -> None:
        frame = built(step, tables)
        try:
            columns = key_columns(frame, keys, TOKEN)
        except CutError:
            seen["refused"] += 1
            return
        seen.update({"accepted", *flat(step)})
        some = data.draw(st.sets(st.tuples(*[st.sampled_from([*VALUES, 3])] * len(keys)), min_size=1))
        inside = data.draw(st.booleans())
        cut = {name: tables[name].where(is_one_of(by, some, inside)) for name, by in columns.items()}
        found = Counter(tuple(row) for row in built(step, {**tables, **cut}).collect())
        wanted = Counter(tuple(row) for row in frame.collect() if (tuple(row[: len(keys)]) in some) == inside)
        assert found == wanted

    check()
    assert seen["accepted"] > seen["refused"], seen
    assert len([kind for kind in (*KINDS, *HOWS) if not seen[kind]]) <= 3, seen  # nearly every kind of step was accepted once


def flat(step: Any) -> Iterator[str]:
    """All words of a tree of steps."""
    if isinstance(step, str):
        yield step
    elif isinstance(step, (tuple, list)):
        for part in step:
            yield from flat(part)
