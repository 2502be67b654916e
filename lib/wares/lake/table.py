"""What a table file declares: columns with labels, keys, checks, and how the table follows its inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pyspark.sql.types import DataType, StructField, StructType

from wares.lake.labels import Label


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        name: Its name.
        type: Its type as Spark SQL writes it, such as `decimal(18,4)`.
        label: Who may see it.
        description: What it means, with its unit; stored as the column's comment.
        declassified: Why its label may be lower than those of the values that it is made of; empty for never.
    """

    name: str
    type: str
    label: Label
    description: str
    declassified: str = ""


@dataclass(frozen=True)
class Check:
    """A rule that each row must keep, as a Spark SQL expression (a string, so that a table file starts no session).

    Null counts as kept: whether a value must be there is a rule of its own.
    """

    name: str
    rule: str
    severity: Literal["reject", "warn"] = "reject"


@dataclass(frozen=True)
class Refresh:
    """How a table follows its inputs: `by_key`, `append` or `full`."""

    kind: Literal["by_key", "append", "full"]
    keys: tuple[str, ...] = ()


def by_key(*keys: str) -> Refresh:
    """Rebuild only the keys that an input touched."""
    return Refresh("by_key", keys)


FULL = Refresh("full")
APPEND = Refresh("append")


@dataclass(frozen=True)
class Table:
    """A table's declaration; the `build` function beside it says how its rows are made.

    Args:
        keys: The columns that name a row. They are never null, and no two rows share them.
        columns: The columns, in order.
        checks: The rules that rows must keep.
        refresh: How the table follows its inputs.
        newest: Where rows share their keys and the table keeps one (silver): the columns that say which is the
            newest. Ties go to the file that sorts last, and in it to the last row.
        max_rejected: The share of rows in that may be rejected before the write is refused.
        version: Raised when the meaning of a column changes, which rebuilds the table.
    """

    keys: tuple[str, ...]
    columns: tuple[Column, ...]
    checks: tuple[Check, ...] = ()
    refresh: Refresh = FULL
    newest: tuple[str, ...] = ()
    max_rejected: float = 0.5
    version: int = 1
    by_name: dict[str, Column] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {column.name: column for column in self.columns})

    def schema(self) -> StructType:
        """The Spark schema, each field with its comment and its label as metadata."""
        fields = []
        for column in self.columns:
            metadata = {"comment": column.description, "label": str(column.label)}
            fields.append(StructField(column.name, DataType.fromDDL(column.type), column.name not in self.keys, metadata))
        return StructType(fields)
