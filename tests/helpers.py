"""A small shop, written as real files, for the tests that go through the store."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructField, StructType
from wares.lake.registry import TableFile
from wares.lake.store import Store
from wares.lake.table import Table
from wares.settings import Settings
from wares.tables import TABLES

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Data that stands beside the checkout on some machines; tests that need it are skipped where it is absent."""

NO_JAVA = str(Path(__file__).with_name("no_java"))
"""What stands in for Java where no test may start a JVM: it says so and ends."""

SET_FLAGS, IMMUTABLE = 0x40086602, 0x10
"""Linux: the call that sets a file's flags, and the flag of one that nobody changes."""

HEADER = "number,line,customer,item,at,quantity,price,note"


def shop(folder: Path, name: str = "shop") -> dict[str, Any]:
    """The declaration of a source whose CSV files stand in `folder`; tests change what they are about."""
    behaviour = "CONFIDENTIAL + BEHAVIOUR"
    labels = {
        "number": "INTERNAL",
        "line": behaviour,
        "customer": "CONFIDENTIAL + IDENTIFIER",
        "item": behaviour,
        "at": behaviour,
        "quantity": behaviour,
        "price": f"{behaviour} + FINANCIAL",
    }
    columns: dict[str, dict[str, str]] = {column: {"label": label} for column, label in labels.items()}
    mapping = {
        "order_id": "number",
        "line": "line",
        "user_id": "customer",
        "product_id": "item",
        "ordered_at": "at",
        "quantity": "quantity",
        "unit_price": "price",
        "currency": "'EUR'",
    }
    return {
        "name": name,
        "entities": {"lines": {"path": f"{folder}/*.csv", "format": "csv", "columns": {**columns, "note": {}}}},
        "tables": {"orders": [{"from": "lines", "columns": mapping}]},
    }


def write_source(folder: Path, source: dict[str, Any]) -> str:
    """Write a declaration; returns the path by which settings and store know it."""
    path = folder / f"{source['name']}.yaml"
    path.write_text(yaml.safe_dump(source, sort_keys=False), encoding="utf-8")
    return str(path)


def write_csv(folder: Path, name: str, *lines: str, header: str = HEADER) -> Path:
    """Write a CSV file of the shop with a line end after each line."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("".join(f"{line}\n" for line in (header, *lines)), encoding="utf-8")
    return path


def either(*folders: Path) -> Path:
    """What a declaration calls the files in any of these folders. A lake that is copied knows its files by where they stand."""
    return Path(f"/{{{','.join(str(folder).lstrip('/') for folder in folders)}}}")


def open_store(
    spark: SparkSession, root: Path, *sources: str, tables: dict[str, TableFile] = TABLES, catalog: str | None = None
) -> Store:
    """A store on the lake under `root`; enter it with `with`, or leave it like that to be a run that died."""
    settings = Settings.model_validate({"sources": sources, "lake": {"root": str(root / "lake"), "catalog": catalog}})
    return Store(spark, settings, tables, job="tests")


def rows_of(spark: SparkSession, table: Table, *rows: dict[str, Any], extra: str = "") -> DataFrame:
    """Hand-written rows in a table's types; what a row does not say is null. `extra` are more columns, as DDL."""
    fields = [*table.schema(), *(StructType.fromDDL(extra) if extra else [])]
    schema = StructType([StructField(field.name, field.dataType) for field in fields])
    unknown = {name for row in rows for name in row} - set(schema.names)
    assert not unknown, f"rows with unknown columns {unknown}"
    return frame_of(spark, [tuple(row.get(name) for name in schema.names) for row in rows], schema)


def frame_of(spark: SparkSession, rows: list[tuple[Any, ...]], schema: StructType | str) -> DataFrame:
    """Hand-written rows by way of Arrow: as a list they would go through a Python process each time that they are read."""
    schema = StructType.fromDDL(schema) if isinstance(schema, str) else schema
    made = [dict(zip(schema.names, row, strict=True)) for row in rows]
    return spark.createDataFrame(pa.Table.from_pylist(made, to_arrow_schema(schema)), schema)


def forbid(folder: Path, forbidden: bool) -> None:
    """Let nothing be made or deleted in any folder below this one, or allow it again.

    Permissions do not stop root, whom only the flag of immutable folders stops.
    """
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        with suppress(FileNotFoundError):
            if os.geteuid():
                path.chmod(0o555 if forbidden else 0o755)
                continue
            opened = os.open(path, os.O_RDONLY)
            try:
                fcntl.ioctl(opened, SET_FLAGS, struct.pack("i", IMMUTABLE if forbidden else 0))
            finally:
                os.close(opened)


def change_column(file: str, name: str, values: Callable[[pa.Table], pa.Array]) -> None:
    """Give a column of a Parquet file other values, which are made from its rows."""
    rows = pq.read_table(file)
    pq.write_table(rows.set_column(rows.schema.get_field_index(name), name, values(rows)), file, row_group_size=300)


def ranks_of(folder: Path) -> list[int]:
    """The processes that run a rank of the plan in this folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[1:3] == [b"-m", b"wares.model.worker"] and str(folder).encode() in words[3]:
                found.append(int(process.name))
    return sorted(found)
