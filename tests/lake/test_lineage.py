"""Column lineage from the analysed plan, with answers written by hand; what cannot be told is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql.functions import (
    col,
    count,
    cume_dist,
    current_date,
    current_timestamp,
    explode,
    expr,
    input_file_name,
    lag,
    lit,
    monotonically_increasing_id,
    ntile,
    pandas_udf,
    rand,
    rank,
    row_number,
    sum,
    udf,
    when,
)
from wares.errors import LineageError
from wares.lake.lineage import Flow, Leaves, relation_alias, trace

LEAVES = Leaves()
DECIDES = {"FILTER", "JOIN", "GROUP_BY", "SORT", "WINDOW"}


@pytest.fixture(scope="module")
def path(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tables t(a, b, c, s, list) and u(a, d) in one Parquet folder each; no test reads their rows."""
    folder = tmp_path_factory.mktemp("lineage")
    row = "'k' AS a, 1 AS b, 'x' AS c, named_struct('f', 1, 'g', 'y') AS s, array(1, 2) AS list"
    spark.sql(f"SELECT {row}").write.parquet(str(folder / "t"))
    spark.sql("SELECT 'k' AS a, 2 AS d").write.parquet(str(folder / "u"))
    return str(folder)


@pytest.fixture
def t(spark: SparkSession, path: str) -> DataFrame:
    return LEAVES.hand_out(spark.read.parquet(f"{path}/t"), "silver.t", 3)


@pytest.fixture
def u(spark: SparkSession, path: str) -> DataFrame:
    return LEAVES.hand_out(spark.read.parquet(f"{path}/u"), "silver.u", 0)


def ways(flow: Flow) -> dict[str, set[str]]:
    """A flow in short: `t.a` with its ways, each the kinds of its steps in alphabetical order; '' for the value as it is."""
    return {str(ref).removeprefix("silver."): {"+".join(sorted(path)) for path in paths} for ref, paths in flow.items()}


def direct(frame: DataFrame) -> dict[str, dict[str, set[str]]]:
    return {column: ways(flow) for column, flow in trace(frame, LEAVES).direct.items()}


def indirect(frame: DataFrame) -> dict[str, set[str]]:
    """What decides the rows, and how; whether the value was computed with on the way is left out."""
    flow = trace(frame, LEAVES).indirect
    return {str(ref).removeprefix("silver."): {kind for path in paths for kind in path & DECIDES} for ref, paths in flow.items()}


def test_projection_and_rename(t: DataFrame) -> None:
    frame = t.select("a", col("b").alias("n"), (col("b") + 1).alias("more"), lit(7).alias("seven")).withColumnRenamed("a", "key")
    assert direct(frame) == {"key": {"t.a": {""}}, "n": {"t.b": {""}}, "more": {"t.b": {"TRANSFORMATION"}}, "seven": {}}
    assert indirect(frame) == {}


def test_filter_and_sort_decide_rows_only(t: DataFrame) -> None:
    frame = t.where("b > 1").orderBy("c").select("a")
    assert direct(frame) == {"a": {"t.a": {""}}}
    assert indirect(frame) == {"t.b": {"FILTER"}, "t.c": {"SORT"}}


def test_join(t: DataFrame, u: DataFrame) -> None:
    frame = t.join(u, "a").select("a", "b", "d")
    assert direct(frame) == {"a": {"t.a": {""}}, "b": {"t.b": {""}}, "d": {"u.d": {""}}}
    assert indirect(frame) == {"t.a": {"JOIN"}, "u.a": {"JOIN"}}


def test_full_join_chooses_the_key_from_both_sides(t: DataFrame, u: DataFrame) -> None:
    assert direct(t.join(u, "a", "full").select("a")) == {"a": {"t.a": {"CONDITIONAL"}, "u.a": {"CONDITIONAL"}}}


def test_anti_join_shows_one_side_and_depends_on_both(t: DataFrame, u: DataFrame) -> None:
    frame = t.join(u, "a", "left_anti").select("b")
    assert direct(frame) == {"b": {"t.b": {""}}}
    assert indirect(frame) == {"t.a": {"JOIN"}, "u.a": {"JOIN"}}


