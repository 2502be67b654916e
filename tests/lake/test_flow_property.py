"""A write that the flow check accepts lets no changed sensitive value show in a lower column: found out by changing values.

Random builds run twice, on rows that differ in their sensitive values alone. What the flow check accepts as open must come
out the same both times. The builds know nothing of lineage, and the comparison knows nothing of builds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import pytest
from helpers import frame_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import Column as Expression
from pyspark.sql import DataFrame, SparkSession, Window, WindowSpec
from pyspark.sql import functions as F
from pyspark.sql.functions import col, lit, when
from wares.errors import FlowError
from wares.lake.declassify import MINIMUM_PEOPLE, AtLeast, Band, Mask, Prefix
from wares.lake.flow import check_flow
from wares.lake.labels import CONFIDENTIAL, FINANCIAL, IDENTIFIER, PUBLIC
from wares.lake.lineage import Leaves, trace
from wares.lake.table import Column, Table

OPEN, CLOSED = ("number", "city", "grade"), ("pay", "name")
pytestmark = pytest.mark.slow
LABELS = {**dict.fromkeys(OPEN, PUBLIC), "pay": CONFIDENTIAL + FINANCIAL, "name": CONFIDENTIAL + IDENTIFIER}
OTHERS = {
    "permuted": (["40", "30", "20", "10", None, "50"], ["eve", "dan", "cid", "bob", "ann", "fay"]),
    "all alike": (["10"] * 6, ["ann"] * 6),
    "null": ([None] * 6, [None] * 6),
    "one changed": (["10", "20", "30", "41", "50", None], ["ann", "bob", "cid", "dan", "eva", "fay"]),
}
"""Other sensitive values for the same rows."""

repeatable = settings(
    max_examples=10,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@dataclass(frozen=True)
class Lake:
    """The rows as they are, as a store hands them out, and as they might have been."""

    rows: DataFrame
    others: dict[str, DataFrame]
    leaves: Leaves


@pytest.fixture(scope="module")
def lake(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    folder: Path = tmp_path_factory.mktemp("property")
    leaves = Leaves()

    def written(name: str, pay: list[Any], names: list[Any]) -> DataFrame:
        rows = [(str(n), f"city {n % 2}", None if n == 3 else str(n % 3), pay[n], names[n]) for n in range(6)]
        frame_of(spark, rows, ", ".join(f"{column} string" for column in (*OPEN, *CLOSED))).write.format("delta").save(
            str(folder / name)
        )
        return spark.read.format("delta").load(str(folder / name))

    rows = written("rows", ["10", "20", "30", "40", "50", None], ["ann", "bob", "cid", "dan", "eve", "fay"])
    others = {name: written(name.replace(" ", "_"), *values) for name, values in OTHERS.items()}
    return Lake(leaves.hand_out(rows, "silver.people", 0), others, leaves)


# Random builds: all values are texts, so that any expression takes any column


@dataclass(frozen=True)
class Built:
    """A frame, and which of its columns were made of open ones alone, by which rows may be chosen without telling."""

    frame: DataFrame
    open: tuple[str, ...]
    made: int = 0

    def add(self, expression: Expression, is_open: bool) -> Built:
        name = f"x{self.made}"
        return Built(
            self.frame.withColumn(name, expression.cast("string")), self.open + ((name,) if is_open else ()), self.made + 1
        )


EXPRESSIONS: list[Callable[[Expression, Expression], Expression]] = [
    lambda a, b: F.concat(a, b),
    lambda a, b: F.coalesce(a, b),
    lambda a, b: when(a > b, lit("more")).otherwise(lit("less")),
    lambda a, b: when(a.isNull(), b),
    lambda a, b: F.sha2(a, 256),
    lambda a, b: F.struct(a.alias("f"), b.alias("g"))["f"],
    lambda a, b: F.array(a, b)[1],
    lambda a, b: F.to_json(F.create_map(lit("k"), a)),
    lambda a, b: F.get_json_object(F.to_json(F.struct(a.alias("f"))), "$.f"),
    lambda a, b: F.regexp_extract(a, "([a-z0-9]+)", 1),
    lambda a, b: F.element_at(F.transform(F.array(a), lambda one: F.concat(one, b)), 1),
    lambda a, b: F.greatest(a, b),
]
AGGREGATES: list[Callable[[Expression], Expression]] = [
    F.max,
    F.count_distinct,
    lambda a: F.sum(F.length(a)),
    lambda a: F.to_json(F.sort_array(F.collect_list(a))),
    lambda a: F.count(when(a > "3", lit(1))),
]
WINDOWS: list[Callable[[Expression, WindowSpec, WindowSpec], Expression]] = [
    lambda a, whole, ordered: F.max(a).over(whole),
    lambda a, whole, ordered: F.count(a).over(ordered),
    lambda a, whole, ordered: F.lag(a).over(ordered),
    lambda a, whole, ordered: F.rank().over(whole.orderBy(a)),
]
Item = TypeVar("Item")
Draw = tuple[str, int, int, int]
"""A kind of step, and which expression and columns it takes: numbers that are wrapped around."""

KINDS = ("add", "add", "window", "group", "join back", "union", "filter", "view")
STRICT_KINDS = (*KINDS, "distinct", "limit", "semi join")


def of(items: Sequence[Item], place: int) -> Item:
    return items[place % len(items)]


def step(built: Built, draw: Draw, strict: bool) -> Built:
    """One more step. On a table that is not strict only open columns choose rows."""
    kind, n, i, j = draw
    frame, names = built.frame, built.frame.columns
    first, second = of(names, i), of(names, j)
    choosing = names if strict else built.open
    chooser = of(choosing, n)
    both_open = {first, second} <= set(built.open)
    match kind:
        case "add":
            return built.add(of(EXPRESSIONS, n)(col(first), col(second)), both_open)
        case "window":
            order = [chooser, *choosing]  # all of them, so that the same rows have the same order
            window = Window.partitionBy(of(choosing, j))
            value = of(WINDOWS, n)(col(first), window, window.orderBy(*order))
            return built.add(value, first in built.open)
        case "group":
            grouped = frame.groupBy(chooser).agg(
                of(AGGREGATES, i)(col(first)).cast("string").alias(f"x{built.made}"),
                of(AGGREGATES, j)(col(second)).cast("string").alias(f"x{built.made + 1}"),
            )
            kept = [
                name for name, is_open in ((chooser, chooser in built.open), (f"x{built.made}", first in built.open)) if is_open
            ]
            return Built(grouped, tuple(kept), built.made + 2)
        case "join back":
            groups = frame.groupBy(col(chooser).alias("key")).agg(F.max(first).alias("top"))
            joined = Built(frame.join(groups, col(chooser) == col("key")).drop("key"), built.open, built.made)
            added = joined.add(col("top"), first in built.open)
            return replace(added, frame=added.frame.drop("top"))
        case "union":
            turned = frame.union(frame.select(*reversed(names)))
            still = tuple(name for name, other in zip(names, reversed(names), strict=True) if {name, other} <= set(built.open))
            return replace(built, frame=turned, open=still)
        case "filter":
            return replace(built, frame=frame.where(col(chooser) > "2" if n % 2 else col(chooser).isNotNull()))
        case "view":
            frame.createOrReplaceTempView("property_rows")
            text = f"WITH r AS (SELECT * FROM property_rows) SELECT a.*, concat({first}, {second}) AS x{built.made} FROM r AS a"
            still = (*built.open, f"x{built.made}") if both_open else built.open
            return Built(frame.sparkSession.sql(text), still, built.made + 1)
        case "distinct":
            return replace(built, frame=frame.distinct())
        case "limit":
            return replace(built, frame=frame.orderBy(chooser, *names).limit(3))
        case _:
            keys = frame.select(col(first).alias("key"))
            return replace(built, frame=frame.join(keys, col(chooser) == col("key"), "left_semi"))


def build(rows: DataFrame, draws: list[Draw], strict: bool) -> DataFrame:
    built = Built(rows, OPEN)
    for draw in draws:
        built = step(built, draw, strict) if built.open else built
    return built.frame


def accepted(frame: DataFrame, leaves: Leaves, strict: bool) -> list[str]:
    """The columns that may be PUBLIC, as the flow check says."""
    lineage = trace(frame, leaves)
    found = []
    for name in frame.columns:
        table = Table((), (Column(name, "string", PUBLIC, "Open."),), strict=strict)
        try:
            check_flow("gold.out", table, lineage, lambda ref: LABELS[ref.column])
        except FlowError:
            continue
        found.append(name)
    return found


def both(frame: DataFrame, other: DataFrame) -> tuple[list[Any], list[Any]]:
    """The rows of two frames of the same columns."""
    found: dict[bool, list[Any]] = {True: [], False: []}
    for row in frame.withColumn("other", lit(False)).union(other.withColumn("other", lit(True))).collect():
        found[row["other"]].append(row)
    return found[False], found[True]


def values(rows: list[Any], columns: list[str]) -> list[tuple[Any, ...]]:
    return sorted((tuple(row[name] for name in columns) for row in rows), key=repr)


@pytest.mark.parametrize("strict", [False, True], ids=["direct flows", "strict: any flow"])
def test_no_changed_value_shows_in_a_lower_column(lake: Lake, strict: bool) -> None:
    seen: Counter[str] = Counter()
    place = st.integers(0, 11)
    draws = st.lists(st.tuples(st.sampled_from(STRICT_KINDS if strict else KINDS), place, place, place), min_size=3, max_size=5)

    @repeatable
    @given(draws, st.sampled_from(sorted(OTHERS)))
    def run(draws: list[Draw], other: str) -> None:
        frame = build(lake.rows, draws, strict)
        low = accepted(frame, lake.leaves, strict)
        before, after = both(frame, build(lake.others[other], draws, strict))
        assert not low or values(before, low) == values(after, low)
        high = [name for name in frame.columns if name not in low]
        seen.update(accepted=len(low), changed=sum(values(before, [name]) != values(after, [name]) for name in high))

    run()
    # Else nothing was shown: the check accepts what is open, and the changes do show where it refuses.
    assert seen["accepted"] >= 10 and seen["changed"] >= 10


# Declassifiers show what they say and no more: answers from plain Python

texts = st.one_of(st.none(), st.text("abc19 ", max_size=9))
numbers = st.one_of(st.none(), st.integers(-10_000, 10_000))
days = st.one_of(st.none(), st.dates(date(1900, 1, 1), date(2099, 12, 31)))


@settings(repeatable, max_examples=5)
@given(st.lists(st.tuples(texts, numbers, days), min_size=40, max_size=40))
def test_what_is_left_of_a_value(spark: SparkSession, rows: list[tuple[str | None, int | None, date | None]]) -> None:
    mask, prefix, band, quarter = Mask(3, "why"), Prefix(2, "why"), Band(250, "why"), Band("quarter", "why")
    frame = frame_of(spark, rows, "text string, number int, day date")
    found = frame.select(mask("text"), prefix("text"), band("number"), quarter("day")).collect()
    assert [tuple(row) for row in found] == [
        (
            "***" + text[-3:] if text and len(text) >= 6 else "***",
            text[:2] if text and len(text) >= 4 else None,
            None if number is None else number // 250 * 250,
            None if day is None else date(day.year, (day.month - 1) // 3 * 3 + 1, 1),
        )
        for text, number, day in rows
    ]


@settings(repeatable, max_examples=5)
@given(
    st.lists(
        st.tuples(st.sampled_from("pqr"), st.one_of(st.none(), st.sampled_from("abcdefgh")), numbers), min_size=10, max_size=60
    )
)
def test_numbers_about_at_least_five_people(spark: SparkSession, rows: list[tuple[str, str | None, int | None]]) -> None:
    many = AtLeast("person", "why")
    frame = frame_of(spark, rows, "key string, person string, number int")
    high = when(col("number") > 0, col("number"))
    numbers = {"sum": many.sum("number"), "high": many.sum(high), "count": many.count("number"), "mean": many.mean("number")}
    found = many.groups(frame, ["key"], *(number.alias(name) for name, number in numbers.items())).collect()

    groups: dict[str, list[tuple[str | None, int | None]]] = defaultdict(list)
    for key, person, number in rows:
        groups[key].append((person, number))
    expected = {}
    for key, members in groups.items():
        if len({person for person, _ in members} - {None}) >= MINIMUM_PEOPLE:
            some = [(person, number) for person, number in members if number is not None]
            above = [(person, number) for person, number in some if number > 0]
            adding = [(person, number) for person, number in some if number != 0]
            enough, enough_there, enough_above = (
                len({person for person, _ in part} - {None}) >= MINIMUM_PEOPLE for part in (adding, some, above)
            )
            total = sum(number for _, number in some)
            expected[key] = (
                total if enough else None,
                sum(number for _, number in above) if enough_above else None,
                len(some) if enough_there else None,
                total / len(some) if enough else None,
            )
    assert {row["key"]: (row["sum"], row["high"], row["count"], row["mean"]) for row in found} == {
        key: (*whole, pytest.approx(mean) if mean is not None else None) for key, (*whole, mean) in expected.items()
    }
