"""Refresh by change: which keys a change in the inputs touches, and in what the rows built anew differ from those kept."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from functools import reduce
from operator import and_, or_

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql.functions import broadcast, col, count_if, expr, lit, max, min, sum, when
from pyspark.sql.types import DateType

from wares.lake.lineage import Lineage
from wares.lake.table import Through

CHANGE = "_change"
"""Of a difference: insert, update or delete."""


def used_columns(lineage: Lineage, table: str) -> list[str]:
    """The columns of an input that have to do with what is built from it; a change in any other is none."""
    refs = {ref for flow in (*lineage.direct.values(), lineage.indirect) for ref in flow}
    return sorted(ref.column for ref in refs if ref.table == table)


def net(feed: DataFrame, columns: list[str]) -> DataFrame:
    """What a change feed comes to: the rows, by these columns, of which there are more or fewer than before.

    A row that was written anew as it was, or in other columns only, is no change.
    """
    gained = when(col("_change_type").isin("insert", "update_postimage"), 1).otherwise(-1)
    return feed.groupBy(*columns).agg(sum(gained).alias("_gained")).where("_gained != 0").drop("_gained")


def touched_by_rows(changed: DataFrame, columns: tuple[str, ...], keys: tuple[str, ...]) -> DataFrame:
    """The refresh keys of changed rows of an input that holds them in `columns`."""
    return changed.select(*(col(column).alias(key) for column, key in zip(columns, keys, strict=True))).distinct()


def touched_through(
    changed: DataFrame, through: Through, other: DataFrame, columns: tuple[str, ...], keys: tuple[str, ...]
) -> DataFrame:
    """The refresh keys that changed rows of an input touch by way of another input, which holds them in `columns`."""
    found = other.alias("found").join(broadcast(changed.alias("changed")), expr(through.on), "left_semi")
    return touched_by_rows(found, columns, keys)


def met_through(rows: DataFrame, through: Through, found: DataFrame) -> DataFrame:
    """The rows of an input that touch some few rows of another: all of it that has to do with what is built of these.

    If a change in a row finds none of them, what is built of them is the same without it.
    """
    return rows.alias("changed").join(broadcast(found.alias("found")), expr(through.on), "left_semi")


def together(keys: Iterable[DataFrame]) -> DataFrame:
    """All keys of several frames, each once."""
    return reduce(DataFrame.unionByName, keys).distinct()


def cut(frame: DataFrame, columns: tuple[str, ...], touched: DataFrame) -> DataFrame:
    """The rows of a frame whose keys, which it holds in `columns`, are touched; null is a key like any other."""
    names = {key: f"_touched_{place}" for place, key in enumerate(touched.columns)}
    sought = touched.select(*(col(key).alias(name) for key, name in names.items()))
    same = reduce(and_, (col(column).eqNullSafe(col(name)) for column, name in zip(columns, names.values(), strict=True)))
    return frame.join(broadcast(sought), same, "left_semi")


def differences(old: DataFrame, new: DataFrame, keys: tuple[str, ...]) -> DataFrame:
    """In what the rows of a table built anew differ from those that it has, by key; equal rows are left out.

    Returns:
        The columns of `new`, and `_change`: insert, update or delete. A deleted row has its keys only.
    """
    columns = new.columns
    there = {side: frame.withColumn("_there", lit(True)).alias(side) for side, frame in (("old", old), ("new", new))}
    same_key = reduce(and_, (col(f"old.{key}") == col(f"new.{key}") for key in keys))
    change = (
        when(col("old._there").isNull(), "insert")
        .when(col("new._there").isNull(), "delete")
        .when(_differ(columns), "update")
        .otherwise(None)
    )
    gone = col("new._there").isNull()
    key_values = {key: when(gone, col(f"old.{key}")).otherwise(col(f"new.{key}")) for key in keys}
    values = [key_values.get(name, col(f"new.{name}")).alias(name) for name in columns]
    joined = there["old"].join(there["new"], same_key, "full")
    return joined.select(*values, change.alias(CHANGE)).where(col(CHANGE).isNotNull())


def _differ(columns: list[str]) -> SparkColumn:
    return reduce(or_, (~col(f"old.{name}").eqNullSafe(col(f"new.{name}")) for name in columns))


def days_of(rows: DataFrame, keys: Iterable[str]) -> dict[str, tuple[date, date]]:
    """The first and the last day among some rows, of those of their keys that are days, which are never null."""
    days = [key for key in keys if isinstance(rows.schema[key].dataType, DateType)]
    ends = [end(key).alias(f"{end.__name__} {key}") for key in days for end in (min, max)]
    found = rows.agg(*ends).collect()[0] if ends else {}
    return {key: (found[f"min {key}"], found[f"max {key}"]) for key in days}


def count_changes(different: DataFrame) -> tuple[int, int, int]:
    """How many rows are to be inserted, updated and deleted."""
    kinds = ("insert", "update", "delete")
    counted = different.agg(*(count_if(col(CHANGE) == kind).alias(kind) for kind in kinds)).collect()[0]
    return counted["insert"], counted["update"], counted["delete"]


def newer(order: tuple[str, ...]) -> str:
    """The condition, over `old` and `new`, that a row is newer than the one that it meets: by these columns, null the oldest."""
    old, new = (f"named_struct({', '.join(f'{name!r}, {side}.`{name}`' for name in order)})" for side in ("old", "new"))
    return f"{new} > {old}"
