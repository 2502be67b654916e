"""The reason of a recommendation: the part that raises the logit most, and what that part saw."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from wares.model.reasons import in_words, reasons
from wares.model.scorer import Told


def test_the_part_that_raises_the_logit_most_is_the_reason() -> None:
    user = pa.table(
        {
            "pairs": [[{"product_id": "milk", "baskets": 3, "gap": 12.25}, {"product_id": "salt", "baskets": 1, "gap": None}]],
            "types": [[{"type": "fruit", "lines": 5}]],
            "affinities": [[{"product_id": "tea", "goes_with": "milk"}, {"product_id": "rye", "goes_with": None}]],
        }
    )
    told = {
        "pair": Told(np.array([2.0, 0.5, -1.0, 0.0, 0.0, 0.0]), np.array([0, 1, 0, -1, -1, -1])),
        "type": Told(np.array([1.0, 0.0, -0.5, 0.3, 0.0, 0.0]), np.array([0, -1, 0, 0, -1, -1])),
        "affinity": Told(np.array([1.5, 0.0, -2.0, 0.2, 0.1, 0.4]), np.array([0, -1, 1, 1, 0, 1])),
    }
    found = reasons(told, {name: user[name][0] for name in user.column_names})
    assert [tuple(reason.values()) for reason in found] == [
        ("bought_before", None, 3, 12.25),
        ("bought_before", None, 1, None),
        ("popular", None, None, None),  # the past speaks against it
        ("type_bought", None, 5, None),
        ("goes_with", "milk", None, None),
        ("goes_with", None, None, None),
    ]


def test_a_user_without_a_past_is_recommended_what_is_popular() -> None:
    nothing = Told(np.zeros(2), np.full(2, -1))
    past = pa.scalar(None, pa.list_(pa.int32()))
    found = reasons(dict.fromkeys(("pair", "type", "affinity"), nothing), dict.fromkeys(("pairs", "types", "affinities"), past))
    assert [reason["reason"] for reason in found] == ["popular", "popular"]


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (("bought_before", None, 3, 12.25), "bought 3 times, every 12 days"),
        (("bought_before", None, 1, None), "bought once"),
        (("bought_before", None, 2, 0.0), "bought 2 times"),
        (("goes_with", "BANANAS", None, None), "goes with BANANAS, which you bought"),
        (("goes_with", None, None, None), "goes with what you bought"),
        (("type_bought", None, 1, None), "you bought its kind once"),
        (("type_bought", None, 5, None), "you bought its kind 5 times"),
        (("popular", None, None, None), "many buy it"),
    ],
)
def test_reasons_in_words(reason: tuple[str, str | None, int | None, float | None], words: str) -> None:
    assert in_words(*reason) == words
