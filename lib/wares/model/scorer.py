"""Exact scores of every user for every product in plain numpy, from the weights of the Keras network.

The network's first deep layer is a sum of a term of the user, one of the product, one of the user's past with the product,
one of the user's past with its type and one of how well it goes with that past. The product's term is computed once for all
users, the user's once for all products; a user has rows of the others for some hundred types and products only, so those
terms are small tables, looked up by type and put right for the few products afterwards. Crosses become, for each user, one
small table over the vocabulary of what is offered. What is left for each pair is a sum, the second layer, and one inner
product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wares.model.encoding import NONE, Arrays, Encoding, cross_bucket, encode
from wares.model.spec import Categorical, Part, Sequence, Spec

LISTS: dict[Part, str] = {"pair": "pairs", "type": "types", "affinity": "affinities"}
"""The column of a user's rows of each part that has several."""
BLOCK = 2048
"""Products whose layers are computed at a time: small enough that they stay in the processor's cache."""
BEST_SELLERS = 5_000
"""Products that have neighbours: enough for nearly all sales, few enough to compare each with each."""
USERS = 64
"""Users that are encoded at a time: the bound of memory, whatever the number of users."""


@dataclass(frozen=True)
class Network:
    """A trained network: what it sees, how that is encoded, and its weights by the Keras variables' paths."""

    spec: Spec
    encoding: Encoding
    weights: Mapping[str, np.ndarray]

    def joined(self, part: Part, rows: Arrays) -> np.ndarray:
        """All that the deep side sees of a part, [rows, n]."""
        found = [rows[f"{part}_numbers"]]
        for feature in self.spec.ids(part):
            if feature.is_deep:
                vectors = self.weights[f"embed_{feature.name}/embeddings"][rows[feature.name]]
                if isinstance(feature, Sequence):
                    known = (rows[feature.name] != NONE).astype(np.float32)
                    vectors = np.einsum("bl,bln->bn", known, vectors) / np.maximum(known.sum(1, keepdims=True), 1)
                found.append(vectors)
        return np.concatenate(found, axis=1)

    def linear(self, part: Part, rows: Arrays) -> np.ndarray:
        """The wide side's sum over a part's numbers and values, [rows]."""
        total = rows[f"{part}_numbers"] @ self.weights[f"wide_{part}_numbers/kernel"][:, 0]
        for feature in self.spec.ids(part):
            if isinstance(feature, Categorical) and feature.is_wide:
                total = total + self.weights[f"wide_{feature.name}/embeddings"][rows[feature.name], 0]
        return total

    def first(self, part: Part, joined: np.ndarray) -> np.ndarray:
        """A part's term of the first deep layer, [rows, hidden]."""
        term = joined @ self.weights[f"first_{part}/kernel"]
        return term + self.weights["first_user/bias"] if part == "user" else term

    def match(self, part: Part, joined: np.ndarray) -> np.ndarray:
        """The vectors whose inner product joins the logit, [rows, match]."""
        if not self.spec.network.match:
            return np.zeros((len(joined), 1), np.float32)
        return joined @ self.weights[f"match_{part}/kernel"] + self.weights[f"match_{part}/bias"]


class Catalogue:
    """All products that can be recommended, with everything about them computed once.

    Args:
        products: Rows of gold.product_features of one source and one moment.
    """

    def __init__(self, network: Network, products: pa.Table) -> None:
        # By type, so that a user's term for a type is read for neighbours in a row.
        products = products.sort_by([("type", "ascending"), ("product_id", "ascending")])
        self.ids = products["product_id"].combine_chunks()
        self.types, self.type_of = _distinct(products["type"])
        rows = encode(network.spec, network.encoding, "product", _columns(network.spec, "product", products), len(self.ids))
        joined = network.joined("product", rows)
        self.first = np.ascontiguousarray(network.first("product", joined), np.float32)
        self.match = np.ascontiguousarray(network.match("product", joined), np.float32)
        self.linear = network.linear("product", rows).astype(np.float32)
        self.offered = {cross.of[1]: rows[cross.of[1]] for cross in network.spec.crosses}
        self.baskets = products["baskets"].to_numpy(zero_copy_only=False)

    def neighbours(self, count: int) -> np.ndarray:
        """For each product the places of the `count` best-sellers whose first deep layer is most alike by cosine.

        Returns:
            int64 [products, count]; a product that is no best-seller has only itself, since little is known of it.
        """
        near = np.repeat(np.arange(len(self.ids))[:, None], count, axis=1)
        best = np.argsort(-self.baskets, kind="stable")[:BEST_SELLERS]
        unit = self.first[best] / np.maximum(np.linalg.norm(self.first[best], axis=1, keepdims=True), 1e-9)
        found = min(count, len(best))
        for start in range(0, len(best), BLOCK):
            alike = unit[start : start + BLOCK] @ unit.T
            near[best[start : start + BLOCK], :found] = best[np.argpartition(-alike, found - 1, axis=1)[:, :found]]
        return near


