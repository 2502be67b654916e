"""Delta: the only module that reads or writes tables. Where they are, their versions, their commits, their change feeds.

A write takes two steps: first the rows become files that no commit names, then, once they have been looked at, a commit
makes them visible. So a build is evaluated once, straight into the files that are kept, and a write that is refused
leaves no trace in the table.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import date
from functools import reduce
from operator import and_
from typing import Any, Literal

from delta.tables import DeltaTable
from py4j.java_gateway import JavaObject
from py4j.protocol import Py4JError, Py4JJavaError
from pyarrow import BufferReader
from pyarrow.parquet import FileMetaData, read_metadata
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import broadcast, col, lit
from pyspark.sql.types import DateType, StructField, StructType

from wares.errors import ConflictError, ShapeError, StorageError
from wares.lake.java import java_class
from wares.lake.labels import CLOSED, INTERNAL, Label
from wares.lake.table import Table
from wares.settings import Lake as LakeSettings

ROWS_PER_FILE = 4_000_000
"""No file of a table has more rows, so that one large file from a source can be read by several cores later."""

FORMAT = 2
"""How the tables of a lake are laid out, as each commit names it: raised where an earlier lake cannot be read or added to."""

TRIES = 5
"""How often a row is appended to the store's own tables before two runs are said to be in each other's way."""

FOOTERS = 100
"""How many files of a write are asked for their nulls, at most about twice as many."""

FOOTER = 2**16
"""How many bytes at the end of a Parquet file are read at first."""

DELTA = "org.apache.spark.sql.delta"
PATH = "org.apache.hadoop.fs.Path"
RENAME = "org.apache.hadoop.fs.Options$Rename"
IO = "org.apache.commons.io.IOUtils"
PYTHON = "org.apache.spark.api.python.PythonUtils"

CHANGES = ("add", "remove")
"""Delta's names of what a commit does to the files of a table."""

UPKEEP = {"OPTIMIZE", "VACUUM START", "VACUUM END"}
"""Delta's names of commits that change no row."""

Mode = Literal["append", "overwrite"]
Note = dict[str, Any]
"""What the store writes into a commit: the run, the version of every input, the counts."""


@dataclass(frozen=True)
class Commit:
    """A commit that was made: the table's new version, and Delta's own counts."""

    version: int
    metrics: dict[str, int]

    @property
    def changed(self) -> tuple[int, int, int]:
        """How many rows a merge inserted, updated and deleted."""
        inserted, updated, deleted = (self.metrics.get(f"numTargetRows{kind}", 0) for kind in ("Inserted", "Updated", "Deleted"))
        return inserted, updated, deleted


