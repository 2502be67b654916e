"""The store: the only place that reads or writes Delta, and the one door that every write goes through.

A write does five things in this order and stops at the first that fails, leaving the table as it was: shape, lineage,
flow, checks, commit. The commit names the run and the version of every input; that is what a later run compares to see
whether there is anything to do.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import reduce
from graphlib import TopologicalSorter
from hashlib import sha256
from typing import Any, Literal

from delta.tables import DeltaTable
from py4j.java_gateway import JavaObject
from py4j.protocol import Py4JJavaError
from pyspark import StorageLevel
from pyspark.errors import PySparkException
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql.functions import (
    array_join,
    coalesce,
    col,
    concat,
    count,
    count_if,
    exists,
    expr,
    filter,
    lit,
    row_number,
    struct,
    to_json,
    transform,
    when,
    xxhash64,
)
from pyspark.sql.functions import sum as sum_
from pyspark.sql.types import ArrayType, BooleanType, LongType, StringType, StructField, StructType, TimestampType

from wares.errors import ConflictError, QualityError, SettingsError, ShapeError, SourceError, WaresError
from wares.lake.flow import check_flow
from wares.lake.labels import CLOSED, INTERNAL, Label, join
from wares.lake.lineage import Lineage, Ref, relation_alias, trace
from wares.lake.registry import TableFile
from wares.lake.sources import (
    ARRIVED,
    FILE,
    POSITION,
    RAW,
    VIOLATION,
    VIOLATIONS,
    ZONE,
    Mapping,
    Source,
    bronze_table,
    check_files,
    fingerprint,
    load_source,
    location,
    mapped,
    open_file,
    read_files,
    violations,
)
from wares.lake.table import Check, Column, Table
from wares.settings import Settings

ROWS_PER_FILE = 4_000_000
"""No file of a table has more rows, so that one large file from a source can be read by several cores later."""

KEY_PARTITIONS = 32

PLACE = (
    Column(FILE, "string", INTERNAL, "The raw file that the row came in."),
    Column(POSITION, "bigint", INTERNAL, "The row's place in it, from 0."),
)
"""What a silver table has beside its declared columns."""

TEXT, TIME, NUMBER = StringType(), TimestampType(), LongType()
META = {
    "sources": {"source": TEXT, "fingerprint": TEXT, "definition": TEXT},
    "files": {"table": TEXT, "file": TEXT, "size": NUMBER, "modified": NUMBER, "digest": TEXT, "run": TEXT},
    "runs": {"run": TEXT, "job": TEXT, "status": TEXT, "started_at": TIME, "ended_at": TIME, "error": TEXT, "settings": TEXT},
    "lineage": {
        "run": TEXT, "table": TEXT, "version": NUMBER, "column": TEXT, "source_table": TEXT, "source_column": TEXT,
        "direct": BooleanType(), "steps": TEXT,
    },
    "quality": {
        "run": TEXT, "table": TEXT, "version": NUMBER, "rows_in": NUMBER, "kept": NUMBER, "rejected": NUMBER, "merged": NUMBER,
        "hits": TEXT, "seconds": NUMBER,
    },
    "watermarks": {"table": TEXT, "version": NUMBER, "run": TEXT, "fingerprint": TEXT, "inputs": TEXT, "at": TIME},
}  # fmt: skip
"""The store's own tables: their columns with their types."""


@dataclass(frozen=True)
class Given:
    """An input of a build that is no table, such as a model.

    Args:
        value: What `build` receives.
        version: Names the value; a new name refreshes the table, and the commit records it.
    """

    value: Any
    version: str


@dataclass(frozen=True)
class Outcome:
    """What became of one table in this run; rows are null where nothing was written."""

    table: str
    status: Literal["written", "unchanged"]
    version: int | None
    rows_in: int | None = None
    kept: int | None = None
    rejected: int | None = None
    merged: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class _Mark:
    """What the newest commit of a table consumed."""

    version: int
    run: str
    fingerprint: str
    inputs: dict[str, str]


@dataclass(frozen=True)
class _RawFile:
    """A raw file as the file system tells of it."""

    path: str
    size: int
    modified: int


@dataclass
class _Counts:
    rows_in: int = 0
    rejected: int = 0
    repeated: int = 0
    hits: dict[str, int] = field(default_factory=dict)


