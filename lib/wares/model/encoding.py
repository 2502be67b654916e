"""From stored columns to the numbers that the network takes: vocabularies and scales, learned once from the training rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wares.errors import ModelError
from wares.model.spec import PARTS, Categorical, Numeric, Part, Sequence, Spec, Vector

NONE, OTHER = 0, 1
"""The numbers of no value, and of any value outside the vocabulary; the vocabulary begins at 2."""

SMALLEST_SPREAD = 1e-3

SPARSE: tuple[Part, ...] = ("pair", "type", "affinity")
"""Parts of which most pairs of a user and a product have no row. Their numbers begin with 1 if there is one; else all are 0."""

HASH = (7_919_777, 104_729)
"""Odd factors that spread the pairs of a cross over its buckets."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Chunk:
    """Some rows of gold.examples.

    Args:
        rows: Their columns.
        places: Where in the tables of users and of products each row's user and product stand, int32 [rows].
    """

    rows: pa.Table
    places: dict[Part, np.ndarray]


@dataclass(frozen=True)
class Encoding:
    """What was learned from the training rows.

    Args:
        vocabularies: For each categorical feature its known values; the value at place i has number i + 2.
        means: For each numeric or vector feature the mean of each place, after the scale.
        spreads: The standard deviations.
    """

    vocabularies: dict[str, list[str]]
    means: dict[str, list[float]]
    spreads: dict[str, list[float]]

    def size(self, feature: str) -> int:
        """How many numbers the vocabulary of a categorical feature has, NONE and OTHER included."""
        return len(self.vocabularies[feature]) + 2

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @staticmethod
    def load(path: Path) -> Encoding:
        return Encoding(**json.loads(path.read_text(encoding="utf-8")))


def learn(spec: Spec, tables: Mapping[Part, pa.Table], chunks: Iterable[Chunk]) -> Encoding:
    """Learn vocabularies (from purchases, whose label is 1) and scales (from all rows) in one pass over the training rows.

    Args:
        tables: The rows of users and of products, with a column for each feature.
        chunks: Rows of gold.examples.
    """
    examples = {part: np.zeros(table.num_rows) for part, table in tables.items()}
    purchases = {part: np.zeros(table.num_rows) for part, table in tables.items()}
    sums: dict[str, np.ndarray] = {}
    for chunk in chunks:
        bought = chunk.rows["label"].to_numpy() == 1
        for part, places in chunk.places.items():
            examples[part] += np.bincount(places, minlength=len(examples[part]))
            purchases[part] += np.bincount(places[bought], minlength=len(purchases[part]))
        for feature in (feature for part in SPARSE for feature in spec.numbers(part)):
            found = _sums(_scaled(feature, chunk.rows[feature.column]), np.ones(chunk.rows.num_rows))
            sums[feature.name] = sums.get(feature.name, 0) + found
    # Of users and products each row counts as often as it has examples.
    for part, table in tables.items():
        for feature in spec.numbers(part):
            sums[feature.name] = _sums(_scaled(feature, table[feature.source_column]), examples[part])
    vocabularies = {
        feature.name: _most_frequent(feature, table[feature.source_column], purchases[part])
        for part, table in tables.items()
        for feature in spec.ids(part)
        if isinstance(feature, Categorical)
    }
    means, spreads = {}, {}
    for name, (count, total, squares) in sums.items():
        mean = total / np.maximum(count, 1)
        means[name] = mean.tolist()
        spreads[name] = np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, SMALLEST_SPREAD**2)).tolist()
    return Encoding(vocabularies, means, spreads)


