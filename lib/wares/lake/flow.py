"""The flow check: no value goes into a column that more people may read than the column it came from (Denning 1976)."""

from __future__ import annotations

from collections.abc import Callable

from wares.errors import FlowError
from wares.lake.labels import Label, join
from wares.lake.lineage import AGGREGATION, GROUP_BY, Lineage, Ref
from wares.lake.table import Table


def check_flow(name: str, table: Table, lineage: Lineage, label_of: Callable[[Ref], Label]) -> None:
    """Refuse a write whose columns are more open than what flows into them.

    A column that declares `declassified` may be more open than a source that reaches it only through an aggregation or
    a grouping.

    Args:
        name: The table to be written.
        table: What it declares.
        lineage: Where its columns come from.
        label_of: The label of a source column.

    Raises:
        FlowError: A column is too open; each such column is named, with its sources and the label that would do.
    """
    leaks = []
    for column in table.columns:
        too_high = []
        for ref, paths in lineage.direct[column.name].items():
            if column.label.dominates(label_of(ref)):
                continue
            if column.declassified and all(path & {AGGREGATION, GROUP_BY} for path in paths):
                continue
            steps = sorted({step for path in paths for step in path}) or ["as it is"]
            too_high.append((ref, f"{ref} [{label_of(ref)}] -> {' -> '.join(steps)} -> {name}.{column.name} [{column.label}]"))
        if too_high:
            needed = join([column.label, *(label_of(ref) for ref, _ in too_high)])
            leaks.append(("; ".join(sorted(text for _, text in too_high)), f"label {column.name} {needed}"))
    if leaks:
        raise FlowError(
            f"The write of {name} is refused: a value would flow into a column that more people may read.",
            found="; ".join(text for text, _ in leaks),
            do="; ".join(cure for _, cure in leaks) + "; or aggregate it and declare `declassified` on the column",
        )