def test_self_join_keeps_the_sides_apart(t: DataFrame) -> None:
    frame = t.alias("l").join(t.alias("r"), expr("l.a = r.c")).select(col("l.b").alias("left"), (col("r.b") * 2).alias("right"))
    assert direct(frame) == {"left": {"t.b": {""}}, "right": {"t.b": {"TRANSFORMATION"}}}
    assert indirect(frame) == {"t.a": {"JOIN"}, "t.c": {"JOIN"}}


def test_aggregate_with_filter(t: DataFrame) -> None:
    frame = t.groupBy("a").agg(
        sum("b").alias("total"), expr("count(*) FILTER (WHERE c = 'x')").alias("some"), count(lit(1)).alias("n")
    )
    assert direct(frame) == {
        "a": {"t.a": {"GROUP_BY"}},
        "total": {"t.b": {"AGGREGATION+TRANSFORMATION"}},
        "some": {"t.c": {"AGGREGATION+TRANSFORMATION"}},
        "n": {},
    }
    assert indirect(frame) == {"t.a": {"GROUP_BY"}}


def test_window_partition_and_order_are_indirect(t: DataFrame) -> None:
    by_a = Window.partitionBy("a").orderBy("c")
    frame = t.select(row_number().over(by_a).alias("place"), lag("b").over(by_a).alias("before"))
    assert direct(frame) == {"place": {"t.c": {"TRANSFORMATION"}}, "before": {"t.b": {"TRANSFORMATION"}}}
    assert indirect(frame) == {"t.a": {"WINDOW"}, "t.c": {"WINDOW"}}


def test_union_by_place_and_by_name(t: DataFrame, u: DataFrame) -> None:
    assert direct(t.select("b").union(u.select("d"))) == {"b": {"t.b": {""}, "u.d": {""}}}
    by_name = t.select("a", "b").unionByName(u, allowMissingColumns=True)
    assert direct(by_name) == {"a": {"t.a": {""}, "u.a": {""}}, "b": {"t.b": {""}}, "d": {"u.d": {""}}}


def test_explode_makes_values_and_decides_rows(t: DataFrame) -> None:
    frame = t.select("a", explode("list").alias("one"))
    assert direct(frame) == {"a": {"t.a": {""}}, "one": {"t.list": {"TRANSFORMATION"}}}
    assert indirect(frame) == {"t.list": {"FILTER"}}


def test_field_of_a_struct(t: DataFrame) -> None:
    assert direct(t.select(col("s.f").alias("f"))) == {"f": {"t.s": {"TRANSFORMATION"}}}


def test_case_lets_its_condition_flow(t: DataFrame) -> None:
    frame = t.select(when(col("c") == "x", col("b")).otherwise(0).alias("chosen"), expr("coalesce(c, a)").alias("either"))
    assert direct(frame) == {
        "chosen": {"t.c": {"CONDITIONAL+TRANSFORMATION"}, "t.b": {"CONDITIONAL"}},
        "either": {"t.c": {"CONDITIONAL"}, "t.a": {"CONDITIONAL"}},
    }
    assert indirect(frame) == {}


def test_subqueries_through_a_view(spark: SparkSession, t: DataFrame, u: DataFrame) -> None:
    t.createOrReplaceTempView("lineage_t")
    u.createOrReplaceTempView("lineage_u")
    frame = spark.sql(
        "SELECT a, (SELECT max(d) FROM lineage_u) AS top FROM lineage_t"
        " WHERE EXISTS (SELECT 1 FROM lineage_u AS inside WHERE inside.a = lineage_t.c)"
    )
    assert direct(frame) == {"a": {"t.a": {""}}, "top": {"u.d": {"AGGREGATION+TRANSFORMATION"}}}
    assert indirect(frame) == {"u.a": {"FILTER"}, "t.c": {"FILTER"}}


def test_in_subquery_and_common_table(spark: SparkSession, t: DataFrame, u: DataFrame) -> None:
    t.createOrReplaceTempView("lineage_t")
    u.createOrReplaceTempView("lineage_u")
    frame = spark.sql("WITH few AS (SELECT a, b FROM lineage_t) SELECT b FROM few WHERE a IN (SELECT a FROM lineage_u)")
    assert direct(frame) == {"b": {"t.b": {""}}}
    assert indirect(frame) == {"t.a": {"FILTER"}, "u.a": {"FILTER"}}


