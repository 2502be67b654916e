"""Keyed pseudonyms (HMAC-SHA256, RFC 2104), which the store puts in the place of ids after `build`.

Spark has no HMAC, and a key written into an expression shows in the plan. So an Arrow function computes it, which knows
only where the key is, and reads it where it runs.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql.functions import arrow_udf, col

from wares.errors import SettingsError
from wares.lake.declassify import Pseudonym
from wares.lake.table import Table

SHORTEST = 16
"""Bytes of a key; a shorter one can be guessed."""


def pseudonymised(table: Table) -> list[str]:
    """The columns that hold pseudonyms."""
    return [column.name for column in table.columns if isinstance(column.declassified, Pseudonym)]


def with_pseudonyms(rows: DataFrame, table: Table, reference: str | None) -> DataFrame:
    """The rows with pseudonyms in the columns that declare them, null where the id is null.

    Args:
        rows: The built rows.
        table: What the table declares.
        reference: Where the key is: `env:NAME`, a variable in the workers' environment, or `file:PATH`, a file that they see.

    Raises:
        SettingsError: No place is named, or a worker finds no usable key there.
    """
    columns = [name for name in pseudonymised(table) if name in rows.columns]
    if not columns:
        return rows
    problem = "lake.secret is not set" if reference is None else _tried(rows, reference)
    if problem:
        raise _no_key(problem)

    @arrow_udf("string")
    def pseudonym(ids: pa.Array) -> pa.Array:
        key, encoded = _key(reference), ids.dictionary_encode()
        made = [hmac.digest(key, id.encode(), "sha256").hex() for id in encoded.dictionary.to_pylist()]
        return pa.array(made, pa.string()).take(encoded.indices)

    return rows.withColumns({name: pseudonym(col(name)) for name in columns})


def _tried(rows: DataFrame, reference: str) -> str:
    """What is wrong with the key, as a worker finds it; empty if nothing is."""

    def look(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _ in batches:
            yield pa.RecordBatch.from_pydict({"problem": [_look(reference)[1]]})

    return rows.sparkSession.range(1).mapInArrow(look, "problem string").first()["problem"]


def _key(reference: str) -> bytes:
    key, problem = _look(reference)
    if problem:
        raise _no_key(problem)
    return key


def _look(reference: str) -> tuple[bytes, str]:
    """The key at a place, and what is wrong with it; the place is not told, for whoever wrote the key itself there."""
    kind, _, place = reference.partition(":")
    try:
        key = os.environb.get(place.encode(), b"") if kind == "env" else Path(place).read_bytes()
    except OSError as error:
        return b"", f"the file cannot be read: {error.strerror}"
    key = key.rstrip(b"\r\n")
    if not key:
        return b"", "the variable is not set" if kind == "env" else "the file is empty"
    return key, "" if len(key) >= SHORTEST else f"the key has {len(key)} bytes"


def _no_key(problem: str) -> SettingsError:
    return SettingsError(
        "The key for pseudonyms cannot be used.",
        found=problem,
        do=f"let lake.secret name an environment variable (env:NAME) or a file (file:PATH) that holds at least {SHORTEST} bytes "
        "on every machine that runs Spark tasks",
    )
