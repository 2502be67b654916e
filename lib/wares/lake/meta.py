"""The store's own tables: what each run did, what each table was made of, and which files were taken in.

Their rows are gathered while a job runs and committed once when it ends. Whatever a run that died could not say is read
from the notes in the commits that it made.
"""

from __future__ import annotations

import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from threading import Lock
from typing import Any, Literal

import pyarrow as pa
from pyspark.sql import DataFrame, Window
from pyspark.sql.functions import col, row_number
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import BooleanType, DataType, LongType, StringType, StructField, StructType, TimestampType

from wares.errors import ConflictError, StorageError
from wares.lake.delta import FORMAT, Lake
from wares.lake.drift import RUNS, Tally, drifts
from wares.lake.lineage import Lineage

TEXT, TIME, NUMBER = StringType(), TimestampType(), LongType()
META: dict[str, dict[str, DataType]] = {
    "sources": {"source": TEXT, "fingerprint": TEXT, "definition": TEXT},
    "files": {"table": TEXT, "file": TEXT, "size": NUMBER, "modified": NUMBER, "digest": TEXT, "run": TEXT},
    "runs": {"run": TEXT, "job": TEXT, "status": TEXT, "started_at": TIME, "ended_at": TIME, "error": TEXT, "settings": TEXT},
    "lineage": {
        "run": TEXT, "table": TEXT, "version": NUMBER, "column": TEXT, "source_table": TEXT, "source_column": TEXT,
        "direct": BooleanType(), "steps": TEXT,
    },
    "quality": {
        "run": TEXT, "table": TEXT, "version": NUMBER, "rows_in": NUMBER, "kept": NUMBER, "rejected": NUMBER, "merged": NUMBER,
        "inserted": NUMBER, "updated": NUMBER, "deleted": NUMBER, "hits": TEXT, "way": TEXT, "seconds": NUMBER,
        "written": NUMBER, "nulls": TEXT,
    },
    "access": {
        "run": TEXT, "table": TEXT, "column": TEXT, "before": TEXT, "after": TEXT, "reason": TEXT, "at": TIME,
    },
    "watermarks": {
        "table": TEXT, "version": NUMBER, "run": TEXT, "fingerprint": TEXT, "inputs": TEXT, "account": TEXT, "at": TIME,
    },
}  # fmt: skip
"""The store's own tables: their columns with their types."""


@dataclass(frozen=True)
class Account:
    """What became of all the rows that a table was made of: rows in = kept + rejected + merged.

    Args:
        content: Names the kept rows, in any order; empty where a refresh by change left it unknown.
        rejects: The version of the table of rejected rows that belongs to this; None for no such table.
    """

    rows_in: int
    kept: int
    rejected: int = 0
    merged: int = 0
    content: str = ""
    rejects: int | None = None

    def settled(self, metrics: dict[str, int]) -> Account:
        """The account of a silver table once its new rows are merged, by Delta's counts of the merge."""
        inserted = metrics["numTargetRowsInserted"]
        return replace(self, kept=self.kept + inserted, merged=self.merged - inserted)


@dataclass(frozen=True)
class Mark:
    """What the newest commit of a table consumed.

    Args:
        version: That commit.
        run: The run that made it.
        fingerprint: Names the text of the table file.
        inputs: The state of each input, by name.
        account: What became of the rows; None for a bronze table.
    """

    version: int
    run: str
    fingerprint: str = ""
    inputs: dict[str, str] = field(default_factory=dict)
    account: Account | None = None

    def note(self) -> dict[str, Any]:
        """The same as it stands in the note of the commit, which names the rest."""
        return {"fingerprint": self.fingerprint, "inputs": self.inputs, "account": self.account and asdict(self.account)}

    @staticmethod
    def of(note: dict[str, Any]) -> Mark:
        """The mark in a note or in a row of `meta.watermarks`."""
        account = Account(**note["account"]) if note.get("account") else None
        if account and note.get("unsettled"):
            account = account.settled(note["metrics"])
        return Mark(note["version"], note["run"], note.get("fingerprint", ""), note.get("inputs", {}), account)


