"""Checks: what a row must be to be kept, what becomes of one that is not, and the account of them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import and_

from pyspark.errors import ParseException
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, Observation, Window
from pyspark.sql.functions import (
    bit_xor,
    coalesce,
    col,
    concat,
    count,
    count_if,
    exists,
    explode,
    expr,
    lit,
    row_number,
    struct,
    to_json,
    when,
    xxhash64,
)
from pyspark.sql.functions import filter as filter_
from pyspark.sql.functions import sum as sum_

from wares.errors import QualityError, ShapeError
from wares.lake.failures import first_line
from wares.lake.labels import INTERNAL, Label, join
from wares.lake.registry import REJECTED, TableFile
from wares.lake.sources import FILE, POSITION, RAW, VIOLATIONS, ZONE, violations
from wares.lake.table import Check, Column, Reference, Table

PLACE = (
    Column(FILE, "string", INTERNAL, "The raw file that the row came in."),
    Column(POSITION, "bigint", INTERNAL, "The row's place in it, from 0."),
)
"""What a silver table has beside its declared columns."""

RUN = "_run"
WARNED, NULL = "warned ", "null "
"""Begin the names of counts: of the rows that a warning is about, and of those that are null in a column."""
KEYS_A_PARTITION = 500_000
"""How many keys are compared with each other at a time, so that they fit in memory."""


@dataclass
class Counts:
    """The account of the rows that a build made.

    Args:
        rows_in: All of them.
        kept: Those that keep the rules, before rows that share their keys are merged.
        rejected: Those that break one.
        content: The same for the same kept rows in any order, and all but surely another for others.
        hits: How many rows broke each rule, warnings too.
        nulls: Which share of the kept rows is null in each column.
    """

    rows_in: int
    kept: int
    rejected: int
    content: str
    hits: dict[str, int] = field(default_factory=dict)
    nulls: dict[str, float] = field(default_factory=dict)


def stored_columns(file: TableFile) -> tuple[Column, ...]:
    """The columns of a table as it is stored."""
    return (*file.table.columns, *(PLACE if file.layer == "silver" else ()))


def twin_name(name: str) -> str:
    """The table of the rows that a table rejected."""
    return f"{name}{REJECTED}"


def twin(labels: list[Label]) -> Table:
    """The table of rejected rows: each carries the join of all labels that its raw form may hold."""
    label = join(labels)
    reasons = "array<struct<rule: string, severity: string, value: string>>"
    return Table(
        keys=(),
        columns=(
            *PLACE,
            Column(RAW, "string", label, "The whole raw row, as JSON."),
            Column(VIOLATIONS, reasons, label, "The rules that it breaks, with the offending values."),
            Column(RUN, "string", INTERNAL, "The run that rejected it."),
        ),
    )


def shaped(file: TableFile, built: DataFrame) -> DataFrame:
    """What `build` returned, with the declared columns in their order.

    Raises:
        ShapeError: A column is missing, too many, or of another type; the lines to change are named.
    """
    columns = stored_columns(file)
    carried = [RAW, VIOLATIONS] if file.layer == "silver" else []
    found = {f.name: f.dataType.simpleString() for f in built.schema}
    declared = {column.name: column.type for column in columns}
    try:
        schema = Table((), columns).schema()
    except ParseException as error:
        raise ShapeError(
            f"TABLE of {file.name} declares a type that there is not.",
            found=first_line(error),
            do=f"write it as Spark SQL does, such as decimal(18,4), in {file.path}",
        ) from None
    problems = [f"{column} is missing (declared {type})" for column, type in declared.items() if column not in found]
    problems += [
        f"{f.name} is {found[f.name]}, declared {f.dataType.simpleString()}"
        for f in schema
        if f.name in found and found[f.name] != f.dataType.simpleString()
    ]
    problems += [
        f"{column} ({type}) is not declared"
        for column, type in found.items()
        if column not in declared and column not in (*carried, ZONE)
    ]
    problems += [f"{column} is there twice" for column in found if built.columns.count(column) > 1]
    problems += [f"{column} did not come through build" for column in carried if column not in found]
    if problems:
        raise ShapeError(
            f"What build of {file.name} returns is not what its TABLE declares.",
            found="; ".join(problems),
            do=f"change build or the columns of TABLE in {file.path}",
        )
    return built.select(*declared, *carried)


def checked(file: TableFile, rows: DataFrame, referred: Mapping[Reference, DataFrame]) -> DataFrame:
    """The rows with `_violations`: broken rules of the mapping (silver), missing keys, the table's own checks, and orphans.

    Args:
        referred: For each reference that is to be looked at, the keys of the other table.
    """
    table, columns = file.table, rows.columns
    keys = [Check(f"has_{key}", f"`{key}` IS NOT NULL") for key in table.keys]
    found = [(_breaks(check), check.name, check.severity, _offending(table, check)) for check in (*keys, *table.checks)]
    for reference, known in referred.items():
        rows, orphan = _met(rows, reference, known)
        found.append((orphan, reference.rule, reference.severity, to_json(struct(*reference.columns))))
    own = violations(found)
    if file.layer == "silver":
        own = when(col(VIOLATIONS).isNull(), own).otherwise(coalesce(concat(VIOLATIONS, own), col(VIOLATIONS)))
    return rows.withColumn(VIOLATIONS, own).select(*dict.fromkeys((*columns, VIOLATIONS)))


def _met(rows: DataFrame, reference: Reference, known: DataFrame) -> tuple[DataFrame, SparkColumn]:
    """The rows beside what they refer to, and whether a row is an orphan. Keys name one row, so none is met twice."""
    met = f"_{reference.rule}"
    names = [f"{met}_{key}" for key in known.columns]
    other = known.select(*(col(key).alias(name) for key, name in zip(known.columns, names, strict=True)), lit(True).alias(met))
    same = reduce(and_, (col(own) == col(f"`{name}`") for own, name in zip(reference.columns, names, strict=True)))
    refers = reduce(and_, (col(own).isNotNull() for own in reference.columns))
    return rows.join(other, same, "left"), refers & col(f"`{met}`").isNull()


def _breaks(check: Check) -> SparkColumn:
    return ~coalesce(expr(check.rule), lit(True))


def _offending(table: Table, check: Check) -> SparkColumn:
    """The values that a rule looked at, as JSON."""
    looked_at = [column for column in table.by_name if column in check.rule]
    return to_json(struct(*looked_at)) if looked_at else lit(None).cast("string")


def is_rejected() -> SparkColumn:
    """Whether a checked row breaks a rule that rejects."""
    # Nearly all rows break nothing, which is told without a look into the array.
    return col(VIOLATIONS).isNotNull() & exists(VIOLATIONS, lambda violation: violation["severity"] == "reject")


class Counted:
    """Counts checked rows while they are written, so that no pass of its own is needed.

    Attributes:
        kept: The rows that break no rule, with their columns as they are stored.
    """

    def __init__(self, file: TableFile, rows: DataFrame) -> None:
        self._observation = Observation()
        columns = stored_columns(file)
        names = [column.name for column in columns]
        content = when(~is_rejected(), xxhash64(*names))
        # Nothing is pruned below an observation: the raw row would be turned into JSON for every row that is kept.
        counted = rows.select(*names, VIOLATIONS).observe(self._observation, *_tallies(file), *_sums(content))
        self.kept = with_labels(counted.where(~is_rejected()), columns)

    def counts(self) -> Counts:
        """The counts, once `kept` has been written."""
        return _counts_of(self._observation.get)


def count_rows(file: TableFile, rows: DataFrame) -> Counts:
    """Count checked rows that are few and kept for a while, and the nulls among them."""
    columns = [column.name for column in stored_columns(file)]
    nulls = [count_if(~is_rejected() & col(name).isNull()).alias(f"{NULL}{name}") for name in columns]
    tallied = rows.agg(*_tallies(file), *nulls).collect()[0].asDict()
    counts = _counts_of(tallied)
    counts.nulls = {name: round(tallied[f"{NULL}{name}"] / counts.kept, 4) for name in columns if counts.kept}
    return counts


def _tallies(file: TableFile) -> list[SparkColumn]:
    """What is counted of checked rows: all, the rejected, and those that each warning is about."""
    warnings = {check.name: _breaks(check) for check in file.table.checks if check.severity == "warn"}
    orphans = {rule: ~is_rejected() & _broken(rule) for rule in _orphans_kept(file)}
    return [
        count(lit(1)).alias("rows_in"),
        count_if(is_rejected()).alias("rejected"),
        *(count_if(broken).alias(f"{WARNED}{rule}") for rule, broken in (warnings | orphans).items()),
    ]


def _orphans_kept(file: TableFile) -> list[str]:
    """The rules of references whose orphans are kept."""
    return [reference.rule for reference in file.table.references if reference.severity == "warn"]


def _broken(rule: str) -> SparkColumn:
    return col(VIOLATIONS).isNotNull() & exists(VIOLATIONS, lambda violation: violation["rule"] == rule)


def _counts_of(tallied: dict[str, int]) -> Counts:
    hits = {name.removeprefix(WARNED): rows for name, rows in tallied.items() if name.startswith(WARNED) and rows}
    kept = tallied["rows_in"] - tallied["rejected"]
    content = content_of({**tallied, "rows": kept}) if "mixed" in tallied else ""
    return Counts(tallied["rows_in"], kept, tallied["rejected"], content, hits)


def observe_content(rows: DataFrame, observation: Observation) -> DataFrame:
    """Count rows, and sum up their content, while they are written."""
    return rows.observe(observation, count(lit(1)).alias("rows"), *_sums(xxhash64(*rows.columns)))


def _sums(content: SparkColumn) -> list[SparkColumn]:
    """Two sums of unlike kind over the hashes of rows: rows that cancel out in one do not in the other."""
    return [bit_xor(content).alias("mixed"), sum_(content.bitwiseAND(lit(0xFFFFFFFF))).alias("summed")]


def content_of(observed: dict[str, int]) -> str:
    """What `observe_content` saw, as one text."""
    return f"{observed['rows']} {observed['mixed'] or 0} {observed['summed'] or 0}"


def rejected_rows(file: TableFile, rows: DataFrame, run: str) -> DataFrame:
    """The checked rows that break a rule, in the shape of the table of rejected rows.

    That such a row is an orphan, too, is not told where orphans are kept: it hangs on what had come when the row was looked at.
    """
    rejected = rows.where(is_rejected())
    if told_apart := _orphans_kept(file):
        rejected = rejected.withColumn(VIOLATIONS, filter_(VIOLATIONS, lambda violation: ~violation["rule"].isin(told_apart)))
    if file.layer != "silver":
        whole_row = to_json(struct(*file.table.by_name), {"ignoreNullFields": "false"})
        rejected = rejected.select(
            lit(None).cast("string").alias(FILE), lit(None).cast("bigint").alias(POSITION), whole_row.alias(RAW), VIOLATIONS
        )
    return rejected.select(FILE, POSITION, RAW, VIOLATIONS, lit(run).alias(RUN))


def hits(rejected: DataFrame) -> dict[str, int]:
    """How many rows broke each rejecting rule."""
    broken = rejected.select(explode(VIOLATIONS).alias("broken")).where("broken.severity = 'reject'")
    return {row["rule"]: row["rows"] for row in broken.groupBy("broken.rule").agg(count(lit(1)).alias("rows")).collect()}


def check_share(file: TableFile, counts: Counts) -> None:
    """Stop a write of which too much is rejected.

    Raises:
        QualityError: More is rejected than the table allows.
    """
    if counts.rejected > file.table.max_rejected * counts.rows_in:
        broken = ", ".join(f"{rule} {rows:,}" for rule, rows in sorted(counts.hits.items()))
        share = f"{counts.rejected:,} of {counts.rows_in:,} rows rejected"
        raise QualityError(
            f"Too many rows of {file.name} break its rules; nothing was written.",
            found=f"{share}, at most {file.table.max_rejected:.0%} allowed: {broken}",
            do="mend the source's mapping, or raise max_rejected in the table file",
        )


def repeated_keys(rows: DataFrame, table: Table, count_of_rows: int) -> int:
    """How many keys have more than one row.

    Keys are compared by a 64-bit hash, which moves eight bytes a row where a comparison of rows would move and sort them
    whole. Two keys that share a hash are taken for repeated once in many thousand lakes; in silver that only costs time.
    """
    keys = rows.select(xxhash64(*table.keys).alias("key"))
    partitions = 1 + count_of_rows // KEYS_A_PARTITION
    # By number, so that Spark does not join the partitions again; few keys need not be moved at all.
    spread = keys.repartition(partitions, "key") if partitions > 1 else keys.coalesce(1)
    repeated = spread.groupBy("key").agg(count(lit(1)).alias("rows")).where("rows > 1")
    return repeated.agg(count(lit(1)).alias("keys")).collect()[0]["keys"]


def refuse_repeated(file: TableFile, repeated: int) -> None:
    """Refuse rows of a gold table that share their keys.

    Raises:
        ShapeError: There are some.
    """
    if repeated:
        raise ShapeError(
            f"Rows of {file.name} share their keys.",
            found=f"{repeated:,} keys ({', '.join(file.table.keys)}) with more than one row",
            do="aggregate in build, or declare the keys that tell rows apart",
        )


def newest(rows: DataFrame, table: Table) -> DataFrame:
    """One row for each key: the newest, then the one in the file that sorts last, then the last in it."""
    place = row_number().over(Window.partitionBy(*table.keys).orderBy(*(col(name).desc_nulls_last() for name in order_of(table))))
    return rows.withColumn("_place", place).where("_place = 1").drop("_place")


def order_of(table: Table) -> tuple[str, ...]:
    """The columns that say which of the rows that share their keys is the newest."""
    return (*table.newest, FILE, POSITION)


def with_labels(rows: DataFrame, columns: tuple[Column, ...]) -> DataFrame:
    """The columns with comment and label as Delta column metadata."""
    return rows.select(*(col(column.name).alias(column.name, metadata=column.metadata) for column in columns))