class Lake:
    """The tables of a lake.

    Args:
        spark: The session.
        settings: Where the tables are.
        run: Is named in each commit.
    """

    def __init__(self, spark: SparkSession, settings: LakeSettings, run: str) -> None:
        self.spark, self.settings, self.run = spark, settings, run

    # Names and versions

    def location(self, name: str) -> str:
        """The folder (or URI) of a table, or its name in the catalogue if the settings name one."""
        layer, table = name.split(".")
        catalog, root = self.settings.catalog, self.settings.root
        return f"{catalog}.{layer}.{table}" if catalog else f"{root.rstrip('/')}/{layer}/{table}"

    def folder(self, name: str) -> str:
        """The URI of the folder that holds a table's files, also where a catalogue names the table."""
        return self._log(name).dataPath().toString()

    def exists(self, name: str) -> bool:
        """Whether the table has ever been written."""
        return self.version(name) is not None

    def version(self, name: str) -> int | None:
        """The table's newest Delta version; None if it does not exist.

        Delta's own log object answers in milliseconds; `DeltaTable.history` takes a Spark job.
        """
        if self.settings.catalog and not self.spark.catalog.tableExists(self.location(name)):
            return None
        return self.written(name, self._snapshot(name).version())

    def written(self, name: str, version: int) -> int | None:
        """A version of a table's log; None if it holds nothing that was ever written: a catalogue makes a table before its first
        rows come, and a run may have died in between."""
        only_made = self.settings.catalog and version == 0 and self.commit_info(name, 0).get("operation") == "CREATE TABLE"
        return None if version < 0 or only_made else version

    def make_schema(self, name: str) -> None:
        """Make the schema of a table in the catalogue, if there is a catalogue, and no such schema in it."""
        schema = self.location(name).rpartition(".")[0]
        if self.settings.catalog and not self.spark.catalog.databaseExists(schema):  # who may not make one has it made before
            self.spark.sql(f"CREATE SCHEMA IF NOT EXISTS {schema}")

    def read(self, name: str, version: int | None = None) -> DataFrame:
        """A table, at a version or as it is now.

        Raises:
            ShapeError: The table does not exist.
        """
        if not self.exists(name):
            layer = name.partition(".")[0]
            raise ShapeError(
                f"The table {name} does not exist.",
                found=f"nothing at {self.location(name)}",
                do=f"run jobs/{layer if layer in ('bronze', 'silver') else 'suite'}.py first",
            )
        reader = self.spark.read.format("delta")
        if version is not None:
            reader = reader.option("versionAsOf", version)
        place = self.location(name)
        return reader.table(place) if self.settings.catalog else reader.load(place)

    def files(self, name: str, version: int) -> list[str]:
        """The Parquet files that make up a version of a table, for readers without Spark."""
        return sorted(self.read(name, version).inputFiles())

    def columns(self, name: str) -> list[tuple[str, str, dict[str, str]]]:
        """The name, type and metadata (label, comment) of each column as the Delta schema has them."""
        schema = StructType.fromJson(json.loads(self._snapshot(name).metadata().schema().json()))
        return [(field.name, field.dataType.simpleString(), field.metadata) for field in schema]

    # Changes

    def state(self, name: str) -> str:
        """Names the rows that a table holds now: the version that last changed any, and which table it is, since one that was
        deleted begins again."""
        snapshot = self._snapshot(name)
        version = snapshot.version()
        while version > 0 and self.commit_info(name, version).get("operation") in UPKEEP:
            version -= 1
        return f"{version}@{snapshot.metadata().id()[:8]}"

    def version_of(self, name: str, state: str) -> int:
        """A version that holds the rows of a state: the newest that does, whose files no clean-up takes away."""
        return self.version(name) if self.state(name) == state else version_in(state)

    def changes(self, name: str, after: int, until: int) -> DataFrame:
        """The rows that changed after one version until another, with `_change_type` as Delta's change feed has it."""
        reader = self.spark.read.format("delta").option("readChangeFeed", "true")
        reader = reader.option("startingVersion", after + 1).option("endingVersion", until)
        place = self.location(name)
        frame = reader.table(place) if self.settings.catalog else reader.load(place)
        return frame.drop("_commit_version", "_commit_timestamp")

    def lost_changes(self, name: str, after: int, until: int) -> str:
        """Why the changes between two versions can no longer be read; empty if they can.

        Delta itself finds out only while it reads, so each commit's files are looked for here. There is no Spark job.
        """
        for version in range(after + 1, until + 1):
            actions = self._actions(name, version)
            if not actions:
                return f"commit {version} of {name} is no longer in its log"
            for action in actions:
                if "metaData" in action:
                    then = StructType.fromJson(json.loads(action["metaData"]["schemaString"]))
                    try:
                        before = self.read(name, after).schema
                    except PySparkException:
                        return f"version {after} of {name} can no longer be read"
                    if _shape(then) != _shape(before):
                        return f"the columns of {name} changed in version {version}"
            changed = [action["cdc"] for action in actions if "cdc" in action] or [
                action[kind] for action in actions for kind in ("add", "remove") if action.get(kind, {}).get("dataChange")
            ]
            if not all(self._there(name, file["path"]) for file in changed):
                return f"files of version {version} of {name} have been cleaned up"
        return ""

    def only_appended(self, name: str, after: int, until: int) -> bool:
        """Whether no row was taken away or changed between two versions."""
        actions = [action for version in range(after + 1, until + 1) for action in self._actions(name, version)]
        return not any("cdc" in action or action.get("remove", {}).get("dataChange") for action in actions)

    def _there(self, name: str, path: str) -> bool:
        file = java_class(self.spark, PATH)(java_class(self.spark, "java.net.URI")(path))
        place = java_class(self.spark, PATH)(self._log(name).dataPath(), file)
        return place.getFileSystem(self.spark._jsc.hadoopConfiguration()).exists(place)

    def merge(
        self,
        name: str,
        rows: DataFrame,
        keys: tuple[str, ...],
        *,
        few: bool,
        after: int,
        note: Note,
        update: str = "true",
        delete: str = "false",
        within: Mapping[str, tuple[date, date]] | None = None,
    ) -> Commit:
        """Merge rows into a table by key: those that are there are updated or deleted, the others inserted.

        Args:
            rows: At most one for each key, with all columns of the table.
            keys: The columns that name a row, never null.
            few: Whether the rows fit into the memory of each worker: then those of the table stay where they are.
            after: The version that the rows were made for; the commit is refused if somebody else has written since.
            update: Which rows that are there are updated, as a condition over `old` and `new`.
            delete: Which of them are deleted instead.
            within: The first and the last day among the rows, of keys that are days: files of other days are not read.

        Raises:
            ConflictError: Somebody else has committed to the table since version `after`.
        """
        session = self.spark.newSession()  # which holds this commit's settings, apart from those of tables built beside it
        for key, value in {
            "spark.databricks.delta.commitInfo.userMetadata": self.note(name, note),
            # Delta skips a write whose number the table has seen: the second of two that follow the same version.
            "spark.databricks.delta.write.txnAppId": "wares",
            "spark.databricks.delta.write.txnVersion": str(after + 1),
        }.items():
            session.conf.set(key, value)
        columns = self.read(name).columns
        values = {column: f"new.`{column}`" for column in columns}
        same = [col(f"old.{key}") == col(f"new.{key}") for key in keys]
        inside = [col(f"old.{key}").between(lit(least), lit(greatest)) for key, (least, greatest) in (within or {}).items()]
        merge = (
            self._table(session, name)
            .alias("old")
            .merge((broadcast(rows) if few else rows).alias("new"), reduce(and_, [*same, *inside]))
        )
        if delete != "false":
            merge = merge.whenMatchedDelete(delete)
        try:
            merge.whenMatchedUpdate(update, values).whenNotMatchedInsert(None, values).execute()
        except (PySparkException, Py4JError) as error:
            raise _conflict(name, error) or error from None
        version = self.version(name)
        commit = self.commit_info(name, version)
        if version != after + 1 or _note_in(commit).get("run") != self.run:
            raise _overtaken(name, f"version {version} is not this run's")
        return Commit(version, _metrics(commit))

    def labels(self, name: str) -> dict[str, str]:
        """The label of each column that has one in the lake."""
        return {column: metadata["label"] for column, _, metadata in self.columns(name) if "label" in metadata}

    # Commits

    def notes_after(self, name: str, version: int) -> Iterator[Note]:
        """The store's notes in the commits after a version, newest first, each with its `version` and Delta's `metrics`."""
        for found in range(self.version(name), version, -1):
            info = self.commit_info(name, found)
            if note := _note_in(info):
                yield {**note, "version": found, "metrics": _metrics(info)}

    def foreign_after(self, name: str, version: int) -> str:
        """What somebody else than the store did to the rows of a table after a version; empty for nothing."""
        for found in range(self.version(name), version, -1):
            actions = self._actions(name, found)
            info = next((action["commitInfo"] for action in actions if "commitInfo" in action), {})
            if not _note_in(info) and any(
                action[kind].get("dataChange") for action in actions for kind in CHANGES if kind in action
            ):
                return f"version {found} ({info.get('operation', 'of unknown origin')})"
        return ""

    def commit_info(self, name: str, version: int) -> dict[str, Any]:
        """What Delta's log says of a commit; empty if log clean-up has taken it away."""
        return next((action["commitInfo"] for action in self._actions(name, version) if "commitInfo" in action), {})

    def _actions(self, name: str, version: int) -> list[dict[str, Any]]:
        """The actions of one commit; none if log clean-up has taken it away."""
        return [json.loads(line) for line in self._log_file(name, f"{version:020d}.json").splitlines()]

    def _log_file(self, name: str, file: str) -> bytes:
        """A file of a table's log; empty if it is not there."""
        try:
            with open_file(self.spark, f"{self._log(name).logPath().toString()}/{file}") as stream:
                return java_class(self.spark, IO).toByteArray(stream)
        except Py4JJavaError as error:
            if "FileNotFoundException" not in str(error.java_exception.getClass()):
                raise
            return b""

    # Upkeep

    def age(self, name: str, version: int) -> float:
        """Seconds since a commit was made; infinite if it is no longer in the log."""
        made = self.commit_info(name, version).get("timestamp")
        return math.inf if made is None else time.time() - made / 1000

    def is_checkpointed(self, name: str) -> bool:
        """Whether the log has a checkpoint of the newest version."""
        last = self._log_file(name, "_last_checkpoint")
        return bool(last) and json.loads(last)["version"] == self._snapshot(name).version()

    def compact(self, name: str, small: int) -> tuple[int, int]:
        """Put files of fewer than `small` bytes together, if there are two or more; no row changes.

        Returns:
            How many files there were, and how many they have become.
        """
        snapshot = self._snapshot(name)
        if snapshot.numOfFiles() < 2 or snapshot.allFiles().where(f"size < {small}").limit(2).count() < 2:
            return 0, 0
        if self.read(name).isEmpty():  # nothing to put together, of which Delta makes an error
            return 0, 0
        self.spark.conf.set("spark.databricks.delta.optimize.minFileSize", str(small))
        metrics = self._table(self.spark, name).optimize().executeCompaction()
        (row,) = metrics.select("metrics.numFilesRemoved", "metrics.numFilesAdded").collect()
        return row["numFilesRemoved"], row["numFilesAdded"]

    def vacuum(self, name: str, hours: int) -> int:
        """Delete the files that no version of the last hours has; returns how many.

        Delta looks for them with several Spark jobs, so the folder is listed here first. The cost grows with its files.
        """
        before, oldest = self._data_files(name), time.time() * 1000 - hours * 3_600_000
        old = {file for file, modified in before.items() if modified < oldest}
        if not old or old <= {path.rpartition("/")[2] for path in self.read(name).inputFiles()}:
            return 0
        self.spark.conf.set("spark.databricks.delta.vacuum.logging.enabled", "false")
        self._table(self.spark, name).vacuum(hours)
        return len(before.keys() - self._data_files(name).keys())

    def _data_files(self, name: str) -> dict[str, int]:
        """The names of the files in a table's folder, less its log, with when they were modified in milliseconds."""
        folder = self._log(name).dataPath()
        listed = folder.getFileSystem(self.spark._jsc.hadoopConfiguration()).listFiles(folder, True)
        found = {}
        while listed.hasNext():
            file = listed.next()
            if "/_delta_log/" not in (path := file.getPath().toString()):
                found[path.rpartition("/")[2]] = file.getModificationTime()
        return found

    def checkpoint(self, name: str, clean_log: bool) -> None:
        """Write a checkpoint of the log, and, if `clean_log`, delete the log entries that are past their retention."""
        log, snapshot, nothing = self._log(name), self._snapshot(name), _none(self.spark)
        log.checkpoint(snapshot, nothing)
        if clean_log:
            log.doLogCleanup(snapshot, nothing)

    def _table(self, session: SparkSession, name: str) -> DeltaTable:
        place = self.location(name)
        return DeltaTable.forName(session, place) if self.settings.catalog else DeltaTable.forPath(session, place)

    def begin(self, name: str) -> Write:
        """Begin a write, which follows the version that the table has now."""
        return Write(self, name)

    def append(self, name: str, rows: DataFrame, replace: str = "") -> None:
        """Append rows in one step, whatever other runs append meanwhile: for the store's own tables.

        Args:
            replace: A condition; the rows that fulfil it are replaced by `rows`, which must too.
        """
        writer = rows.write.format("delta").mode("append").option("mergeSchema", "true")
        writer = writer.option("userMetadata", self.note(name, {}))
        if replace and self.exists(name):
            writer = writer.mode("overwrite").option("replaceWhere", replace)
        place = self.location(name)
        self.make_schema(name)
        for left in reversed(range(TRIES)):
            try:
                return writer.saveAsTable(place) if self.settings.catalog else writer.save(place)
            except PySparkException as error:  # two runs that both make the table, or both replace rows
                if left == 0 or not _conflict(name, error):
                    raise

    def _log(self, name: str) -> JavaObject:
        """Delta's log of a table, which may not exist yet."""
        place = self.location(name)
        if self.settings.catalog:
            return DeltaTable.forName(self.spark, place)._jdt.deltaLog()
        return java_class(self.spark, f"{DELTA}.DeltaLog").forTable(self.spark._jsparkSession, place)

    def _snapshot(self, name: str) -> JavaObject:
        """The newest state of a table's log, whose version is -1 for a table that does not exist."""
        return self._log(name).update(False, _none(self.spark), _none(self.spark))

    def note(self, name: str, note: Note) -> str:
        """A note as it stands in a commit."""
        return json.dumps({"wares": {"format": FORMAT, "run": self.run, "table": name, **note}})