class Store:
    """A lake opened by one job. Leaving the `with` block commits what was gathered for the meta tables, once.

    Args:
        spark: The session, from `open_session`.
        settings: Where the lake is, and which sources the job takes.
        tables: The table files, from `wares.tables.TABLES`.
        job: The name of the job, for `meta.runs`.
    """

    def __init__(self, spark: SparkSession, settings: Settings, tables: dict[str, TableFile], job: str) -> None:
        self.spark, self.settings, self.tables, self.job = spark, settings, tables, job
        self.started = datetime.now(UTC)
        self.run_id = f"{self.started:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        self._token = secrets.token_hex(8)
        self._gathered: dict[str, list[dict[str, Any]]] = {name: [] for name in META}
        self._marks: dict[str, _Mark] = {}
        self._sources: dict[str, Source] = {}
        self._stored: dict[str, str] = {}
        self._bronze: dict[str, Table] = {}

    def __enter__(self) -> Store:
        if self._meta_exists("watermarks"):
            newest = Window.partitionBy("table").orderBy(col("at").desc())  # a table that was deleted starts again at version 0
            rows = self._meta("watermarks").withColumn("place", row_number().over(newest)).where("place = 1").collect()
            self._marks = {
                row["table"]: _Mark(row["version"], row["run"], row["fingerprint"], json.loads(row["inputs"])) for row in rows
            }
        if self._meta_exists("sources"):
            for row in self._meta("sources").collect():
                self._stored[row["source"]] = row["fingerprint"]
                self._know(Source.model_validate_json(row["definition"]))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        changed = any(self._gathered[name] for name in META)
        if changed or error is not None:
            message = str(error).splitlines()[0][:500] if isinstance(error, WaresError) else kind.__name__ if kind else None
            self._gathered["runs"].append(
                {
                    "run": self.run_id,
                    "job": self.job,
                    "status": "failed" if error else "succeeded",
                    "started_at": self.started,
                    "ended_at": datetime.now(UTC),
                    "error": message,
                    "settings": self.settings.model_dump_json(),
                }
            )
        for name, rows in self._gathered.items():
            if rows:
                self._append_meta(name, rows)
                rows.clear()

    # Names and places

    def location(self, name: str) -> str:
        """The folder (or URI) of a table, or its name in the catalogue if the settings name one."""
        layer, table = name.split(".")
        lake = self.settings.lake
        return f"{lake.catalog}.{layer}.{table}" if lake.catalog else f"{lake.root.rstrip('/')}/{layer}/{table}"

    def exists(self, name: str) -> bool:
        """Whether the table has ever been written."""
        return self.version(name) is not None

    def version(self, name: str) -> int | None:
        """The table's newest Delta version; None if it does not exist.

        Delta's own log object answers in milliseconds; `DeltaTable.history` takes a Spark job.
        """
        place = self.location(name)
        if self.settings.lake.catalog and not self.spark.catalog.tableExists(place):
            return None
        nothing = self.spark._jvm.scala.Option.empty()
        version = self._log(name).update(False, nothing, nothing).version()
        return version if version >= 0 else None

    def _log(self, name: str) -> JavaObject:
        """Delta's log of a table, which may not exist yet."""
        place = self.location(name)
        if self.settings.lake.catalog:
            return DeltaTable.forName(self.spark, place)._jdt.deltaLog()
        return self.spark._jvm.org.apache.spark.sql.delta.DeltaLog.forTable(self.spark._jsparkSession, place)

    def read(self, name: str, version: int | None = None) -> DataFrame:
        """A table, at a version or as it is now.

        Raises:
            ShapeError: The table does not exist.
        """
        if not self.exists(name):
            raise ShapeError(
                f"The table {name} does not exist.",
                found=f"nothing at {self.location(name)}",
                do=f"run jobs/{self._job_of(name)}.py first",
            )
        reader = self.spark.read.format("delta")
        if version is not None:
            reader = reader.option("versionAsOf", version)
        place = self.location(name)
        return reader.table(place) if self.settings.lake.catalog else reader.load(place)

    def files(self, name: str, version: int) -> list[str]:
        """The Parquet files that make up a version of a table, for readers without Spark."""
        return sorted(self.read(name, version).inputFiles())

    def rejected(self, name: str) -> DataFrame:
        """The rows that the newest write of a table rejected, with their reasons; empty if there are none."""
        twin = f"{name}_rejected"
        if not self.exists(twin) or not self.exists(name):
            schema = ", ".join(f"{c.name} {c.type}" for c in _twin(CLOSED).columns)
            return self.spark.createDataFrame([], schema)
        run = self._mark(name).run
        # Later runs may have written rejected rows and died before their kept ones: those don't count.
        version = next((commit["version"] for commit in self._commits_after(twin, -1) if commit["run"] == run), None)
        return self.read(twin, version).where(col("_run") == run)

    def merged(self, name: str) -> DataFrame:
        """The raw rows of a silver table that gave way to another with the same keys, with the place of that one."""
        file = self.tables[name]
        place = [FILE, POSITION]
        built = file.build(**self._frames(file, self._mark(name).inputs)).select(*file.table.keys, *place)
        kept = self.read(name)
        return (
            built.join(kept.select(*place), place, "anti")
            .join(self.rejected(name).select(*place), place, "anti")
            .join(kept.select(*file.table.keys, *(col(part).alias(f"_kept{part}") for part in place)), list(file.table.keys))
        )

    def _job_of(self, name: str) -> str:
        layer = name.partition(".")[0]
        return layer if layer in ("bronze", "silver") else "suite"

    # Bronze

    def sources(self) -> list[Source]:
        """The sources that the settings name, and those that the lake already holds."""
        for name in self.settings.sources:
            source = load_source(name)
            self._know(source)
            if source.name in self._stored:  # its files have been taken in, and its mappings may have changed since
                self._gather_source(source)
        return list(self._sources.values())

    def _know(self, source: Source) -> None:
        self._sources[source.name] = source
        for name, entity in source.entities.items():
            self._bronze[source.bronze(name)] = bronze_table(entity)

    def ingest(self, name: str, entity: str) -> Outcome:
        """Take in the files of one entity of a source that have not been taken in yet, each exactly once.

        Args:
            name: The source, as the settings name it.
            entity: The entity within it.

        Raises:
            SourceError: There are no files, a file changed after it was taken in, or it is not what the YAML declares.
        """
        started = time.monotonic()
        source = load_source(name)
        self._know(source)
        table_name, declared = source.bronze(entity), source.entities[entity]
        files = self._list(location(declared))
        if not files:
            raise SourceError(
                f"The source {source.name} has no files for {entity}.",
                found=f"nothing matches {location(declared)}",
                do="check `path` in its YAML, and that the files are there",
            )
        new = self._not_taken_in(table_name, files)
        self._gather_source(source)
        if self.exists(table_name):
            self._relabel(table_name, self._bronze[table_name])
        if not new:
            return self._unchanged(table_name, started)
        session = self.spark.newSession()  # whose own setting gives each file a task of its own, so that positions are true
        session.conf.set("spark.sql.files.openCostInBytes", session.conf.get("spark.sql.files.maxPartitionBytes"))
        paths = [file.path for file in new]
        check_files(session, source, entity, paths)
        rows = read_files(session, declared, paths).withColumn(ARRIVED, lit(self.started))
        if declared.format == "csv":
            rows = rows.coalesce(max(2, sum(file.size for file in new) // 2**26))
        taken = [{**vars(file), "digest": self._digest(file)} for file in new]
        table = self._bronze[table_name]
        version, metrics = self._commit(table_name, _with_labels(rows, table.columns), "append", {"files": taken})
        written = int(metrics["numOutputRows"])
        self._gathered["files"] += [_file_row(table_name, file, self.run_id) for file in taken]
        self._gather_bronze_lineage(table_name, table, source, entity, version)
        return self._done(Outcome(table_name, "written", version, written, written, 0, 0, time.monotonic() - started), {}, "", {})

    def _list(self, pattern: str) -> list[_RawFile]:
        path = self.spark._jvm.org.apache.hadoop.fs.Path(pattern)
        found = path.getFileSystem(self.spark._jsc.hadoopConfiguration()).globStatus(path) or []
        files = [_RawFile(f.getPath().toString(), f.getLen(), f.getModificationTime()) for f in found if f.isFile()]
        return sorted(files, key=lambda file: file.path)

    def _not_taken_in(self, table: str, files: list[_RawFile]) -> list[_RawFile]:
        """The files that no commit of the bronze table names; one that it names must still be as it was."""
        taken: dict[str, dict[str, Any]] = {}
        if self.exists(table):
            mark = self._marks.get(table)
            if self._meta_exists("files"):
                taken = {row["file"]: row.asDict() for row in self._meta("files").where(col("table") == table).collect()}
            taken |= {row["file"]: row for row in self._gathered["files"] if row["table"] == table}  # by this run, earlier
            for commit in self._commits_after(table, mark.version if mark else -1):
                for file in commit.get("files", []):  # a run that died before it could say so in meta.files
                    row = _file_row(table, file, commit["run"])
                    if file["path"] not in taken:
                        self._gathered["files"].append(row)
                    taken[file["path"]] = row
            self._mark(table)
        for file in files:
            before = taken.get(file.path)
            if before is None or (before["size"], before["modified"]) == (file.size, file.modified):
                continue
            if before["size"] != file.size or before["digest"] != self._digest(file):
                raise SourceError(
                    "A file changed after it was taken in.",
                    found=f"{file.path}: {before['size']} bytes when taken in, {file.size} now",
                    do="put the old file back, and deliver the corrected rows in a file with a new name",
                )
        return [file for file in files if file.path not in taken]

    def _digest(self, file: _RawFile) -> str:
        with open_file(self.spark, file.path) as stream:
            return self.spark._jvm.org.apache.commons.codec.digest.DigestUtils.sha256Hex(stream)

    def _gather_source(self, source: Source) -> None:
        """Keep a source's declaration in the lake, for the runs that do not name it."""
        if self._stored.get(source.name) != fingerprint(source):
            self._stored[source.name] = fingerprint(source)
            definition = source.model_dump_json(by_alias=True)
            self._gathered["sources"].append(
                {"source": source.name, "fingerprint": fingerprint(source), "definition": definition}
            )

    def _relabel(self, name: str, table: Table) -> None:
        """Write a bronze table's labels anew if the source's YAML has changed them: an append would not."""
        stored = {f.name: f.metadata.get("label") for f in self.read(name).schema}
        if stored != {column.name: str(column.label) for column in table.columns} and stored.keys() == table.by_name.keys():
            self._commit(name, _with_labels(self.read(name), table.columns), "overwrite", {"files": []})

    def _gather_bronze_lineage(self, name: str, table: Table, source: Source, entity: str, version: int) -> None:
        for column in source.entities[entity].columns:
            self._gathered["lineage"].append(
                self._lineage_row(name, version, column, f"files.{source.name}_{entity}", column, True, "IDENTITY")
            )

    # Refresh

    def refresh(self, name: str, given: dict[str, Given] | None = None) -> Outcome:
        """Bring a table up to date: build and write it, unless nothing that it is made of has changed.

        Args:
            name: A silver or gold table.
            given: The inputs of its build that are no tables, by parameter name.

        Raises:
            WaresError: The write was refused; the table is as it was.
        """
        started = time.monotonic()
        file, given = self.tables[name], given or {}
        inputs = self._versions(file, given)
        code = sha256(file.code.encode()).hexdigest()[:16]
        mark = self._mark(name) if self.exists(name) else None
        if mark and (mark.fingerprint, mark.inputs) == (code, inputs):
            return self._unchanged(name, started)
        built = file.build(**self._frames(file, inputs), **{parameter: value.value for parameter, value in given.items()})
        outcome, counts = self._write(file, built, inputs, code, started)
        return self._done(outcome, counts.hits, code, inputs)

    def refresh_all(self, names: Iterable[str], report: Callable[[Outcome], None]) -> list[Outcome]:
        """Refresh tables, each after those that it reads, two at a time: small tables fill the gaps that large ones leave.

        Args:
            names: Tables that are built from tables alone.
            report: Is told what became of each, as soon as that is known.
        """
        wanted = set(names)
        graph = {name: [read for read in self.tables[name].inputs if read in wanted] for name in self.tables if name in wanted}
        return self._in_order(graph, self.refresh, report)

    def ingest_all(self, report: Callable[[Outcome], None]) -> list[Outcome]:
        """Take in the new files of all sources that the settings name."""
        tasks = {(name, entity): [] for name in self.settings.sources for entity in load_source(name).entities}
        return self._in_order(tasks, lambda task: self.ingest(*task), report)

    def _in_order(
        self, graph: dict[Any, list[Any]], work: Callable[[Any], Outcome], report: Callable[[Outcome], None]
    ) -> list[Outcome]:
        order, outcomes = TopologicalSorter(graph), []
        order.prepare()
        with ThreadPoolExecutor(2) as pool:
            running = {}
            while order.is_active():
                running |= {pool.submit(self._in_pool, work, task): task for task in order.get_ready()}
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    task = running.pop(future)
                    try:
                        outcomes.append(future.result())
                    except BaseException:
                        for waiting in running:
                            waiting.cancel()
                        raise
                    report(outcomes[-1])
                    order.done(task)
        return outcomes

    def _in_pool(self, work: Callable[[Any], Outcome], task: Any) -> Outcome:
        """Without a pool of its own, a table's stages would wait for all those of the table that started first."""
        self.spark.sparkContext.setLocalProperty("spark.scheduler.pool", str(task))
        return work(task)

    def _versions(self, file: TableFile, given: dict[str, Given]) -> dict[str, str]:
        """What a build would be made of now: the version of each table and of each given value, and the mappings.

        Raises:
            SettingsError: A value that the build needs was not given.
            ShapeError: A table that it reads does not exist.
        """
        missing = set(file.given) - set(given)
        if missing:
            raise SettingsError(
                f"The build of {file.name} needs more than tables.",
                found=f"nothing given for {', '.join(sorted(missing))}",
                do="pass it to refresh(..., given=...), or name the parameter after a table",
            )
        versions = {parameter: value.version for parameter, value in given.items()}
        for name in file.inputs:
            if name.startswith("bronze."):
                for source, mapping in self._mappings(name):
                    bronze = source.bronze(mapping.entity)
                    versions |= {bronze: str(self.version(bronze)), f"mapping of {source.name}": fingerprint(source)}
            elif (version := self.version(name)) is None:
                self.read(name)  # says what is missing, and what to do
            else:
                versions[name] = str(version)
        return versions

    def _frames(self, file: TableFile, versions: dict[str, str]) -> dict[str, DataFrame]:
        """The frames that `build` takes, by parameter, at these versions."""
        return {
            name.replace(".", "_", 1): self._mapped_rows(file, name, versions)
            if name.startswith("bronze.")
            else self._leaf(name, int(versions[name]))
            for name in file.inputs
        }

    def _leaf(self, name: str, version: int) -> DataFrame:
        """A table's relation under an alias that only this run can have given."""
        return self.read(name, version).alias(relation_alias(name, version, self._token))

    def _mappings(self, name: str) -> list[tuple[Source, Mapping]]:
        """The mappings that provide the rows of `bronze.NAME`, of all sources whose files have been taken in."""
        provided = name.partition(".")[2]
        found = [(source, mapping) for source in self.sources() for mapping in source.tables.get(provided, [])]
        return [(source, mapping) for source, mapping in found if self.exists(source.bronze(mapping.entity))]

    def _mapped_rows(self, file: TableFile, name: str, versions: dict[str, str]) -> DataFrame:
        """The rows of every source that provides a silver table, in its shape."""
        frames = []
        for source, mapping in self._mappings(name):
            bronze = source.bronze(mapping.entity)
            if bronze in versions:
                frames.append(mapped(source, mapping, self._leaf(bronze, int(versions[bronze])), file.table))
        return reduce(DataFrame.unionByName, frames) if frames else self._no_rows(file.table)

    def _no_rows(self, table: Table) -> DataFrame:
        """The mapped rows of a table that no source provides."""
        nothing = {column.name: column.type for column in (*table.columns, *PLACE)} | {
            RAW: "string",
            VIOLATIONS: ArrayType(VIOLATION),
            ZONE: "string",
        }
        return self.spark.range(0).select(*(lit(None).cast(type).alias(name) for name, type in nothing.items()))

    # The one door

    def _write(
        self, file: TableFile, built: DataFrame, inputs: dict[str, str], code: str, started: float
    ) -> tuple[Outcome, _Counts]:
        silver = file.layer == "silver"
        columns = (*file.table.columns, *(PLACE if silver else ()))
        rows = _shaped(file.name, built, columns, [RAW, VIOLATIONS] if silver else [])
        lineage = trace(rows.select(*(column.name for column in columns)), self._token)
        check_flow(file.name, Table(file.table.keys, columns), lineage, self.label_of)
        checked = _checked(file.table, rows, silver)
        with self._once(checked, again=silver) as checked:
            counts = _count(file, checked)
            if counts.repeated and not silver:
                raise ShapeError(
                    f"Rows of {file.name} share their keys.",
                    found=f"{counts.repeated:,} keys ({', '.join(file.table.keys)}) with more than one row",
                    do="aggregate in build, or declare the keys that tell rows apart",
                )
            if counts.rejected or self.exists(f"{file.name}_rejected"):
                self._write_rejected(file, checked, columns, inputs)
            kept = checked.where(~_is_rejected()) if counts.rejected else checked
            if counts.repeated:
                kept = _newest(kept, file.table)
            note = {
                "inputs": inputs,
                "fingerprint": code,
                "rows_in": counts.rows_in,
                "rejected": counts.rejected,
                "hits": counts.hits,
            }
            version, metrics = self._commit(file.name, _with_labels(kept, columns), "overwrite", note)
        written = int(metrics["numOutputRows"])
        self._gather_lineage(file.name, version, lineage)
        merged = counts.rows_in - counts.rejected - written
        return Outcome(
            file.name, "written", version, counts.rows_in, written, counts.rejected, merged, time.monotonic() - started
        ), counts

    def label_of(self, ref: Ref) -> Label:
        """The label that a table's declaration gives a column; closed if nothing is declared."""
        table = self._bronze.get(ref.table) or (self.tables[ref.table].table if ref.table in self.tables else None)
        if table and ref.column in table.by_name:
            return table.by_name[ref.column].label
        return next((column.label for column in PLACE if column.name == ref.column), CLOSED)

    @contextmanager
    def _once(self, checked: DataFrame, again: bool) -> Iterator[DataFrame]:
        """Keep a built frame on disk for the length of the write, so that it is evaluated once.

        Silver builds only look at one row at a time, of a pinned version: reading that again gives the same rows and
        costs less than writing a copy, so they are not kept.
        """
        if again:
            yield checked
            return
        checked = checked.persist(StorageLevel.DISK_ONLY)
        try:
            yield checked
        finally:
            checked.unpersist()

    def _write_rejected(self, file: TableFile, checked: DataFrame, columns: tuple[Column, ...], inputs: dict[str, str]) -> None:
        sources = [self._bronze[name] for name in inputs if name in self._bronze] or [file.table]
        twin = _twin(join(column.label for table in sources for column in table.columns))
        rejected = checked.where(_is_rejected()).withColumn("_run", lit(self.run_id))
        if file.layer != "silver":
            whole_row = to_json(struct(*(column.name for column in columns))).alias(RAW)
            rejected = rejected.select(
                lit(None).cast("string").alias(FILE), lit(None).cast("bigint").alias(POSITION), whole_row, VIOLATIONS, "_run"
            )
        rejected = rejected.select(*twin.by_name)
        self._commit(f"{file.name}_rejected", _with_labels(rejected, twin.columns), "overwrite", {"of": file.name})

    def _commit(
        self, name: str, rows: DataFrame, mode: Literal["append", "overwrite"], note: dict[str, Any]
    ) -> tuple[int, dict[str, str]]:
        """One Delta commit, tagged with the run; returns its version and Delta's own counts."""
        days = self.settings.lake.retention_days
        writer = (
            rows.write.format("delta")
            .mode(mode)
            .option("userMetadata", json.dumps({"wares": {"run": self.run_id, "table": name, **note}}))
        )
        writer = writer.option("maxRecordsPerFile", ROWS_PER_FILE)
        if not self.exists(name):
            writer = writer.options(
                **{
                    "delta.enableChangeDataFeed": "true",
                    "delta.deletedFileRetentionDuration": f"interval {days} days",
                    "delta.logRetentionDuration": f"interval {days} days",
                    # Rows are in no order by which a reader could skip files, so the statistics would cost and never pay.
                    "delta.dataSkippingNumIndexedCols": "0",
                }
            )
        elif mode == "overwrite":
            writer = writer.option("overwriteSchema", "true")  # without it Delta keeps the old labels, silently
        try:
            place = self.location(name)
            writer.saveAsTable(place) if self.settings.lake.catalog else writer.save(place)
        except PySparkException as error:
            if "Concurrent" in str(error) or "DELTA_CONCURRENT" in str(error):
                raise ConflictError(
                    f"Another run wrote {name} at the same time.", found=str(error).splitlines()[0][:200], do="run the job again"
                ) from None
            raise
        version = self.version(name)
        commit = self._commit_info(name, version)
        if _note(commit).get("run") != self.run_id:
            raise ConflictError(
                f"Another run wrote {name} right after this one.", found=f"version {version}", do="run the job again"
            )
        self._verify_labels(name, rows)
        return version, commit["operationMetrics"]

    def _verify_labels(self, name: str, rows: DataFrame) -> None:
        stored = {f.name: f.metadata.get("label") for f in self.read(name).schema}
        wrong = [f.name for f in rows.schema if stored.get(f.name) != f.metadata["label"]]
        if wrong:
            raise ShapeError(
                f"The labels of {name} in the lake are not those that are declared.",
                found=", ".join(wrong),
                do="they change with a full rewrite: delete the table and run its job again",
            )

    # Bookkeeping

    def _unchanged(self, name: str, started: float) -> Outcome:
        return Outcome(name, "unchanged", self._marks[name].version, seconds=time.monotonic() - started)

    def _done(self, outcome: Outcome, hits: dict[str, int], code: str, inputs: dict[str, str]) -> Outcome:
        version = outcome.version or 0
        self._remember(outcome.table, _Mark(version, self.run_id, code, inputs))
        self._gathered["quality"].append(
            {
                "run": self.run_id,
                "table": outcome.table,
                "version": version,
                "rows_in": outcome.rows_in,
                "kept": outcome.kept,
                "rejected": outcome.rejected,
                "merged": outcome.merged,
                "hits": json.dumps(hits),
                "seconds": round(outcome.seconds),
            }
        )
        return outcome

    def _remember(self, name: str, mark: _Mark) -> None:
        """Take a mark for the table's newest, here and, when the job ends, in `meta.watermarks`."""
        self._marks[name] = mark
        self._gathered["watermarks"].append(
            {"table": name, **vars(mark), "inputs": json.dumps(mark.inputs), "at": datetime.now(UTC)}
        )

    def _mark(self, name: str) -> _Mark:
        """What the newest commit of a table consumed, from `meta.watermarks` or, if a run died before that, from the commit.

        Raises:
            ConflictError: The newest data in the table is not the store's.
        """
        version = self.version(name)
        known = self._marks.get(name)
        if known and known.version == version:
            return known
        for commit in self._commits_after(name, known.version if known else -1):
            if "fingerprint" in commit or "files" in commit:
                known = _Mark(commit["version"], commit["run"], commit.get("fingerprint", ""), commit.get("inputs", {}))
                self._remember(name, known)
                return known
        if known is None:
            raise ConflictError(
                f"The table {name} was not written by the store.",
                found=f"version {version} at {self.location(name)}",
                do="move it away, or choose another lake.root",
            )
        return known

    def _commits_after(self, name: str, version: int) -> Iterator[dict[str, Any]]:
        """The store's notes in the commits after a version, newest first, each with its `version`."""
        for found in range(self.version(name), version, -1):
            if note := _note(self._commit_info(name, found)):
                yield {**note, "version": found}

    def _commit_info(self, name: str, version: int) -> dict[str, Any]:
        """What Delta's log says of a commit; empty if log clean-up has taken it away."""
        folder = self._log(name).logPath().toString()
        try:
            with open_file(self.spark, f"{folder}/{version:020d}.json") as stream:
                reader = self.spark._jvm.java.io.BufferedReader(self.spark._jvm.java.io.InputStreamReader(stream, "UTF-8"))
                while (line := reader.readLine()) is not None:
                    if "commitInfo" in (action := json.loads(line)):
                        return action["commitInfo"]
        except Py4JJavaError as error:
            if "FileNotFoundException" not in str(error.java_exception.getClass()):
                raise
        return {}

    def _gather_lineage(self, name: str, version: int, lineage: Lineage) -> None:
        for column, flow in lineage.direct.items():
            for ref, paths in flow.items():
                steps = ",".join(sorted({step for path in paths for step in path})) or "IDENTITY"
                self._gathered["lineage"].append(self._lineage_row(name, version, column, ref.table, ref.column, True, steps))
        for ref, paths in lineage.indirect.items():
            steps = ",".join(sorted({step for path in paths for step in path}))
            self._gathered["lineage"].append(self._lineage_row(name, version, None, ref.table, ref.column, False, steps))

    def _lineage_row(
        self, table: str, version: int, column: str | None, source_table: str, source_column: str, direct: bool, steps: str
    ) -> dict[str, Any]:
        return {
            "run": self.run_id,
            "table": table,
            "version": version,
            "column": column,
            "source_table": source_table,
            "source_column": source_column,
            "direct": direct,
            "steps": steps,
        }

    def _meta_exists(self, name: str) -> bool:
        return self.exists(f"meta.{name}")

    def _meta(self, name: str) -> DataFrame:
        return self.read(f"meta.{name}")

    def _append_meta(self, name: str, rows: list[dict[str, Any]]) -> None:
        schema = StructType([StructField(column, type) for column, type in META[name].items()])
        frame = self.spark.createDataFrame([tuple(row[column] for column in META[name]) for row in rows], schema).coalesce(1)
        writer = frame.write.format("delta").mode("append").option("userMetadata", json.dumps({"wares": {"run": self.run_id}}))
        if name == "sources" and self._meta_exists(name):
            names = ", ".join(f"'{row['source']}'" for row in rows)
            writer = writer.mode("overwrite").option("replaceWhere", f"source IN ({names})")
        place = self.location(f"meta.{name}")
        writer.saveAsTable(place) if self.settings.lake.catalog else writer.save(place)


def _file_row(table: str, file: dict[str, Any], run: str) -> dict[str, Any]:
    """A row of `meta.files`, from what a bronze commit's note says of a file."""
    return {"table": table, "file": file["path"], "run": run, **{name: file[name] for name in ("size", "modified", "digest")}}


def _note(commit: dict[str, Any]) -> dict[str, Any]:
    """What the store wrote into a commit; empty for a commit of somebody else."""
    try:
        return json.loads(commit.get("userMetadata") or "{}").get("wares") or {}
    except (ValueError, AttributeError):
        return {}


# Shape, checks, accounting


def _twin(label: Label) -> Table:
    """The table of rejected rows: each carries the join of all labels that its raw form may hold."""
    return Table(
        keys=(),
        columns=(
            *PLACE,
            Column(RAW, "string", label, "The whole raw row, as JSON."),
            Column(
                VIOLATIONS,
                "array<struct<rule: string, severity: string, value: string>>",
                label,
                "The rules that it breaks, with the offending values.",
            ),
            Column("_run", "string", INTERNAL, "The run that rejected it."),
        ),
    )


def _shaped(name: str, built: DataFrame, columns: tuple[Column, ...], carried: list[str]) -> DataFrame:
    """The built frame with the declared columns in their order.

    Raises:
        ShapeError: A column is missing, too many, or of another type; the lines to change are named.
    """
    found = {f.name: f.dataType.simpleString() for f in built.schema}
    declared = {column.name: column.type for column in columns}
    schema = Table((), columns).schema()
    problems = [f"{column} is missing (declared {type})" for column, type in declared.items() if column not in found]
    problems += [
        f"{f.name} is {found[f.name]}, declared {f.dataType.simpleString()}"
        for f in schema
        if f.name in found and found[f.name] != f.dataType.simpleString()
    ]
    problems += [
        f"{column} ({type}) is not declared"
        for column, type in found.items()
        if column not in declared and column not in (*carried, ZONE)
    ]
    problems += [f"{column} is there twice" for column in found if built.columns.count(column) > 1]
    problems += [f"{column} did not come through build" for column in carried if column not in found]
    if problems:
        raise ShapeError(
            f"What build of {name} returns is not what its TABLE declares.",
            found="; ".join(problems),
            do=f"change build or the columns of TABLE in tables/{name.replace('.', '/')}.py",
        )
    return built.select(*declared, *carried)


def _checked(table: Table, rows: DataFrame, silver: bool) -> DataFrame:
    """The rows with `_violations`: broken rules of the mapping (silver), missing keys, and the table's own checks."""
    keys = [Check(f"has_{key}", f"`{key}` IS NOT NULL") for key in table.keys]
    found = [
        (~coalesce(expr(check.rule), lit(True)), check.name, check.severity, _offending(table, check))
        for check in (*keys, *table.checks)
    ]
    own = violations(found)
    if silver:
        both = coalesce(concat(VIOLATIONS, own), col(VIOLATIONS), own)
        return rows.withColumn(VIOLATIONS, both)
    return rows.withColumn(VIOLATIONS, own)


def _offending(table: Table, check: Check) -> SparkColumn:
    """The values that a rule looked at, as JSON."""
    looked_at = [column for column in table.by_name if column in check.rule]
    return to_json(struct(*looked_at)) if looked_at else lit(None).cast("string")


def _rejects(violation: SparkColumn) -> SparkColumn:
    return violation["severity"] == "reject"


def _is_rejected() -> SparkColumn:
    return coalesce(exists(VIOLATIONS, _rejects), lit(False))


def _count(file: TableFile, checked: DataFrame) -> _Counts:
    """Count rows, rejected rows, broken rules and repeated keys in one pass.

    Keys are compared by a 64-bit hash, which moves eight bytes a row where a comparison of rows would move and sort them
    whole. Two keys that share a hash are taken for repeated once in many thousand lakes; in silver that only costs time.

    Raises:
        QualityError: More is rejected than the table allows.
    """
    rules = array_join(transform(filter(VIOLATIONS, _rejects), lambda violation: violation["rule"]), "\n")
    key = xxhash64(*file.table.keys)
    warnings = {check.name: ~coalesce(expr(check.rule), lit(True)) for check in file.table.checks if check.severity == "warn"}
    looked_at = checked.select(
        when(_is_rejected(), rules).alias("rules"),
        when(~_is_rejected(), key).alias("key"),
        *(broken.cast("int").alias(name) for name, broken in warnings.items()),
    )
    # Many partitions, so that each one's keys fit in memory; by number, so that Spark does not join them again.
    spread = looked_at.repartition(KEY_PARTITIONS, "key")
    totals = [sum_(name).alias(name) for name in warnings]
    by_key = spread.groupBy("key", "rules").agg(count("*").alias("rows"), *totals)
    repeated = count_if(col("key").isNotNull() & (col("rows") > 1))
    counts = _Counts()
    for row in by_key.groupBy("rules").agg(sum_("rows").alias("rows"), repeated.alias("repeated"), *totals).collect():
        counts.rows_in += row["rows"]
        counts.repeated += row["repeated"]
        counts.rejected += row["rows"] if row["rules"] else 0
        hits = dict.fromkeys(row["rules"].split("\n"), row["rows"]) if row["rules"] else {}
        for rule, rows in (hits | {name: row[name] for name in warnings if row[name]}).items():
            counts.hits[rule] = counts.hits.get(rule, 0) + rows
    if counts.rejected > file.table.max_rejected * counts.rows_in:
        hits = ", ".join(f"{rule} {rows:,}" for rule, rows in sorted(counts.hits.items()))
        share = f"{counts.rejected:,} of {counts.rows_in:,} rows rejected"
        raise QualityError(
            f"Too many rows of {file.name} break its rules; nothing was written.",
            found=f"{share}, at most {file.table.max_rejected:.0%} allowed: {hits}",
            do="mend the source's mapping, or raise max_rejected in the table file",
        )
    return counts


def _newest(rows: DataFrame, table: Table) -> DataFrame:
    """One row for each key: the newest, then the one in the file that sorts last, then the last in it."""
    order = [col(name).desc_nulls_last() for name in (*table.newest, FILE, POSITION)]
    place = row_number().over(Window.partitionBy(*table.keys).orderBy(*order))
    return rows.withColumn("_place", place).where("_place = 1").drop("_place")


def _with_labels(rows: DataFrame, columns: tuple[Column, ...]) -> DataFrame:
    """The columns with comment and label as Delta column metadata."""
    return rows.select(*(col(c.name).alias(c.name, metadata={"comment": c.description, "label": str(c.label)}) for c in columns))
