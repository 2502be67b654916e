"""Bronze: takes in the raw files of a source as they came, each exactly once, each row knowing its file and its place."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql.functions import lit
from pyspark.sql.types import DataType

from wares.errors import SourceError
from wares.lake.checks import with_labels
from wares.lake.delta import PATH, Lake, Write, open_file
from wares.lake.drift import Tally
from wares.lake.java import java_class
from wares.lake.lineage import Lineage, Ref
from wares.lake.meta import Account, Mark, Meta, Outcome
from wares.lake.relabel import lowerings
from wares.lake.sources import ARRIVED, Source, bronze_table, check_files, fits, location, read_files
from wares.lake.table import Table


@dataclass(frozen=True)
class RawFile:
    """A raw file as the file system tells of it."""

    path: str
    size: int
    modified: int


def ingest(lake: Lake, meta: Meta, source: Source, entity: str, arrived: datetime) -> Outcome:
    """Take in the files of one entity that have not been taken in yet.

    The write begins before the files are compared with what was taken in, so of two runs at once one is refused.

    Raises:
        SourceError: There are no files, a file changed after it was taken in, or it is not what the YAML declares.
        ConflictError: Another run took in files of this entity meanwhile.
    """
    started = time.monotonic()
    name, declared = source.bronze(entity), source.entities[entity]
    table = bronze_table(declared)
    write = lake.begin(name)
    files = _list(lake.spark, location(declared))
    if not files:
        raise SourceError(
            f"The source {source.name} has no files for {entity}.",
            found=f"nothing matches {location(declared)}",
            do="check `path` in its YAML, and that the files are there",
        )
    new = _not_taken_in(lake, meta, name, write, files)
    lowered: list[dict[str, str]] = []
    stored = lake.columns(name) if write.version is not None else []
    widened = bool(stored and new) and _widened(name, table, stored)
    if stored and {column: metadata for column, _, metadata in stored} != {c.name: c.metadata for c in table.columns}:
        lowered = lowerings(name, table, lake.labels(name))
        if not widened:
            write.describe(table)  # an append alone would keep the old labels, and refuse new columns
        if not new:
            meta.remember(name, Mark(write.commit({"files": [], "lowered": lowered}).version, lake.run))
            meta.add_access(name, lake.run, lowered)
    if not new:
        return Outcome(name, "unchanged", meta.mark(name).version, seconds=time.monotonic() - started)
    session = lake.spark.newSession()  # whose own setting gives each file a task of its own, so that positions are true
    session.conf.set("spark.sql.files.openCostInBytes", session.conf.get("spark.sql.files.maxPartitionBytes"))
    paths = [file.path for file in new]
    layouts = check_files(session, source, entity, paths)
    rows = read_files(session, declared, layouts).withColumn(ARRIVED, lit(arrived))
    if declared.format == "csv":
        rows = rows.coalesce(max(2, sum(file.size for file in new) // 2**26))
    taken = [{**vars(file), "digest": _digest(lake.spark, file)} for file in new]
    before = 0
    if widened:
        old = Lake(session, lake.settings, lake.run).read(name)
        before = old.count()
        casts = [old[name].cast(table.by_name[name].type).alias(name) for name in old.columns]
        rows = old.select(*casts).unionByName(rows, allowMissingColumns=True)
    write.stage(with_labels(rows, table.columns), "overwrite" if widened else "append")
    nulls = write.nulls()
    commit = write.commit({"files": taken, "lowered": lowered})
    meta.add_access(name, lake.run, lowered)
    rows_in = commit.metrics["numOutputRows"] - before
    for file in taken:
        meta.add("files", **_file_row(name, file, lake.run))
    meta.add_lineage(name, commit.version, _lineage(source, entity))
    meta.remember(name, Mark(commit.version, lake.run))
    account = Account(rows_in, rows_in)
    outcome = Outcome(name, "written", commit.version, account, (rows_in, 0, 0), seconds=time.monotonic() - started)
    return meta.add_quality(outcome, {}, None if widened else Tally(rows_in, nulls))


def _widened(name: str, table: Table, stored: list[tuple[str, str, dict[str, str]]]) -> bool:
    """Whether the YAML declares a wider type than the table has, so that the rows of files taken in must be written anew.

    Raises:
        SourceError: It no longer has a column, or has it in a type that does not hold the values that are there.
    """
    declared = {field.name: field.dataType for field in table.schema()}
    lost = [
        f"{column} is {type} in the lake, " + (f"declared {declared[column].simpleString()}" if column in declared else "gone")
        for column, type, _ in stored
        if column not in declared or not fits(DataType.fromDDL(type), declared[column])
    ]
    if lost:
        raise SourceError(
            f"The declaration of {name} has changed so that values of files taken in before would be lost.",
            found="; ".join(lost),
            do="declare these columns as they were, `optional: true` if new files lack them; take files with other types in as "
            "another entity, mapped to the same tables",
        )
    return any(type != declared[column].simpleString() for column, type, _ in stored)


def _list(spark: SparkSession, pattern: str) -> list[RawFile]:
    path = java_class(spark, PATH)(pattern)
    found = path.getFileSystem(spark._jsc.hadoopConfiguration()).globStatus(path) or []
    files = [RawFile(f.getPath().toString(), f.getLen(), f.getModificationTime()) for f in found if f.isFile()]
    return sorted(files, key=lambda file: file.path)


def _not_taken_in(lake: Lake, meta: Meta, table: str, write: Write, files: list[RawFile]) -> list[RawFile]:
    """The files that no commit of the bronze table names; one that it names must still be as it was."""
    taken: dict[str, dict[str, Any]] = {}
    if write.version is not None:
        marked = meta.marked_version(table)
        taken = {row["file"]: row for row in meta.files() if row["table"] == table}
        for note in lake.notes_after(table, marked):
            for file in note.get("files", []):  # a run that died before it could say so in meta.files
                row = _file_row(table, file, note["run"])
                if file["path"] not in taken:
                    meta.add("files", **row)
                taken[file["path"]] = row
        meta.mark(table)
    for file in files:
        before = taken.get(file.path)
        if before is None or (before["size"], before["modified"]) == (file.size, file.modified):
            continue
        if before["size"] != file.size or before["digest"] != _digest(lake.spark, file):
            raise SourceError(
                "A file changed after it was taken in.",
                found=f"{file.path}: {before['size']} bytes when taken in, {file.size} now",
                do="put the old file back, and deliver the corrected rows in a file with a new name",
            )
    return [file for file in files if file.path not in taken]


def _digest(spark: SparkSession, file: RawFile) -> str:
    with open_file(spark, file.path) as stream:
        return java_class(spark, "org.apache.commons.codec.digest.DigestUtils").sha256Hex(stream)


def _file_row(table: str, file: dict[str, Any], run: str) -> dict[str, Any]:
    """A row of `meta.files`, from what a commit's note says of a file."""
    return {"table": table, "file": file["path"], "run": run, **{name: file[name] for name in ("size", "modified", "digest")}}


def _lineage(source: Source, entity: str) -> Lineage:
    """Each raw column comes from the column of the files, as it is."""
    files = f"files.{source.name}_{entity}"
    return Lineage({column: {Ref(files, column): {frozenset(): ()}} for column in source.entities[entity].columns}, {})
