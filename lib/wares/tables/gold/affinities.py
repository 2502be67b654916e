"""How well each product goes with what a user had bought before a moment: item-to-item matrices in closed form.

Two are EASE, the shallow linear autoencoder (Steck 2019, "Embarrassingly shallow autoencoders for sparse data"): on all that
users bought, and on what they bought of late. The third is a ridge regression from what users had bought earlier to what they
then tried, bought for the first time.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql.functions import broadcast, col

from wares.lake.labels import BEHAVIOUR, CONFIDENTIAL, IDENTIFIER
from wares.lake.table import Check, Column, Table

PRODUCTS = 8_000
"""The most bought products, which alone have scores."""
TEACHERS = 10_000
"""At most so many users, evenly chosen, teach which products go together where they are more than the products."""
EASE, LATELY, TRIAL = 200.0, 100.0, 1000.0
"""How strongly each of the matrices is held down (the lambda of its ridge regression)."""
BEST = 150
"""Products that a user had not bought before and that have a row: so many of the best by `ease`, and by `trial`."""
BLOCK = 2_048
"""Users whose scores are held at a time."""
TASKS = 32
"""Pieces in which sources and moments are shared out, so that cores take one after the other."""
TRYING_DAYS = 28

# A Python function sees its whole input, so each column tells of all of it.
ALL_SEEN = CONFIDENTIAL + IDENTIFIER + BEHAVIOUR

TABLE = Table(
    keys=("source", "user_id", "product_id", "moment"),
    columns=(
        Column("source", "string", ALL_SEEN, "The shop that the row comes from."),
        Column("user_id", "string", ALL_SEEN, "Who."),
        Column("product_id", "string", ALL_SEEN, f"One of the {PRODUCTS:,} products bought most before the moment."),
        Column("moment", "timestamp", ALL_SEEN, "Nothing from here on is known; in UTC."),
        Column("ease", "float", ALL_SEEN, "How well the product goes with what the user bought before, by all users' baskets."),
        Column("ease_lately", "float", ALL_SEEN, "The same, where each basket counts half every 60 days."),
        Column(
            "trial",
            "float",
            ALL_SEEN,
            f"How likely it is tried, by what users first bought in the last {TRYING_DAYS} days and what they had bought before.",
        ),
        Column(
            "goes_with",
            "string",
            ALL_SEEN,
            "At the moment that is scored: the product of the user's past that adds most to `ease`; null if none adds anything.",
        ),
        Column("is_new", "boolean", ALL_SEEN, f"Whether the user had not bought it: of those, {BEST} and {BEST} are here."),
    ),
    checks=tuple(
        Check(f"{name}_is_a_number", f"{name} = {name} AND abs({name}) < 1e6") for name in ("ease", "ease_lately", "trial")
    ),
)

History = Callable[[int, int], np.ndarray]
"""Gives the rows of a matrix of users and products, float32, of the users from one place to before another."""


def build(gold_pair_features: DataFrame, gold_moments: DataFrame) -> DataFrame:
    now = gold_moments.select("source", "moment", (col("role") == "now").alias("is_now"))
    counts = ("baskets", "baskets_month", "lasting", "days_known")
    bought = gold_pair_features.select("source", "moment", "user_id", "product_id", *counts).join(
        broadcast(now), ["source", "moment"]
    )
    return (
        bought.repartition(TASKS, "source", "moment")
        .groupBy("source", "moment")
        .applyInArrow(affinities, TABLE.schema())
        .select(*TABLE.by_name)
    )


def affinities(bought: pa.Table) -> pa.Table:
    """The rows of this table for one source and moment.

    Args:
        bought: What each user bought before, with `baskets`, `baskets_month`, `lasting` and `days_known`, and whether it
            `is_now` that users are scored; each pair once.
    """
    # In the order of their names, so that the same rows give the same numbers in whatever order they come.
    users, user = coded(bought["user_id"])
    names, product = coded(bought["product_id"])
    counts = {name: bought[name].to_numpy().astype(np.float32) for name in ("baskets", "baskets_month", "lasting")}
    most = np.sort(np.argsort(-np.bincount(product, counts["baskets"], len(names)), kind="stable")[:PRODUCTS])
    place = np.full(len(names), -1)
    place[most] = np.arange(len(most))
    kept = np.flatnonzero(place[product] >= 0)
    kept = kept[np.argsort(user[kept], kind="stable")]
    user, column = user[kept], place[product[kept]]

    def matrix(values: np.ndarray) -> History:
        values = values[kept].astype(np.float32)

        def rows_of(start: int, end: int) -> np.ndarray:
            block = np.zeros((end - start, len(most)), np.float32)
            rows = slice(*np.searchsorted(user, [start, end]))
            block[user[rows] - start, column[rows]] = values[rows]
            return block

        return rows_of

    history = matrix(np.log1p(counts["baskets"]))
    earlier = matrix(np.log1p(counts["baskets"] - counts["baskets_month"]))
    tried = matrix(bought["days_known"].to_numpy() <= TRYING_DAYS)
    shape = len(users), len(most)
    # Only what is scored is explained: training needs no reasons.
    together = ease_weights(history, *shape, EASE) if bought["is_now"][0].as_py() else None
    scored = zip(
        range(0, len(users), BLOCK),
        ease(history, *shape, EASE, together),
        # Four baskets of 60 days ago count as much as one of today in `history`.
        ease(matrix(np.log1p(4 * counts["lasting"])), *shape, LATELY),
        regression(earlier, tried, history, *shape, TRIAL),
        strict=True,
    )
    rows, columns, scores, is_new, goes_with = [], [], [], [], []
    for start, *blocks in scored:
        ease_scores, _, trial_scores = blocks
        counted = history(start, min(start + BLOCK, len(users)))
        had = counted > 0
        for here in range(len(had)):
            before, new = np.flatnonzero(had[here]), np.flatnonzero(~had[here])
            new = np.union1d(_best(new, ease_scores[here]), _best(new, trial_scores[here]))
            rows.append(np.full(len(before) + len(new), start + here))
            columns.append(np.concatenate([before, new]))
            scores.append(np.stack([block[here, columns[-1]] for block in blocks]))
            is_new.append(np.repeat([False, True], [len(before), len(new)]))
            goes_with.append(_most_added(together, before, columns[-1], counted[here]))
    row = np.concatenate(rows)
    found, added = np.concatenate(scores, axis=1), np.concatenate(goes_with)
    made = {
        "source": pa.repeat(bought["source"][0], len(row)),
        "user_id": users.take(pa.array(row)),
        "product_id": names.take(pa.array(most[np.concatenate(columns)])),
        "moment": pa.repeat(bought["moment"][0], len(row)),
        **dict(zip(("ease", "ease_lately", "trial"), found, strict=True)),
        "goes_with": names.take(pa.array(np.append(most, 0)[added], mask=added < 0)),
        "is_new": np.concatenate(is_new),
    }
    return pa.table(made)


def _most_added(weights: np.ndarray | None, past: np.ndarray, products: np.ndarray, history: np.ndarray) -> np.ndarray:
    """For each of some products the one of a user's past that adds most to its score by EASE; -1 if none adds anything."""
    if weights is None or len(past) == 0:
        return np.full(len(products), -1)
    added = weights[np.ix_(past, products)] * history[past, None]
    best = np.argmax(added, axis=0)
    return np.where(added[best, np.arange(len(products))] > 0, past[best], -1)


