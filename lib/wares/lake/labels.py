"""Labels: who may see a column. A label is a level and a set of categories; labels form a lattice (Denning 1976)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import reduce
from operator import add


class Level(IntEnum):
    """How far a value may travel, from everyone to nearly no one."""

    PUBLIC = 0
    INTERNAL = 1
    CONFIDENTIAL = 2
    RESTRICTED = 3


CATEGORIES = ("IDENTIFIER", "CONTACT", "DEMOGRAPHIC", "LOCATION", "BEHAVIOUR", "FINANCIAL")


@dataclass(frozen=True)
class Label:
    """A level and the categories of personal data that a value belongs to; `a + b` is the join of both."""

    level: Level = Level.PUBLIC
    categories: frozenset[str] = frozenset()

    def __add__(self, other: Label) -> Label:
        return Label(max(self.level, other.level), self.categories | other.categories)

    def dominates(self, other: Label) -> bool:
        """True if whoever may see this label may also see `other`."""
        return self.level >= other.level and self.categories >= other.categories

    def __str__(self) -> str:
        return " + ".join([self.level.name, *(name for name in CATEGORIES if name in self.categories)])

    @staticmethod
    def parse(text: str) -> Label:
        """Read `CONFIDENTIAL + IDENTIFIER`, the form that `str(label)` writes.

        Raises:
            ValueError: A word is neither a level nor a category.
        """
        return join(_word(word.strip()) for word in text.split("+"))


def _word(word: str) -> Label:
    if word in Level.__members__:
        return Label(Level[word])
    if word in CATEGORIES:
        return Label(categories=frozenset({word}))
    raise ValueError(f"'{word}' is neither a level ({', '.join(Level.__members__)}) nor a category ({', '.join(CATEGORIES)})")


def join(labels: Iterable[Label]) -> Label:
    """The lowest label that dominates all of `labels`; PUBLIC for none."""
    return reduce(add, labels, PUBLIC)


PUBLIC, INTERNAL, CONFIDENTIAL, RESTRICTED = (Label(level) for level in Level)
IDENTIFIER, CONTACT, DEMOGRAPHIC, LOCATION, BEHAVIOUR, FINANCIAL = (Label(categories=frozenset({name})) for name in CATEGORIES)
CLOSED = Label(Level.RESTRICTED, frozenset(CATEGORIES))
"""What a raw column that nobody tagged carries: closed until opened."""
