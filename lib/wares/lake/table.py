"""What a table file declares: columns with labels, keys, checks, and how the table follows its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pyspark.sql.types import DataType, StructField, StructType

from wares.errors import ShapeError
from wares.lake.declassify import Declassifier, Pseudonym
from wares.lake.labels import Label


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        name: Its name.
        type: Its type as Spark SQL writes it, such as `decimal(18,4)`.
        label: Who may see it.
        description: What it means, with its unit; stored as the column's comment.
        declassified: By what, and why, its label may be lower than those of the values that it is made of.
    """

    name: str
    type: str
    label: Label
    description: str
    declassified: Declassifier | None = None

    def __post_init__(self) -> None:
        if isinstance(self.declassified, Pseudonym) and self.type != "string":
            raise ShapeError(
                f"The column {self.name} is to hold pseudonyms, which are texts.", found=self.type, do="declare it as string"
            )

    @property
    def metadata(self) -> dict[str, str]:
        """What the Delta schema says of the column."""
        return {"comment": self.description, "label": str(self.label)}


@dataclass(frozen=True)
class Check:
    """A rule that each row must keep, as a Spark SQL expression (a string, so that a table file starts no session).

    Null counts as kept: whether a value must be there is a rule of its own.
    """

    name: str
    rule: str
    severity: Literal["reject", "warn"] = "reject"


@dataclass(frozen=True)
class Reference:
    """Rows of another table that the rows of this one refer to, by its keys. A row that refers to none is an orphan.

    A row with a null among the columns refers to nothing, and is no orphan.

    Args:
        columns: The columns that hold the keys of the other table, in their order.
        table: The other table, as `layer.name`. It is refreshed first.
        severity: Whether an orphan is only counted, among the rows that a run writes, or rejected. If it is rejected, the other
            table decides which rows there are, as those that `build` reads do: where its keys change, this one is built in full.
    """

    columns: tuple[str, ...]
    table: str
    severity: Literal["reject", "warn"] = "warn"

    @property
    def rule(self) -> str:
        """Names it among the rules."""
        return f"{'_'.join(self.columns)}_in_{self.table}"


@dataclass(frozen=True)
class Freshness:
    """How old the newest row may be, by the clock at the start of a run. It is looked at after each refresh of the table.

    Args:
        column: A time, or a day.
        days: The age that is still allowed.
        severity: Whether an older table is only mentioned, or stops the run, so that nothing is built from it.
    """

    column: str
    days: float
    severity: Literal["stop", "warn"] = "warn"


@dataclass(frozen=True)
class Through:
    """How a change in an input that lacks the refresh keys finds the keys that it touches: by the rows of another input.

    It is taken at its word both ways: what has to do with none of the other input's rows does not matter to what is made of them.

    Args:
        table: The other input, which has the keys, such as `gold.interactions`.
        on: When a row of it has to do with a changed row: a Spark SQL condition over `found` (the other input) and `changed`.
    """

    table: str
    on: str


def same(*columns: str) -> str:
    """The condition of a `Through` whose two rows share these columns."""
    return " AND ".join(f"found.{column} = changed.{column}" for column in columns)


@dataclass(frozen=True)
class Refresh:
    """How a table follows its inputs: `by_key`, `append` or `full`."""

    kind: Literal["by_key", "append", "full"]
    keys: tuple[str, ...] = ()
    through: dict[str, Through] = field(default_factory=dict)
    python_by_key: bool = False


def by_key(*keys: str, through: dict[str, Through] | None = None, python_by_key: bool = False) -> Refresh:
    """Build only the keys that a change in an input touches.

    The plan of `build` must show that this gives the same rows (see cut.py), or the declaration is refused.

    Args:
        keys: Columns of the table, in which all rows of a key stand or fall together.
        through: For inputs that lack the keys, how a change in them finds the keys that it touches. A change in one that
            is not named here builds the whole table.
        python_by_key: Whether the functions that `build` passes to `mapInArrow` or `mapInPandas` make the rows of each key from
            rows of that key alone, and carry the keys through under their names. No plan shows what Python does, so here the
            table file is taken at its word; without it such a build is refused.
    """
    return Refresh("by_key", keys, through or {}, python_by_key)


FULL = Refresh("full")
"""Build the whole table whenever an input has changed; it is written only if its rows are not those that it has."""
APPEND = Refresh("append")
"""Build only the raw rows that have come since; where rows share their keys, the newest of all of them stays."""


@dataclass(frozen=True)
class Table:
    """A table's declaration; the `build` function beside it says how its rows are made.

    Args:
        keys: The columns that name a row. They are never null, and no two rows share them.
        columns: The columns, in order.
        checks: The rules that rows must keep.
        references: The rows of other tables that must be there.
        refresh: How the table follows its inputs.
        fresh: How old its newest row may be; None for any age.
        newest: Where rows share their keys and the table keeps one (silver): the columns that say which is the
            newest. Ties go to the file that sorts last, and in it to the last row.
        max_rejected: The share of rows in that may be rejected before the write is refused.
        version: Raised when the meaning of a column changes, which rebuilds the table.
        strict: Whether what decides which rows there are counts as much as what flows into a column.
        relabel: For each column whose label was lowered after the table had data: why.
    """

    keys: tuple[str, ...]
    columns: tuple[Column, ...]
    checks: tuple[Check, ...] = ()
    references: tuple[Reference, ...] = ()
    refresh: Refresh = FULL
    fresh: Freshness | None = None
    newest: tuple[str, ...] = ()
    max_rejected: float = 0.5
    version: int = 1
    strict: bool = False
    relabel: Mapping[str, str] = field(default_factory=dict)
    by_name: dict[str, Column] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {column.name: column for column in self.columns})

    def schema(self) -> StructType:
        """The Spark schema, each field with its comment and its label as metadata."""
        fields = []
        for column in self.columns:
            nullable = column.name not in self.keys
            fields.append(StructField(column.name, DataType.fromDDL(column.type), nullable, column.metadata))
        return StructType(fields)
