"""The flow check: no value goes into a column that more people may read than the column it came from (Denning 1976).

A label may only be lowered by a declassifier that the column declares and that the plan shows on every way to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from wares.errors import FlowError
from wares.lake.declassify import (
    LOWERS,
    AtLeast,
    Band,
    Declassifier,
    Mask,
    Prefix,
    Pseudonym,
    at_least_step,
    lowered,
    names_a_person,
)
from wares.lake.labels import Label, join
from wares.lake.lineage import AS_IT_WAS, FILTER, Flow, Lineage, Path, Ref, Trail
from wares.lake.table import Column, Table


@dataclass(frozen=True)
class _Leak:
    """A way from a source column to a column that is too open for it."""

    ref: Ref
    trail: Trail
    label: Label


def check_flow(name: str, table: Table, lineage: Lineage, label_of: Callable[[Ref], Label]) -> None:
    """Refuse a write whose columns are more open than what flows into them; on a strict table, than what decides its rows too.

    Args:
        name: The table to be written.
        table: What it declares.
        lineage: Where its columns come from.
        label_of: The label of a source column.

    Raises:
        FlowError: A column is too open; each such column is named, with its sources and the label that would do.
    """
    refs = {ref for flow in (*lineage.direct.values(), lineage.indirect) for ref in flow}
    people = [ref for ref in refs if names_a_person(label_of(ref))]
    deciding = _deciding(name, table, lineage) if table.strict else {}

    def label(ref: Ref) -> Label:
        return table.by_name[ref.column].label if ref.table == name and ref in deciding else label_of(ref)

    found, cures = [], []
    for column in table.columns:
        leaks = [
            leak
            for flow in (lineage.direct[column.name], deciding)
            for ref, paths in flow.items()
            if (leak := _leak(column, ref, paths, label(ref), people))
        ]
        if leaks:
            found += sorted(_way(leak, name, column) for leak in leaks)
            cures.append(_cure(column, leaks))
    if found:
        raise FlowError(
            f"The write of {name} is refused: a value would flow into a column that more people may read.",
            found="; ".join(found),
            do="; ".join(cures),
        )
    _refuse_sums(name, table, lineage, label, people)


def _deciding(name: str, table: Table, lineage: Lineage) -> Flow:
    """What decides which rows a table has: in its build, and by the rules that reject rows."""
    rules = [check.rule for check in table.checks if check.severity == "reject"]
    referring = {column for reference in table.references if reference.severity == "reject" for column in reference.columns}
    ruled = [name for name in table.by_name if name in {*table.keys, *referring} or any(name in rule for rule in rules)]
    return lineage.indirect | {Ref(name, column): {frozenset({FILTER}): (FILTER,)} for column in ruled}


def _leak(column: Column, ref: Ref, paths: dict[Path, Trail], label: Label, people: list[Ref]) -> _Leak | None:
    if column.label.dominates(label):
        return None
    declared = column.declassified
    legal = declared is not None and column.label.dominates(lowered(label, type(declared)))
    trails = [trail for path, trail in paths.items() if not (legal and _shows(path, declared, people))]
    return _Leak(ref, min(trails, key=len), label) if trails else None


def _shows(path: Path, declared: Declassifier, people: Iterable[Ref]) -> bool:
    """Whether a way to a column goes through what the column declares."""
    match declared:
        case Pseudonym():  # which the store puts there after build; of what was computed it would tell whether it is the same
            return path <= AS_IT_WAS
        case AtLeast():
            return any(at_least_step(declared.k, person) in path for person in people)
        case _:
            return declared.step in path


def _way(leak: _Leak, name: str, column: Column) -> str:
    steps = [f"{leak.ref} [{leak.label}]", *leak.trail, f"{name}.{column.name} [{column.label}]"]
    return " -> ".join(steps if leak.trail else [steps[0], "as it is", steps[1]])


def _cure(column: Column, leaks: list[_Leak]) -> str:
    """What would make a column legal."""
    cure = f"label {column.name} {join([column.label, *(leak.label for leak in leaks)])}"
    able = [kind for kind in LOWERS if all(column.label.dominates(lowered(leak.label, kind)) for leak in leaks)]
    if type(column.declassified) in able:
        return f"{cure}, or let every way go through what it declares, {column.declassified}"
    names = " or ".join(kind.__name__ for kind in able)
    return f"{cure}, or declare it `declassified` by {names} (wares.lake.declassify), used on every way" if able else cure


def _refuse_sums(name: str, table: Table, lineage: Lineage, label: Callable[[Ref], Label], people: list[Ref]) -> None:
    """Refuse two generalisations of one source column in one table: side by side they tell more than each is declared to.
    Columns that name a person count as one: a join can bring together what two tables call the same person.

    Raises:
        FlowError: Two columns show different parts of one source column.
    """
    shown: dict[Ref | None, dict[str, str]] = {}
    for column in table.columns:
        if isinstance(column.declassified, Mask | Prefix | Band):
            for ref in lineage.direct[column.name]:
                if not column.label.dominates(label(ref)):
                    part = f"{ref} [{label(ref)}]: {column.declassified.step} as {column.name}"
                    shown.setdefault(None if ref in people else ref, {})[column.declassified.step] = part
    twice = [part for steps in shown.values() if len(steps) > 1 for part in steps.values()]
    if twice:
        raise FlowError(
            f"The write of {name} is refused: columns show different parts of one source column.",
            found="; ".join(twice),
            do="keep one of them, or give the others the label of the source column",
        )