class Write:
    """A write in two steps. It follows the version at which it began: if somebody else commits to the table in between, its
    own commit is refused, so nothing is ever taken in twice. Leaving its `with` block takes away what was not committed.

    Attributes:
        version: The version that it follows; None for a new table.
    """

    def __init__(self, lake: Lake, name: str) -> None:
        self._lake, self._name = lake, name
        self._actions: JavaObject | None = None
        self._mode: Mode = "append"
        if lake.settings.catalog and not lake.exists(name):
            self._txn, self.version = None, None  # a table of the catalogue is made when its columns are known
        else:
            self._start()

    def __enter__(self) -> Write:
        return self

    def __exit__(self, *error: object) -> None:
        self.abandon()

    def _start(self) -> None:
        self._log = self._lake._log(self._name)
        self._txn = self._log.startTransaction(self._in_catalog(), _none(self._lake.spark))
        self.version = self._lake.written(self._name, self._txn.readVersion())

    def _in_catalog(self) -> JavaObject:
        """The catalogue's entry of the table, as a Scala option; none for a table that is a path."""
        spark = self._lake.spark
        if not self._lake.settings.catalog:
            return _none(spark)
        parser = spark._jsparkSession.sessionState().sqlParser()
        name = parser.parseTableIdentifier(self._lake.location(self._name).partition(".")[2])
        return _some(spark, spark._jsparkSession.sessionState().catalog().getTableMetadata(name))

    def stage(self, rows: DataFrame, mode: Mode) -> None:
        """Write the rows as files, for nobody to see yet."""
        lake, spark = self._lake, self._lake.spark
        days = lake.settings.retention_days
        properties = {
            "delta.enableChangeDataFeed": "true",
            # A merge marks the few rows that it changes, and does not write the files anew that hold them.
            "delta.enableDeletionVectors": "true",
            "delta.deletedFileRetentionDuration": f"interval {days} days",
            "delta.logRetentionDuration": f"interval {days} days",
            # Old log entries go when nobody needs them any more, which maintain.py knows and Delta does not.
            "delta.enableExpiredLogCleanup": "false",
            **_statistics(rows.schema),
        }
        if self._txn is None:
            lake.make_schema(self._name)
            columns, stated = rows.schema.toDDL(), ", ".join(f"'{key}' = '{value}'" for key, value in properties.items())
            spark.sql(f"CREATE TABLE IF NOT EXISTS {lake.location(self._name)} ({columns}) USING delta TBLPROPERTIES ({stated})")
            self._start()
            mode = "overwrite"
        self._mode = mode
        command = java_class(spark, f"{DELTA}.commands.WriteIntoDelta")(
            self._log,
            _save_mode(spark, mode),
            self._options(),
            _seq(spark),
            _map(spark, properties if self.version is None else {}),
            rows._jdf,
            self._in_catalog(),
            _none(spark),
            False,
        )
        self._txn.readWholeTable()  # so that it conflicts with whatever is committed in between, appends too
        try:
            self._actions = command.write(self._txn, spark._jsparkSession, _none(spark), False)
        except (PySparkException, Py4JError):
            if lake.version(self._name) != self.version:  # such as another run that has made the table since
                raise _overtaken(self._name, "a commit since this run began") from None
            raise

    def stage_again(self, rows: DataFrame) -> None:
        """Write rows that are made of the staged ones in their place."""
        before, kept = self._paths(), [action for action in self._found() if not _is_add(action)]
        added = self._txn.writeFiles(rows._jdf, _some(self._lake.spark, self._options()))
        self._actions = _seq(self._lake.spark, *kept, *(added.apply(place) for place in range(added.size())))
        self._delete(before)

    def _options(self) -> JavaObject:
        options = {"maxRecordsPerFile": str(ROWS_PER_FILE)}
        if self._mode == "overwrite":
            options["overwriteSchema"] = "true"  # without it Delta keeps the old labels, silently
        spark = self._lake.spark
        conf = spark._jsparkSession.sessionState().conf()
        return java_class(spark, f"{DELTA}.DeltaOptions")(_map(spark, options), conf)

    def describe(self, table: Table) -> None:
        """Give the table the columns, labels and comments that are declared now, before rows are staged, if any are."""
        old = self._txn.metadata()
        stored = StructType.fromJson(json.loads(old.schema().json()))
        fields = [StructField(f.name, f.dataType, f.nullable, table.by_name[f.name].metadata) for f in stored]
        schema = StructType([*fields, *(field for field in table.schema() if field.name not in stored.names)])
        parts = (old.id(), old.name(), old.description(), old.format(), schema.json())
        described = old.copy(*parts, old.partitionColumns(), old.configuration(), old.createdTime())
        self._txn.updateMetadata(described, False)
        self._actions = _seq(self._lake.spark)

    @property
    def is_staged(self) -> bool:
        """Whether there is anything to commit."""
        return self._actions is not None

    def staged(self, schema: StructType) -> DataFrame:
        """What has been staged, read back from its files."""
        paths = self._paths()
        reader = self._lake.spark.read.schema(schema)
        return reader.parquet(*paths) if paths else self._lake.spark.createDataFrame([], schema)

    def nulls(self) -> dict[str, float]:
        """The share of nulls in each column of the staged rows, as the footers of their Parquet files tell: no row is read.

        Of very many files some are asked.
        """
        paths = self._paths()
        footers = [_footer(self._lake.spark, path) for path in paths[:: 1 + len(paths) // FOOTERS]]
        rows, nulls = sum(footer.num_rows for footer in footers), Counter()
        for footer in footers:
            for group in map(footer.row_group, range(footer.num_row_groups)):
                for column in map(group.column, range(group.num_columns)):
                    if column.statistics is not None and column.statistics.has_null_count:
                        nulls[column.path_in_schema] += column.statistics.null_count
        return {column: round(found / rows, 4) for column, found in nulls.items() if rows and "." not in column}

    def commit(self, note: Note) -> Commit:
        """Make what was staged visible, with a note that says what it was made of.

        Raises:
            ConflictError: Somebody else has committed to the table since this write began; nothing of it is visible.
        """
        lake, spark = self._lake, self._lake.spark
        nothing = _none(spark)
        some = _some(spark, lake.note(self._name, note))
        operation = java_class(spark, f"{DELTA}.DeltaOperations$Write")(
            _save_mode(spark, self._mode), nothing, nothing, some, *[nothing] * 5
        )
        try:
            version = self._txn.commit(self._actions, operation)
        except (PySparkException, Py4JError) as error:
            self.abandon()
            raise _conflict(self._name, error) or error from None
        self._actions = None
        return Commit(version, _metrics(lake.commit_info(self._name, version)))

    def abandon(self) -> None:
        """Take away what was staged; harmless if that has been committed or taken away already."""
        self._delete(self._paths())
        self._actions = None

    def _delete(self, paths: list[str]) -> None:
        for place in paths:
            path = java_class(self._lake.spark, PATH)(place)
            path.getFileSystem(self._lake.spark._jsc.hadoopConfiguration()).delete(path, False)

    def _paths(self) -> list[str]:
        """The files that were staged."""
        path = java_class(self._lake.spark, PATH)
        folder = self._log.dataPath() if self._actions is not None else None
        paths = [path(folder, path(action.pathAsUri())) for action in self._found() if _is_add(action)]
        return [path.toString() for path in paths]

    def _found(self) -> list[JavaObject]:
        """The actions that the commit will hold."""
        return [self._actions.apply(place) for place in range(self._actions.size())] if self._actions is not None else []


def _is_add(action: JavaObject) -> bool:
    return action.getClass().getSimpleName() == "AddFile"


def _note_in(commit: dict[str, Any]) -> Note:
    """What the store wrote into a commit; empty for a commit of somebody else."""
    try:
        return json.loads(commit.get("userMetadata") or "{}").get("wares") or {}
    except (ValueError, AttributeError):
        return {}


def _shape(schema: StructType) -> list[tuple[str, str]]:
    """The names and types of the columns."""
    return [(field.name, field.dataType.simpleString()) for field in schema]


def _metrics(commit: dict[str, Any]) -> dict[str, int]:
    """Delta's own counts of a commit."""
    return {key: int(value) for key, value in commit.get("operationMetrics", {}).items() if value.isdigit()}


def version_in(state: str) -> int:
    """The version that a state names."""
    return int(state.partition("@")[0])


def same_table(before: str, now: str) -> bool:
    """Whether two states are of one table, and not of one that was deleted and made anew."""
    return before.partition("@")[2] == now.partition("@")[2]


def _conflict(name: str, error: Exception) -> ConflictError | None:
    """The error to show if another run came first."""
    java = error.java_exception.getClass().getName() if isinstance(error, Py4JJavaError) else type(error).__name__
    if not re.search(r"(Concurrent\w+|MetadataChanged|ProtocolChanged)Exception$", java):
        return None
    return _overtaken(name, f"a commit since this run began ({java.rpartition('.')[2]})")


def _overtaken(name: str, found: str) -> ConflictError:
    return ConflictError(f"Another run wrote {name} at the same time.", found=found, do="run the job again; nothing is doubled")


@contextmanager
def open_file(spark: SparkSession, path: str) -> Iterator[JavaObject]:
    """A stream over a file of any file system that Spark knows, for what is too small for a Spark job."""
    place = java_class(spark, PATH)(path)
    stream = place.getFileSystem(spark._jsc.hadoopConfiguration()).open(place)
    try:
        yield stream
    finally:
        stream.close()


def replace_file(spark: SparkSession, path: str, content: bytes) -> None:
    """Put a small file where another may be, on any file system that Spark knows. Nobody sees half of it.

    Raises:
        StorageError: Its folder does not exist.
    """
    place, conf = java_class(spark, PATH)(path), spark._jsc.hadoopConfiguration()
    part = java_class(spark, PATH)(place.getParent(), f".{place.getName()}.{os.getpid()}")
    system = place.getFileSystem(conf)
    if not system.exists(place.getParent()):
        raise StorageError(f"There is no folder for {path}.", found=f"nothing at {place.getParent().toString()}")
    with closing(system.create(part, True)) as stream:
        stream.write(content)
    try:
        overwriting = spark.sparkContext._gateway.new_array(java_class(spark, RENAME), 1)
        overwriting[0] = java_class(spark, RENAME).OVERWRITE
        java_class(spark, "org.apache.hadoop.fs.FileContext").getFileContext(place.toUri(), conf).rename(part, place, overwriting)
    finally:
        system.delete(part, False)


def _footer(spark: SparkSession, path: str) -> FileMetaData:
    """The footer of a Parquet file, which ends with its own length and four letters."""
    place = java_class(spark, PATH)(path)
    size, length = place.getFileSystem(spark._jsc.hadoopConfiguration()).getFileStatus(place).getLen(), FOOTER
    with open_file(spark, path) as stream:
        while True:
            stream.seek(max(size - length, 0))
            end = java_class(spark, IO).toByteArray(stream)
            needed = int.from_bytes(end[-8:-4], "little") + 8
            if needed <= len(end):
                return read_metadata(BufferReader(end[-needed:]))
            length = needed


def _none(spark: SparkSession) -> JavaObject:
    return java_class(spark, "scala.Option").empty()


def _some(spark: SparkSession, value: Any) -> JavaObject:
    return java_class(spark, "scala.Option").apply(value)


def _seq(spark: SparkSession, *items: Any) -> JavaObject:
    return java_class(spark, PYTHON).toSeq(list(items))


def _map(spark: SparkSession, items: dict[str, str]) -> JavaObject:
    return java_class(spark, PYTHON).toScalaMap(items)


def _statistics(columns: StructType) -> dict[str, str]:
    """The table properties that say of which columns Delta keeps each file's least and greatest value: of days, since rows come
    in the order of time and in no other, and only of those that whoever may see the log may see, too."""
    open_to_all = [field for field in columns if INTERNAL.dominates(Label.parse(field.metadata.get("label", str(CLOSED))))]
    days = [field.name for field in open_to_all if isinstance(field.dataType, DateType)]
    return {"delta.dataSkippingStatsColumns": ",".join(days)} if days else {"delta.dataSkippingNumIndexedCols": "0"}


def _save_mode(spark: SparkSession, mode: Mode) -> JavaObject:
    return getattr(java_class(spark, "org.apache.spark.sql.SaveMode"), mode.capitalize())