@dataclass(frozen=True)
class Outcome:
    """What became of one table in this run.

    Args:
        status: changed if only what changed in its inputs was built.
        version: The table's version now.
        account: The account of the table as it is now; None for one that was left alone.
        rows: How many rows were inserted, updated and deleted.
        why: Why a table was built in full that could have followed the change.
        warnings: What is unusual about it.
    """

    table: str
    status: Literal["written", "changed", "unchanged"]
    version: int
    account: Account | None = None
    rows: tuple[int, int, int] = (0, 0, 0)
    why: str = ""
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()


class Meta:
    """The meta tables as a run finds them, and what it has to add."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._gathered: dict[str, list[dict[str, Any]]] = {name: [] for name in META}
        self._marks: dict[str, Mark] = {}
        self._files: list[dict[str, Any]] | None = None
        self._history: defaultdict[tuple[str, bool], list[Tally]] | None = None
        self._looking_up = Lock()

    def load_marks(self) -> None:
        """Read the newest mark of each table.

        Raises:
            StorageError: The lake was made by a version of Wares that lays it out in another way.
        """
        if not self.exists("watermarks"):
            return
        self._check_format()
        newest = Window.partitionBy("table").orderBy(col("at").desc())  # a table that was deleted starts again at version 0
        for row in self.read("watermarks").withColumn("place", row_number().over(newest)).where("place = 1").collect():
            parsed = {name: json.loads(row[name]) for name in ("inputs", "account")}
            self._marks[row["table"]] = Mark.of({**row.asDict(), **parsed})

    def _check_format(self) -> None:
        """See that the lake was made by a version of Wares that lays it out as this one does.

        Raises:
            StorageError: It was not.
        """
        newest = next(self._lake.notes_after("meta.watermarks", -1), {"format": FORMAT})
        if newest.get("format", 1) != FORMAT:
            raise StorageError(
                f"The lake {self._lake.settings.root} was made by another version of Wares.",
                found=f"its format is {newest.get('format', 1)}, this version reads and writes {FORMAT}",
                do="move it away and run jobs/suite.py, which builds a new one; or name another by --set lake.root=DIR",
            )

    def exists(self, name: str) -> bool:
        return self._lake.exists(f"meta.{name}")

    def read(self, name: str) -> DataFrame:
        return self._lake.read(f"meta.{name}")

    def add(self, name: str, **row: Any) -> None:
        """Gather a row."""
        self._gathered[name].append(row)

    def files(self) -> list[dict[str, Any]]:
        """The files that were taken in: by runs before, which are looked up once, and by this one."""
        with self._looking_up:
            if self._files is None:
                self._files = [row.asDict() for row in self.read("files").collect()] if self.exists("files") else []
        return [*self._files, *self._gathered["files"]]

    # Marks

    def mark(self, name: str) -> Mark:
        """What the newest commit of a table consumed, from `meta.watermarks` or, if a run died before that, from the commit.

        Raises:
            ConflictError: The newest data in the table is not the store's.
        """
        version = self._lake.version(name)
        known = self._marks.get(name)
        if known and known.version == version:
            return known
        if known and known.version > version:  # of a table that was deleted since
            known = None
        for note in self._lake.notes_after(name, known.version if known else -1):
            if "fingerprint" in note or "files" in note:
                known = Mark.of(note)
                self.remember(name, known)
                self.add_access(name, known.run, note.get("lowered", []))
                break
        if known is None:
            raise ConflictError(
                f"The table {name} was not written by the store.",
                found=f"version {version} at {self._lake.location(name)}",
                do="move it away, or choose another lake.root",
            )
        if foreign := self._lake.foreign_after(name, known.version):
            raise ConflictError(
                f"Somebody else than the store has changed the table {name}.",
                found=f"{foreign} at {self._lake.location(name)}",
                do="move the table away and run the job again, which makes it anew of what it was made of",
            )
        return known

    def marks(self) -> dict[str, Mark]:
        """What the newest commit of each table consumed, as `meta.watermarks` knows it."""
        return dict(self._marks)

    def marked_version(self, name: str) -> int:
        """The newest version of a table that `meta.watermarks` knows; -1 for none."""
        return self._marks[name].version if name in self._marks else -1

    def remember(self, name: str, mark: Mark) -> None:
        """Take a mark for the table's newest, here and, when the job ends, in `meta.watermarks`."""
        self._marks[name] = mark
        note = {name: json.dumps(value) for name, value in mark.note().items() if name != "fingerprint"}
        named = {"version": mark.version, "run": mark.run, "fingerprint": mark.fingerprint}
        self.add("watermarks", table=name, **named, **note, at=datetime.now(UTC))

    # What was done

    def add_quality(self, outcome: Outcome, hits: dict[str, int], tally: Tally | None) -> Outcome:
        """Gather the account of a commit for `meta.quality`: the table's rows as they are now, and what the commit changed.

        Args:
            tally: The rows that it wrote; None if they cannot be told from others.

        Returns:
            The outcome with what is unusual about these rows.
        """
        unusual = drifts(tally, self._tallies(outcome)) if tally else []
        hits = hits | {drift.rule: drift.rows for drift in unusual}
        counts = {name: getattr(outcome.account, name) for name in ("rows_in", "kept", "rejected", "merged")}
        changes = dict(zip(("inserted", "updated", "deleted"), outcome.rows, strict=True))
        way = "change" if outcome.status == "changed" else f"full: {outcome.why}" if outcome.why else "full"
        more = {"hits": json.dumps(hits), "way": way, "seconds": round(outcome.seconds)}
        told = {"written": tally.rows, "nulls": json.dumps(tally.nulls)} if tally else {}
        self.add("quality", run=self._lake.run, table=outcome.table, version=outcome.version, **counts, **changes, **more, **told)
        return replace(outcome, warnings=(*outcome.warnings, *(drift.text for drift in unusual)))

    def _tallies(self, outcome: Outcome) -> list[Tally]:
        """What the runs before this one wrote into a table in the same way, in full or by change; looked up once a run."""
        with self._looking_up:
            if self._history is None:
                self._history = defaultdict(list)
                quality = self.read("quality") if self.exists("quality") else None
                if quality is not None and "written" in quality.columns:
                    kind = (col("way") == "change").alias("by_change")
                    newest = Window.partitionBy("table", kind).orderBy(col("run").desc())  # which begins with its time
                    last = quality.where("written IS NOT NULL").withColumn("place", row_number().over(newest))
                    for row in last.where(col("place") <= RUNS).select("table", kind, "written", "nulls").collect():
                        self._history[row["table"], row["by_change"]].append(Tally(row["written"], json.loads(row["nulls"])))
        return self._history[outcome.table, outcome.status == "changed"]

    def add_access(self, table: str, run: str, lowered: list[dict[str, str]]) -> None:
        """Gather the labels that were lowered on purpose, for `meta.access`."""
        for column in lowered:
            self.add("access", run=run, table=table, **{**column, "at": datetime.fromisoformat(column["at"])})

    def add_lineage(self, table: str, version: int, lineage: Lineage) -> None:
        """Gather the rows of `meta.lineage` for a commit."""
        flows = [(column, flow) for column, flow in lineage.direct.items()]
        for column, flow in [*flows, (None, lineage.indirect)]:
            for ref, paths in flow.items():
                steps = ",".join(sorted({step for path in paths for step in path})) or "IDENTITY"
                self.add(
                    "lineage",
                    run=self._lake.run,
                    table=table,
                    version=version,
                    column=column,
                    source_table=ref.table,
                    source_column=ref.column,
                    direct=column is not None,
                    steps=steps,
                )

    # The end of a run

    def changed(self) -> bool:
        """Whether there is anything to commit."""
        return any(self._gathered.values())

    def commit(self) -> None:
        """Commit what was gathered: one commit for each meta table that has new rows."""
        waiting = {name: rows for name, rows in self._gathered.items() if rows}
        with ThreadPoolExecutor(2) as pool:  # small writes wait for the file system more than they compute
            list(pool.map(self._append, waiting, waiting.values()))
        self._files = None
        for rows in waiting.values():
            rows.clear()

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        schema = to_arrow_schema(StructType([StructField(column, type) for column, type in META[name].items()]))
        frame = self._lake.spark.createDataFrame(pa.Table.from_pylist(rows, schema)).coalesce(1)
        named = ", ".join(f"'{row['source']}'" for row in rows) if name == "sources" else ""
        self._lake.append(f"meta.{name}", frame, replace=named and f"source IN ({named})")
