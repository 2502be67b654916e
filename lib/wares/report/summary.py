"""What a run of the suite came to, as plain data: gathered from the store once, told by `text.py` and `html.py`.

Nothing here is above INTERNAL, but for `Summary.users`, which is empty unless somebody asked for it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from pyspark.sql import DataFrame, Row, Window
from pyspark.sql import functions as F

from wares.lake.declassify import AtLeast
from wares.lake.meta import Outcome
from wares.lake.registry import TableFile
from wares.lake.sources import load_source
from wares.lake.store import Store
from wares.model.evaluation import latest
from wares.model.reasons import in_words

if TYPE_CHECKING:
    from wares.pipeline import Step

USERS, TOP = 3, 5
"""How many users are shown, and how many products of each."""
POPULAR = 8
"""How many of the products are shown that are recommended to most users."""
MANY = AtLeast("user_id", "products that are recommended to several users, and how many users have a list")

DRIFT = "drift_"
"""Begins the names of the rules that hold a run's rows against those of the runs before."""

Found = TypeVar("Found")


@dataclass(frozen=True)
class Rows:
    """What became of all the rows that a table was made of, by its newest write; of a bronze table by all of them."""

    table: str
    rows_in: int
    kept: int
    rejected: int = 0
    merged: int = 0


@dataclass(frozen=True)
class Broken:
    """How many rows broke a rule since a table was last built in full.

    Args:
        rejects: Whether such rows are rejected, and not only counted.
    """

    table: str
    rule: str
    rows: int
    rejects: bool = True


@dataclass(frozen=True)
class Sales:
    """Daily revenue of a source in one currency: what `gold.sales_daily` tells of each day, nothing of fewer than five users."""

    source: str
    currency: str
    days: tuple[tuple[date, float], ...]


@dataclass(frozen=True)
class Model:
    """A source's champion with its report on the test days, as `evaluation.Report` describes it."""

    source: str
    version: int
    report: dict[str, Any]


@dataclass(frozen=True)
class Popular:
    """The products that are recommended to most users of a source.

    Args:
        users: How many users have a list; None if fewer than five have.
        products: The names with the number of users in whose lists they are, each at least five.
    """

    source: str
    users: int | None
    products: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Product:
    """A product in a user's history or list: in how many orders it was, or how likely the user buys it, and why."""

    name: str
    value: float
    why: str = ""


@dataclass(frozen=True)
class User:
    """A user with what they bought in most orders and what is recommended to them: CONFIDENTIAL.

    Args:
        as_of: What happened from this day on was not known to the recommendations.
    """

    user_id: str
    source: str
    orders: int
    first: date
    last: date
    as_of: date | None
    bought: tuple[Product, ...]
    recommended: tuple[Product, ...]