def _best(places: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The `BEST` of some places by their scores."""
    return places if len(places) <= BEST else places[np.argpartition(-scores[places], BEST - 1)[:BEST]]


def ease(
    history: History, users: int, products: int, regularisation: float, weights: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """EASE in closed form, for one block of users after the other.

    With X the history, P = (X'X + lambda I)^-1 and B = I - P / diag(P), the scores are X B. Where there are fewer users than
    products, XP = (XX' + lambda I)^-1 X and diag(P) = (1 - diag(X'XP)) / lambda need only the users' matrix.

    Args:
        weights: B, if it is known already.
    """
    if weights is None and users <= products:
        whole, projected = _projected(history, users, regularisation)
        for start in range(0, users, BLOCK):
            yield whole[start : start + BLOCK] - projected[start : start + BLOCK]
        return
    weights = ease_weights(history, users, products, regularisation) if weights is None else weights
    for start in range(0, users, BLOCK):
        yield history(start, min(start + BLOCK, users)) @ weights


def _projected(history: History, users: int, regularisation: float) -> tuple[np.ndarray, np.ndarray]:
    """X, and XP / diag(P), by the users' matrix."""
    whole = history(0, users)
    projected = np.linalg.inv(_held(whole @ whole.T, regularisation)) @ whole
    projected /= (1 - np.einsum("up,up->p", whole, projected)) / np.float32(regularisation)
    return whole, projected


def ease_weights(history: History, users: int, products: int, regularisation: float) -> np.ndarray:
    """B of EASE itself, float32 [products, products]: how much each product of a history adds to the score of each other.

    From the users' matrix it is X'XP / diag(P) / lambda, without its diagonal.
    """
    if users <= products:
        whole, projected = _projected(history, users, regularisation)
        weights = whole.T @ projected
        weights /= np.float32(regularisation)
        np.fill_diagonal(weights, 0)
        return weights
    gram = np.zeros((products, products), np.float32)
    for (taught,) in _teachers(users, history):
        gram += taught.T @ taught
    weights = np.linalg.inv(_held(gram, regularisation))
    weights /= -np.diag(weights).copy()
    np.fill_diagonal(weights, 0)
    return weights


def regression(
    before: History, after: History, now: History, users: int, products: int, regularisation: float
) -> Iterator[np.ndarray]:
    """Ridge regression from `before` to `after`, applied to `now`, for one block of users after the other.

    With X before and Y after, the scores are Z (X'X + lambda I)^-1 X'Y for Z now, or, where there are fewer users than
    products, the same as Z X' (XX' + lambda I)^-1 Y.
    """
    if users <= products:
        known = before(0, users)
        weights = np.linalg.solve(_held(known @ known.T, regularisation), after(0, users))
        for start in range(0, users, BLOCK):
            yield (now(start, min(start + BLOCK, users)) @ known.T) @ weights
        return
    gram, met = np.zeros((products, products), np.float32), np.zeros((products, products), np.float32)
    for known, came in _teachers(users, before, after):
        gram += known.T @ known
        met += known.T @ came
    weights = np.linalg.solve(_held(gram, regularisation), met)
    for start in range(0, users, BLOCK):
        yield now(start, min(start + BLOCK, users)) @ weights


def _held(gram: np.ndarray, regularisation: float) -> np.ndarray:
    gram[np.diag_indices(len(gram))] += np.float32(regularisation)
    return gram


def _teachers(users: int, *matrices: History) -> Iterator[list[np.ndarray]]:
    """The rows of those users who teach, of each matrix, for one block of users after the other."""
    every = -(-users // TEACHERS)
    for start in range(0, users, BLOCK):
        yield [matrix(start, min(start + BLOCK, users))[-start % every :: every] for matrix in matrices]


def coded(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """The distinct values in their order, and for each row the place of its own."""
    values = pc.unique(column).sort()
    return values, pc.index_in(column, values).to_numpy()
