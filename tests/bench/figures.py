"""Figures of the benchmarks, each beside its goal: as lines of text, and as JSON with method and machine."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A figure beside its goal.

    Args:
        goal: What it should be at most, or at least if `at_least`; None for a figure that is only reported.
        how: How it was measured, with the numbers that it is made of.
    """

    name: str
    value: float
    unit: str
    goal: float | None
    how: str
    at_least: bool = False

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return "reported"
        met = self.value >= self.goal if self.at_least else self.value <= self.goal
        return f"goal {self.goal:g}: {'met' if met else 'MISSED'}"


def tell(figures: Sequence[Figure], method: str, path: Path, **about: Any) -> None:
    """Print the figures, and write them to a JSON file.

    Args:
        about: What else the file says, such as the rows that were measured on.
    """
    for figure in figures:
        print(f"  {figure.name:<58}{figure.value:>10.3g} {figure.unit:<6} {figure.verdict:<20} {figure.how}")
    machine = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine(), "system": platform.platform()}
    found = {**about, "machine": machine, "method": method, "figures": [asdict(figure) for figure in figures]}
    path.write_text(json.dumps(found, indent=2), encoding="utf-8")
