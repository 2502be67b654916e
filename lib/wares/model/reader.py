"""Reads what a model learns from as Arrow, straight from the Parquet files of one version of three Delta tables.

gold.examples says which user and which product at which moment; what is known of the two stands in gold.user_features and
gold.product_features, once for each moment. It is encoded once, and joined to the examples batch by batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from wares.errors import ModelError
from wares.model.encoding import SPARSE, Arrays, Chunk, Encoding, encode_parts, places
from wares.model.spec import Part, Spec

EXAMPLES = "gold.examples"
TABLES: dict[Part, str] = {"user": "gold.user_features", "product": "gold.product_features"}
"""The tables that are joined to the examples, by their id and the moment."""
Files = Mapping[str, list[str]]
"""By the name of a table the Parquet files of one of its versions, as paths or URIs."""

BUFFER_ROWS = 2_000_000
"""How many examples a rank holds and shuffles at a time, about 0.15 KB each with the demo's features: with the users and the
products, the bound of its memory."""
READ_ROWS = 65_536
"""How many rows are read and encoded at a time."""


class Known:
    """What is known of all users, or of all products, at the moments of the examples.

    Args:
        rows: Rows of the part's feature table.
    """

    def __init__(self, part: Part, rows: pa.Table) -> None:
        self.part, self.rows = part, rows
        self._keys = (f"{part}_id", "moment")
        self._values = [pc.unique(rows[key]) for key in self._keys]
        # One more of each, which the place of no value, -1, points at.
        self._grid = np.full([len(values) + 1 for values in self._values], -1, np.int32)
        self._grid[self._cells(rows)] = np.arange(rows.num_rows)

    def find(self, examples: pa.Table) -> np.ndarray:
        """Where in `rows` each example's user or product stands, int32 [examples].

        Raises:
            ModelError: It is not there.
        """
        found = self._grid[self._cells(examples)]
        if (found < 0).any():
            raise ModelError(
                f"{EXAMPLES} does not fit {TABLES[self.part]}.",
                found=f"{np.count_nonzero(found < 0):,} of {len(found):,} examples whose {self.part} is not there",
                do="run jobs/features.py again: one of the two was refreshed without the other",
            )
        return found

    def _cells(self, table: pa.Table) -> tuple[np.ndarray, ...]:
        return tuple(places(table[key].combine_chunks(), values) for key, values in zip(self._keys, self._values, strict=True))


def read_known(files: Files, spec: Spec, source: str) -> dict[Part, Known]:
    """What is known of the source's users and products."""
    known: dict[Part, Known] = {}
    for part, table in TABLES.items():
        columns = [f"{part}_id", "moment", *(feature.source_column for feature in spec.stored if feature.part == part)]
        kept = [("source", "=", source), ("role", "in", ["train", "validation"])]
        read = [pq.read_table(_open(file), columns=[*dict.fromkeys(columns)], filters=kept) for file in files[table]]
        known[part] = Known(part, pa.concat_tables(read))
    return known


def read_split(
    files: Files, spec: Spec, known: Mapping[Part, Known], source: str, splits: Sequence[str], rank: int = 0, ranks: int = 1
) -> Iterator[Chunk]:
    """Yield the rank's share of some splits of gold.examples, at most `READ_ROWS` rows at a time.

    The rows of all files, end to end, are cut into as many equal pieces as there are ranks, and a rank reads the row
    groups that its piece touches. Shares of a split may still differ in size, since files mix splits.

    Args:
        known: What `read_known` gives.
        splits: Of train and validation.

    Raises:
        ModelError: A user or a product of the examples is not known.
    """
    own = [feature.column for feature in spec.stored if feature.part in SPARSE]
    columns = ["source", "split", "user_id", "product_id", "moment", "label", "weight", *dict.fromkeys(own)]
    # Ids come as dictionaries: each is looked up once, not once for each row.
    opened = [pq.ParquetFile(_open(file), read_dictionary=["user_id", "product_id"], pre_buffer=True) for file in files[EXAMPLES]]
    first, last = share(sum(file.metadata.num_rows for file in opened), rank, ranks)
    start = 0
    for file in opened:
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            if start < last and end > first:
                for batch in file.iter_batches(READ_ROWS, [group], columns, use_threads=False):
                    mine = batch.slice(max(first - start, 0), max(min(last - start, batch.num_rows) - max(first - start, 0), 0))
                    start += batch.num_rows
                    table = pa.Table.from_batches([mine])
                    table = table.filter(pc.and_(pc.equal(table["source"], source), pc.is_in(table["split"], pa.array(splits))))
                    if table.num_rows:
                        yield Chunk(table, {part: each.find(table) for part, each in known.items()})
            start = end


