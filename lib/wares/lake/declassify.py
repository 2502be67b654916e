"""The few ways by which a value may go into a column that more people may read than the column it came from.

Each is declared on the column with its reason. All but the pseudonym are also used in `build`, as an expression that can
be told in the plan: the flow check believes what the plan shows, not what the declaration says. `LOWERS` says how far each
may lower a label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column as Expression
from pyspark.sql import DataFrame
from pyspark.sql.functions import (
    avg,
    col,
    collect_set,
    concat,
    count,
    floor,
    left,
    length,
    lit,
    right,
    size,
    sum,
    trunc,
    when,
)

from wares.errors import FlowError
from wares.lake.labels import CATEGORIES, Label, Level
from wares.lake.plans import Node, all_of, kind_of

MINIMUM_PEOPLE = 5
"""A value about fewer people is about persons. Rules for publishing counts ask for 3 to 10 or more; 5 still leaves a small
shop something to see of its days."""

HIDDEN = "***"
"""What stands for the part of a text that a mask hides."""

PERIODS = ("month", "quarter", "year")


@dataclass(frozen=True)
class Mask:
    """The last `keep` characters of a text after `***`, and only `***` where that were more than half of it or null.

    Args:
        keep: How many characters are shown.
        why: Why the column may show them.
    """

    keep: int
    why: str

    def __post_init__(self) -> None:
        _require(self, self.keep >= 1, f"keep={self.keep}", "keep at least 1 character; a text of none is lit('***')")

    def __call__(self, column: str) -> Expression:
        text = col(column)
        shown = concat(lit(HIDDEN), right(text, lit(self.keep)))
        return when(length(text) >= 2 * self.keep, shown).otherwise(HIDDEN)

    @property
    def step(self) -> str:
        return f"MASK({self.keep})"


@dataclass(frozen=True)
class Prefix:
    """The first `length` characters of a code, null where that were more than half of it.

    Args:
        length: How many characters are shown.
        why: Why the column may show them.
    """

    length: int
    why: str

    def __post_init__(self) -> None:
        _require(self, self.length >= 1, f"length={self.length}", "show at least 1 character")

    def __call__(self, column: str) -> Expression:
        text = col(column)
        return when(length(text) >= 2 * self.length, left(text, lit(self.length)))

    @property
    def step(self) -> str:
        return f"PREFIX({self.length})"


@dataclass(frozen=True)
class Band:
    """The lower end of the band that a number or a day falls into.

    Args:
        width: How wide a band is: a whole number from 2 for numbers, or `month`, `quarter` or `year` for days.
        why: Why the column may show the band.
    """

    width: int | str
    why: str

    def __post_init__(self) -> None:
        wide = self.width in PERIODS if isinstance(self.width, str) else self.width >= 2
        _require(self, wide, f"width={self.width}", f"name a whole number from 2, or one of {', '.join(PERIODS)}")

    def __call__(self, column: str) -> Expression:
        return trunc(column, self.width) if isinstance(self.width, str) else floor(col(column) / self.width) * self.width

    @property
    def step(self) -> str:
        return f"BAND({self.width})"


@dataclass(frozen=True)
class AtLeast:
    """A number made of the rows of at least `k` different people, null for a group of fewer.

    People count only if their rows add something, which 0 does not: a sum over one person's values is null however many others
    are in the group. What is aggregated is a column of a table that `build` reads, beside the person in the same row, or a
    constant; either may be under a condition. Nothing is computed before: of what is, one person could be nearly all.

    Args:
        person: The column that names the person, of a table that `build` reads.
        why: Why the column may show such numbers.
        k: How many people it takes.
    """

    person: str
    why: str
    k: int = MINIMUM_PEOPLE

    def __post_init__(self) -> None:
        _require(self, self.k >= MINIMUM_PEOPLE, f"k={self.k}", f"ask for at least {MINIMUM_PEOPLE} people")

    def count(self, value: str | Expression) -> Expression:
        """How many values there are."""
        return self._guarded(count, value, Expression.isNotNull)

    def count_distinct(self, value: str | Expression) -> Expression:
        """How many different values there are."""
        return self._guarded(_different, value, Expression.isNotNull).cast("bigint")

    def sum(self, value: str | Expression) -> Expression:
        """The values' sum."""
        return self._guarded(sum, value, _is_not_zero)

    def mean(self, value: str | Expression) -> Expression:
        """The values' mean."""
        return self._guarded(avg, value, _is_not_zero)

    def groups(self, frame: DataFrame, keys: Iterable[str | Expression], *numbers: Expression) -> DataFrame:
        """The groups of at least `k` people with their numbers, so that the keys too may be read by more people.

        The numbers are guarded on their own (`sum` and so on): of the people in a group only some may add to one of them.
        """
        grouped = frame.groupBy(*keys).agg(_different(col(self.person)).alias("_people"), *numbers)
        return grouped.where(col("_people") >= self.k).drop("_people")

    def _guarded(
        self,
        aggregate: Callable[[Expression], Expression],
        value: str | Expression,
        adds: Callable[[Expression], Expression],
    ) -> Expression:
        value = col(value) if isinstance(value, str) else value
        people = _different(when(adds(value), col(self.person)))
        return when(people >= self.k, aggregate(value))


