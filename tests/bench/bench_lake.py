"""What the store costs: `make bench-lake`. Each figure beside its goal, each ratio measured side by side in one run.

    full build   bronze to gold by the store against the same way by hand (bare.py), in turn, in one session
    1 % new      the last 1 % of transactions and promotions delivered to a lake of the rest, against the full build
    nothing new  how many Spark jobs the store starts where nothing has changed
    small commit one file of ten rows taken in, against a bare Delta append of the same rows

CPU seconds are those of the JVM, which does all the work here, so what else the machine does shows less.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import bare
import big_shop
import psutil
from figures import Figure, tell
from pyspark.sql import SparkSession
from wares.lake.checks import repeated_keys
from wares.lake.delta import Lake
from wares.lake.meta import Outcome
from wares.lake.session import open_session
from wares.lake.sources import load_source
from wares.lake.store import Store
from wares.settings import Settings
from wares.tables import TABLES

SHARE = 0.01
SMALL_COMMITS = 7


@dataclass
class Cost:
    """What a piece of work took: seconds by the clock, CPU seconds of the JVM, and Spark jobs."""

    wall: float = 0.0
    cpu: float = 0.0
    jobs: int = 0


def cpu_seconds(spark: SparkSession) -> float:
    """CPU seconds that the JVM has used so far."""
    used = psutil.Process(spark._jvm.java.lang.ProcessHandle.current().pid()).cpu_times()
    return used.user + used.system


@contextmanager
def measured(spark: SparkSession) -> Iterator[Cost]:
    """Measure a block."""
    cost, started, cpu, before = Cost(), time.monotonic(), cpu_seconds(spark), _jobs(spark)
    try:
        yield cost
    finally:
        cost.wall, cost.cpu, cost.jobs = time.monotonic() - started, cpu_seconds(spark) - cpu, _jobs(spark) - before


def _jobs(spark: SparkSession) -> int:
    """How many jobs the session has started so far."""
    return spark._jsc.sc().dagScheduler().numTotalJobs()


def to_gold(spark: SparkSession, source: str, lake: Path) -> None:
    """Bring a source into bronze, silver and gold by the store."""
    settings = Settings.model_validate({"sources": [source], "lake": {"root": str(lake)}})
    with Store(spark, settings, TABLES, "bench") as store:
        store.ingest_all(_tell)
        store.refresh_all(bare.TABLES_TO_GOLD, _tell)


def _tell(outcome: Outcome) -> None:
    """One line for each table, as progress; two tables are at work at a time, so the seconds don't add up."""
    why = f", since {outcome.why}" if outcome.why else ""
    print(f"    {outcome.table} {outcome.status} in {outcome.seconds:.1f} s{why}", flush=True)


def full_build(spark: SparkSession, source: str, folder: Path, rounds: int) -> tuple[list[Figure], Cost]:
    """The store against bare Spark, in turn; also what the store's last build took, whose lake stays in `folder`."""
    ours, theirs = [], []
    for number in range(rounds):
        for name, costs in (("bare", theirs), ("store", ours)):
            place = folder / name
            shutil.rmtree(place, ignore_errors=True)
            with measured(spark) as cost:
                bare.build_all(spark, load_source(source), place) if name == "bare" else to_gold(spark, source, place)
            costs.append(cost)
            print(f"  full build {number + 1} of {rounds}, {name}: {cost.wall:.1f} s, {cost.cpu:.1f} CPU s", flush=True)
    how = f"median of {rounds} pairs, bare first in each"
    cpu = statistics.median(a.cpu / b.cpu for a, b in zip(ours, theirs, strict=True))
    wall = statistics.median(a.wall / b.wall for a, b in zip(ours, theirs, strict=True))
    figures = [
        Figure("full build, CPU seconds, store / bare", cpu, "x", 1.15, how),
        Figure("full build, seconds, store / bare", wall, "x", 1.15, how),
    ]
    return figures, ours[-1]


def unique_keys(spark: SparkSession, lake: Path) -> list[Figure]:
    """What looking for repeated keys takes, which needs a shuffle: a part of the full build, reported apart."""
    with measured(spark) as cost:
        for name in bare.TABLES_TO_GOLD:
            rows = spark.read.format("delta").load(f"{lake}/{name.replace('.', '/')}")
            repeated_keys(rows, TABLES[name].table, rows.count())
    return [Figure("looking for repeated keys, a part of the full build", cost.cpu, "CPU s", None, "all tables, read back")]


def one_percent(spark: SparkSession, source: str, folder: Path, copies: int, full: Cost) -> list[Figure]:
    """The last 1 % of transactions and promotions, delivered to the lake of the rest."""
    rows = big_shop.deliver(folder, copies, SHARE)
    with measured(spark) as cost:
        to_gold(spark, source, folder / "store")
    how = f"{', '.join(f'{count:,} {entity}' for entity, count in rows.items())} after a lake of the rest: {cost.cpu:.1f} CPU s"
    return [Figure("1 % new rows, CPU seconds / full build", cost.cpu / full.cpu, "x", 0.05, how)]


def nothing_new(spark: SparkSession, source: str, folder: Path) -> list[Figure]:
    """A run that finds nothing new."""
    with measured(spark) as cost:
        to_gold(spark, source, folder / "store")
    how = f"{cost.wall:.1f} s; the jobs read the store's own small tables"
    return [Figure("nothing new, Spark jobs", cost.jobs, "jobs", None, how)]


def small_commit(spark: SparkSession, folder: Path) -> list[Figure]:
    """The commit of a few rows by the store against a bare append of the same, in turn."""
    rows = spark.range(10).selectExpr("id", "string(id) AS text")
    settings = Settings.model_validate({"lake": {"root": str(folder / "small")}})
    lake = Lake(spark, settings.lake, "bench")
    ours, theirs = [], []
    for number in range(SMALL_COMMITS + 2):
        with measured(spark) as plain:
            rows.write.format("delta").mode("append").save(f"{folder}/plain")
        with measured(spark) as stored:
            write = lake.begin("bronze.small")
            write.stage(rows, "append")
            write.commit({})
        if number >= 2:  # the first ones make the tables, and warm up
            ours.append(stored.wall)
            theirs.append(plain.wall)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    how = f"median of {SMALL_COMMITS} pairs; {statistics.median(ours):.2f} s against {statistics.median(theirs):.2f} s"
    return [Figure("small commit, seconds, store / bare append", ratio, "x", 1.2, how)]


def main() -> None:
    """Run all of it and print each figure beside its goal."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--copies", type=int, default=1, help="how many times as large as Complete Journey (default: 1)")
    options.add_argument("--rounds", type=int, default=2, help="pairs of full builds (default: 2)")
    options.add_argument("--json", type=Path, default=Path("bench-lake.json"), help="where the figures go")
    chosen = options.parse_args()
    spark = open_session(Settings.model_validate({"spark": {"master": "local[*]", "driver_memory": "6g"}}), "bench")
    with tempfile.TemporaryDirectory(prefix="wares-bench-") as name:
        folder = Path(name)
        figures = small_commit(spark, folder)
        source, rows = big_shop.declare(folder, chosen.copies, SHARE)
        print(f"{sum(rows.values()):,} raw rows", flush=True)
        more, full = full_build(spark, source, folder, chosen.rounds)
        figures += more + unique_keys(spark, folder / "store") + nothing_new(spark, source, folder)
        figures += one_percent(spark, source, folder, chosen.copies, full)
    tell(figures, __doc__, chosen.json, rows=sum(rows.values()))


if __name__ == "__main__":
    main()