def share(rows: int, rank: int, ranks: int) -> tuple[int, int]:
    """Where a rank's share of so many rows begins and ends."""
    return rows * rank // ranks, rows * (rank + 1) // ranks


class Batches:
    """Shuffled batches of encoded rows, epoch after epoch.

    What fits into `BUFFER_ROWS` is read and encoded once and kept; more is read anew in each epoch, shuffled within the
    buffer.

    Args:
        read: Reads the rows, as `read_split` does.
        known: All users and all products, encoded, to be joined to the rows of each batch.
    """

    def __init__(self, read: Callable[[], Iterator[Chunk]], spec: Spec, encoding: Encoding, known: Mapping[Part, Arrays]) -> None:
        self._read, self._spec, self._encoding, self._known = read, spec, encoding, known
        self._kept: Arrays | None = None
        self.rows = 0
        for number, buffer in enumerate(self._buffers()):
            self.rows += len(buffer["label"])
            self._kept = buffer if number == 0 else None

    def epoch(self, size: int, random: np.random.Generator | None = None) -> Iterator[Callable[[], Arrays]]:
        """Yield each row once, `size` rows at a time (the last batch of a buffer may be smaller), shuffled by `random`.

        Each batch comes as a function that makes it, so that batches that a resumed training skips cost nothing. It has the
        network's inputs, and `label` and `weight`, float32 [rows].
        """
        for buffer in [self._kept] if self._kept is not None else self._buffers():
            rows = len(buffer["label"])
            order = random.permutation(rows) if random else np.arange(rows)
            for start in range(0, rows, size):
                yield partial(self._batch, buffer, order[start : start + size])

    def _batch(self, buffer: Arrays, rows: np.ndarray) -> Arrays:
        batch = {name: array[rows] for name, array in buffer.items()}
        for part, arrays in self._known.items():
            found = batch.pop(part)
            batch |= {name: array[found] for name, array in arrays.items()}
        return batch

    def _buffers(self) -> Iterator[Arrays]:
        pieces: list[Arrays] = []
        for chunk in self._read():
            pieces.append(self._encode(chunk))
            if sum(len(piece["label"]) for piece in pieces) >= BUFFER_ROWS:
                yield _joined(pieces)
                pieces = []
        if pieces:
            yield _joined(pieces)

    def _encode(self, chunk: Chunk) -> Arrays:
        """What stands in each example, and under `user` and `product` where the rest stands."""
        told = {name: chunk.rows[name].to_numpy().astype(np.float32) for name in ("label", "weight")}
        return told | chunk.places | encode_parts(self._spec, self._encoding, chunk.rows, SPARSE)


def _joined(pieces: list[Arrays]) -> Arrays:
    return {name: np.concatenate([piece.pop(name) for piece in pieces]) for name in list(pieces[0])}


def place(file: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path there."""
    return fs.FileSystem.from_uri(file) if ":/" in file else (fs.LocalFileSystem(), file)


def _open(file: str) -> pa.NativeFile:
    filesystem, path = place(file)
    return filesystem.open_input_file(path)
