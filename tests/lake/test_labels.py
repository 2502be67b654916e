"""Labels form a lattice, and travel in the Delta schema."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wares.lake.labels import (
    BEHAVIOUR,
    CATEGORIES,
    CLOSED,
    CONFIDENTIAL,
    FINANCIAL,
    IDENTIFIER,
    INTERNAL,
    PUBLIC,
    Label,
    Level,
    join,
)

labels = st.builds(Label, st.sampled_from(Level), st.frozensets(st.sampled_from(CATEGORIES)))


@given(labels, labels, labels)
def test_join_is_the_least_upper_bound(a: Label, b: Label, c: Label) -> None:
    both = a + b
    assert both.dominates(a) and both.dominates(b)
    if c.dominates(a) and c.dominates(b):
        assert c.dominates(both)
    assert join([a, b, c]) == join([c, b, a])


@given(labels, labels, labels)
def test_dominates_is_a_partial_order(a: Label, b: Label, c: Label) -> None:
    assert a.dominates(a)
    if a.dominates(b) and b.dominates(a):
        assert a == b
    if a.dominates(b) and b.dominates(c):
        assert a.dominates(c)


@given(labels)
def test_all_labels_stand_between_public_and_closed(a: Label) -> None:
    assert CLOSED.dominates(a) and a.dominates(PUBLIC)


@given(labels)
def test_parse_reads_what_str_writes(a: Label) -> None:
    assert Label.parse(str(a)) == a


def test_known_labels() -> None:
    money = CONFIDENTIAL + BEHAVIOUR + FINANCIAL
    assert str(money) == "CONFIDENTIAL + BEHAVIOUR + FINANCIAL"
    assert money.dominates(CONFIDENTIAL + FINANCIAL) and money.dominates(INTERNAL)
    assert not money.dominates(INTERNAL + IDENTIFIER), "a level does not stand for a category"
    assert not (INTERNAL + BEHAVIOUR).dominates(CONFIDENTIAL), "a category does not stand for a level"
    assert str(join([])) == "PUBLIC"
    assert str(CLOSED) == "RESTRICTED + IDENTIFIER + CONTACT + DEMOGRAPHIC + LOCATION + BEHAVIOUR + FINANCIAL"


@pytest.mark.parametrize("text", ["SECRET", "internal", "", "INTERNAL + NAME", "INTERNAL, IDENTIFIER"])
def test_parse_refuses_other_words(text: str) -> None:
    with pytest.raises(ValueError, match="is neither a level .* nor a category"):
        Label.parse(text)