@dataclass(frozen=True)
class Summary:
    """What a run of the suite came to.

    Args:
        lake: The lake's root.
        runs: The id of each step's run, of those that wrote anything.
        rows: Bronze tables first, then silver and gold.
        outcomes: What became of each table in this run.
        shows_users: Whether users were asked for.
        unread: What could not be read from the lake.
    """

    sources: tuple[str, ...]
    lake: str
    started: datetime
    ended: datetime
    steps: tuple[Step, ...]
    runs: dict[str, str] = field(default_factory=dict)
    rows: tuple[Rows, ...] = ()
    broken: tuple[Broken, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    sales: tuple[Sales, ...] = ()
    models: tuple[Model, ...] = ()
    popular: tuple[Popular, ...] = ()
    users: tuple[User, ...] = ()
    shows_users: bool = False
    unread: tuple[str, ...] = ()

    @property
    def undone(self) -> tuple[Step, ...]:
        """The steps that failed or were left out."""
        return tuple(step for step in self.steps if not step.is_well)


def gather(
    store: Store, steps: Iterable[Step], outcomes: Iterable[Outcome], started: datetime, show_users: bool = False
) -> Summary:
    """Read from the lake what a run of the suite came to.

    What cannot be read is left out, such as a table whose files are gone: the step that needs it has failed and said so.

    Args:
        steps: What became of each job.
        outcomes: What became of each table, as often as it was told.
        started: When the run began.
        show_users: Whether to show a few users with their purchases and lists.
    """
    sources = tuple(load_source(name).name for name in store.settings.sources)
    unread = []

    def read(name: str, tables: Iterable[str], part: Callable[[], Iterable[Found]]) -> tuple[Found, ...]:
        try:
            return tuple(part()) if all(map(store.exists, tables)) else ()
        except Exception:  # of Spark, Delta, MLflow or the file system
            unread.append(name)
            return ()

    listed = ("gold.recommendations", "gold.product_profiles")
    of_users = (*listed, "gold.user_profiles", "gold.interactions") if show_users else ()
    with ThreadPoolExecutor(2) as pool:  # small jobs wait for Spark's planning more than they compute
        parts = (
            pool.submit(read, "meta.quality", ("meta.quality",), lambda: _quality(store)),
            pool.submit(read, "meta.runs", ("meta.runs",), lambda: _runs(store, started)),
            pool.submit(read, "gold.recommendations", listed, lambda: (_popular(store, source) for source in sources)),
            pool.submit(read, "gold.sales_daily", ("gold.sales_daily",), lambda: _sales(store, sources)),
            pool.submit(read, "the model", ("gold.recommendations",), lambda: _models(store, sources)),
            pool.submit(read, "users", of_users, lambda: _users(store, sources) if show_users else ()),
        )
    quality, runs, popular, sales, models, users = (part.result() for part in parts)
    return Summary(
        sources=sources,
        lake=store.settings.lake.root,
        started=started,
        ended=datetime.now(UTC),
        steps=tuple(steps),
        runs=dict(runs),
        rows=_rows(store, quality),
        broken=_broken(store.tables, quality),
        outcomes=_latest(outcomes),
        sales=sales,
        models=models,
        popular=popular,
        users=users,
        shows_users=show_users,
        unread=tuple(unread),
    )


def _quality(store: Store) -> list[Row]:
    """The account of each write, oldest first; those of a table that was deleted since are not among them."""
    rows = store.read("meta.quality").select("run", "table", "version", "kept", "hits", "way").collect()
    found: defaultdict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["run"], row["version"])):
        if found[row["table"]] and row["version"] <= found[row["table"]][-1]["version"]:
            found[row["table"]].clear()
        found[row["table"]].append(row)
    return [row for of_table in found.values() for row in of_table]


def _rows(store: Store, quality: Iterable[Row]) -> tuple[Rows, ...]:
    """The rows of each table as its newest write left them; those of bronze tables, which only grow, added up."""
    taken: defaultdict[str, int] = defaultdict(int)
    for row in quality:
        if row["table"].startswith("bronze."):
            taken[row["table"]] += row["kept"]
    marks = store.meta.marks()
    accounts = {name: marks[name].account for name in store.tables if name in marks}
    return (
        *(Rows(name, kept, kept) for name, kept in sorted(taken.items())),
        *(Rows(name, each.rows_in, each.kept, each.rejected, each.merged) for name, each in accounts.items() if each),
    )


def _broken(tables: dict[str, TableFile], quality: Iterable[Row]) -> tuple[Broken, ...]:
    """The rules that rows broke since each table was last built in full, those that most rows broke first."""
    hits: dict[str, defaultdict[str, int]] = {}
    for row in quality:
        if row["way"] != "change" or row["table"] not in hits:
            hits[row["table"]] = defaultdict(int)
        for rule, rows in json.loads(row["hits"]).items():
            hits[row["table"]][rule] += rows
    warnings = {name: _warnings(file) for name, file in tables.items()}
    return tuple(
        Broken(name, rule, rows, not rule.startswith(DRIFT) and rule not in warnings.get(name, ()))
        for name in (*sorted(hits.keys() - tables.keys()), *(name for name in tables if name in hits))
        for rule, rows in sorted(hits[name].items(), key=lambda hit: (-hit[1], hit[0]))
    )


def _warnings(file: TableFile) -> set[str]:
    """The rules of a table that keep the rows that break them."""
    rules = [(check.name, check.severity) for check in file.table.checks]
    rules += [(reference.rule, reference.severity) for reference in file.table.references]
    return {rule for rule, severity in rules if severity == "warn"}


def _latest(outcomes: Iterable[Outcome]) -> tuple[Outcome, ...]:
    """One outcome for each table: of a job that was tried again, the last that wrote anything."""
    found: dict[str, Outcome] = {}
    for outcome in outcomes:
        if outcome.table not in found or outcome.status != "unchanged":
            found[outcome.table] = outcome
    return tuple(found.values())


def _runs(store: Store, started: datetime) -> list[tuple[str, str]]:
    """The id of the newest run of each job since the suite began."""
    runs = store.read("meta.runs").where(F.col("run") >= f"{started:%Y%m%dT%H%M%S}")  # an id begins with its time
    return [(row["job"], row["run"]) for row in runs.groupBy("job").agg(F.max("run").alias("run")).collect()]


