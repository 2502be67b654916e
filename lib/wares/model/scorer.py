"""Exact scores of every user for every product in plain numpy, from the weights of the Keras network.

The network's first deep layer is a sum of a term of the user, one of the product, one of the user's past with the product,
one of the user's past with its type and one of how well it goes with that past. The product's term is computed once for all
users, the user's once for all products; a user has rows of the others for some hundred types and products only, so those
terms are small tables, looked up by type and put right for the few products afterwards. Crosses become, for each user, one
small table over the vocabulary of what is offered. What is left for each pair is the second layer and two maxima (see
`_Shift`), in blocks that stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wares.model.encoding import NONE, Arrays, Encoding, cross_bucket, encode
from wares.model.spec import Categorical, Part, Sequence, Spec

LISTS: dict[Part, str] = {"pair": "pairs", "type": "types", "affinity": "affinities"}
"""The column of a user's rows of each part that has several."""
BLOCK = 1024
"""Products whose layers are computed at a time: small enough that they stay in a core's own cache."""
BEST_SELLERS = 5_000
"""Products that have neighbours: enough for nearly all sales, few enough to compare each with each."""
GROUPS = 16
"""Groups for each place of a list, among whose maxima the least of the list is looked for."""
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
        self.offered = {cross.of[1]: rows[cross.of[1]].astype(np.intp) for cross in network.spec.crosses}
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
class Told:
    """What one part of a user's past tells of some products.

    Args:
        gain: By how much their logits are higher than if the part had no row of them, float32 [products].
        row: Which element of the user's list of that part is of the product, [products]; -1 for none.
    """

    gain: np.ndarray
    row: np.ndarray


@dataclass(frozen=True)
class Scored:
    """One user's scores.

    Args:
        row: The user's place in the table that was given.
        logits: A logit for each product of the catalogue, float32 [products]; valid until the next user.
        bought: Places in the catalogue of what the user had bought.
        told: What each part of the user's past tells of some places of the catalogue.
    """

    row: int
    logits: np.ndarray
    bought: np.ndarray
    told: Callable[[np.ndarray], dict[Part, Told]]


