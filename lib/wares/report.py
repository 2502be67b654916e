"""What a person sees of a job: one line for each table, a sign of life on long steps, and the suite's closing page."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyspark.sql import DataFrame, Row, SparkSession, Window
from pyspark.sql import functions as F

from wares.lake.maintain import Upkeep
from wares.lake.sources import load_source
from wares.lake.store import Outcome, Store

if TYPE_CHECKING:
    from wares.model.training import TrainOutcome
    from wares.pipeline import Step

SILENCE = 15.0
"""Seconds without a line after which a job says that it is still at work."""

USERS, TOP = 3, 5
"""How many users the closing page shows, and how many products of each."""

COUNTS = ("rows_in", "kept", "rejected", "merged")
TABLE_ROW = "  {:<44}{:>12}{:>12}{:>10}{:>10}"


class Report:
    """Prints what a job does, as it happens.

    Args:
        spark: The session, which knows how far a long step has come.
        quiet: Whether it prints nothing, because the job's own output is for a program.
    """

    def __init__(self, spark: SparkSession, quiet: bool = False) -> None:
        self._spark, self._quiet = spark, quiet
        self._spoke = time.monotonic()
        self._watched = False

    def say(self, text: str) -> None:
        """Print a line at once, also where output goes to a file."""
        if not self._quiet:
            print(text, flush=True)
        self._spoke = time.monotonic()

    def table(self, outcome: Outcome) -> None:
        """Say what became of a table."""
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


# The closing page


def page(store: Store, steps: list[Step]) -> str:
    """The suite's last page: rows, seconds, how good the models are, and a few users with their lists."""
    sources = [load_source(name).name for name in store.settings.sources]
    title = f"{', '.join(sources)} in {store.settings.lake.root}"
    parts = [f"{title}\n{'=' * len(title)}", _rows(store), _seconds(steps)]
    if all(step.status == "done" for step in steps):
        parts += [part for source in sources for part in (_model(store, source), _lists(store, source)) if part]
    return "\n" + "\n\n".join(parts)


def _rows(store: Store) -> str:
    """The accounts of each table, as its last write left them; those of bronze tables, which only grow, added up."""
    lines = [TABLE_ROW.format("", "rows in", "kept", "rejected", "merged").replace("  ", "rows", 1)]
    if store.exists("meta.quality"):
        last = [F.max_by(name, "version").alias(name) for name in COUNTS]
        found = {
            row["table"]: row
            for row in store.read("meta.quality").groupBy("table").agg(*last, F.sum("kept").alias("taken")).collect()
        }
        bronze = sorted(name for name in found if name.startswith("bronze."))
        lines += [TABLE_ROW.format(name, *[f"{found[name]['taken']:,}"] * 2, 0, 0) for name in bronze]
        lines += [
            TABLE_ROW.format(name, *(f"{found[name][count]:,}" for count in COUNTS)) for name in store.tables if name in found
        ]
    return "\n".join(lines)


def _seconds(steps: list[Step]) -> str:
    lines = [f"  {step.job:<44}{step.seconds:>10.1f} s{'' if step.status == 'done' else f'  {step.status}'}" for step in steps]
    return "\n".join(["steps", *lines, f"  {'together':<44}{sum(step.seconds for step in steps):>10.1f} s"])


def _model(store: Store, source: str) -> str:
    """The champion's measures on the test days beside the baselines'."""
    from wares.model.evaluation import latest, table

    report = latest(store.settings, source)
    return f"model wares_{source}@{report['version']}, on the test days\n{table(report)}" if report else ""


def _lists(store: Store, source: str) -> str:
    """What some users bought most often, and what is recommended to them."""
    if not store.exists("gold.recommendations"):
        return ""
    here = F.col("source") == source
    names = store.read("gold.product_profiles").where(here).select("product_id", "name")
    ranked = store.read("gold.recommendations").where(here & (F.col("rank") <= TOP))
    profiles = store.read("gold.user_profiles").where(here & (F.col("orders") > 0)).join(ranked, "user_id", "left_semi")
    # By a hash, so that it is always the same users, but no particular ones.
    users = profiles.orderBy(F.xxhash64("user_id")).limit(USERS).collect()
    chosen = F.col("user_id").isin([user["user_id"] for user in users])
    bought = _most_bought(store.read("gold.interactions").where(here & (F.col("kind") == "purchase") & chosen))
    histories = _by_user(bought.join(names, "product_id", "left"))
    reasons = names.withColumnsRenamed({"product_id": "reason_product_id", "name": "reason_name"})
    listed = ranked.where(chosen).join(names, "product_id", "left").join(reasons, "reason_product_id", "left")
    lists = _by_user(listed.withColumnRenamed("score", "value"))
    lines = []
    for user in users:
        days = f"from {user['first_at']:%Y-%m-%d} to {user['last_at']:%Y-%m-%d}"
        lines.append(f"user {user['user_id']} of {source}: {user['orders']:,} orders {days}")
        lines += _listed("bought most", [f"{row['value']:>4} x  {_name(row)}" for row in histories[user["user_id"]]])
        lines += _listed("recommended", [f"{row['value']:>6.3f}  {_name(row)}: {_why(row)}" for row in lists[user["user_id"]]])
    return "\n".join(lines)


def _most_bought(purchases: DataFrame) -> DataFrame:
    """The products that each user bought in the most orders: user_id, rank, product_id, value (how many orders)."""
    counted = purchases.groupBy("user_id", "product_id").agg(F.count_distinct("reference").alias("value"))
    order = Window.partitionBy("user_id").orderBy(F.desc("value"), "product_id")
    return counted.withColumn("rank", F.row_number().over(order)).where(F.col("rank") <= TOP)


def _by_user(ranked: DataFrame) -> dict[str, list[Row]]:
    """The rows of each of a few users, by rank."""
    found: dict[str, list[Row]] = {}
    for row in ranked.orderBy("user_id", "rank").collect():
        found.setdefault(row["user_id"], []).append(row)
    return found


def _name(row: Row) -> str:
    return row["name"] or f"product {row['product_id']}"


def _why(row: Row) -> str:
    from wares.model.reasons import in_words

    product = row["reason_product_id"] and (row["reason_name"] or f"product {row['reason_product_id']}")
    return in_words(row["reason"], product, row["reason_times"], row["reason_days"])


def _listed(title: str, products: list[str]) -> list[str]:
    return [f"  {title if place == 0 else '':<14}{product}" for place, product in enumerate(products)]
