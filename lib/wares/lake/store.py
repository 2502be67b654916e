"""The store: the one door that every write goes through, and what decides whether there is anything to write.

A write does five things in this order and stops at the first that fails, leaving the table as it was: shape, lineage,
flow, checks, commit. The commit names the run and the version of every input; that is what a later run compares to see
whether there is anything to do.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import reduce
from graphlib import TopologicalSorter
from hashlib import sha256
from typing import Any

from pyspark import StorageLevel
from pyspark.sql import DataFrame, Observation, SparkSession
from pyspark.sql.functions import col, from_json, lit
from pyspark.sql.types import ArrayType

from wares.errors import ConflictError, CutError, QualityError, SettingsError, SeveralErrors, ShapeError, StorageError, WaresError
from wares.lake.bronze import ingest
from wares.lake.changes import (
    CHANGE,
    count_changes,
    cut,
    days_of,
    differences,
    met_through,
    net,
    newer,
    together,
    touched_by_rows,
    touched_through,
    used_columns,
)
from wares.lake.checks import (
    PLACE,
    Counted,
    Counts,
    check_share,
    checked,
    content_of,
    count_rows,
    hits,
    is_rejected,
    newest,
    observe_content,
    order_of,
    refuse_repeated,
    rejected_rows,
    repeated_keys,
    shaped,
    stored_columns,
    twin,
    twin_name,
    with_labels,
)
from wares.lake.cut import key_columns
from wares.lake.delta import Lake, Write, same_table, version_in
from wares.lake.drift import Tally
from wares.lake.failures import plain, told_by, told_plainly
from wares.lake.flow import check_flow
from wares.lake.guard import no_jobs
from wares.lake.labels import CLOSED, INTERNAL, Label
from wares.lake.lineage import JOIN, Leaves, Lineage, Ref, trace
from wares.lake.maintain import Upkeep, maintain, needed_versions, tables_to_maintain
from wares.lake.meta import Account, Mark, Meta, Outcome
from wares.lake.pseudonym import pseudonymised, with_pseudonyms
from wares.lake.registry import TableFile
from wares.lake.relabel import lowerings
from wares.lake.sources import (
    FILE,
    POSITION,
    RAW,
    VIOLATION,
    VIOLATIONS,
    ZONE,
    Mapping,
    Source,
    bronze_table,
    fingerprint,
    load_source,
    mapped,
    mapping_fingerprint,
)
from wares.lake.table import Reference, Table
from wares.settings import Settings
from wares.stop import is_stopping, mark_work, unmark_work

FEW = 500_000
"""So many rows fit into the memory of each worker."""
MAPPING = "mapping of "
"""Begins the name of an input that is no table: how a source's rows are mapped."""


