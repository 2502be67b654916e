"""The suite's summary as a page to look at: one HTML file that needs nothing beside it, no network and no scripts."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from pyspark.sql import SparkSession

from wares.errors import StorageError
from wares.lake.declassify import MINIMUM_PEOPLE
from wares.lake.delta import replace_file
from wares.lake.meta import Outcome
from wares.model.baselines import K
from wares.model.evaluation import (
    NAMES,
    SHOWN,
    TITLES,
    TOO_FEW,
    groups_by_activity,
    measured_rankers,
    of_enough,
    surely_better,
)
from wares.report.summary import Broken, Model, Rows, Sales, Summary

FILE = "report.html"
"""The page's name in the lake's root."""
NO_BREAK = "\N{NO-BREAK SPACE}"
DAYS, WEEKS = 62, 130
"""Sales of so many days are shown by day, of so many weeks by week, of more by month."""
SLOWEST = 8
"""How many of the slowest tables are shown."""
TICKS = 4
"""About how many numbers stand beside an axis."""
DATES = 6
"""At most how many dates stand below an axis."""
LAYERS = {
    "bronze": "Raw rows as they came.",
    "silver": "Cleaned, one shape for all sources.",
    "gold": "Facts, profiles, features and lists.",
}


def as_html(summary: Summary) -> str:
    """The page. What comes from the shop's files, such as names of products, is text in it and never markup."""
    environment = Environment(
        loader=PackageLoader("wares.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "seconds": seconds, "percent": percent, "score": score, "compact": compact}
    return environment.get_template("page.html.j2").render(
        summary=summary,
        people=MINIMUM_PEOPLE,
        k=K,
        tiles=tiles(summary),
        layers=layers(summary.rows),
        quarantined=quarantined(summary),
        warned=[broken for broken in summary.broken if not broken.rejects],
        charts=[chart(sales) for sales in summary.sales],
        models=[measured(model) for model in summary.models],
        shown=SHOWN,
        too_few=TOO_FEW,
        changes=changes(summary.outcomes),
        slowest=slowest(summary.outcomes),
        seconds_together=sum(step.seconds for step in summary.steps),
    )


def write_page(spark: SparkSession, root: str, page: str) -> str:
    """Put the page into the lake's root, in place of the one before, and return where it is. Nobody sees half a page.

    Raises:
        StorageError: There is no such folder. A run that took nothing in makes none.
        OSError: It cannot be written to.
    """
    if "://" in root:
        place = f"{root.rstrip('/')}/{FILE}"
        replace_file(spark, place, page.encode())
        return place
    folder = Path(root).absolute()
    if not folder.is_dir():
        raise StorageError("There is no lake to put the page into.", found=f"no folder {folder}")
    part = folder / f".{FILE}.{os.getpid()}"
    try:
        part.write_text(page, encoding="utf-8")
        part.replace(folder / FILE)
    finally:
        part.unlink(missing_ok=True)
    return str(folder / FILE)


# Numbers as people read them


def number(value: float) -> str:
    """A whole number, such as 1,469,307."""
    return f"{value:,.0f}"


def score(value: float) -> str:
    """A metric, such as 0.4355."""
    return f"{value:.4f}"


def percent(part: float, whole: float) -> str:
    """A share, such as 0.9 %; one that is not nothing is never 0 %."""
    share = 100 * part / whole if whole else 0.0
    shown = "< 0.01" if 0 < share < 0.01 else f"{share:.{2 if 0 < share < 0.1 else 1}f}"
    return f"{shown}{NO_BREAK}%"


def seconds(value: float) -> str:
    """A time, such as 1.7 s or 3 min 20 s."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def compact(value: float) -> str:
    """A number beside an axis, such as 1.5M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


# What stands at the top


@dataclass(frozen=True)
class Tile:
    """One of the figures at the top."""

    label: str
    value: str
    note: str = ""


def tiles(summary: Summary) -> list[Tile]:
    """The figures at the top, of what there is."""
    found = []
    bronze = [rows for rows in summary.rows if rows.table.startswith("bronze.")]
    silver = [rows for rows in summary.rows if rows.table.startswith("silver.")]
    if bronze:
        found.append(Tile("Raw rows", number(sum(rows.kept for rows in bronze)), f"in {len(bronze)} tables"))
    if silver:
        rejected, rows_in = (sum(getattr(rows, count) for rows in silver) for count in ("rejected", "rows_in"))
        found.append(Tile("Quarantined", number(rejected), f"{percent(rejected, rows_in)} of rows into silver"))
    for model in summary.models:
        if measured_rankers(model.report, "all"):
            interval = model.report["all"]["wide_deep"][f"ndcg@{K}"]
            of = f" {model.source}" if len(summary.models) > 1 else ""
            note = f"95 % interval {score(interval['low'])} to {score(interval['high'])}"
            found.append(Tile(f"nDCG@{K}{of}", score(interval["mean"]), note))
    for popular in summary.popular:
        if popular.users:
            of = f" {popular.source}" if len(summary.popular) > 1 else ""
            found.append(Tile(f"Users with a list{of}", number(popular.users)))
    found.append(Tile("Run time", seconds(sum(step.seconds for step in summary.steps)), f"{len(summary.steps)} steps"))
    return found


# Rows


@dataclass(frozen=True)
class Bar:
    """A table's rows, and how long the parts of its bar are, in percent of the longest of its layer."""

    name: str
    rows: Rows
    kept: float
    rejected: float
    merged: float


@dataclass(frozen=True)
class Layer:
    """The tables of a layer."""

    name: str
    meaning: str
    bars: list[Bar]


def layers(rows: Iterable[Rows]) -> list[Layer]:
    """The tables by layer."""
    found = {layer: [each for each in rows if each.table.startswith(f"{layer}.")] for layer in LAYERS}
    return [Layer(layer, LAYERS[layer], _bars(tables)) for layer, tables in found.items() if tables]


def _bars(tables: list[Rows]) -> list[Bar]:
    longest = max(max(rows.rows_in for rows in tables), 1)
    return [
        Bar(rows.table.partition(".")[2], rows, *(100 * part / longest for part in (rows.kept, rows.rejected, rows.merged)))
        for rows in tables
    ]


@dataclass(frozen=True)
class Quarantine:
    """A table with quarantined rows, and the rules that rows broke, each with the length of its bar."""

    rows: Rows
    rules: list[tuple[Broken, float]]


def quarantined(summary: Summary) -> list[Quarantine]:
    """The tables that hold rows back, and why."""
    found = []
    for rows in summary.rows:
        rules = [broken for broken in summary.broken if broken.table == rows.table and broken.rejects]
        if rows.rejected:
            most = max((broken.rows for broken in rules), default=1)
            found.append(Quarantine(rows, [(broken, 100 * broken.rows / most) for broken in rules]))
    return found


# Sales


@dataclass(frozen=True)
class Point:
    """Revenue of a day, week or month: what it is called, and where it stands, in percent of the chart's width."""

    name: str
    value: float
    at: float


@dataclass(frozen=True)
class Chart:
    """A line over time, in percent of its width and height, with (place, label) of what stands beside the axes."""

    sales: Sales
    unit: str
    total: float
    points: list[Point]
    line: str
    area: str
    values: list[tuple[float, str]]
    dates: list[tuple[float, str]]

    @property
    def spots(self) -> Iterator[tuple[Point, float, float]]:
        """Each point with the left end and the width of the strip that is nearest to it."""
        ends = [0.0, *((a.at + b.at) / 2 for a, b in zip(self.points, self.points[1:], strict=False)), 100.0]
        for point, left, right in zip(self.points, ends, ends[1:], strict=False):
            yield point, left, right - left


def chart(sales: Sales) -> Chart:
    """Revenue over time as a line."""
    unit, found = _summed(sales.days)
    first, last = found[0][0], found[-1][0]
    span = max((last - first).days, 1)
    top, step = nice(max((value for _, value in found), default=0.0))
    points = [Point(_named(unit, day), value, 100 * (day - first).days / span) for day, value in found]
    line = " L".join(f"{point.at:.2f},{100 - 100 * point.value / top:.2f}" for point in points)
    return Chart(
        sales,
        unit,
        sum(value for _, value in found),
        points,
        f"M{line}",
        f"M{points[0].at:.2f},100 L{line} L{points[-1].at:.2f},100 Z",
        [(100 * place * step / top, compact(place * step)) for place in range(round(top / step) + 1)],
        [(100 * (day - first).days / span, label) for day, label in date_ticks(first, last)],
    )


def _summed(days: Iterable[tuple[date, float]]) -> tuple[str, list[tuple[date, float]]]:
    """Revenue by day, week or month, as fits how many days there are, each named by its first day."""
    days = list(days)
    span = (days[-1][0] - days[0][0]).days + 1
    unit = "day" if span <= DAYS else "week" if span <= 7 * WEEKS else "month"
    found: dict[date, float] = {}
    for day, value in days:
        first = day if unit == "day" else day - timedelta(day.weekday()) if unit == "week" else day.replace(day=1)
        found[first] = found.get(first, 0.0) + value
    return unit, sorted(found.items())


def _named(unit: str, day: date) -> str:
    return {"day": f"{day:%Y-%m-%d}", "week": f"week of {day:%Y-%m-%d}", "month": f"{day:%Y-%m}"}[unit]


def nice(highest: float, ticks: int = TICKS) -> tuple[float, float]:
    """Where an axis that begins at 0 ends, and how far its numbers are apart: 1, 2 or 5 of some power of ten."""
    if highest <= 0:
        return 1.0, 1.0
    power = 10 ** math.floor(math.log10(highest / ticks))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * ticks >= highest * (1 - 1e-9))
    return step * math.ceil(highest / step * (1 - 1e-9)), step


def date_ticks(first: date, last: date) -> list[tuple[date, str]]:
    """A few days to stand below an axis: firsts of months or, of a short time, days."""
    months = [date(first.year + month // 12, month % 12 + 1, 1) for month in range(first.month - 1, first.month + 12 * 60)]
    for every in (1, 2, 3, 6, 12, 24):
        found = [month for month in months if first <= month <= last and (month.month - 1 + 12 * month.year) % every == 0]
        if 3 <= len(found) <= DATES:
            return [(month, f"{month:%b %Y}") for month in found]
    apart = max(math.ceil(((last - first).days + 1) / DATES), 1)
    return [(day, f"{day.day} {day:%b}") for day in (first + timedelta(n) for n in range(0, (last - first).days + 1, apart))]


# The model


@dataclass(frozen=True)
class Dot:
    """A measure with its interval, and where they stand, in percent of the axis."""

    name: str
    kind: str
    interval: dict[str, float]
    at: float
    low: float
    high: float


@dataclass(frozen=True)
class Panel:
    """Measures beside each other on one axis.

    Args:
        apart: How far the axis's numbers are apart, in percent.
        numbers: For each dot the metrics beside nDCG.
    """

    title: str
    users: int | None
    dots: list[Dot]
    apart: float
    values: list[tuple[float, str]]
    numbers: list[list[float]]


@dataclass(frozen=True)
class Measured:
    """A model beside its baselines, the model by users' activity, and what to beware of."""

    model: Model
    panels: list[Panel]
    activity: Panel | None
    warnings: list[str]
    calibration: float | None


def measured(model: Model) -> Measured:
    """What was measured on the test days."""
    report, panels, warnings = model.report, [], []
    for purchases, title in TITLES.items():
        rankers, better = measured_rankers(report, purchases), surely_better(report[purchases])
        kinds = {"wide_deep": "model"} | dict.fromkeys(better, "better")
        shown = [(NAMES[name], kinds.get(name, "baseline"), report[purchases][name][f"ndcg@{K}"]) for name in rankers]
        numbers = [[report[purchases][name][metric]["mean"] for metric in SHOWN] for name in rankers]
        panels.append(_panel(title.capitalize(), report[purchases]["users"], shown, numbers))
        if rankers and better:
            names = " and ".join(NAMES[name] for name in better)
            warnings.append(f"On {title}, {names} {'is' if len(better) == 1 else 'are'} surely better than wide & deep.")
    groups = [(name, "group", interval) for name, interval in groups_by_activity(report)]
    activity = _panel("Wide & deep by activity", None, groups, []) if len(groups) > 1 else None
    calibration = report["all"]["wide_deep"]["calibration"]["mean"] if of_enough(report) else None
    return Measured(model, panels, activity, warnings, calibration)


def _panel(title: str, users: int | None, shown: list[tuple[str, str, dict[str, Any]]], numbers: list[list[float]]) -> Panel:
    top, step = nice(max((interval["high"] for _, _, interval in shown), default=1.0))
    dots = [
        Dot(name, kind, interval, *(100 * interval[end] / top for end in ("mean", "low", "high")))
        for name, kind, interval in shown
    ]
    values = [(100 * place * step / top, compact(place * step)) for place in range(round(top / step) + 1)]
    return Panel(title, users, dots, 100 * step / top, values, numbers)


# What changed, and how long it took


def changes(outcomes: Iterable[Outcome]) -> list[tuple[str, Outcome]]:
    """The tables that this run wrote, each with how."""
    return [(_way(outcome), outcome) for outcome in outcomes if outcome.status != "unchanged"]


def _way(outcome: Outcome) -> str:
    if outcome.table.startswith("bronze."):
        return "took in new files"
    return "followed a change" if outcome.status == "changed" else "built in full"


def slowest(outcomes: Iterable[Outcome]) -> list[tuple[Outcome, float]]:
    """The tables that took longest, each with the length of its bar."""
    found = sorted(outcomes, key=lambda outcome: -outcome.seconds)[:SLOWEST]
    return [(outcome, 100 * outcome.seconds / max(found[0].seconds, 1e-9)) for outcome in found]
