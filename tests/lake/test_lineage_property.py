"""The lineage read from a plan, held against what changing one input column does to the rows, on random plans.

The oracle knows nothing of plans. Each input column is changed in several ways, the query runs on all these worlds at
once, and each row carries its provenance: the input rows that it was made of. Rows of the same provenance whose value
differs show a flow into that column; rows of another provenance show that the column decides which rows there are.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql.functions import expr
from wares.lake.lineage import Flow, Leaves, trace

pytestmark = pytest.mark.slow
LEAVES = Leaves()
NAMES = ("c0", "c1", "c2")
"""Every frame of a plan has these columns."""

COLLECTED = "array_join(sort_array(collect_list(_from)), '+')"

Rows = list[dict[str, Any]]

T_ROWS: Rows = [
    {"k": 1, "a": 3, "b": 11, "s": {"f": 4, "g": 2}, "xs": [5, 6]},
    {"k": 1, "a": 4, "b": 12, "s": {"f": 7, "g": 9}, "xs": []},
    {"k": 2, "a": 6, "b": 17, "s": {"f": 1, "g": 3}, "xs": [8]},
    {"k": 2, "a": 1, "b": None, "s": {"f": 9, "g": 5}, "xs": [2, 9, 4]},
    {"k": 3, "a": 9, "b": 21, "s": {"f": 2, "g": 8}, "xs": [7, 7]},
    {"k": 3, "a": None, "b": 23, "s": {"f": 5, "g": 6}, "xs": [1]},
    {"k": None, "a": 2, "b": 27, "s": {"f": 3, "g": 1}, "xs": [3, 5]},
    {"k": 1, "a": 5, "b": 31, "s": {"f": 8, "g": 7}, "xs": [9]},
]
U_ROWS: Rows = [
    {"k": 1, "d": 2, "e": 42},
    {"k": 1, "d": 8, "e": 45},
    {"k": 2, "d": 5, "e": 43},
    {"k": 2, "d": 3, "e": None},
    {"k": 3, "d": 7, "e": 48},
    {"k": 3, "d": 9, "e": 46},
    {"k": 4, "d": 1, "e": 53},
    {"k": None, "d": 6, "e": 59},
]
TABLES = {"t": T_ROWS, "u": U_ROWS}
TYPES = {"t": "k long, a long, b long, s struct<f: long, g: long>, xs array<long>", "u": "k long, d long, e long"}

# Ways to change a number, given the row's place.
CHANGES: list[Callable[[int, int], int]] = [
    lambda value, place: value + 1,
    lambda value, place: value + 1000,
    lambda value, place: value - 1000,
    lambda value, place: value + 37 * place + 1,
    lambda value, place: value + (1000 if place == 0 else 0),
    lambda value, place: value + (1 if place == 2 else 0),
    lambda value, place: value % 2,
]


# Worlds: the same tables with one column changed


def changed(value: Any, change: Callable[[int, int], int], place: int) -> Any:
    if isinstance(value, dict):
        return {name: change(inner, place) for name, inner in value.items()}
    if isinstance(value, list):
        return [change(inner, place) for inner in value]
    return None if value is None else change(value, place)


def versions(values: list[Any]) -> Iterator[list[Any]]:
    """A column's values, changed in every way."""
    for change in CHANGES:
        yield [changed(value, change, place) for place, value in enumerate(values)]
    yield values[1:] + values[:1]
    yield [None, *values[1:]]
    if isinstance(values[0], list):
        yield [value[:-1] for value in values]
        yield [[] for _ in values]


@dataclass(frozen=True, repr=False)
class Lake:
    """The tables as a plan reads them, the same in all worlds, and the column that each world has changed."""

    plain: dict[str, DataFrame]
    worlds: dict[str, DataFrame]
    changed: dict[int, str]