def test_pivot_lets_the_pivoted_column_flow(t: DataFrame) -> None:
    found = direct(t.groupBy("a").pivot("c", ["x", "y"]).agg(sum("b")))
    assert found["a"].keys() == {"t.a"}
    for column in ("x", "y"):
        assert found[column].keys() == {"t.b", "t.c"}
        assert all("AGGREGATION" in way or "GROUP_BY" in way for paths in found[column].values() for way in paths)


def test_rollup_groups_by_its_keys_in_each_set(t: DataFrame) -> None:
    frame = t.rollup("a", "c").agg(sum("b").alias("total"), expr("grouping_id()").alias("level"))
    found = direct(frame)
    assert {column: flow.keys() for column, flow in found.items()} == {
        "a": {"t.a"},
        "c": {"t.c"},
        "total": {"t.b"},
        "level": set(),
    }
    assert indirect(frame) == {"t.a": {"GROUP_BY"}, "t.c": {"GROUP_BY"}}


def test_unpivot_puts_columns_below_each_other(t: DataFrame) -> None:
    frame = t.select("a", "b", col("s.f").alias("f"), "c").unpivot("a", ["b", "f"], "name", "value")
    assert direct(frame) == {"a": {"t.a": {""}}, "name": {}, "value": {"t.b": {""}, "t.s": {"TRANSFORMATION"}}}
    assert indirect(frame) == {}


def test_rollup_in_a_subquery(spark: SparkSession, t: DataFrame, u: DataFrame) -> None:
    most = "SELECT max(n) FROM (SELECT c, count(b) AS n FROM {t} GROUP BY ROLLUP (c))"
    found = direct(spark.sql(f"SELECT d, ({most}) AS most FROM {{u}}", t=t, u=u))
    assert {column: flow.keys() for column, flow in found.items()} == {"d": {"u.d"}, "most": {"t.b", "t.c"}}


def test_a_python_function_takes_everything_it_sees(t: DataFrame) -> None:
    def same(batches: Iterator[Any]) -> Iterator[Any]:
        yield from batches

    frame = t.select("a", "b").mapInArrow(same, "a string, n long")
    everything = {"t.a": {"TRANSFORMATION"}, "t.b": {"TRANSFORMATION"}}
    assert direct(frame) == {"a": everything, "n": everything}
    assert indirect(frame) == {"t.a": {"FILTER"}, "t.b": {"FILTER"}}


def test_python_udfs_take_from_their_arguments(t: DataFrame) -> None:
    first = udf(lambda a, b: a, "string")

    @pandas_udf("double")
    def mean(values: pd.Series) -> float:
        return values.mean()

    assert direct(t.select(first("a", "b").alias("x"), "c")) == {
        "x": {"t.a": {"TRANSFORMATION"}, "t.b": {"TRANSFORMATION"}},
        "c": {"t.c": {""}},
    }
    grouped = t.groupBy("a").agg(mean("b").alias("mean"))
    assert {column: flow.keys() for column, flow in direct(grouped).items()} == {"a": {"t.a"}, "mean": {"t.b"}}
    assert indirect(grouped) == {"t.a": {"GROUP_BY"}}


def test_python_functions_on_groups_take_everything(t: DataFrame, u: DataFrame) -> None:
    def one(frame: Any) -> Any:
        return frame

    def two(left: Any, right: Any) -> Any:
        return left

    def batches(frames: Iterator[Any]) -> Iterator[Any]:
        yield from frames

    few = t.select("a", "b")
    for frame in (few.mapInPandas(batches, "n long"), few.groupBy("a").applyInPandas(one, "n long")):
        assert direct(frame) == {"n": {"t.a": {"TRANSFORMATION"}, "t.b": {"TRANSFORMATION"}}}
        assert indirect(frame) == {"t.a": {"FILTER"}, "t.b": {"FILTER"}}
    both = few.groupBy("a").cogroup(u.groupBy("a")).applyInPandas(two, "n long")
    assert direct(both)["n"].keys() == indirect(both).keys() == {"t.a", "t.b", "u.a", "u.d"}


