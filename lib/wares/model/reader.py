"""Reads rows of gold.examples as Arrow, straight from the Parquet files of one Delta version."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from wares.model.encoding import Arrays, Encoding, encode_examples
from wares.model.spec import PARTS, Sequence, Spec

BUFFER_ROWS = 1_000_000
"""How many rows a rank holds and shuffles at a time: the bound of its memory, about 0.5 KB a row with the demo's features."""
READ_ROWS = 65_536
"""How many rows are read and encoded at a time."""


def read_split(files: list[str], spec: Spec, source: str, split: str, rank: int = 0, ranks: int = 1) -> Iterator[pa.Table]:
    """Yield the rank's share of a split, in tables of at most `READ_ROWS` rows.

    The rows of all files, end to end, are cut into as many equal pieces as there are ranks, and a rank reads the row
    groups that its piece touches. Shares of a split may still differ in size, since files mix splits.

    Args:
        files: Parquet files of gold.examples, as paths or URIs.
        split: train or validation.
    """
    columns = ["source", "split", "label", "weight", *dict.fromkeys(feature.column for feature in spec.stored)]
    # Texts come as dictionaries: each value is looked up in the vocabulary once, not once for each row.
    texts = [
        f"{feature.column}.list.element" if isinstance(feature, Sequence) else feature.column
        for part in PARTS
        for feature in spec.ids(part)
    ]
    opened = [pq.ParquetFile(_open(file), read_dictionary=texts, pre_buffer=True) for file in files]
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
                    table = table.filter(pc.and_(pc.equal(table["source"], source), pc.equal(table["split"], split)))
                    if table.num_rows:
                        yield table
            start = end


def share(rows: int, rank: int, ranks: int) -> tuple[int, int]:
    """Where a rank's share of so many rows begins and ends."""
    return rows * rank // ranks, rows * (rank + 1) // ranks


def _open(file: str) -> pa.NativeFile:
    filesystem, path = fs.FileSystem.from_uri(file) if ":/" in file else (fs.LocalFileSystem(), file)
    return filesystem.open_input_file(path)


class Batches:
    """A rank's shuffled batches of encoded rows, epoch after epoch.

    What fits into `BUFFER_ROWS` is read and encoded once and kept; a larger share is read anew in each epoch, shuffled
    within the buffer.
    """

    def __init__(self, files: list[str], spec: Spec, encoding: Encoding, source: str, split: str, rank: int, ranks: int) -> None:
        self._read = lambda: read_split(files, spec, source, split, rank, ranks)
        self._spec, self._encoding = spec, encoding
        first, last = share(sum(pq.ParquetFile(_open(file)).metadata.num_rows for file in files), rank, ranks)
        self._capacity = min(BUFFER_ROWS, max(last - first, 1))
        self._kept: Arrays | None = None
        self.rows = 0
        for number, buffer in enumerate(self._buffers()):
            self.rows += len(buffer["label"])
            self._kept = buffer if number == 0 else None

    def epoch(self, size: int, random: np.random.Generator | None = None) -> Iterator[Arrays]:
        """Yield each row once, `size` rows at a time (the last batch of a buffer may be smaller), shuffled by `random`."""
        for buffer in [self._kept] if self._kept is not None else self._buffers():
            rows = len(buffer["label"])
            order = random.permutation(rows) if random else np.arange(rows)
            for start in range(0, rows, size):
                chosen = order[start : start + size]
                yield {name: array[chosen] for name, array in buffer.items()}

    def _buffers(self) -> Iterator[Arrays]:
        """Yield the share's rows, `BUFFER_ROWS` at a time, encoded straight into arrays that hold so many."""
        whole: Arrays = {}
        rows = 0
        for table in self._read():
            piece = encode_examples(self._spec, self._encoding, table)
            taken = 0
            while taken < table.num_rows:
                if rows == 0:
                    whole = {name: np.empty((self._capacity, *array.shape[1:]), array.dtype) for name, array in piece.items()}
                some = min(table.num_rows - taken, self._capacity - rows)
                for name, array in piece.items():
                    whole[name][rows : rows + some] = array[taken : taken + some]
                taken, rows = taken + some, rows + some
                if rows == self._capacity:
                    yield whole
                    rows = 0
        if rows:
            yield {name: array[:rows] for name, array in whole.items()}
