"""What a person sees of a job while it runs: one line for each table, and a sign of life on long steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyspark.sql import SparkSession

from wares.lake.maintain import Upkeep
from wares.lake.meta import Outcome

if TYPE_CHECKING:
    from wares.model.training import TrainOutcome

SILENCE = 15.0
"""Seconds without a line after which a job says that it is still at work."""


class Report:
    """Prints what a job does, as it happens.

    Args:
        spark: The session, which knows how far a long step has come.
        quiet: Whether it prints nothing, because the job's own output is for a program.

    Attributes:
        outcomes: What became of each table so far, in the order in which it was told.
    """

    def __init__(self, spark: SparkSession, quiet: bool = False) -> None:
        self._spark, self._quiet = spark, quiet
        self._spoke = time.monotonic()
        self._watched = False
        self.outcomes: list[Outcome] = []

    def say(self, text: str) -> None:
        """Print a line at once, also where output goes to a file."""
        if not self._quiet:
            print(text, flush=True)
        self._spoke = time.monotonic()

    def table(self, outcome: Outcome) -> None:
        """Say what became of a table."""
        self.outcomes.append(outcome)
        self.say(table_line(outcome))

    def upkeep(self, done: Upkeep) -> None:
        """Say what was done to a table."""
        self.say(f"{done.seconds:>7.1f} s  {done.table}: {done}")

    def model(self, outcome: TrainOutcome) -> None:
        """Say what became of a training run."""
        standing = "it is the champion" if outcome.champion else "the champion before it stays"
        self.say(f"{outcome.seconds:>7.1f} s  wares_{outcome.source}@{outcome.model_version}: {outcome.status}, {standing}")

    @contextmanager
    def job(self, name: str) -> Iterator[None]:
        """Around a job: its name, and a sign of life whenever it has been silent for long."""
        self.say(name)
        if self._watched:  # within the suite
            yield
            return
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(done,), daemon=True)
        self._watched = True
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
            self._watched = False

    def _watch(self, done: threading.Event) -> None:
        started = time.monotonic()
        while not done.wait(1):
            if time.monotonic() - self._spoke >= SILENCE:
                self.say(f"      ... at work for {time.monotonic() - started:.0f} s{self._tasks()}")

    def _tasks(self) -> str:
        """On which tables Spark is at work, and how many tasks of its running stages are done; empty if it is not at work."""
        tracker = self._spark.sparkContext.statusTracker()
        stages = [stage for number in tracker.getActiveStageIds() if (stage := tracker.getStageInfo(number))]
        if not stages:
            return ""
        pools = self._spark._jsc.sc().getAllPools()
        busy = sorted(pool.name() for pool in (pools.apply(place) for place in range(pools.size())) if pool.runningTasks())
        tables = [name for name in busy if "." in name]  # the store names a pool after the table; others are Spark's own
        on = f", on {', '.join(tables)}" if tables else ""
        return f"{on}: {sum(s.numCompletedTasks for s in stages)} of {sum(s.numTasks for s in stages)} tasks done"


def table_line(outcome: Outcome) -> str:
    """What became of a table, such as `8.1 s  silver.orders: 541,909 rows in, 535,305 kept, 1,336 rejected, 5,268 merged`.

    Of a table that followed a change: `0.9 s  silver.orders: 2 inserted, 1 updated, 535,307 kept in all`.
    """
    line = f"{outcome.seconds:>7.1f} s  {outcome.table}: "
    account = outcome.account
    warnings = "".join(f"\n{'warning:':>19} {warning}" for warning in outcome.warnings)
    if outcome.status == "unchanged" or account is None:
        return line + "unchanged" + warnings
    if outcome.status == "changed":
        kinds = zip(outcome.rows, ("inserted", "updated", "deleted"), strict=True)
        parts = [*(f"{rows:,} {kind}" for rows, kind in kinds if rows), f"{account.kept:,} kept in all"]
        return line + ", ".join(parts) + warnings
    parts = [f"{account.rows_in:,} rows in, {account.kept:,} kept"]
    parts += [f"{rows:,} {name}" for rows, name in ((account.rejected, "rejected"), (account.merged, "merged")) if rows]
    return line + ", ".join(parts) + (f" (in full: {outcome.why})" if outcome.why else "") + warnings