def test_distinct_depends_on_all_its_columns(t: DataFrame) -> None:
    for frame in (t.select("a", "b").distinct(), t.select("a", "b").dropDuplicates()):
        assert direct(frame) == {"a": {"t.a": {""}}, "b": {"t.b": {""}}}
        assert indirect(frame) == {"t.a": {"FILTER"}, "t.b": {"FILTER"}}


def test_rows_of_no_table_flow_from_nowhere(spark: SparkSession) -> None:
    assert direct(spark.range(3)) == {"id": {}}


@pytest.mark.parametrize(
    ("build", "found"),
    [
        (lambda spark, t: t.sparkSession.createDataFrame([(1,)], "n int"), "Logical|Local"),
        (lambda spark, t: spark.sql("VALUES (1)"), "LocalRelation"),
        (lambda spark, t: t.localCheckpoint(), "LogicalRDD"),
        (lambda spark, t: t.select("a").union(spark.createDataFrame([("1",)], "a string")), "Logical|Local"),
        (lambda spark, t: t.withColumn("at", current_timestamp()), "CurrentTimestamp"),
        (lambda spark, t: t.where(current_date() > lit("2024-01-01")), "CurrentDate"),
        (lambda spark, t: t.withColumn("any", rand(7)), "Rand"),
        (lambda spark, t: t.withColumn("who", expr("uuid()")), "Uuid"),
        (lambda spark, t: t.orderBy("b").withColumn("place", monotonically_increasing_id()), "MonotonicallyIncreasingID"),
        (lambda spark, t: t.withColumn("file", input_file_name()), "InputFileName"),
        (
            lambda spark, t: t.withColumn("user", expr("java_method('java.lang.System', 'getenv', 'HOME')")),
            "CallMethodViaReflection",
        ),
    ],
)
def test_origins_that_cannot_be_told_are_refused(
    spark: SparkSession, t: DataFrame, build: Callable[..., DataFrame], found: str
) -> None:
    with pytest.raises(LineageError) as refused:
        trace(build(spark, t), LEAVES)
    assert any(name in refused.value.found for name in found.split("|")), refused.value.found
    assert refused.value.do


def test_only_relations_from_the_store_are_believed(spark: SparkSession, path: str, t: DataFrame) -> None:
    reader = spark.read.parquet(f"{path}/t")
    for stranger in (
        reader,
        reader.alias("t"),
        reader.alias(relation_alias("silver.t", 3, "another")),
        t.join(reader.select("b")),
    ):
        with pytest.raises(LineageError):
            trace(stranger, LEAVES)
    with pytest.raises(LineageError, match="a relation under the alias 'orders'"):
        trace(reader.alias("orders"), LEAVES)


def test_an_alias_copied_from_another_table_is_seen_through(spark: SparkSession, path: str, t: DataFrame, u: DataFrame) -> None:
    """A build can read the token in its own frames' plans; what stands under the alias must be what was handed out."""
    copied = relation_alias("silver.u", 0, LEAVES.token)
    with pytest.raises(LineageError, match="reads something under the alias of another table"):
        trace(spark.read.parquet(f"{path}/t").alias(copied), LEAVES)
    again = spark.read.parquet(f"{path}/u").alias(copied)  # the same relation read once more is what it says it is
    assert direct(u.join(again.select("a"), "a").select("d")) == {"d": {"u.d": {""}}}


def test_trails_tell_steps_and_names_in_order(t: DataFrame) -> None:
    frame = t.select("a", (col("b") + 1).alias("more")).groupBy("a").agg(sum("more").alias("total"))
    found = {column: list(paths.values()) for column, flow in trace(frame, LEAVES).direct.items() for paths in flow.values()}
    assert found == {"a": [("GROUP_BY",)], "total": [("TRANSFORMATION", "more", "TRANSFORMATION", "AGGREGATION")]}


def test_a_place_in_an_order_is_made_of_what_orders(t: DataFrame) -> None:
    by_a = Window.partitionBy("a").orderBy("c")
    frame = t.select(rank().over(by_a).alias("rank"), ntile(4).over(by_a).alias("quarter"), cume_dist().over(by_a).alias("share"))
    assert direct(frame) == {name: {"t.c": {"TRANSFORMATION"}} for name in ("rank", "quarter", "share")}