def _is_not_zero(value: Expression) -> Expression:
    return value != 0


def _different(value: Expression) -> Expression:
    """How many different values there are. A set of them is held in memory for each group, where count(DISTINCT) would copy
    every row once for each number of a table, which takes three times as long."""
    return size(collect_set(value))


@dataclass(frozen=True)
class Pseudonym:
    """A keyed pseudonym (HMAC-SHA256, RFC 2104) in the place of an id: the same for the same id, and telling nothing without
    the key. The store puts it there after `build`.

    Args:
        why: Why the column may show it.
    """

    why: str

    def __post_init__(self) -> None:
        _require(self, True, "", "")


Declassifier = Mask | Prefix | Band | AtLeast | Pseudonym


@dataclass(frozen=True)
class Reach:
    """How far a declassifier may lower a label; the level never falls below INTERNAL."""

    levels: int
    removes: frozenset[str] = frozenset()


_NAMES = frozenset({"IDENTIFIER", "CONTACT"})
LOWERS: dict[type[Declassifier], Reach] = {
    Mask: Reach(1, _NAMES),  # what is left names and reaches nobody, yet is still about one person
    Prefix: Reach(1),
    Band: Reach(1),
    AtLeast: Reach(3, frozenset(CATEGORIES)),  # about no person any more
    Pseudonym: Reach(1, _NAMES),
}


def lowered(label: Label, kind: type[Declassifier]) -> Label:
    """The lowest label that a value may have after a declassifier of some kind."""
    reach = LOWERS[kind]
    level = min(label.level, max(Level.INTERNAL, Level(max(label.level - reach.levels, 0))))
    return Label(level, label.categories - reach.removes)


def names_a_person(label: Label) -> bool:
    """Whether a column names a person: IDENTIFIER is its only category. With others it names a thing that is about one."""
    return label.categories == {"IDENTIFIER"}


def at_least_step(k: int, person: object) -> str:
    """The step of a number that is there only if at least `k` different values of the source column `person` add to it."""
    return f"AT_LEAST({k} {person})"


def _require(declassifier: Declassifier, fits: bool, found: str, do: str) -> None:
    name = type(declassifier).__name__
    if not declassifier.why.strip():
        raise FlowError(f"A {name} says no reason.", found="why is empty", do="say why the column may be read by more people")
    if not fits:
        raise FlowError(f"A {name} is not one that Wares allows.", found=found, do=do)


# How they look in the plan


def row_step(expression: Node) -> tuple[str, Node] | None:
    """The step of a mask, prefix or band, and the attribute that it is of; None for any other expression."""
    for form in (_mask, _prefix, _band_of_numbers, _band_of_days):
        found = form(expression)
        if found and kind_of(found[1]) == "AttributeReference":
            return found
    return None


def threshold(condition: Node) -> tuple[int, Node] | None:
    """The number of people that `counted >= number` asks for, and what is counted; None if it is not that, or too few."""
    if kind_of(condition) != "GreaterThanOrEqual":
        return None
    counted, number = condition["nodes"]
    k = _whole(number)
    return (k, counted) if k is not None and k >= MINIMUM_PEOPLE else None


def different_counted(aggregate: Node) -> Node | None:
    """What a count of different values counts, in either form; None for any other expression."""
    if kind_of(aggregate) == "Size":
        function = _function(aggregate["nodes"][0])
        return function["nodes"][0] if function and kind_of(function) == "CollectSet" else None
    function = _function(aggregate)
    if function and kind_of(function) == "Count" and aggregate["isDistinct"] and len(function["nodes"]) == 1:
        return function["nodes"][0]
    return None


def guarded(expression: Node) -> tuple[int, Node, Node] | None:
    """How many people an aggregate asks for, the attribute that names them, and what is aggregated.

    The form is `CASE WHEN size(collect_set(CASE WHEN value != 0 THEN person END)) >= k THEN aggregate(value) END`, for counts
    with `value IS NOT NULL`.
    """
    branch = _only_branch(expression)
    asked = threshold(branch[0]) if branch else None
    counted = different_counted(asked[1]) if asked else None
    adding = _only_branch(counted) if counted else None
    mixed = _mixed(branch[1]) if branch else None
    if not adding or not mixed:
        return None
    value, adds = mixed
    return (asked[0], adding[1], value) if adds(adding[0], value) and _is_plain(value) else None


def _mixed(aggregate: Node) -> tuple[Node, Callable[[Node, Node], bool]] | None:
    """What an aggregate is of whose result is no single person's value, as that of max or first is, and which condition tells
    that a row adds to it; None for any other."""
    if different := different_counted(aggregate):
        return different, _tells_not_null
    function = _function(aggregate)
    if not function or aggregate["isDistinct"] or len(function["nodes"]) != 1 or kind_of(function) not in MIXING:
        return None
    return function["nodes"][0], MIXING[kind_of(function)]


