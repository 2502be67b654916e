"""Lowering the label of a column that already has data: only on purpose, with a reason that is kept."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from wares.errors import FlowError
from wares.lake.labels import Label
from wares.lake.table import Table


def lowerings(name: str, table: Table, stored: Mapping[str, str]) -> list[dict[str, str]]:
    """The columns whose label a table declares lower than it is stored, each with both labels, the reason and the time.

    A label that loses a category is lower too, whatever its level.

    Args:
        name: The table.
        table: What it declares now.
        stored: The labels of its columns in the lake; empty for a table without data.

    Raises:
        FlowError: A label was lowered without a reason.
    """
    lower = {
        column.name: (stored[column.name], str(column.label))
        for column in table.columns
        if column.name in stored and not column.label.dominates(Label.parse(stored[column.name]))
    }
    silent = [column for column in lower if not table.relabel.get(column, "").strip()]
    if silent:
        raise FlowError(
            f"The write of {name} is refused: it would lower labels of a table that has data.",
            found="; ".join(f"{column}: [{lower[column][0]}] in the lake, [{lower[column][1]}] declared" for column in silent),
            do=f"put the old label back, or say why with `relabel`: {', '.join(silent)}",
        )
    at = datetime.now(UTC).isoformat()
    return [
        {"column": column, "before": before, "after": after, "reason": table.relabel[column], "at": at}
        for column, (before, after) in lower.items()
    ]