@dataclass(frozen=True)
class Scored:
    """One user's scores.

    Args:
        row: The user's place in the table that was given.
        logits: A logit for each product of the catalogue, float32 [products]; valid until the next user.
        bought: Places in the catalogue of what the user had bought.
        baskets: In how many baskets each of those was.
    """

    row: int
    logits: np.ndarray
    bought: np.ndarray
    baskets: np.ndarray


class Scorer:
    """Scores users against a catalogue."""

    def __init__(self, network: Network, catalogue: Catalogue) -> None:
        self.network, self.catalogue = network, catalogue
        weights = network.weights
        self._second = np.ascontiguousarray(weights["second/kernel"]), weights["second/bias"]
        self._deep = np.ascontiguousarray(weights["deep/kernel"][:, 0]), np.float32(weights["deep/bias"][0])
        hidden, second = self._second[0].shape
        self._buffers = (
            np.empty((BLOCK, hidden), np.float32),
            np.empty((BLOCK, hidden), np.float32),
            np.empty((BLOCK, second), np.float32),
        )

    def score(self, users: pa.Table) -> Iterator[Scored]:
        """Yield each user's logits for the whole catalogue.

        Args:
            users: Rows of gold.user_features, with `pairs`, `types` and `affinities`: lists of structs, the user's rows of
                gold.pair_features, gold.type_features and gold.affinities.
        """
        for start in range(0, users.num_rows, USERS):
            yield from self._some(users.slice(start, USERS), start)

    def _some(self, users: pa.Table, start: int) -> Iterator[Scored]:
        network, catalogue, spec = self.network, self.catalogue, self.network.spec
        rows = encode(spec, network.encoding, "user", _columns(spec, "user", users), users.num_rows)
        joined = network.joined("user", rows)
        first, linear = network.first("user", joined), network.linear("user", rows)
        matches = network.match("user", joined) @ catalogue.match.T
        types = self._past("type", users, "type", catalogue.types)
        pairs, affinities = (self._past(part, users, "product_id", catalogue.ids) for part in ("pair", "affinity"))
        baskets = pc.struct_field(_whole(users["pairs"]).flatten(), "baskets").to_numpy(zero_copy_only=False)
        for user in range(users.num_rows):
            type_rows = types.of(user)
            # Row 0 is for types with which the user has no past.
            past = np.zeros((len(type_rows) + 1, first.shape[1]), np.float32)
            past[1:] = types.first[type_rows]
            past_linear = np.append(np.float32(0), types.linear[type_rows])
            which = np.zeros(len(catalogue.types) + 1, np.int32)
            which[types.place[type_rows]] = np.arange(1, len(type_rows) + 1)
            which = which[catalogue.type_of]
            logits = matches[user]
            logits += catalogue.linear
            logits += linear[user] + self._deep[1]
            logits += past_linear[which]
            for cross in spec.crosses:
                logits += self._cross(cross.of, f"wide_{cross.name}/weights", rows, user)
            # A product may have a row of either, or of both.
            own = [(part, part.of(user)) for part in (pairs, affinities)]
            apart = np.unique(np.concatenate([part.place[found] for part, found in own]))
            corrected, terms = logits[apart], catalogue.first[apart] + first[user] + past[which[apart]]
            for part, found in own:
                at = np.searchsorted(apart, part.place[found])
                corrected[at] += part.linear[found]
                terms[at] += part.first[found]
            corrected += self._layers(terms)
            for begin in range(0, len(logits), BLOCK):
                block = slice(begin, begin + BLOCK)
                logits[block] += self._block(block, first[user], past, which[block])
            logits[apart] = corrected
            bought = pairs.of(user)
            yield Scored(start + user, logits, pairs.place[bought], baskets[bought])

    def _block(self, block: slice, user: np.ndarray, past: np.ndarray, which: np.ndarray) -> np.ndarray:
        """The deep side for neighbouring products, in buffers that are used again and again."""
        products = self.catalogue.first[block]
        first, looked_up, second = (buffer[: len(products)] for buffer in self._buffers)
        np.add(products, user, out=first)
        if which.any():
            np.take(past, which, axis=0, out=looked_up, mode="clip")
            first += looked_up
        np.maximum(first, 0, out=first)
        np.matmul(first, self._second[0], out=second)
        second += self._second[1]
        np.maximum(second, 0, out=second)
        return second @ self._deep[0]

    def _layers(self, terms: np.ndarray) -> np.ndarray:
        """The deep side from sums of the first layer."""
        return np.maximum(np.maximum(terms, 0) @ self._second[0] + self._second[1], 0) @ self._deep[0]

    def _cross(self, of: tuple[str, str], weights: str, rows: Arrays, user: int) -> np.ndarray:
        """A cross's weight for each product: summed over what the user has, for each value that can be offered."""
        has = np.atleast_1d(rows[of[0]][user]).astype(np.int64)
        vocabulary = np.arange(self.network.encoding.size(of[1]), dtype=np.int64)
        table = self.network.weights[weights]
        buckets = cross_bucket(has[has != NONE][:, None], vocabulary, len(table))
        return table[buckets].sum(axis=0)[self.catalogue.offered[of[1]]]

    def _past(self, part: Part, users: pa.Table, key: str, keys: pa.Array) -> _Past:
        lists = _whole(users[LISTS[part]])
        lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
        rows = lists.flatten()
        columns = {name: rows.field(name) for name in (feature.source_column for feature in self.network.spec.numbers(part))}
        encoded = encode(self.network.spec, self.network.encoding, part, columns, len(rows))
        place = pc.index_in(rows.field(key), keys).fill_null(-1).to_numpy(zero_copy_only=False)
        first = self.network.first(part, self.network.joined(part, encoded))
        return _Past(first, self.network.linear(part, encoded), place, np.concatenate([[0], np.cumsum(lengths)]))


