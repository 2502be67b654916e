"""Drift: rows that a run wrote, held against those of the runs before it. Nothing is read for it beside `meta.quality`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

RUNS = 10
"""With how many runs before it a run is compared, at most."""
FEW = 3
"""With fewer than these it is not compared."""
VOLUME = 2.0
"""How many times more or fewer rows than usual are still no drift."""
SHARE = 0.05
"""By how much the share of nulls in a column may differ from what is usual."""


@dataclass(frozen=True)
class Tally:
    """What a run wrote: how many rows, and which share of them is null in each column."""

    rows: int
    nulls: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Drift:
    """Something unusual: the rule by which it is counted, how many rows it is about, and what a person is told."""

    rule: str
    rows: int
    text: str


def drifts(tally: Tally, before: list[Tally]) -> list[Drift]:
    """What is unusual about a run: beside the medians of the runs before it, and beyond what chance explains.

    Chance is taken for three standard errors: of a number of rows its square root, of a share at most half of one by that.
    """
    if len(before) < FEW:
        return []
    found, usual = [], median(run.rows for run in before)
    chance = 3 * math.sqrt(usual)
    if not usual / VOLUME - chance <= tally.rows <= usual * VOLUME + chance:
        found.append(Drift("drift_rows", tally.rows, f"{tally.rows:,} rows, {usual:,.0f} are usual"))
    allowed = SHARE + 1.5 / math.sqrt(max(tally.rows, 1))
    for column, share in tally.nulls.items():
        shares = [run.nulls[column] for run in before if column in run.nulls]
        if len(shares) >= FEW and abs(share - median(shares)) > allowed:
            text = f"{column} is null in {share:.0%} of the rows, {median(shares):.0%} is usual"
            found.append(Drift(f"drift_null:{column}", round(share * tally.rows), text))
    return found