class Scorer:
    """Scores users against a catalogue.

    Args:
        candidates: From the places of what a user had bought to the places that are scored, each once; all others get the
            logit -inf. None scores the whole catalogue.
    """

    def __init__(
        self, network: Network, catalogue: Catalogue, candidates: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> None:
        self.network, self.catalogue = network, catalogue
        self._candidates = candidates
        weights = network.weights
        self._second = np.ascontiguousarray(weights["second/kernel"]), weights["second/bias"]
        self._deep = np.ascontiguousarray(weights["deep/kernel"][:, 0]), np.float32(weights["deep/bias"][0])
        hidden, second = self._second[0].shape
        self._buffers = (
            np.empty((BLOCK, hidden), np.float32),
            np.empty((BLOCK, second), np.float32),
            np.empty((BLOCK, second), np.float32),
        )
        # A cross's bucket is a sum modulo the table's length: with the table twice in a row, the sum itself finds the weight.
        self._crosses = []
        for cross in network.spec.crosses:
            table = weights[f"wide_{cross.name}/weights"]
            vocabulary = np.arange(network.encoding.size(cross.of[1]), dtype=np.int64)
            self._crosses.append((cross.of, np.tile(table, 2), cross_bucket(0, vocabulary, len(table))))

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
        types = self._past("type", users, "type", catalogue.types)
        pairs, affinities = (self._past(part, users, "product_id", catalogue.ids) for part in ("pair", "affinity"))
        bought = [pairs.of(user) for user in range(users.num_rows)]
        candidates = [self._candidates(pairs.place[found]) for found in bought] if self._candidates else None
        logits = network.match("user", joined) @ catalogue.match.T
        logits += catalogue.linear
        shifts, own = [], []
        for user, row in enumerate(logits):
            if candidates is not None:
                # What is added to -inf later on leaves it so.
                kept = row[candidates[user]]
                row[:] = -np.inf
                row[candidates[user]] = kept
            self._add_crosses(row, rows, user)
            shifts.append(self._shift(first[user], linear[user], types, types.of(user)))
            own.append(self._own(row, shifts[user], [(past, past.of(user)) for past in (pairs, affinities)]))
        for user, block in self._blocks(len(shifts), candidates):
            logits[user, block] += self._layers(shifts[user], block)
        for user, (places, found) in enumerate(own):
            logits[user, places] = found
            pasts: dict[Part, _Past] = {"pair": pairs, "type": types, "affinity": affinities}
            told = partial(self._told, catalogue.first, first[user], pasts, user)
            yield Scored(start + user, logits[user], pairs.place[bought[user]], told)

    def _blocks(self, users: int, candidates: list[np.ndarray] | None) -> Iterator[tuple[int, slice | np.ndarray]]:
        """Users, and places in the catalogue whose layers are computed for them at a time."""
        if candidates is not None:
            for user, places in enumerate(candidates):
                for begin in range(0, len(places), BLOCK):
                    yield user, places[begin : begin + BLOCK]
        else:
            # All users see some products before the next ones are fetched from memory.
            for begin in range(0, len(self.catalogue.ids), BLOCK):
                for user in range(users):
                    yield user, slice(begin, begin + BLOCK)

    def _shift(self, first: np.ndarray, linear: np.float32, types: _Past, found: np.ndarray) -> _Shift:
        """Put a user's terms, of the first layer and of the wide side, together with those of the types that were `found`."""
        # Row 0 is for types with which the user has no past.
        shift = np.concatenate([np.zeros((1, len(first)), np.float32), types.first[found]]) + first
        past_linear = np.append(np.float32(0), types.linear[found]) + linear
        row = np.zeros(len(self.catalogue.types) + 1, np.intp)
        row[types.place[found]] = np.arange(1, len(found) + 1)
        second = shift @ self._second[0] + self._second[1]
        return _Shift(row, shift, past_linear, -shift, -second, second @ self._deep[0] + past_linear + self._deep[1])

    def _layers(self, shift: _Shift, block: slice | np.ndarray) -> np.ndarray:
        """The deep side of some products and the rest of the shift, in buffers that are used again and again."""
        products, row = self.catalogue.first[block], shift.row[self.catalogue.type_of[block]]
        first, second, floor = (buffer[: len(products)] for buffer in self._buffers)
        # For rows of this length it is faster to copy them and take the maximum of two equal shapes than to broadcast.
        shift.first_floor.take(row, axis=0, out=first, mode="clip")
        np.maximum(first, products, out=first)
        np.matmul(first, self._second[0], out=second)
        shift.second_floor.take(row, axis=0, out=floor, mode="clip")
        np.maximum(second, floor, out=second)
        return second @ self._deep[0] + shift.rest[row]

    def _own(self, row: np.ndarray, shift: _Shift, own: list[tuple[_Past, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """The places of products of which the user has rows of their own (some of several parts), and their logits.

        Args:
            row: For each product the sum of the matches, of the product's linear term and of the crosses.
            own: Of each part what the user has.
        """
        places = np.unique(np.concatenate([past.place[found] for past, found in own]))
        types = shift.row[self.catalogue.type_of[places]]
        logits, terms = row[places] + shift.linear[types], self.catalogue.first[places] + shift.first[types]
        for past, found in own:
            at = np.searchsorted(places, past.place[found])
            logits[at] += past.linear[found]
            terms[at] += past.first[found]
        return places, logits + self._deep_of(terms) + self._deep[1]

    def _deep_of(self, terms: np.ndarray) -> np.ndarray:
        """The deep side's logits, without its bias, of the first layer's terms."""
        return np.maximum(np.maximum(terms, 0) @ self._second[0] + self._second[1], 0) @ self._deep[0]

    def _told(
        self, products: np.ndarray, of_user: np.ndarray, pasts: dict[Part, _Past], user: int, places: np.ndarray
    ) -> dict[Part, Told]:
        """What each part tells of some places: the logit with all parts less the logit with all but this one."""
        which: dict[Part, np.ndarray] = {}
        for part, past in pasts.items():
            keys = self.catalogue.type_of[places] if part == "type" else places
            found = past.of(user)
            same = past.place[found] == keys[:, None]
            which[part] = np.where(same.any(1), np.append(found, -1)[np.argmax(same, axis=1)] if len(found) else -1, -1)
        known = {part: (rows >= 0).astype(np.float32) for part, rows in which.items()}
        terms = {part: past.first[which[part]] * known[part][:, None] if len(past.first) else 0 for part, past in pasts.items()}
        whole = products[places] + of_user + sum(terms.values())
        deep = self._deep_of(whole)
        return {
            part: Told(
                deep - self._deep_of(whole - terms[part]) + (past.linear[which[part]] * known[part] if len(past.linear) else 0),
                np.where(which[part] >= 0, which[part] - past.ends[user], -1),
            )
            for part, past in pasts.items()
        }

    def _add_crosses(self, row: np.ndarray, rows: Arrays, user: int) -> None:
        """Add the crosses' weights for each product: summed over what the user has, for each value that can be offered."""
        sums: dict[str, np.ndarray] = {}
        for (owned, offered), twice, buckets in self._crosses:
            has = np.atleast_1d(rows[owned][user]).astype(np.int64)
            total = sums.setdefault(offered, np.zeros(len(buckets), np.float32))
            for begin in cross_bucket(has[has != NONE], 0, len(twice) // 2):
                total += twice[begin:].take(buckets)
        for offered, total in sums.items():
            row += total.take(self.catalogue.offered[offered])

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
class _Shift:
    """What a user adds to every product, by the past with the product's type.

    relu(p + s) @ w, of a product p and a shift s, is computed as max(p, -s) @ w + s @ w. The second term is the same for all
    products of a type, and a shift of the next layer: so sum, relu and bias become one maximum for each layer.

    Args:
        row: For each type of the catalogue, and for none, its row in the others.
        first: The user's and the type's terms of the first deep layer, [rows, hidden].
        linear: Of the wide side, [rows].
        first_floor: -s of the first layer, [rows, hidden].
        second_floor: -s of the second, [rows, second].
        rest: The two shifts' terms of the logit, and all that is linear, [rows].
    """

    row: np.ndarray
    first: np.ndarray
    linear: np.ndarray
    first_floor: np.ndarray
    second_floor: np.ndarray
    rest: np.ndarray


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
    best = np.flatnonzero(logits >= _bound(logits, k))
    best = best[np.isfinite(logits[best])]
    return best[np.argsort(-logits[best], kind="stable")][:k]


def _bound(logits: np.ndarray, k: int) -> np.float32:
    """A bound that at least `k` logits reach, and few more: the k-th highest maximum of many groups."""
    size = len(logits) // (k * GROUPS)
    if size < 2:
        return np.float32(-np.inf)
    maxima = logits[: size * k * GROUPS].reshape(size, -1).max(axis=0)
    return np.partition(maxima, len(maxima) - k)[len(maxima) - k]


def _columns(spec: Spec, part: Part, table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return {feature.source_column: table[feature.source_column] for feature in spec.stored if feature.part == part}


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _distinct(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """The distinct values, and for each row the place of its own; the place after the last for null."""
    coded = _whole(column).dictionary_encode()
    return coded.dictionary, coded.indices.fill_null(len(coded.dictionary)).to_numpy(zero_copy_only=False)