def _sums(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """For each place the number of known values, their sum and that of their squares, each value `weight` times, [3, places]."""
    known = ~np.isnan(values)
    values = np.where(known, values, 0)
    return np.stack([weight @ known, weight @ values, weight @ (values * values)])


def _most_frequent(feature: Categorical, column: pa.ChunkedArray, purchases: np.ndarray) -> list[str]:
    """The feature's vocabulary: the values with the most purchases, of those with enough of them."""
    coded = _flat(column).cast(pa.string()).dictionary_encode()
    known = coded.is_valid().to_numpy(zero_copy_only=False)
    places = coded.indices.fill_null(0).to_numpy(zero_copy_only=False)
    counts = np.bincount(places[known], purchases[known], len(coded.dictionary))
    seen = zip(coded.dictionary.to_pylist(), counts, strict=True)
    frequent = [(-count, value) for value, count in seen if count >= feature.min_count]
    return [value for _, value in sorted(frequent)[: feature.vocabulary]]


def encode(spec: Spec, encoding: Encoding, part: Part, columns: Mapping[str, pa.ChunkedArray | pa.Array], rows: int) -> Arrays:
    """Encode the features of one part.

    Args:
        columns: For each of the part's features its column, by the name of the column in the part's feature table.
        rows: How many rows the columns have.

    Returns:
        int32 arrays [rows] (categorical) or [rows, length] (sequence) by feature, and `PART_numbers`, float32
        [rows, width(spec, part)].
    """
    arrays: Arrays = {}
    for feature in spec.ids(part):
        values = pa.array(encoding.vocabularies[spec.vocabulary_of(feature)], pa.string())
        column = columns[feature.source_column]
        arrays[feature.name] = (
            _sequence(feature, column, values) if isinstance(feature, Sequence) else _numbers(_flat(column), values)
        )
    numbers = np.zeros((rows, width(spec, part)), np.float32)
    start = int(part in SPARSE)
    for feature in spec.numbers(part):
        values = _scaled(feature, columns[feature.source_column])
        scaled = (values - np.array(encoding.means[feature.name])) / np.array(encoding.spreads[feature.name])
        known = ~np.isnan(scaled)
        numbers[:, start : start + feature.length] = np.clip(np.where(known, scaled, 0), -8, 8)
        if part in SPARSE:
            numbers[:, 0] = np.maximum(numbers[:, 0], known.any(1))
        start += feature.length
    arrays[f"{part}_numbers"] = numbers
    return arrays


def cross_bucket(has: Any, offered: Any, buckets: int) -> Any:
    """The bucket of a cross, for int64 arrays or tensors of two vocabularies' numbers."""
    return (has * HASH[0] + offered * HASH[1]) % buckets


def width(spec: Spec, part: Part) -> int:
    """How many numbers a part has."""
    return int(part in SPARSE) + sum(feature.length for feature in spec.numbers(part))


def encode_part(spec: Spec, encoding: Encoding, part: Part, table: pa.Table) -> Arrays:
    """Encode the features of one part in rows of its own feature table."""
    columns = {feature.source_column: table[feature.source_column] for feature in spec.stored if feature.part == part}
    return encode(spec, encoding, part, columns, table.num_rows)


def encode_parts(spec: Spec, encoding: Encoding, table: pa.Table, parts: Iterable[Part] = PARTS) -> Arrays:
    """Encode the features of some parts in rows where all stand side by side, as PART_COLUMN: the network's inputs."""
    arrays: Arrays = {}
    for part in parts:
        columns = {feature.source_column: table[feature.column] for feature in spec.stored if feature.part == part}
        arrays |= encode(spec, encoding, part, columns, table.num_rows)
    return arrays


def _flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def places(values: pa.Array, among: pa.Array) -> np.ndarray:
    """The place of each value among others, int32; -1 for none. A dictionary is looked up once for each of its values."""
    if pa.types.is_dictionary(values.type):
        known = np.append(places(values.dictionary, among), np.int32(-1))
        return known[values.indices.fill_null(len(known) - 1).to_numpy(zero_copy_only=False)]
    found = pc.index_in(values.cast(among.type), among, skip_nulls=True)
    return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)


def _numbers(values: pa.Array, vocabulary: pa.Array) -> np.ndarray:
    """Each value's number, int32."""
    found = places(values, vocabulary)
    return np.where(values.is_null().to_numpy(zero_copy_only=False), NONE, np.where(found < 0, OTHER, found + 2)).astype(np.int32)


def _sequence(feature: Sequence, column: pa.ChunkedArray | pa.Array, vocabulary: pa.Array) -> np.ndarray:
    """The first `length` values of each list, as numbers, int32 [rows, length]; NONE after the list's end."""
    lists = _flat(column)
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    values = _numbers(_flat(lists.flatten()), vocabulary)
    starts = np.cumsum(lengths) - lengths
    places = np.arange(feature.length)
    inside = places < lengths[:, None]
    padded = np.append(values, np.int32(NONE))
    return np.where(inside, padded[np.minimum(starts[:, None] + places, len(values))], np.int32(NONE))


def _scaled(feature: Numeric | Vector, column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """The numbers of a feature after its scale, float64 [rows, length]; NaN for null.

    Raises:
        ModelError: A vector's arrays are not as long as the feature spec says.
    """
    values = _flat(column)
    if isinstance(feature, Vector):
        lengths = pc.unique(pc.list_value_length(values).drop_null()).to_pylist()
        if lengths not in ([], [feature.length]):
            raise ModelError(
                f"The arrays of the feature {feature.name} are not as long as the feature spec says.",
                found=f"{', '.join(map(str, lengths))} in {feature.origin}, and length: {feature.length}",
                do="mend `length` in the feature spec; a model that was trained for another length must be trained anew",
            )
        numbers = np.full((len(values), feature.length), np.nan)
        whole = values.is_valid().to_numpy(zero_copy_only=False)
        flat = values.filter(pa.array(whole)).flatten()
        numbers[whole] = flat.cast(pa.float64()).to_numpy(zero_copy_only=False).reshape(-1, feature.length)
    else:
        numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)[:, None]
    return np.log1p(np.maximum(numbers, 0)) if feature.scale == "log" else numbers
