"""Why a product is recommended: the part of the user's past that raises its score most, and what that part saw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from wares.model.scorer import LISTS, Told
from wares.model.spec import Part

CODES: dict[Part, str] = {"pair": "bought_before", "affinity": "goes_with", "type": "type_bought"}
POPULAR = "popular"
"""Where no part raises the score: the product's own terms, and who the user is, speak for it."""


def reasons(told: dict[Part, Told], user: dict[str, pa.ListScalar]) -> list[dict[str, Any]]:
    """The reason of each listed product of a user.

    Args:
        told: What each part tells of the listed products.
        user: The user's rows of each part, by the names of `LISTS`.

    Returns:
        The columns of gold.recommendations that begin with `reason`, for each product.
    """
    parts = list(CODES)
    best = np.argmax([told[part].gain for part in parts], axis=0)
    return [_reason(parts[part], told[parts[part]], place, user) for place, part in enumerate(best)]


def _reason(part: Part, told: Told, place: int, user: dict[str, pa.ListScalar]) -> dict[str, Any]:
    found: dict[str, Any] = {"reason": POPULAR, "reason_product_id": None, "reason_times": None, "reason_days": None}
    if told.gain[place] > 0:
        row = user[LISTS[part]][int(told.row[place])].as_py()
        found["reason"] = CODES[part]
        if part == "pair":
            found |= {"reason_times": row["baskets"], "reason_days": row["gap"]}
        elif part == "type":
            found["reason_times"] = row["lines"]
        else:
            found["reason_product_id"] = row["goes_with"]
    return found


def in_words(reason: str, product: str | None, times: int | None, days: float | None) -> str:
    """A reason for a person to read.

    Args:
        product: The name of the product of `reason_product_id`.
    """
    if reason == "bought_before":
        often = "once" if times == 1 else f"{times:,} times"
        every = f", every {round(days):,} days" if days is not None and round(days) > 1 else ""
        return f"bought {often}{every}"
    if reason == "goes_with":
        return f"goes with {product}, which you bought" if product else "goes with what you bought"
    if reason == "type_bought":
        return "you bought its kind once" if times == 1 else f"you bought its kind {times:,} times"
    return "many buy it"