@dataclass(frozen=True)
class _Past:
    """The terms of some users' rows of one part, one row after the other.

    Args:
        first: Of the first deep layer, [rows, hidden].
        linear: Of the wide side, [rows].
        place: Which product or type of the catalogue; -1 for one that is not in it.
        ends: Where each user's rows begin and end, [users + 1].
    """

    first: np.ndarray
    linear: np.ndarray
    place: np.ndarray
    ends: np.ndarray

    def of(self, user: int) -> np.ndarray:
        rows = np.arange(self.ends[user], self.ends[user + 1])
        return rows[self.place[rows] >= 0]


def top(logits: np.ndarray, k: int, excluded: np.ndarray | None = None) -> np.ndarray:
    """The places of the `k` highest logits, highest first; among equals the earlier place first. Changes `logits`."""
    if excluded is not None:
        logits[excluded] = -np.inf
    k = min(k, int(np.isfinite(logits).sum()))
    if k == 0:
        return np.empty(0, np.int64)
    least = np.partition(logits, len(logits) - k)[len(logits) - k]
    best = np.flatnonzero(logits >= least)
    return best[np.argsort(-logits[best], kind="stable")][:k]


def _columns(spec: Spec, part: Part, table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return {feature.source_column: table[feature.source_column] for feature in spec.stored if feature.part == part}


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _distinct(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """The distinct values, and for each row the place of its own; the place after the last for null."""
    coded = _whole(column).dictionary_encode()
    return coded.dictionary, coded.indices.fill_null(len(coded.dictionary)).to_numpy(zero_copy_only=False)
