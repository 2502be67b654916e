"""Upkeep: small files become large ones, files and log entries that nobody needs any more go away.

What somebody still needs stays, whatever its age: the commits of an input from the version on that its slowest reader has
consumed (a refresh by change reads them), and the rejected rows that belong to the newest commit of a table.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

from wares.lake.checks import twin_name
from wares.lake.delta import Lake, version_in
from wares.lake.meta import META, Mark

SMALL = 64 * 2**20
"""Files of fewer bytes than this are put together, if there are two or more of them."""
HOUR = 3600.0


@dataclass(frozen=True)
class Upkeep:
    """What was done to a table.

    Args:
        small: How many small files there were that have been put together; 0 if they were left alone.
        large: How many files they have become.
        removed: How many files were deleted that were past their retention.
        checkpoint: Whether a checkpoint of the log was written.
        kept_for: What else than age keeps old files and log entries: the reader, and the version that it needs; or empty.
    """

    table: str
    small: int
    large: int
    removed: int
    checkpoint: bool
    kept_for: str
    seconds: float

    def __str__(self) -> str:
        """What was done, in words: `5 small files became 1, 2 old files deleted, checkpoint written`."""
        done = [
            f"{self.small:,} small files became {self.large:,}" if self.small else "",
            f"{self.removed:,} old files deleted" if self.removed else "",
            "checkpoint written" if self.checkpoint else "",
        ]
        told = ", ".join(filter(None, done)) or "nothing to do"
        return f"{told}; older files stay for {self.kept_for}" if self.kept_for else told


def tables_to_maintain(lake: Lake, bronze: Iterable[str], tables: Iterable[str]) -> list[str]:
    """All tables that there are: bronze, silver and gold with their rejected rows, and the store's own."""
    names = [*bronze, *(name for table in tables for name in (table, twin_name(table))), *(f"meta.{name}" for name in META)]
    return [name for name in names if lake.exists(name)]


def needed_versions(marks: dict[str, Mark]) -> dict[str, tuple[int, str]]:
    """For each table the oldest version that somebody needs, and who."""
    needed: dict[str, tuple[int, str]] = {}

    def need(table: str, version: int, reader: str) -> None:
        if table not in needed or version < needed[table][0]:
            needed[table] = (version, reader)

    for reader, mark in marks.items():
        for table, state in mark.inputs.items():
            if "@" in state and table.partition(".")[0] in ("bronze", "silver", "gold"):
                need(table, version_in(state), reader)
        if mark.account and mark.account.rejects is not None:
            need(twin_name(reader), mark.account.rejects, reader)
    return needed


def maintain(lake: Lake, name: str, needed: tuple[int, str] | None) -> Upkeep:
    """Compact a table's small files, delete what is past its retention and needed by nobody, and write a checkpoint.

    Args:
        needed: The oldest version that somebody needs, and who; None if nobody needs an old one.
    """
    started = time.monotonic()
    retention = lake.settings.retention_days * 24 * HOUR
    age = lake.age(name, needed[0]) if needed and needed[0] < lake.version(name) else 0.0
    small, large = lake.compact(name, SMALL)
    removed = lake.vacuum(name, math.ceil(max(retention, age + HOUR) / HOUR))
    if due := not lake.is_checkpointed(name):
        lake.checkpoint(name, clean_log=age < retention)
    kept_for = f"{needed[1]}, which has read version {needed[0]}" if needed and age >= retention else ""
    return Upkeep(name, small, large, removed, due, kept_for, time.monotonic() - started)