def _models(store: Store, sources: Iterable[str]) -> list[Model]:
    reports = {source: latest(store.settings, source) for source in sources}
    return [Model(source, report["version"], report) for source, report in reports.items() if report]


def _sales(store: Store, sources: tuple[str, ...]) -> list[Sales]:
    days = store.read("gold.sales_daily").where(F.col("source").isin(*sources) & F.col("revenue").isNotNull())
    revenue = F.sum("revenue").cast("double").alias("revenue")
    found: defaultdict[tuple[str, str], list[tuple[date, float]]] = defaultdict(list)
    for row in days.groupBy("source", "currency", "ordered_on").agg(revenue).collect():
        found[row["source"], row["currency"]].append((row["ordered_on"], row["revenue"]))
    return [Sales(source, currency, tuple(sorted(days))) for (source, currency), days in sorted(found.items())]


def _popular(store: Store, source: str) -> Popular:
    lists = store.read("gold.recommendations").where(F.col("source") == source)
    users = lists.agg(MANY.count_distinct("user_id").alias("users")).collect()[0]["users"]
    counted = lists.groupBy("product_id").agg(MANY.count_distinct("user_id").alias("users")).where("users IS NOT NULL")
    best = counted.orderBy(F.desc("users"), "product_id").limit(POPULAR).collect()
    few = _names(store, source).where(F.col("product_id").isin([row["product_id"] for row in best])).collect()
    names = {row["product_id"]: row["name"] for row in few}
    return Popular(source, users, tuple((_named(row["product_id"], names.get(row["product_id"])), row["users"]) for row in best))


def _users(store: Store, sources: Iterable[str]) -> list[User]:
    return [user for source in sources for user in _users_of(store, source)]


def _users_of(store: Store, source: str) -> list[User]:
    """What some users bought most often, and what is recommended to them."""
    here = F.col("source") == source
    names = _names(store, source)
    ranked = store.read("gold.recommendations").where(here & (F.col("rank") <= TOP))
    profiles = store.read("gold.user_profiles").where(here & (F.col("orders") > 0)).join(ranked, "user_id", "left_semi")
    # By a hash, so that it is always the same users, but no particular ones.
    users = profiles.orderBy(F.xxhash64("user_id")).limit(USERS).collect()
    chosen = F.col("user_id").isin([user["user_id"] for user in users])
    bought = _most_bought(store.read("gold.interactions").where(here & (F.col("kind") == "purchase") & chosen))
    histories = _by_user(bought.join(names, "product_id", "left"))
    reasons = names.withColumnsRenamed({"product_id": "reason_product_id", "name": "reason_name"})
    lists = _by_user(ranked.where(chosen).join(names, "product_id", "left").join(reasons, "reason_product_id", "left"))
    return [
        User(
            user["user_id"],
            source,
            user["orders"],
            user["first_at"].date(),
            user["last_at"].date(),
            max((row["moment"].date() for row in lists[user["user_id"]]), default=None),
            tuple(Product(_name(row), row["orders"]) for row in histories[user["user_id"]]),
            tuple(Product(_name(row), row["score"], _why(row)) for row in lists[user["user_id"]]),
        )
        for user in users
    ]


def _names(store: Store, source: str) -> DataFrame:
    """The name of each product of a source: product_id, name."""
    return store.read("gold.product_profiles").where(F.col("source") == source).select("product_id", "name")


def _most_bought(purchases: DataFrame) -> DataFrame:
    """The products that each user bought in the most orders: user_id, rank, product_id, orders."""
    counted = purchases.groupBy("user_id", "product_id").agg(F.count_distinct("reference").alias("orders"))
    order = Window.partitionBy("user_id").orderBy(F.desc("orders"), "product_id")
    return counted.withColumn("rank", F.row_number().over(order)).where(F.col("rank") <= TOP)


def _by_user(ranked: DataFrame) -> defaultdict[str, list[Row]]:
    """The rows of each of a few users, by rank."""
    found: defaultdict[str, list[Row]] = defaultdict(list)
    for row in ranked.orderBy("user_id", "rank").collect():
        found[row["user_id"]].append(row)
    return found


def _name(row: Row) -> str:
    return _named(row["product_id"], row["name"])


def _named(product: str, name: str | None) -> str:
    return name or f"product {product}"


def _why(row: Row) -> str:
    product = row["reason_product_id"] and _named(row["reason_product_id"], row["reason_name"])
    return in_words(row["reason"], product, row["reason_times"], row["reason_days"])