@pytest.fixture(scope="module")
def lake(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    folder = tmp_path_factory.mktemp("worlds")
    worlds: dict[int, dict[str, Rows]] = {0: TABLES}
    column_of: dict[int, str] = {}
    for table, rows in TABLES.items():
        for column in rows[0]:
            for values in versions([row[column] for row in rows]):
                column_of[len(worlds)] = f"{table}.{column}"
                new = [{**row, column: value} for row, value in zip(rows, values, strict=True)]
                worlds[len(worlds)] = {**TABLES, table: new}
    plain, all_worlds = {}, {}
    for table, type in TYPES.items():
        rows = [
            Row(_w=world, _from=f"{table}{place}", **row)
            for world, tables in worlds.items()
            for place, row in enumerate(tables[table])
        ]
        frame = spark.createDataFrame(rows, f"_w long, _from string, {type}").coalesce(1)
        frame.write.parquet(f"{folder}/{table}_worlds")
        frame.where("_w = 0").drop("_w", "_from").write.parquet(f"{folder}/{table}")
        plain[table] = LEAVES.hand_out(spark.read.parquet(f"{folder}/{table}"), f"silver.{table}", 0)
        all_worlds[table] = spark.read.parquet(f"{folder}/{table}_worlds")
    before = {key: spark.conf.get(key) for key in ("spark.sql.shuffle.partitions", "spark.sql.adaptive.enabled")}
    spark.conf.set("spark.sql.shuffle.partitions", "1")
    spark.conf.set("spark.sql.adaptive.enabled", "false")
    yield Lake(plain, all_worlds, column_of)
    for key, value in before.items():
        spark.conf.set(key, value)


# Plans, as they are and over all worlds with provenance


@dataclass(frozen=True)
class Plan:
    """A node of a plan: its kind, what it reads, and how, as Spark SQL text."""

    kind: str
    of: tuple[Plan, ...]
    how: tuple[Any, ...]


def named(expressions: tuple[str, ...], names: tuple[str, ...] = NAMES) -> list[str]:
    return [f"{expression} AS {name}" for expression, name in zip(expressions, names, strict=True)]


def prefixed(frame: DataFrame, prefix: str) -> DataFrame:
    """The columns as l0, l1, l2; those of the worlds as l_w and l_from."""
    return frame.toDF(*(prefix + name.removeprefix("c") for name in frame.columns))


def plain(plan: Plan, tables: dict[str, DataFrame]) -> DataFrame:
    """The plan in Spark's own words."""
    frames = [plain(child, tables) for child in plan.of]
    match (plan.kind, *frames, *plan.how):
        case ("leaf", table, expressions):
            return tables[table].selectExpr(*named(expressions))
        case ("project", child, expressions):
            return child.selectExpr(*named(expressions))
        case ("filter", child, condition):
            return child.where(condition)
        case ("join", left, right, how, condition, expressions):
            return prefixed(left, "l").join(prefixed(right, "r"), expr(condition), how).selectExpr(*named(expressions))
        case ("shared", child, condition, expressions):
            query = "WITH x AS (SELECT * FROM {child}) SELECT * FROM x AS l(l0, l1, l2) JOIN x AS r(r0, r1, r2) ON " + condition
            return child.sparkSession.sql(query, child=child).selectExpr(*named(expressions))
        case ("aggregate", child, keys, values):
            return child.groupBy(*keys).agg(*map(expr, values)).toDF(*NAMES)
        case ("rollup", child, keys, value):
            return child.rollup(*keys).agg(expr(value)).toDF(*NAMES)
        case ("pivot", child, key, by, value):
            return child.groupBy(key).pivot(by, [2, 5]).agg(expr(f"sum({value})")).toDF(*NAMES)
        case ("window", child, expressions, function, partition, order):
            over = f"CAST({function} OVER (PARTITION BY {partition} ORDER BY {order}) AS LONG)"
            return child.selectExpr(*named((*expressions, over)))
        case ("limit", child, number):
            return child.orderBy(*NAMES).limit(number)
        case ("distinct", child):
            return child.distinct()
        case ("union" | "intersect" | "subtract", left, right):
            return getattr(left, plan.kind)(right)
        case ("exists", outer, inner, negated, condition):
            query = f"SELECT * FROM {{o}} WHERE {negated} EXISTS (SELECT 1 FROM {{i}} WHERE {condition})"
            return outer.sparkSession.sql(query, o=outer, i=prefixed(inner, "i"))
        case ("in", outer, inner, value, among):
            query = f"SELECT * FROM {{o}} WHERE {value} IN (SELECT {among} FROM {{i}})"
            return outer.sparkSession.sql(query, o=outer, i=prefixed(inner, "i"))
        case ("scalar", outer, inner, value, equal):
            query = f"SELECT c0, c1, (SELECT {value} FROM {{i}} WHERE {equal[0]} = {equal[1]}) AS c2 FROM {{o}}"
            return outer.sparkSession.sql(query, o=outer, i=prefixed(inner, "i"))
    raise AssertionError(plan)


def over_worlds(plan: Plan, tables: dict[str, DataFrame]) -> DataFrame:
    """The plan with two more columns: the world `_w`, which keeps all that is done apart, and the provenance `_from`."""
    frames = [over_worlds(child, tables) for child in plan.of]
    match (plan.kind, *frames, *plan.how):
        case ("leaf", table, expressions) if expressions[-1] == "explode(xs)":
            made = tables[table].selectExpr("_w", "_from", *named(expressions[:-1], NAMES[:-1]), "posexplode(xs) AS (place, c2)")
            return made.selectExpr("_w", "concat(_from, '#', place) AS _from", *NAMES)
        case ("leaf", table, expressions):
            return tables[table].selectExpr("_w", "_from", *named(expressions))
        case ("project", child, expressions):
            return child.selectExpr("_w", "_from", *named(expressions))
        case ("filter", child, condition):
            return child.where(condition)
        case ("join", left, right, how, condition, expressions):
            joined = prefixed(left, "l").join(prefixed(right, "r"), expr(f"l_w = r_w AND {condition}"), how)
            if how in ("left_semi", "left_anti"):
                return joined.selectExpr("l_w AS _w", "l_from AS _from", *named(expressions))
            both = ("coalesce(l_w, r_w) AS _w", "concat(coalesce(l_from, ''), '*', coalesce(r_from, '')) AS _from")
            return joined.selectExpr(*both, *named(expressions))
        case ("shared", _, condition, expressions):
            return over_worlds(Plan("join", plan.of * 2, ("inner", condition, expressions)), tables)
        case ("aggregate", child, keys, values):
            return child.groupBy("_w", *keys).agg(*map(expr, (*values, COLLECTED))).toDF("_w", *NAMES, "_from")
        case ("rollup", child, keys, value):
            sets = [["_w", *keys[:length]] for length in (2, 1, 0)]
            made = child.groupingSets(sets, "_w", *keys).agg(expr(value), expr(f"concat(grouping_id(), {COLLECTED})"))
            return made.toDF("_w", *NAMES, "_from")
        case ("pivot", child, key, by, value):
            values = [f"sum(CASE WHEN {by} = {number} THEN {value} END)" for number in (2, 5)]
            return over_worlds(Plan("aggregate", plan.of, ((key,), values)), tables)
        case ("window", child, expressions, function, partition, order):
            over = f"OVER (PARTITION BY _w, {partition} ORDER BY {order})"
            seen = f"concat(_from, '/', array_join(sort_array(collect_list(_from) {over}), '+')) AS _from"
            return child.selectExpr("_w", seen, *named((*expressions, f"CAST({function} {over} AS LONG)")))
        case ("limit", child, number):
            place = expr("row_number() OVER (PARTITION BY _w ORDER BY c0, c1, c2, _from)")
            return child.withColumn("place", place).where(f"place <= {number}").drop("place")
        case ("distinct", child):
            return over_worlds(Plan("aggregate", plan.of, (NAMES, ())), tables)
        case ("union", left, right):
            sides = [frame.withColumn("_from", expr(f"concat('{side}', _from)")) for side, frame in (("l", left), ("r", right))]
            return sides[0].unionByName(sides[1])
        case ("intersect" | "subtract", _, right):
            left = over_worlds(Plan("distinct", plan.of[:1], ()), tables)
            same = " AND ".join(["_w = r_w", *(f"c{n} <=> r{n}" for n in range(3))])
            return left.join(prefixed(right, "r"), expr(same), "left_semi" if plan.kind == "intersect" else "left_anti")
        case ("exists", outer, inner, negated, condition):
            how = "left_anti" if negated else "left_semi"
            return outer.join(prefixed(inner, "i"), expr(f"_w = i_w AND {condition}"), how)
        case ("in", outer, inner, value, among):
            return outer.join(prefixed(inner, "i"), expr(f"_w = i_w AND {value} = {among}"), "left_semi")
        case ("scalar", outer, inner, value, equal):
            found = prefixed(inner, "i").groupBy("i_w", equal[0]).agg(expr(value).alias("found"))
            joined = outer.join(found, expr(f"_w = i_w AND {equal[0]} = {equal[1]}"), "left")
            return joined.selectExpr("_w", "_from", "c0", "c1", "found AS c2")
    raise AssertionError(plan)


# The two answers


Found = tuple[dict[str, set[str]], set[str]]
"""For each output column the input columns that flow into it, and those that decide which rows there are."""


def read_from_plan(frame: DataFrame) -> Found:
    def names(flow: Flow) -> set[str]:
        return {str(ref).removeprefix("silver.") for ref in flow}

    lineage = trace(frame, LEAVES)
    return {column: names(flow) for column, flow in lineage.direct.items()}, names(lineage.indirect)


def seen_in_rows(rows: list[Row], changed_in: dict[int, str]) -> Found:
    by_world: dict[int, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_world[row["_w"]][row["_from"]].append(row)
    base = by_world[0]
    flows: dict[str, set[str]] = {name: set() for name in NAMES}
    decides = set()
    for world, column in changed_in.items():
        here = by_world[world]
        if {origin: len(rows) for origin, rows in here.items()} != {origin: len(rows) for origin, rows in base.items()}:
            decides.add(column)
        for origin in here.keys() & base.keys():
            for name in NAMES:
                values, before = (Counter(row[name] for row in rows) for rows in (here[origin], base[origin]))
                if len(here[origin]) == len(base[origin]) and values != before:
                    flows[name].add(column)
    return flows, decides


def both_answers(plan: Plan, lake: Lake) -> tuple[Found, Found]:
    """The lineage from the plan and from the rows, having seen that both renderings of the plan mean the same."""
    frame = plain(plan, lake.plain)
    marked = frame.selectExpr("-1L AS _w", "'' AS _from", *NAMES)
    rows = marked.unionByName(over_worlds(plan, lake.worlds)).collect()
    as_it_is, in_worlds = (Counter(tuple(row)[2:] for row in rows if row["_w"] == world) for world in (-1, 0))
    assert as_it_is == in_worlds, "the two renderings differ"
    return read_from_plan(frame), seen_in_rows(rows, lake.changed)


# Random plans

COLUMNS = {"t": ("k", "a", "b", "s.f", "s.g", "size(xs)"), "u": ("k", "d", "e")}

EXPRESSIONS = (
    "{0}", "{0}", "{0} + {1}", "{0} % 3", "7L", "coalesce({0}, {1})", "nullif({0}, {1})", "nvl2({0}, {1}, {2})",
    "greatest({0}, {1})", "CASE WHEN {0} % 2 = 0 THEN {1} WHEN {1} > 5 THEN {2} END", "if({0} < {1}, {2}, 0)",
    "named_struct('p', {0}, 'q', {1}).q", "aggregate(array({0}, {1}), 0L, (x, y) -> x + coalesce(y, {2}))",
    "size(filter(array({0}, {1}), x -> x > {2}))", "map(1, {0}, 2, {1})[1]",
)  # fmt: skip
CONDITIONS = ("{0} > 3", "{0} % 2 = 0", "{0} IS NOT NULL", "{0} < {1}", "{0} IN (1, 2, 5)", "{0} > 2 OR {1} IS NULL")
AGGREGATES = (
    "sum({0})", "max({0})", "min({0} + {1})", "count({0})", "count(1)", "count(DISTINCT {0})",
    "sum({0}) FILTER (WHERE {1} > 3)", "max_by({0}, struct({1}, {0}))", "sum(CASE WHEN {0} > 4 THEN {1} ELSE 0 END)",
)  # fmt: skip
FUNCTIONS = ("sum({0})", "max({0})", "count({0})", "rank()", "dense_rank()", "percent_rank()", "sum(if({0} > 3, {1}, 0))")


def text(forms: tuple[str, ...], columns: tuple[str, ...]) -> SearchStrategy[str]:
    """One of the forms over some of the columns."""
    chosen = st.tuples(*[st.sampled_from(columns)] * 3)
    return st.builds(lambda form, names: form.format(*names), st.sampled_from(forms), chosen)


def plans(depth: int) -> SearchStrategy[Plan]:
    def leaf(table: str) -> SearchStrategy[Plan]:
        columns = st.tuples(*[text(EXPRESSIONS, COLUMNS[table])] * 3)
        exploded = st.builds(lambda columns: (*columns[:2], "explode(xs)"), columns) if table == "t" else columns
        return st.builds(Plan, st.just("leaf"), st.just(()), st.tuples(st.just(table), columns | exploded))

    leaves = leaf("t") | leaf("u")
    if depth == 0:
        return leaves
    child, beside = plans(depth - 1), plans(min(depth - 1, 1))
    name, condition = st.sampled_from(NAMES), text(CONDITIONS, NAMES)
    expression = text(EXPRESSIONS, NAMES)
    sides = tuple(f"{side}{n}" for side in "lr" for n in range(3))
    matched = text(("l{0} = r{1}", "l{0} = r{1} AND l{2} > r{0}", "l{0} <=> r{0}"), ("0", "1", "2"))
    keys = st.permutations(NAMES)

    def unary(kind: str, *how: SearchStrategy[Any]) -> SearchStrategy[Plan]:
        return st.builds(Plan, st.just(kind), st.tuples(child), st.tuples(*how))

    def binary(kind: str, *how: SearchStrategy[Any]) -> SearchStrategy[Plan]:
        return st.builds(Plan, st.just(kind), st.tuples(child, beside), st.tuples(*how))

    both = st.tuples(*[text(EXPRESSIONS, sides)] * 3)
    left = st.tuples(*[text(EXPRESSIONS, sides[:3])] * 3)
    return st.one_of(
        unary("project", st.tuples(*[expression] * 3)),
        unary("filter", condition),
        binary("join", st.sampled_from(("inner", "left", "right", "full")), matched, both),
        binary("join", st.sampled_from(("left_semi", "left_anti")), matched, left),
        unary("shared", matched, both),
        unary("aggregate", keys.map(lambda names: names[:1]), st.tuples(*[text(AGGREGATES, NAMES)] * 2)),
        unary("aggregate", keys.map(lambda names: names[:2]), st.tuples(text(AGGREGATES, NAMES))),
        unary("rollup", keys.map(lambda names: names[:2]), text(AGGREGATES, NAMES)),
        unary("pivot", name, name, name),
        unary("window", st.tuples(expression, expression), text(FUNCTIONS, NAMES), name, name),
        unary("limit", st.integers(1, 4)),
        unary("distinct"),
        binary("union"),
        binary("intersect"),
        binary("subtract"),
        binary("exists", st.sampled_from(("", "NOT")), text(("i{0} = c{1}", "i{0} = c{1} AND i{2} > 2"), ("0", "1", "2"))),
        binary("in", name, st.sampled_from(("i0", "i1", "i2"))),
        binary(
            "scalar", text(("sum(i{0})", "max(i{0} + i{1})"), ("0", "1", "2")), st.tuples(st.sampled_from(("i0", "i1")), name)
        ),
    )


RUN = settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.large_base_example],
)


