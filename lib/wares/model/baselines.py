"""What a model must beat: rankers that need no training of their own, from the same features as of the same moment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

K = 10
"""How long lists are that are measured."""

BASELINES = {
    "popularity": "popularity",
    "frequency": "personal frequency",
    "decayed": "frequency, half after 120 days",
    "ease": "EASE",
}
"""Each with the name that people read. Popularity counts baskets; so does personal frequency, of the user alone."""

Lists = dict[str, dict[str, np.ndarray]]
"""For all purchases and for first-time ones, by ranker: the places in the catalogue of the top K, best first."""


@dataclass(frozen=True)
class Past:
    """What one user had done with products, by their places in the catalogue.

    Args:
        bought: Places of what the user had bought.
        baskets: In how many baskets each of those was.
        steady: The same, where each basket counts half every 120 days.
        near: Places of what has a row in gold.affinities.
        ease: How well each of those goes with the user's past.
    """

    bought: np.ndarray
    baskets: np.ndarray
    steady: np.ndarray
    near: np.ndarray
    ease: np.ndarray


def pasts(users: pa.RecordBatch, ids: pa.Array) -> list[Past]:
    """The past of each user.

    Args:
        users: With the columns `pairs` and `affinities` of `with_past`.
        ids: The products of the catalogue.
    """
    pairs = _by_user(users.column("pairs"), ids, "baskets", "steady")
    near = _by_user(users.column("affinities"), ids, "ease")
    return [Past(*own, *beside) for own, beside in zip(pairs, near, strict=True)]


def _by_user(lists: pa.ListArray, ids: pa.Array, *columns: str) -> list[tuple[np.ndarray, ...]]:
    """For each list of structs the places of its products, and some columns, without products that the catalogue lacks."""
    rows = lists.flatten()
    # All are looked up at once, as each time costs an index of the catalogue.
    place = pc.index_in(rows.field("product_id"), ids).fill_null(-1).to_numpy(zero_copy_only=False)
    found = [place, *(rows.field(column).to_numpy(zero_copy_only=False) for column in columns)]
    users = zip(*(by_list(lists, values) for values in found), strict=True)
    return [tuple(values[here[0] >= 0] for values in here) for here in users]


def by_list(lists: pa.ListArray, values: np.ndarray) -> list[np.ndarray]:
    """What belongs to each list, of values for all their elements, one list after the other."""
    ends = np.cumsum(pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False))
    return np.split(values, ends[:-1])


def baseline_lists(past: Past, popular: np.ndarray, rank: np.ndarray) -> Lists:
    """The top K of each baseline for one user, of all products and of those not bought before.

    Among equals the more popular product comes first, and where a ranker knows too few products the popular ones follow.

    Args:
        popular: The places of all products, the most popular first.
        rank: For each place its own in `popular`.
    """

    def ranked(places: np.ndarray, scores: np.ndarray, left_out: np.ndarray) -> np.ndarray:
        """Some places by their scores, then the popular ones that are neither among them nor left out."""
        best = places[np.lexsort((rank[places], -scores))]
        return best[:K] if len(best) >= K else np.concatenate([best, _first(popular, np.union1d(places, left_out))])[:K]

    nothing = np.empty(0, np.intp)
    new = _first(popular, past.bought)
    fresh = ~np.isin(past.near, past.bought)
    return {
        "all": {
            "popularity": popular[:K],
            "frequency": ranked(past.bought, past.baskets, nothing),
            "decayed": ranked(past.bought, past.steady, nothing),
            "ease": ranked(past.near, past.ease, nothing),
        },
        "first_time": {
            "popularity": new,
            "frequency": new,
            "decayed": new,
            "ease": ranked(past.near[fresh], past.ease[fresh], past.bought),
        },
    }


def _first(popular: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """The `K` most popular places that are not left out."""
    some = popular[: K + len(left_out)]
    return some[~np.isin(some, left_out)][:K]
