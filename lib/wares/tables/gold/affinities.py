"""How well each product goes with what a user had bought before a moment: EASE, the shallow linear autoencoder."""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame

from wares.lake.labels import BEHAVIOUR, CONFIDENTIAL, IDENTIFIER
from wares.lake.table import Check, Column, Table

PRODUCTS = 8_000
"""The most bought products, which alone have scores."""
TEACHERS = 10_000
"""At most so many users, evenly chosen, teach which products go together where they are more than the products."""
REGULARISATION = 200.0
BEST = 200
"""Products that a user had not bought before and that have a row: the user's best ones."""
BLOCK = 2_048
"""Users whose scores are held at a time."""
TASKS = 32
"""Pieces in which sources and moments are shared out, so that cores take one after the other."""

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
        Column("is_new", "boolean", ALL_SEEN, f"Whether the user had not bought it: of those, the best {BEST} are here."),
    ),
    checks=(Check("a_number", "ease = ease AND abs(ease) < 1e6"),),
)


def build(gold_pair_features: DataFrame) -> DataFrame:
    bought = gold_pair_features.select("source", "moment", "user_id", "product_id", "baskets")
    return (
        bought.repartition(TASKS, "source", "moment")
        .groupBy("source", "moment")
        .applyInArrow(affinities, TABLE.schema())
        .select(*TABLE.by_name)
    )


def affinities(bought: pa.Table) -> pa.Table:
    """The rows of this table for one source and moment.

    Args:
        bought: What each user bought before, with `baskets`; each pair once.
    """
    # In the order of their names, so that the same rows give the same numbers in whatever order they come.
    users, user = _coded(bought["user_id"])
    names, product = _coded(bought["product_id"])
    baskets = bought["baskets"].to_numpy().astype(np.float32)
    most = np.sort(np.argsort(-np.bincount(product, baskets, len(names)), kind="stable")[:PRODUCTS])
    place = np.full(len(names), -1)
    place[most] = np.arange(len(most))
    kept = np.flatnonzero(place[product] >= 0)
    kept = kept[np.argsort(user[kept], kind="stable")]
    user, column, value = user[kept], place[product[kept]], np.log1p(baskets[kept])

    def history(start: int, end: int) -> np.ndarray:
        block = np.zeros((end - start, len(most)), np.float32)
        rows = slice(*np.searchsorted(user, [start, end]))
        block[user[rows] - start, column[rows]] = value[rows]
        return block

    rows, columns, scores, is_new = [], [], [], []
    for start, had, block in ease(history, len(users), len(most)):
        for here in range(len(block)):
            before, new = np.flatnonzero(had[here]), np.flatnonzero(had[here] == 0)
            if len(new) > BEST:
                new = new[np.argpartition(-block[here, new], BEST - 1)[:BEST]]
            rows.append(np.full(len(before) + len(new), start + here))
            columns.append(np.concatenate([before, new]))
            scores.append(block[here, columns[-1]])
            is_new.append(np.repeat([False, True], [len(before), len(new)]))
    row = np.concatenate(rows)
    made = {
        "source": pa.repeat(bought["source"][0], len(row)),
        "user_id": users.take(pa.array(row)),
        "product_id": names.take(pa.array(most[np.concatenate(columns)])),
        "moment": pa.repeat(bought["moment"][0], len(row)),
        "ease": np.concatenate(scores),
        "is_new": np.concatenate(is_new),
    }
    return pa.table(made)


def ease(history: Callable[[int, int], np.ndarray], users: int, products: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """EASE (Steck 2019, "Embarrassingly shallow autoencoders for sparse data") in closed form.

    With X what users bought, P = (X'X + lambda I)^-1 and B = I - P / diag(P), the scores are X B. Where there are fewer
    users than products, XP = (XX' + lambda I)^-1 X and diag(P) = (1 - diag(X'XP)) / lambda need only the users' matrix.

    Args:
        history: Gives the rows of X, float32, of the users from one place to before another.

    Yields:
        Where a block of users begins, its rows of X, and their scores.
    """
    if users <= products:
        whole = history(0, users)
        gram = whole @ whole.T
        gram[np.diag_indices(users)] += np.float32(REGULARISATION)
        projected = np.linalg.inv(gram) @ whole
        diagonal = (1 - np.einsum("up,up->p", whole, projected)) / np.float32(REGULARISATION)
        projected /= diagonal
        for start in range(0, users, BLOCK):
            block = slice(start, start + BLOCK)
            yield start, whole[block], whole[block] - projected[block]
        return
    every = -(-users // TEACHERS)
    gram = np.zeros((products, products), np.float32)
    for start in range(0, users, BLOCK):
        teachers = history(start, min(start + BLOCK, users))[-start % every :: every]
        gram += teachers.T @ teachers
    gram[np.diag_indices(products)] += np.float32(REGULARISATION)
    weights = np.linalg.inv(gram)
    weights /= -np.diag(weights).copy()
    np.fill_diagonal(weights, 0)
    for start in range(0, users, BLOCK):
        block = history(start, min(start + BLOCK, users))
        yield start, block, block @ weights


def _coded(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """The distinct values in their order, and for each row the place of its own."""
    values = pc.unique(column).sort()
    return values, pc.index_in(column, values).to_numpy()
