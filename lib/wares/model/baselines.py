"""What a model must beat: simpler rankers, from the same features as of the same moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, Window
from pyspark.sql.functions import broadcast, log1p, row_number
from scipy.sparse import csr_array

from wares.tables.gold.affinities import PRODUCTS, coded

if TYPE_CHECKING:
    from pyspark.ml.recommendation import ALSModel

K = 10
"""How long lists are that are measured."""

BASELINES = {
    "popularity": "popularity",
    "frequency": "personal frequency",
    "decayed": "frequency, half after 120 days",
    "ease": "EASE",
    "item_knn": "ItemKNN",
    "als": "ALS",
}
"""Each with the name that people read. Popularity counts baskets; so does personal frequency, of the user alone. ALS is measured
by `make quality` alone."""
NEIGHBOURS = 200
"""How many of its most similar products each product has in ItemKNN."""
BLOCK = 1_024
"""Products that are compared with all others at a time."""
RANK, ROUNDS, HELD, TRUST = 64, 8, 0.05, 2.0
"""Of ALS: how many factors, how often they are solved for, lambda, and alpha."""

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


Scores = Callable[[Past], np.ndarray]
"""From a user's past to a score for each product of a catalogue, 0 for those of which it knows nothing."""


@dataclass(frozen=True)
class Neighbours:
    """ItemKNN (Deshpande and Karypis 2004, "Item-based top-N recommendation algorithms"): for each product the nearest others.

    Two products are as similar as the cosine of their buyers: the users who bought both, over the root of the product of
    how many bought each. A product is its own nearest, since here what was bought may be bought again; that ranks all
    purchases better, and first-time ones the same.

    Args:
        ids: The products that have neighbours.
        near: Places in `ids` of each one's neighbours, int32 [products, NEIGHBOURS].
        alike: Their similarities, float32; 0 where a small shop has fewer neighbours.
    """

    ids: pa.Array
    near: np.ndarray
    alike: np.ndarray

    def scores(self, catalogue: pa.Array) -> Scores:
        """A product's score is the sum of its similarities to those products of the past whose neighbour it is."""
        row = np.full(len(catalogue), -1)
        place = pc.index_in(self.ids, catalogue).to_numpy()
        row[place] = np.arange(len(place))
        near = place[self.near]

        def scored(past: Past) -> np.ndarray:
            rows = row[past.bought]
            rows = rows[rows >= 0]
            return np.bincount(near[rows].ravel(), self.alike[rows].ravel(), len(catalogue)).astype(np.float32)

        return scored


def neighbours(pairs: DataFrame) -> Neighbours:
    """Find the neighbours of the products bought most, in one Python worker.

    Args:
        pairs: Rows of gold.pair_features of one source and moment.
    """
    schema = "place int, product_id string, near array<int>, alike array<float>"
    chosen = pairs.select("source", "moment", "user_id", "product_id")
    found = chosen.groupBy("source", "moment").applyInArrow(nearest, schema).toArrow().sort_by("place")
    near, alike = (found[name].combine_chunks().flatten().to_numpy().reshape(-1, NEIGHBOURS) for name in ("near", "alike"))
    return Neighbours(found["product_id"].combine_chunks(), near, alike)


def nearest(bought: pa.Table) -> pa.Table:
    """The most bought products of some pairs of users and products, each pair once, with what stands in `Neighbours`."""
    users, user = coded(bought["user_id"])
    names, product = coded(bought["product_id"])
    buyers = np.bincount(product, minlength=len(names))
    most = np.sort(np.argsort(-buyers, kind="stable")[:PRODUCTS])
    place = np.full(len(names), -1)
    place[most] = np.arange(len(most))
    column = place[product]
    kept = column >= 0
    unit = (1 / np.sqrt(buyers[most])).astype(np.float32)[column[kept]]
    matrix = csr_array((unit, (column[kept], user[kept])), (len(most), len(users)))
    count = min(NEIGHBOURS, len(most))
    near = np.zeros((len(most), NEIGHBOURS), np.int32)
    alike = np.zeros((len(most), NEIGHBOURS), np.float32)
    for start in range(0, len(most), BLOCK):
        cosine = (matrix[start : start + BLOCK] @ matrix.T).toarray()
        rows = np.arange(len(cosine))
        best = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
        near[start + rows, :count] = best
        alike[start + rows, :count] = np.take_along_axis(cosine, best, axis=1)
    return pa.table(
        {
            "place": pa.array(np.arange(len(most), dtype=np.int32)),
            "product_id": names.take(pa.array(most)),
            "near": pa.array(list(near), pa.list_(pa.int32())),
            "alike": pa.array(list(alike), pa.list_(pa.float32())),
        }
    )


@dataclass(frozen=True)
class Factors:
    """The products' factors of ALS (Hu, Koren and Volinsky 2008, "Collaborative filtering for implicit feedback datasets").

    Args:
        ids: The products.
        values: float32 [products, RANK].
    """

    ids: pa.Array
    values: np.ndarray

    def scores(self, catalogue: pa.Array) -> Scores:
        """A product's score is the product of its factors and the user's, which follow from the past and the products' alone.

        They are what ALS solves for in its last step: lambda counts once for each product of the past, as Spark has it.
        """
        own = np.zeros((len(catalogue), self.values.shape[1]), np.float32)
        own[pc.index_in(self.ids, catalogue).to_numpy()] = self.values
        gram = own.T @ own

        def scored(past: Past) -> np.ndarray:
            had = own[past.bought]
            trust = TRUST * np.log1p(past.baskets, dtype=np.float32)
            held = gram + (had.T * trust) @ had + np.float32(HELD * len(had)) * np.eye(len(gram), dtype=np.float32)
            return own @ np.linalg.solve(held, (1 + trust) @ had) if len(had) else np.zeros(len(own), np.float32)

        return scored


def factors(pairs: DataFrame, seed: int) -> Factors:
    """The products' factors of `fit_als`."""
    model, products = fit_als(pairs, seed)
    values = model.itemFactors.withColumnRenamed("id", "product_id_number").join(products, "product_id_number")
    values = values.select("product_id", "features").toArrow()
    flat = values["features"].combine_chunks().flatten().to_numpy()
    return Factors(values["product_id"].combine_chunks(), flat.reshape(-1, RANK))


def fit_als(pairs: DataFrame, seed: int) -> tuple[ALSModel, DataFrame]:
    """Fit Spark's ALS, with the logarithm of the baskets as preference.

    Args:
        pairs: Rows of gold.pair_features of one source and moment.

    Returns:
        The model, and the number by which it knows each product: product_id and product_id_number.
    """
    from pyspark.ml.recommendation import ALS

    users, products = (_numbered(pairs, name) for name in ("user_id", "product_id"))
    rated = (
        pairs.select("user_id", "product_id", log1p("baskets").cast("float").alias("preference"))
        .join(broadcast(products), "product_id")
        .join(broadcast(users), "user_id")
    )
    solver = ALS(
        rank=RANK,
        maxIter=ROUNDS,
        regParam=HELD,
        alpha=TRUST,
        implicitPrefs=True,
        userCol="user_id_number",
        itemCol="product_id_number",
        ratingCol="preference",
        seed=seed,
    )
    return solver.fit(rated), products


def _numbered(pairs: DataFrame, name: str) -> DataFrame:
    """The distinct values of a column, with a number for each, as Spark's ALS needs: NAME and NAME_number."""
    return pairs.select(name).distinct().withColumn(f"{name}_number", row_number().over(Window.orderBy(name)))


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