@dataclass(frozen=True)
class Given:
    """An input of a build that is no table, such as a model.

    Args:
        value: What `build` receives.
        version: Names the value; a new name refreshes the table, and the commit records it.
    """

    value: Any
    version: str


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
        self.lake = Lake(spark, settings.lake, self.run_id)
        self.meta = Meta(self.lake)
        self._leaves = Leaves()
        self._sources: dict[str, Source] = {}
        self._named: dict[str, Source] = {}
        self._stored: dict[str, str] = {}
        self._bronze: dict[str, Table] = {}

    def __enter__(self) -> Store:
        mark_work(self.spark.sparkContext)
        self.meta.load_marks()
        if self.meta.exists("sources"):
            for row in self.meta.read("sources").collect():
                self._stored[row["source"]] = row["fingerprint"]
                self._know(Source.model_validate_json(row["definition"]))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        unmark_work(self.spark.sparkContext)  # what tables that were written have to say is kept, also where the job is stopped
        # A job that failed where there is no lake, such as a question asked in the wrong folder, does not make one.
        if self.meta.changed() or (error is not None and self.meta.exists("runs")):
            message = str(error).splitlines()[0][:500] if isinstance(error, WaresError) else kind.__name__ if kind else None
            self.meta.add(
                "runs",
                run=self.run_id,
                job=self.job,
                status="stopped" if is_stopping() else "failed" if error else "succeeded",
                started_at=self.started,
                ended_at=datetime.now(UTC),
                error=message,
                settings=self.settings.model_dump_json(),
            )
        self.meta.commit()

    # Reading

    def location(self, name: str) -> str:
        """The folder (or URI) of a table, or its name in the catalogue if the settings name one."""
        return self.lake.location(name)

    def exists(self, name: str) -> bool:
        """Whether the table has ever been written."""
        return self.lake.exists(name)

    def version(self, name: str) -> int | None:
        """The table's newest Delta version; None if it does not exist."""
        return self.lake.version(name)

    def folder(self, name: str) -> str:
        """The URI of the folder that holds a table's files, also where a catalogue names the table."""
        return self.lake.folder(name)

    def read(self, name: str, version: int | None = None) -> DataFrame:
        """A table, at a version or as it is now.

        Raises:
            ShapeError: The table does not exist.
        """
        known = {*self.tables, *map(twin_name, self.tables)}
        if name not in known and not (name.count(".") == 1 and (name.startswith(("bronze.", "meta.")) or self.exists(name))):
            near = get_close_matches(name, sorted(known), 1) or sorted(self.tables)
            raise ShapeError(f"There is no table {name}.", found="no table file makes it", do=f"name {' or '.join(near)}")
        return self.lake.read(name, version)

    def files(self, name: str, version: int) -> list[str]:
        """The Parquet files that make up a version of a table, for readers without Spark."""
        return self.lake.files(name, version)

    def rejected(self, name: str) -> DataFrame:
        """The rows that a table as it is now left out, with their reasons; empty if there are none."""
        account = self.meta.mark(name).account if self.exists(name) else None
        # Later runs may have written rejected rows and died before their kept ones: those don't count.
        rejected = self._rejects(name, account) if account else None
        if rejected is None:
            schema = ", ".join(f"{c.name} {c.type}" for c in twin([CLOSED]).columns)
            return self.spark.createDataFrame([], schema)
        return rejected

    def merged(self, name: str) -> DataFrame:
        """The raw rows of a silver table that gave way to another with the same keys, with the place of that one."""
        if not name.startswith("silver.") or name not in self.tables:
            silver = ", ".join(table for table in self.tables if table.startswith("silver."))
            raise ShapeError("Only silver tables merge raw rows.", found=name, do=f"name one of {silver}")
        file, place = self.tables[name], [FILE, POSITION]
        built = self._built(_Build(file, self.meta.mark(name).inputs, "", {}, None)).select(*file.table.keys, *place)
        built = with_pseudonyms(built, file.table, self._secret())
        kept = self.read(name)
        return (
            built.join(kept.select(*place), place, "anti")
            .join(self.rejected(name).select(*place), place, "anti")
            .join(kept.select(*file.table.keys, *(col(part).alias(f"_kept{part}") for part in place)), list(file.table.keys))
        )

    # Bronze

    def sources(self) -> list[Source]:
        """The sources that the settings name, and those that the lake already holds."""
        for name in self.settings.sources:
            source = self._source(name)
            if source.name in self._stored:  # its files have been taken in, and its mappings may have changed since
                self._keep_source(source)
        return list(self._sources.values())

    def _source(self, name: str) -> Source:
        """A source that the settings name; its YAML is read once."""
        if name not in self._named:
            source = load_source(name)  # by two tables at once, perhaps, which does no harm
            if same := [other for other, known in self._named.items() if other != name and known.name == source.name]:
                raise SettingsError(
                    f"Two sources are named {source.name}, and would share their tables.",
                    found=f"{same[0]} and {name}",
                    do="give one of them another `name`, or take one out of `sources`",
                )
            self._check_mapped(name, source)
            self._named[name] = source
            self._know(source)
        return self._named[name]

    def _check_mapped(self, name: str, source: Source) -> None:
        """See that each table that a source maps to is one that some table file makes of mapped rows.

        Raises:
            SettingsError: One is not; its rows would be lost.
        """
        takes = {read.partition(".")[2] for file in self.tables.values() for read in file.inputs if read.startswith("bronze.")}
        if unknown := sorted(source.tables.keys() - takes):
            raise SettingsError(
                f"The source {name} maps rows to a silver table that does not exist.",
                found=f"tables: {', '.join(unknown)}",
                do=f"name one of {', '.join(sorted(takes))}",
            )

    def _know(self, source: Source) -> None:
        taken = {other.bronze(name): other.name for other in self._sources.values() for name in other.entities}
        for bronze in map(source.bronze, source.entities):
            if taken.get(bronze, source.name) != source.name:
                raise SettingsError(
                    "Two sources claim one table.",
                    found=f"{bronze}, of {taken[bronze]} and of {source.name}",
                    do="give one of the sources, or its entity, another name",
                )
        self._sources[source.name] = source
        for name, entity in source.entities.items():
            self._bronze[source.bronze(name)] = bronze_table(entity)

    def _keep_source(self, source: Source) -> None:
        """Keep a source's declaration in the lake, for the runs that do not name it."""
        if self._stored.get(source.name) != fingerprint(source):
            self._stored[source.name] = fingerprint(source)
            definition = source.model_dump_json(by_alias=True)
            self.meta.add("sources", source=source.name, fingerprint=fingerprint(source), definition=definition)

    def ingest(self, name: str, entity: str) -> Outcome:
        """Take in the files of one entity of a source that have not been taken in yet, each exactly once.

        Args:
            name: The source, as the settings name it.
            entity: The entity within it.

        Raises:
            SourceError: There are no files, a file changed after it was taken in, or it is not what the YAML declares.
        """
        source = self._source(name)
        outcome = self._ingest(source.bronze(entity), source, entity)
        self._keep_source(source)
        return outcome

    @told_plainly
    def _ingest(self, name: str, source: Source, entity: str) -> Outcome:
        return ingest(self.lake, self.meta, source, entity, self.started)

    def ingest_all(self, report: Callable[[Outcome], None]) -> list[Outcome]:
        """Take in the new files of all sources that the settings name.

        Raises:
            WaresError: Files of an entity could not be taken in; those of all others were.
        """
        sources = {name: self._source(name) for name in self.settings.sources}
        tasks = {source.bronze(entity): (name, entity) for name, source in sources.items() for entity in source.entities}
        return self._in_order({table: [] for table in tasks}, lambda table: self.ingest(*tasks[table]), report)

    def bronze_tables(self) -> list[str]:
        """The bronze tables that there are, of all sources that the lake knows."""
        self.sources()
        return [name for name in self._bronze if self.exists(name)]

    # Refresh

    @told_plainly
    def refresh(self, name: str, given: dict[str, Given] | None = None) -> Outcome:
        """Bring a table up to date: build and write it, unless nothing that it is made of has changed.

        Args:
            name: A silver or gold table.
            given: The inputs of its build that are no tables, by parameter name.

        Raises:
            WaresError: The write was refused; the table is as it was.
        """
        with self.lake.begin(name) as write, self.lake.begin(twin_name(name)) as beside:
            return self._refresh(self.tables[name], given or {}, write, beside)

    def _refresh(self, file: TableFile, given: dict[str, Given], write: Write, beside: Write) -> Outcome:
        started = time.monotonic()
        name, inputs = file.name, self._states(file, given)
        code = sha256(file.code.encode()).hexdigest()[:16]
        mark = self.meta.mark(name) if write.version is not None else None
        if gone := [table for table in mark.inputs if table in self._bronze and not self.exists(table)] if mark else []:
            raise ConflictError(
                f"A table that {name} was made of is gone, and its rows would be lost.",
                found=f"nothing at {', '.join(map(self.location, gone))}",
                do=f"run jobs/bronze.py, which takes its files in again; to do without them, move {name} away too",
            )
        if mark and (mark.fingerprint, mark.inputs) == (code, inputs):
            seconds = time.monotonic() - started
            return self._fresh(Outcome(name, "unchanged", mark.version, mark.account, seconds=seconds))
        values = {parameter: value.value for parameter, value in given.items()}
        build = _Build(file, inputs, code, values, write.version)
        if not mark and not inputs and file.table.refresh.kind == "append":
            return self._write_no_rows(build, write, started)
        rows = shaped(file, self._built(build))
        lowered = lowerings(name, file.table, self.lake.labels(name)) if mark else []
        lineage = self._traced(file, rows)
        keyed = self._keyed(file, inputs, rows)
        change, why = self._change(build, keyed, lineage, mark) if mark else (None, "")
        if mark and change:
            written = self._write_change(build, beside, mark, change)
        else:
            written = self._write_all(build, write, beside, mark, rows, lowered)
        outcome = replace(written.outcome, why=why, seconds=time.monotonic() - started)
        self.meta.remember(name, written.mark)
        if outcome.status != "unchanged":
            self.meta.add_lineage(name, outcome.version, lineage)
            outcome = self.meta.add_quality(outcome, written.hits, written.tally)
            self.meta.add_access(name, self.run_id, lowered)
        return self._fresh(outcome)

    def _write_no_rows(self, build: _Build, write: Write, started: float) -> Outcome:
        """Make a table that no source provides, so that those that read it find it: there is nothing to build or to check."""
        file, account = build.file, Account(0, 0)
        write.stage(with_labels(self._no_rows(file.table), stored_columns(file)), "overwrite")
        mark = build.mark(write.commit(build.mark(0, self.run_id, account).note()).version, self.run_id, account)
        self.meta.remember(file.name, mark)
        outcome = Outcome(file.name, "written", mark.version, account, seconds=time.monotonic() - started)
        return self.meta.add_quality(outcome, {}, None)

    def _fresh(self, outcome: Outcome) -> Outcome:
        """The outcome with a warning if the table's newest row is too old, by the start of the run.

        Raises:
            QualityError: It is, and the table file says that this stops the run.
        """
        fresh = self.tables[outcome.table].table.fresh
        since = fresh and self.started - timedelta(days=fresh.days)
        if not fresh or not self.read(outcome.table).where(col(fresh.column) >= lit(since)).isEmpty():
            return outcome
        stale = f"no {fresh.column} within the last {fresh.days:g} days"
        if fresh.severity == "stop":
            raise QualityError(
                f"The table {outcome.table} is stale, so nothing is built from it.",
                found=stale,
                do="see why nothing new was delivered, or allow more days in `fresh` of the table file",
            )
        return replace(outcome, warnings=(*outcome.warnings, stale))

    def refresh_all(self, names: Iterable[str], report: Callable[[Outcome], None]) -> list[Outcome]:
        """Refresh tables, each after those that it reads, two at a time: small tables fill the gaps that large ones leave.

        Args:
            names: Tables that are built from tables alone.
            report: Is told what became of each, as soon as that is known.

        Raises:
            WaresError: A table could not be refreshed; all that do not read it were.
        """
        wanted = set(names)
        graph = {name: [read for read in self.tables[name].follows if read in wanted] for name in self.tables if name in wanted}
        return self._in_order(graph, self.refresh, report)

    def _in_order(
        self, graph: dict[str, list[str]], work: Callable[[str], Outcome], report: Callable[[Outcome], None]
    ) -> list[Outcome]:
        """Do the work of each table once that of those before it is done. What fails for a table ends that of the tables after
        it; a full disk, and what nobody expected, ends all."""
        order, outcomes, errors = TopologicalSorter(graph), [], []
        order.prepare()
        running: dict[Future[Outcome], str] = {}
        with ThreadPoolExecutor(2) as pool:
            try:
                while True:
                    running |= {pool.submit(self._in_pool, work, table): table for table in order.get_ready()}
                    if not running:
                        break
                    finished, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        table = running.pop(future)
                        try:
                            outcomes.append(future.result())
                        except WaresError as error:
                            if isinstance(error, StorageError):
                                raise
                            errors.append(error)
                            continue
                        report(outcomes[-1])
                        order.done(table)
            except BaseException:  # a signal too: what has not begun does not begin
                for waiting in running:
                    waiting.cancel()
                raise
        if errors:
            raise errors[0] if len(errors) == 1 else SeveralErrors(errors)
        return outcomes

    def _in_pool(self, work: Callable[[str], Outcome], table: str) -> Outcome:
        """Without a pool of its own, a table's stages would wait for all those of the table that started first. The pool's
        name tells what Spark is at work on."""
        self.spark.sparkContext.setLocalProperty("spark.scheduler.pool", table)
        mark_work(self.spark.sparkContext)
        return work(table)

    # Upkeep

    def maintain_all(self, report: Callable[[Upkeep], None]) -> list[Upkeep]:
        """Look after all tables of the lake; see maintain.py."""
        needed, done = needed_versions(self.meta.marks()), []
        for name in tables_to_maintain(self.lake, self.bronze_tables(), self.tables):
            done.append(maintain(self.lake, name, needed.get(name)))
            report(done[-1])
        return done

    # What a build is made of

    def _states(self, file: TableFile, given: dict[str, Given]) -> dict[str, str]:
        """What a build would be made of now: the state of each table and of each given value, and the mappings.

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
        states = {parameter: value.version for parameter, value in given.items()}
        for name in (*file.inputs, *_rejecting(file)):
            if name.startswith("bronze."):
                for source, mapping in self._mappings(name):
                    bronze = source.bronze(mapping.entity)
                    states[bronze] = self.lake.state(bronze)
                    states[f"{MAPPING}{source.name}"] = mapping_fingerprint(source, name.partition(".")[2])
            elif not self.exists(name):
                self.read(name)  # says what is missing, and what to do
            else:
                states[name] = self.lake.state(name)
        return states

    def _built(self, build: _Build, instead: dict[str, DataFrame] | None = None) -> DataFrame:
        """What `build` makes of its inputs, or of other rows of some of them; it may start no Spark job."""
        frames, file = self._frames(build, instead), build.file
        try:
            with no_jobs(self.spark, file.name):
                built = file.build(**frames, **build.values)
        except WaresError:
            raise
        except Exception as error:  # no row has been read yet, so none is in the message
            raise plain(error, file.name) or ShapeError(
                f"The build of {file.name} fails.", found=told_by(error, file.build.__code__.co_filename), do=f"mend {file.path}"
            ) from error
        if not isinstance(built, DataFrame):
            raise ShapeError(f"The build of {file.name} returns no frame.", found=type(built).__name__, do=f"mend {file.path}")
        return built

    def _frames(self, build: _Build, instead: dict[str, DataFrame] | None = None) -> dict[str, DataFrame]:
        """The frames that `build` takes, by parameter.

        Args:
            instead: For some of the tables, the rows to take instead of all that they hold.
        """
        leaves = {name: self._leaf(name, state) for name, state in build.inputs.items() if name in build.tables} | (instead or {})
        return {
            name.replace(".", "_", 1): self._mapped_rows(build.file, name, leaves) if name.startswith("bronze.") else leaves[name]
            for name in build.file.inputs
        }

    def _leaf(self, name: str, state: str) -> DataFrame:
        """A table's relation under an alias that only this run can have given."""
        version = self.lake.version_of(name, state)
        return self._leaves.hand_out(self.read(name, version), name, version)

    def _mappings(self, name: str) -> list[tuple[Source, Mapping]]:
        """The mappings that provide the rows of `bronze.NAME`, of all sources whose files have been taken in."""
        provided = name.partition(".")[2]
        found = [(source, mapping) for source in self.sources() for mapping in source.tables.get(provided, [])]
        return [(source, mapping) for source, mapping in found if self.exists(source.bronze(mapping.entity))]

    def _mapped_rows(self, file: TableFile, name: str, leaves: dict[str, DataFrame]) -> DataFrame:
        """The rows of every source that provides a silver table, in its shape."""
        frames = [
            mapped(source, mapping, leaves[source.bronze(mapping.entity)], file.table)
            for source, mapping in self._mappings(name)
            if source.bronze(mapping.entity) in leaves
        ]
        return reduce(DataFrame.unionByName, frames) if frames else self._no_rows(file.table)

    def _no_rows(self, table: Table) -> DataFrame:
        """The mapped rows of a table that no source provides."""
        nothing = {column.name: column.type for column in (*table.columns, *PLACE)} | {
            RAW: "string",
            VIOLATIONS: ArrayType(VIOLATION),
            ZONE: "string",
        }
        return self.spark.range(0).select(*(lit(None).cast(type).alias(name) for name, type in nothing.items()))

    # What has changed

    def _keyed(self, file: TableFile, inputs: dict[str, str], rows: DataFrame) -> dict[str, tuple[str, ...]]:
        """The inputs of which a change can be followed, each with the columns that hold the refresh keys.

        Raises:
            CutError: The table declares keys by which its build cannot be cut.
        """
        refresh = file.table.refresh
        if hidden := set(refresh.keys) & set(pseudonymised(file.table)):
            raise CutError(
                f"The table {file.name} cannot be refreshed by key.",
                found=f"{', '.join(sorted(hidden))} holds pseudonyms, which its inputs do not",
                do="refresh it by a column that comes through build as it is, or declare refresh=FULL",
            )
        if refresh.kind == "full" or not any(name in self._bronze or name in file.inputs for name in inputs):
            return {}
        # A raw row is a key of its own: if its place in its file can be cut by, new rows can be built without the old ones.
        keys = refresh.keys if refresh.kind == "by_key" else (FILE, POSITION)
        return key_columns(rows, keys, self._leaves.token, refresh.python_by_key)

    def _change(
        self, build: _Build, keyed: dict[str, tuple[str, ...]], lineage: Lineage, mark: Mark
    ) -> tuple[_Change | None, str]:
        """What has changed in the inputs since a mark; or None, and why the table has to be built in full.

        The reason is empty for a table that is always built in full.
        """
        refresh = build.file.table.refresh
        if not keyed:
            return None, ""
        if mark.fingerprint != build.code:
            return None, "its table file has changed"
        if mark.account is None:
            return None, "the account of its rows is lost"
        changed = {name for name in (*build.inputs, *mark.inputs) if build.inputs.get(name) != mark.inputs.get(name)}
        if other := sorted(changed & build.values.keys()):
            return None, f"{', '.join(other)} has changed, which is no table"
        feeds: dict[str, DataFrame] = {}
        referred = _rejecting(build.file)
        for name in sorted(changed):
            before, now = mark.inputs.get(name), build.inputs.get(name)
            if name.startswith(MAPPING):
                if before and now:
                    return None, f"the {name} has changed"
                continue
            if now is None or (before is None and not name.startswith("bronze.")):
                return None, f"{name} was not among its inputs before, or no longer is"
            if before is None:
                feeds[name] = self.read(name, self.lake.version_of(name, now))
                continue
            after, until = version_in(before), version_in(now)
            if not same_table(before, now) or until < after:
                return None, f"{name} was made anew"
            if lost := self.lake.lost_changes(name, after, until):
                return None, lost
            read = name not in referred or name in build.file.inputs
            if refresh.kind == "append" and read and not self.lake.only_appended(name, after, until):
                return None, f"rows of {name} were changed or taken away"
            feed = self.lake.changes(name, after, until)
            if name in referred and not net(feed, list(self.tables[name].table.keys)).isEmpty():
                return None, f"the keys of {name} have changed, to which rows have to refer"
            if not read:
                continue
            if name in keyed or name in refresh.through:
                feeds[name] = feed
            elif not net(feed, used_columns(lineage, name)).isEmpty():
                return None, f"{name} has changed, and nothing says which keys that touches"
        return _Change(feeds, keyed, {name: used_columns(lineage, name) for name in feeds}), ""

    def _touched(self, build: _Build, change: _Change) -> DataFrame:
        """The refresh keys that changed rows touch."""
        refresh, found = build.file.table.refresh, []
        for name, feed in change.feeds.items():
            columns = change.keyed.get(name, ())
            rows = net(feed, sorted({*change.used[name], *columns}))
            if columns:
                found.append(touched_by_rows(rows, columns, refresh.keys))
            else:
                through = refresh.through[name]
                other = self.read(through.table, self.lake.version_of(through.table, build.inputs[through.table]))
                found.append(touched_through(rows, through, other, change.keyed[through.table], refresh.keys))
        return together(found)

    # The one door

    def _traced(self, file: TableFile, rows: DataFrame) -> Lineage:
        """The lineage of the rows of a table, once the flow check has let them pass."""
        columns = stored_columns(file)
        lineage = trace(rows.select(*(column.name for column in columns)), self._leaves)
        keys = [Ref(name, key) for name in _rejecting(file) for key in self.tables[name].table.keys]
        lineage = lineage.decided_by(keys, JOIN)
        check_flow(file.name, replace(file.table, columns=columns), lineage, self.label_of)
        return lineage.after("PSEUDONYM", pseudonymised(file.table))

    def _checked(self, build: _Build, rows: DataFrame) -> DataFrame:
        """Shaped rows with their pseudonyms, and with the rules that they break."""
        return checked(build.file, with_pseudonyms(rows, build.file.table, self._secret()), self._referred(build))

    def _referred(self, build: _Build) -> dict[Reference, DataFrame]:
        """The keys of the tables that rows refer to. Where orphans are only counted, one that is not there yet is passed over."""
        referred = {}
        for reference in build.file.table.references:
            name, state = reference.table, build.inputs.get(reference.table)
            if state or self.exists(name):
                rows = self.read(name, self.lake.version_of(name, state) if state else None)
                referred[reference] = rows.select(*self.tables[name].table.keys)
        return referred

    def _secret(self) -> str | None:
        """Where the key for pseudonyms is."""
        secret = self.settings.lake.secret
        return secret.get_secret_value() if secret else None

    def label_of(self, ref: Ref) -> Label:
        """The label of a column that a build may read: as declared and as it is in the lake; closed if nothing is declared.

        A label that was lowered in a table file counts once that table was written with it.
        """
        table = self._bronze.get(ref.table) or (self.tables[ref.table].table if ref.table in self.tables else None)
        if table and ref.column in table.by_name:
            return table.by_name[ref.column].label + self._leaves.label(ref)
        return next((column.label for column in PLACE if column.name == ref.column), CLOSED)

    def _write_all(
        self, build: _Build, write: Write, beside: Write, mark: Mark | None, rows: DataFrame, lowered: list[dict[str, str]]
    ) -> _Written:
        """Write the rows of a build as the whole of a table, unless it holds just these already."""
        file = build.file
        rows = self._checked(build, rows)
        counted = Counted(file, rows)
        write.stage(counted.kept, "overwrite")
        counts = counted.counts()
        if counts.rejected:
            rejected = self._rejected_rows(build, rows)
            beside.stage(rejected, "overwrite")
            counts.hits |= hits(beside.staged(rejected.schema))
        check_share(file, counts)
        self._merge_repeated(file, write, counted.kept, counts)
        counts.nulls = write.nulls()
        merged = counts.rows_in - counts.rejected - counts.kept
        account = Account(counts.rows_in, counts.kept, counts.rejected, merged, counts.content)
        if mark and self._holds(file, mark, account):
            account = replace(account, rejects=mark.account.rejects)
            outcome = Outcome(file.name, "unchanged", build.after, account)
            return _Written(outcome, build.mark(build.after, self.run_id, account))
        account = replace(account, rejects=self._commit_beside(file, beside))
        version = write.commit({**build.mark(0, self.run_id, account).note(), "lowered": lowered}).version
        before = mark.account.kept if mark and mark.account else 0
        outcome = Outcome(file.name, "written", version, account, (account.kept, 0, before))
        return _Written(outcome, build.mark(version, self.run_id, account), counts.hits, Tally(counts.kept, counts.nulls))

    def _commit_beside(self, file: TableFile, beside: Write, before: int | None = None) -> int | None:
        """Commit what was staged of rejected rows; returns the version of them that counts now, `before` if nothing was."""
        return beside.commit({"of": file.name}).version if beside.is_staged else before

    def _holds(self, file: TableFile, mark: Mark, account: Account) -> bool:
        """Whether a table holds just these rows already, under the same names, types and labels, and nothing was rejected."""
        declared = [(column.name, column.type, column.metadata) for column in stored_columns(file)]
        same_rows = mark.account is not None and replace(mark.account, rejects=None) == account
        return same_rows and not account.rejected and self.lake.columns(file.name) == declared

    def _merge_repeated(self, file: TableFile, write: Write, kept: DataFrame, counts: Counts) -> None:
        """Where staged rows share their keys, keep the newest of them (silver) or refuse them (gold)."""
        staged = write.staged(kept.schema)
        repeated = repeated_keys(staged, file.table, counts.kept)
        if file.layer != "silver":
            return refuse_repeated(file, repeated)
        if repeated:
            observation = Observation()
            write.stage_again(observe_content(with_labels(newest(staged, file.table), stored_columns(file)), observation))
            counts.kept, counts.content = observation.get["rows"], content_of(observation.get)

    def _rejected_rows(self, build: _Build, rows: DataFrame) -> DataFrame:
        """The rejected among checked rows as they are stored."""
        tables = [self._bronze[name] for name in build.inputs if name in self._bronze] or [build.file.table]
        columns = twin([column.label for table in tables for column in table.columns]).columns
        return with_labels(rejected_rows(build.file, rows, self.run_id), columns)

    def _write_change(self, build: _Build, beside: Write, mark: Mark, change: _Change) -> _Written:
        """Build what a change touches, and merge it into the table."""
        if not change.feeds:
            return _Written(Outcome(build.file.name, "unchanged", build.after, mark.account), build.same(mark, self.run_id))
        write = self._add_rows if build.file.table.refresh.kind == "append" else self._merge_keys
        return write(build, beside, mark, change)

    def _add_rows(self, build: _Build, beside: Write, mark: Mark, change: _Change) -> _Written:
        """Build the new raw rows of a silver table; among all rows that share their keys, the newest stays."""
        file, before = build.file, mark.account
        new = {name: feed.drop("_change_type") for name, feed in change.feeds.items()}
        nothing = {name: self._leaf(name, state).where("false") for name, state in build.inputs.items() if name in self._bronze}
        rows = shaped(file, self._built(build, nothing | new))
        with _kept(self._checked(build, rows)) as rows:
            counts = count_rows(file, rows)
            if counts.rejected:
                self._stage_added(build, beside, mark, rows, counts)
            check_share(file, counts)
            rejects = self._commit_beside(file, beside, before.rejects)
            rows_in, rejected = before.rows_in + counts.rows_in, before.rejected + counts.rejected
            account = Account(rows_in, before.kept, rejected, rows_in - before.kept - rejected, "", rejects)
            after = build.mark(build.after, self.run_id, account)
            if counts.kept == 0:
                return _Written(Outcome(file.name, "unchanged", build.after, account), after)
            kept = rows.where(~is_rejected())
            commit = self.lake.merge(
                file.name,
                with_labels(newest(kept, file.table), stored_columns(file)),
                file.table.keys,
                few=counts.kept <= FEW,
                after=build.after,
                # How many of them are new is known when they are merged: Delta's own counts say so, in the same commit.
                note={**after.note(), "unsettled": True},
                update=newer(order_of(file.table)),
                # Delta writes the condition into its log, which more people may read than the table.
                within=days_of(kept, [key for key in file.table.keys if INTERNAL.dominates(file.table.by_name[key].label)]),
            )
        account = account.settled(commit.metrics)
        outcome = Outcome(file.name, "changed", commit.version, account, commit.changed)
        mark = build.mark(commit.version, self.run_id, account)
        return _Written(outcome, mark, counts.hits, Tally(counts.kept, counts.nulls))

    def _merge_keys(self, build: _Build, beside: Write, mark: Mark, change: _Change) -> _Written:
        """Build the keys that a change touches, and bring what differs into the table."""
        file, before = build.file, mark.account
        keys, others = file.table.refresh.keys, file.table.refresh.through
        with _kept(self._touched(build, change)) as touched:
            tables = {name: self._leaf(name, build.inputs[name]) for name in build.tables}
            with ExitStack() as held:
                less = {
                    name: held.enter_context(_kept_if_few(cut(tables[name], columns, touched)))
                    for name, columns in change.keyed.items()
                }
                less |= {
                    name: met_through(tables[name], through, less[through.table])
                    for name, through in others.items()
                    if name not in less and through.table in less and less[through.table].is_cached
                }
                rows = held.enter_context(_kept(self._checked(build, shaped(file, self._built(build, less)))))
                counts = count_rows(file, rows)
                check_share(file, counts)
                new = with_labels(rows.where(~is_rejected()), stored_columns(file))
                refuse_repeated(file, repeated_keys(new, file.table, counts.kept))
                old = cut(self.read(file.name, build.after), keys, touched)
                with _kept(differences(old, new, file.table.keys)) as different:
                    changed = count_changes(different)
                    rejects = self._stage_touched(build, beside, mark, rows, counts, touched)
                    rejected = self._commit_beside(file, beside, before.rejects)
                    kept = before.kept + changed[0] - changed[2]
                    account = Account(kept + rejects, kept, rejects, 0, "" if any(changed) else before.content, rejected)
                    after = build.mark(build.after, self.run_id, account)
                    if not any(changed):
                        return _Written(Outcome(file.name, "unchanged", build.after, account), after)
                    commit = self.lake.merge(
                        file.name,
                        different,
                        file.table.keys,
                        few=sum(changed) <= FEW,
                        after=build.after,
                        note=after.note(),
                        delete=f"new.{CHANGE} = 'delete'",
                    )
        outcome = Outcome(file.name, "changed", commit.version, account, changed)
        return _Written(outcome, replace(after, version=commit.version), counts.hits, Tally(counts.kept, counts.nulls))

    def _rejects(self, name: str, account: Account) -> DataFrame | None:
        """The rejected rows that belong to an account; None for no table of them."""
        return None if account.rejects is None else self.read(twin_name(name), account.rejects)

    def _stage_added(self, build: _Build, write: Write, mark: Mark, rows: DataFrame, counts: Counts) -> None:
        """Stage more rejected rows beside those that belong to the mark, and count which rules they break."""
        rejected = self._rejected_rows(build, rows)
        counts.hits |= hits(rejected)
        before = self._rejects(build.file.name, mark.account)
        if before is not None and write.version != mark.account.rejects:  # a run died that had written others
            write.stage(before.unionByName(rejected), "overwrite")
        else:
            write.stage(rejected, "append" if write.version is not None and before is not None else "overwrite")

    def _stage_touched(self, build: _Build, write: Write, mark: Mark, rows: DataFrame, counts: Counts, touched: DataFrame) -> int:
        """Stage the rejected rows of touched keys in place of those that belong to the mark; returns how many there are then."""
        before = self._rejects(build.file.name, mark.account)
        if counts.rejected == 0 and (before is None or mark.account.rejected == 0):
            return 0
        rejected = self._rejected_rows(build, rows)
        counts.hits |= hits(rejected)
        if before is not None:
            built = from_json(RAW, build.file.table.schema()).alias("built")
            keys = build.file.table.refresh.keys
            untouched = before.withColumns({f"_{key}": built[key] for key in keys})
            others = untouched.join(cut(untouched, tuple(f"_{key}" for key in keys), touched).select(RAW), RAW, "left_anti")
            rejected = others.select(*rejected.columns).unionByName(rejected)
        observation = Observation()
        write.stage(observe_content(rejected, observation), "overwrite")
        return observation.get["rows"]


