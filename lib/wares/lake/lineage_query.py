"""Asks the recorded lineage both ways: what a column is made of, and what is made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from wares.errors import SettingsError
from wares.lake.lineage import Ref
from wares.lake.store import Store

ROWS = "*"
"""As a column: all rows of the table, which what is indirect decides."""

Neighbours = Callable[[Ref], dict[Ref, tuple[str, ...]]]
"""What lies one step further from a column, and by which kinds of step."""


@dataclass(frozen=True)
class Edge:
    """One step of lineage: `source` flows into `target` or, where the target's column is ROWS, decides its rows."""

    source: Ref
    target: Ref
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What was found upstream or downstream of a column.

    Args:
        start: The column that was asked about.
        upstream: Whether the question was what it is made of.
        edges: All steps on the way.
        labels: The labels of the columns, as they stand in the lake; raw files have none.
        neighbours: One step further in the direction that was asked.
    """

    start: Ref
    upstream: bool
    edges: list[Edge]
    labels: dict[Ref, str]
    neighbours: Neighbours


def ask(store: Store, column: str, upstream: bool = True, indirect: bool = False, depth: int | None = None) -> Answer:
    """Follow the lineage of a column, as the newest commit of each table recorded it.

    Args:
        column: The column, as `layer.table.column`; `files.SOURCE_ENTITY.column` is one of a raw file.
        upstream: What it is made of; else, what is made of it.
        indirect: Take along what decides which rows there are.
        depth: How many steps to follow at most; None for all.

    Raises:
        SettingsError: There is no such column, or no lineage yet.
    """
    if not store.exists("meta.lineage"):
        raise SettingsError(
            "No lineage has been recorded.",
            found=f"nothing at {store.location('meta.lineage')}",
            do="name the lake that you mean (--set lake.root=DIR), or run jobs/suite.py to make one",
        )
    recorded = newest_edges(store)
    start = _find(store, recorded, column)
    neighbours = within(neighbours_in(recorded, upstream, indirect), start, depth)
    edges = reached(neighbours, start, upstream)
    refs = {start, *(ref for edge in edges for ref in (edge.source, edge.target))}
    return Answer(start, upstream, edges, _labels(store, refs), neighbours)


def with_moments(store: Store) -> DataFrame:
    """The rows of `meta.lineage`, each with `at`, the moment of the commit that it belongs to."""
    commits = store.read("meta.watermarks").groupBy("table", "version", "run").agg(F.max("at").alias("at"))
    return store.read("meta.lineage").join(commits, ["table", "version", "run"])


def newest_edges(store: Store) -> list[Edge]:
    """The lineage that the newest commit of each table recorded.

    By time, not by version: a table that was deleted starts again at version 0.
    """
    by_table = Window.partitionBy("table")
    newest = with_moments(store).withColumn("newest", F.max("at").over(by_table)).where("at = newest")
    return [
        Edge(
            Ref(row["source_table"], row["source_column"]),
            Ref(row["table"], row["column"] if row["direct"] else ROWS),
            tuple(row["steps"].split(",")),
        )
        for row in newest.select("table", "column", "source_table", "source_column", "direct", "steps").distinct().collect()
    ]


def within(neighbours: Neighbours, start: Ref, depth: int | None) -> Neighbours:
    """The same steps, as far as they lie within so many steps of a column; all of them for None."""
    if depth is None:
        return neighbours
    steps, nearest = {start: 0}, [start]
    for here in nearest:
        for there in neighbours(here) if steps[here] < depth else ():
            if there not in steps:
                steps[there] = steps[here] + 1
                nearest.append(there)
    return lambda ref: neighbours(ref) if steps.get(ref, depth) < depth else {}


def reached(neighbours: Neighbours, start: Ref, upstream: bool) -> list[Edge]:
    """All steps on the way from a column, nearest first; each column is followed once, so that no ring goes on for ever."""
    edges, seen, waiting = [], {start}, [start]
    while waiting:
        here = waiting.pop(0)
        for there, steps in neighbours(here).items():
            edges.append(Edge(there, here, steps) if upstream else Edge(here, there, steps))
            if there not in seen:
                seen.add(there)
                waiting.append(there)
    return edges


def as_tree(answer: Answer) -> str:
    """The answer as indented text; what hangs below a column is written out where it is met first."""
    lines, written = [_describe(answer, answer.start)], {answer.start}

    def hang(ref: Ref, indent: str) -> None:
        below = answer.neighbours(ref)
        for place, (there, steps) in enumerate(below.items()):
            last = place == len(below) - 1
            again = there in written and bool(answer.neighbours(there))
            how = f"  {', '.join(steps)}" if steps else ""
            lines.append(f"{indent}{'└─ ' if last else '├─ '}{_describe(answer, there)}{how}{'  (as above)' if again else ''}")
            if there not in written:
                written.add(there)
                hang(there, indent + ("   " if last else "│  "))

    hang(answer.start, "")
    if len(lines) == 1:
        lines.append("└─ made of no column" if answer.upstream else "└─ no column is made of it")
    return "\n".join(lines)


def as_json(answer: Answer) -> dict[str, Any]:
    """The answer as a graph: its columns with their labels, and the steps between them. A column `*` is all rows of a table."""
    refs = dict.fromkeys([answer.start, *(ref for edge in answer.edges for ref in (edge.source, edge.target))])
    return {
        "column": str(answer.start),
        "direction": "upstream" if answer.upstream else "downstream",
        "columns": [{**vars(ref), "label": answer.labels.get(ref)} for ref in refs],
        "edges": [
            {"source": str(edge.source), "target": str(edge.target), "direct": ROWS not in _ends(edge), "steps": list(edge.steps)}
            for edge in answer.edges
        ],
    }


def _ends(edge: Edge) -> tuple[str, str]:
    return edge.source.column, edge.target.column


def _describe(answer: Answer, ref: Ref) -> str:
    if ref.column == ROWS:
        return f"which rows {ref.table} has"
    label = answer.labels.get(ref)
    return f"{ref} [{label}]" if label else str(ref)


def neighbours_in(edges: Iterable[Edge], upstream: bool, indirect: bool) -> Neighbours:
    """One step further in a direction.

    The rows of a table are a place of their own, so that what decides them is told once: upstream, each column of the
    table leads there; downstream, it leads to all that is made of the table.
    """
    found: dict[Ref, dict[Ref, set[str]]] = {}
    for edge in edges:
        if edge.target.column == ROWS and not indirect:
            continue
        here, there = (edge.target, edge.source) if upstream else (edge.source, edge.target)
        places = [here] if upstream or not indirect else [here, Ref(here.table, ROWS)]
        for place in places:
            found.setdefault(place, {}).setdefault(there, set()).update(edge.steps)

    def neighbours(ref: Ref) -> dict[Ref, tuple[str, ...]]:
        below = sorted(found.get(ref, {}).items(), key=lambda item: (item[0].column == ROWS, str(item[0])))
        rows = Ref(ref.table, ROWS)
        decided = {rows: ()} if upstream and ref != rows and rows in found else {}
        return {there: tuple(sorted(steps)) for there, steps in below} | decided

    return neighbours


def _labels(store: Store, refs: Iterable[Ref]) -> dict[Ref, str]:
    """The labels of columns, from the schemas of their tables as they are now."""
    labels = {}
    for table in {ref.table for ref in refs}:
        if store.exists(table):
            labels |= {Ref(table, f.name): f.metadata["label"] for f in store.read(table).schema if "label" in f.metadata}
    return labels


def _find(store: Store, edges: list[Edge], name: str) -> Ref:
    table, _, column = name.rpartition(".")
    known = {ref for edge in edges for ref in (edge.source, edge.target) if ref.column != ROWS}
    if "." in table and store.exists(table):
        known |= {Ref(table, found) for found in store.read(table).columns}
    if (wanted := Ref(table, column)) in known:
        return wanted
    beside = [str(ref) for ref in known if ref.table == table]
    alike = [str(ref) for ref in known if ref.column == column]
    near = get_close_matches(name, beside or list(map(str, known)), n=3) or alike or beside or {ref.table for ref in known}
    raise SettingsError(
        f"There is no column {name} in this lake.",
        found=f"no such column in {table}" if beside else f"no table {table}" if table else "no table named",
        do=f"name one as layer.table.column, such as {', '.join(sorted(near))}",
    )