def _tells_not_null(condition: Node, value: Node) -> bool:
    return kind_of(condition) == "IsNotNull" and condition["nodes"][0] == value


def _tells_not_zero(condition: Node, value: Node) -> bool:
    """Whether a condition is that the value is not 0. Spark casts it where types differ, which is no matter; a value that is cast
    in the sum alone could be 0 where it is not in the condition."""
    if kind_of(condition) != "Not" or kind_of(condition["nodes"][0]) != "EqualTo":
        return False
    compared, zero = condition["nodes"][0]["nodes"]
    zero = _bare(zero)
    if kind_of(zero) != "Literal" or zero["dataType"] != "integer" or zero["value"] != "0":
        return False
    while compared != value and kind_of(compared) == "Cast":
        compared = compared["nodes"][0]
    return compared == value


MIXING = {"Count": _tells_not_null, "Sum": _tells_not_zero, "Average": _tells_not_zero}


def _is_plain(value: Node) -> bool:
    """Whether a value is as it stands in the table, or a constant, or null by a condition: what is computed, such as
    `income / (1 + 1000 * (number - 7) * (number - 7))`, can be nearly all of one person."""
    branch = _only_branch(value)
    if branch:
        return row_wise(branch[0]) and _is_plain(branch[1])
    return kind_of(_bare(value)) in ("AttributeReference", "Literal")


def row_wise(expression: Node) -> bool:
    """Whether an expression's value hangs on its own row alone."""
    return not any(
        kind_of(part) in ("PythonUDF", "OuterReference") or isinstance(part.get("plan"), list) for part in all_of(expression)
    )


def _function(aggregate: Node) -> Node | None:
    """The function of an aggregate without a filter."""
    plain = kind_of(aggregate) == "AggregateExpression" and len(aggregate["nodes"]) == 1
    return aggregate["nodes"][0] if plain else None


def _only_branch(expression: Node) -> tuple[Node, Node] | None:
    """The condition and the value of a CASE of one branch without ELSE."""
    return tuple(expression["nodes"]) if kind_of(expression) == "CaseWhen" and len(expression["nodes"]) == 2 else None


def _mask(expression: Node) -> tuple[str, Node] | None:
    if kind_of(expression) != "CaseWhen" or len(expression["nodes"]) != 3:
        return None
    condition, shown, otherwise = expression["nodes"]
    if kind_of(shown) != "Concat" or len(shown["nodes"]) != 2 or not _is(otherwise, HIDDEN) or not _is(shown["nodes"][0], HIDDEN):
        return None
    found = _end("Right", condition, shown["nodes"][1])
    return (f"MASK({found[0]})", found[1]) if found else None


def _prefix(expression: Node) -> tuple[str, Node] | None:
    branch = _only_branch(expression)
    found = _end("Left", *branch) if branch else None
    return (f"PREFIX({found[0]})", found[1]) if found else None


def _end(kind: str, condition: Node, shown: Node) -> tuple[int, Node] | None:
    """How many characters of which text are shown, if the condition sees to it that they are no more than half of it."""
    if kind_of(condition) != "GreaterThanOrEqual" or kind_of(condition["nodes"][0]) != "Length" or kind_of(shown) != kind:
        return None
    needed, (text, number) = _whole(condition["nodes"][1]), shown["nodes"]
    characters = _whole(number)
    if needed is None or characters is None or characters < 1 or needed < 2 * characters:
        return None
    return (characters, text) if condition["nodes"][0]["nodes"][0] == text else None


def _band_of_numbers(expression: Node) -> tuple[str, Node] | None:
    if kind_of(expression) != "Multiply":
        return None
    rounded, width = _bare(expression["nodes"][0]), _whole(expression["nodes"][1])
    divided = _bare(rounded["nodes"][0]) if kind_of(rounded) == "Floor" else None
    if width is None or width < 2 or divided is None or kind_of(divided) != "Divide" or _whole(divided["nodes"][1]) != width:
        return None
    return f"BAND({width})", _bare(divided["nodes"][0])


def _band_of_days(expression: Node) -> tuple[str, Node] | None:
    if kind_of(expression) != "TruncDate":
        return None
    day, period = expression["nodes"]
    return (f"BAND({period['value']})", _bare(day)) if kind_of(period) == "Literal" and period["value"] in PERIODS else None


def _bare(expression: Node) -> Node:
    """The expression under its casts, which Spark adds where types differ."""
    return _bare(expression["nodes"][0]) if kind_of(expression) == "Cast" else expression


def _whole(expression: Node) -> int | None:
    """The whole number that is written there."""
    written: Any = _bare(expression).get("value") if kind_of(_bare(expression)) == "Literal" else None
    return int(written) if isinstance(written, str) and written.isdecimal() else None


def _is(expression: Node, text: str) -> bool:
    return kind_of(expression) == "Literal" and expression["value"] == text