def _rejecting(file: TableFile) -> list[str]:
    """The tables that decide which rows of a table are kept, since those that refer to none of theirs are rejected."""
    return [reference.table for reference in file.table.references if reference.severity == "reject"]


@dataclass(frozen=True)
class _Build:
    """What a refresh builds.

    Args:
        inputs: The state of each input.
        code: Names the text of the table file.
        values: What else than tables the build is given.
        after: The version of the table that the write follows; None for a new table.
    """

    file: TableFile
    inputs: dict[str, str]
    code: str
    values: dict[str, Any]
    after: int | None

    @property
    def tables(self) -> list[str]:
        """The tables among the inputs."""
        return [name for name in self.inputs if name not in self.values and not name.startswith(MAPPING)]

    def mark(self, version: int, run: str, account: Account) -> Mark:
        """The mark that a commit of this build leaves."""
        return Mark(version, run, self.code, self.inputs, account)

    def same(self, mark: Mark, run: str) -> Mark:
        """The mark that it leaves where the table is as it should be."""
        return self.mark(self.after, run, mark.account)


@dataclass(frozen=True)
class _Change:
    """What has changed in the inputs of a build.

    Args:
        feeds: For each input that has, the rows that changed, with `_change_type`.
        keyed: The inputs that can be cut, with the columns that hold the refresh keys.
        used: For each input that has changed, the columns that have to do with what is built.
    """

    feeds: dict[str, DataFrame]
    keyed: dict[str, tuple[str, ...]]
    used: dict[str, list[str]]


@dataclass(frozen=True)
class _Written:
    """What a write came to, the mark that it leaves, how many rows broke each rule, and the rows that it wrote."""

    outcome: Outcome
    mark: Mark
    hits: dict[str, int] = field(default_factory=dict)
    tally: Tally | None = None


@contextmanager
def _kept_if_few(frame: DataFrame) -> Iterator[DataFrame]:
    """Keep a frame if it has few rows. Spark knows the size of what it keeps, and takes few rows to the many that they are
    joined with, where it would move the many otherwise."""
    with _kept(frame.limit(FEW + 1)) as kept:
        yield kept if kept.count() <= FEW else frame


@contextmanager
def _kept(frame: DataFrame) -> Iterator[DataFrame]:
    """Keep a small frame for the length of a block, so that it is evaluated once."""
    frame = frame.persist(StorageLevel.MEMORY_AND_DISK)
    try:
        yield frame
    finally:
        frame.unpersist()