@settings(RUN, max_examples=20)
@given(plan=plans(3))
def test_lineage_from_the_plan_contains_what_the_rows_show(lake: Lake, plan: Plan) -> None:
    (direct, indirect), (flows, decides) = both_answers(plan, lake)
    assert {name: flows[name] - direct[name] for name in NAMES} == {name: set() for name in NAMES}
    assert decides - indirect == set()


# Plans in which every input matters: values are only added up and compared, so that no change is lost on the way

TELLING = ("{0}", "{0} + {1}", "{0} + {1} + {2}", "greatest({0}, {1})")
TELLING_LEAVES = (*TELLING, "CASE WHEN {0} % 3 = 0 THEN {1} ELSE {2} + 500 END", "coalesce({0}, 0L) + {1}")


def telling_plans(depth: int) -> SearchStrategy[Plan]:
    """Plans whose first column is a key that rows are matched and grouped by, and whose others are values."""

    def leaf(table: str, values: tuple[str, ...]) -> SearchStrategy[Plan]:
        columns = st.tuples(st.just("k"), *[text(TELLING_LEAVES, values)] * 2)
        return st.builds(Plan, st.just("leaf"), st.just(()), st.tuples(st.just(table), columns))

    exploded = Plan("leaf", (), ("t", ("k", "a", "explode(xs)")))
    leaves = leaf("t", ("a", "b", "s.f")) | leaf("u", ("d", "e")) | st.just(exploded)
    if depth == 0:
        return leaves
    child, beside = telling_plans(depth - 1), telling_plans(0)

    def unary(kind: str, *how: SearchStrategy[Any]) -> SearchStrategy[Plan]:
        return st.builds(Plan, st.just(kind), st.tuples(child), st.tuples(*how))

    def binary(kind: str, *how: SearchStrategy[Any]) -> SearchStrategy[Plan]:
        return st.builds(Plan, st.just(kind), st.tuples(child, beside), st.tuples(*how))

    value = text(TELLING, ("c1", "c2"))
    sides = st.tuples(st.just("l0"), text(TELLING, ("l1", "l2")), text(TELLING, ("l1", "r1", "r2")))
    aggregate = text(("sum({0})", "max({0})", "sum({0}) FILTER (WHERE {1} % 4 <> 1)"), ("c1", "c2"))
    return st.one_of(
        unary("project", st.tuples(st.just("c0"), value, value)),
        unary("filter", text(("{0} % 4 <> 0",), ("c1", "c2"))),
        binary("join", st.sampled_from(("inner", "left")), st.just("l0 = r0"), sides),
        unary("aggregate", st.just(("c0",)), st.tuples(aggregate, aggregate)),
        unary("window", st.tuples(st.just("c0"), value), text(("sum({0})",), ("c1", "c2")), st.just("c0"), st.just("c1")),
        binary("union"),
        binary("exists", st.sampled_from(("", "NOT")), st.just("i0 = c0")),
    )


@settings(RUN, max_examples=25)
@given(plan=telling_plans(2))
def test_lineage_from_the_plan_is_what_the_rows_show_where_every_input_matters(lake: Lake, plan: Plan) -> None:
    """Of the key's own flow nothing can be seen after a join: another key makes a row of another provenance."""
    (direct, indirect), (flows, decides) = both_answers(plan, lake)
    assert {name: direct[name] for name in ("c1", "c2")} == {name: flows[name] for name in ("c1", "c2")}
    assert indirect == decides
