"""Exports recorded lineage as OpenLineage run events, for catalogues such as Marquez or DataHub.

Each commit of a table is one run of the job that is named after the table, with a START and a COMPLETE event; its parent
is the run of the Wares job. The same commit always makes the same events, so that exporting again changes nothing.
Datasets are named by where their files are, as OpenLineage's naming rules say.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid5

from openlineage.client import set_producer
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
    DatasetFacet,
    column_lineage_dataset,
    dataset_version_dataset,
    parent_run,
    schema_dataset,
)
from openlineage.client.serde import Serde
from openlineage.client.transport.http import ApiKeyTokenProvider, HttpConfig, HttpTransport, TokenProvider
from pyspark.errors import PySparkException
from pyspark.sql import Row
from pyspark.sql import functions as F
from pyspark.sql.types import StructType
from requests import RequestException

from wares.errors import WaresError
from wares.lake.delta import version_in
from wares.lake.lineage import AGGREGATION, CONDITIONAL, FILTER, GROUP_BY, JOIN, SORT, TRANSFORMATION, WINDOW
from wares.lake.registry import LAYERS
from wares.lake.sources import Source, location
from wares.lake.store import Store

NAMESPACE = "wares"
"""The namespace of the jobs."""

PRODUCER = "pkg:generic/wares"
KEY = "OPENLINEAGE_API_KEY"
"""The environment variable with the service's key; the name is that of OpenLineage's own clients."""

set_producer(PRODUCER)


def export(store: Store, destination: str) -> int:
    """Send the events of all commits that the lake has recorded; returns how many.

    Args:
        destination: A file, which is written anew with one JSON event a line, or the `http` address of a service. An
            address without a path means OpenLineage's usual one, `/api/v1/lineage`.

    Raises:
        ShapeError: The lake holds no lineage yet.
        WaresError: The file cannot be written, or the service did not take an event.
    """
    if destination.startswith(("http://", "https://")):
        return _to_service(destination, events(store))
    return _to_file(Path(destination), events(store))


def events(store: Store) -> Iterator[RunEvent]:
    """The START and COMPLETE event of each commit that the lake has recorded, oldest first."""
    sources = [Source.model_validate_json(row["definition"]) for row in store.read("meta.sources").collect()]
    raw = {f"files.{source.name}_{name}": location(entity) for source in sources for name, entity in source.entities.items()}

    @cache
    def named(table: str) -> tuple[str, str]:
        return dataset_name(raw[table] if table in raw else store.folder(table))

    @cache
    def schema(table: str, version: str) -> StructType | None:
        try:
            return store.read(table, version_in(version)).schema
        except (WaresError, PySparkException):  # deleted, or so old that log clean-up has taken the version away
            return None

    for commit in _commits(store):
        yield from _run(commit, named, schema)


def dataset_name(place: str) -> tuple[str, str]:
    """Namespace and name of the dataset at a path or URI, as OpenLineage's naming rules say."""
    parts = urlsplit(place)
    if not parts.netloc:
        return "file", parts.path
    scheme = "s3" if parts.scheme in ("s3a", "s3n") else parts.scheme
    return f"{scheme}://{parts.netloc}", parts.path if scheme == "hdfs" else parts.path.lstrip("/")


def transformations(direct: bool, steps: set[str]) -> list[column_lineage_dataset.Transformation]:
    """The kinds of step from one column to another, in OpenLineage's words.

    To OpenLineage a condition is indirect, though it decides about one column alone; so a column whose value is chosen
    has both kinds.
    """
    own = steps - {AGGREGATION, TRANSFORMATION, CONDITIONAL, FILTER, JOIN, GROUP_BY, SORT, WINDOW, "IDENTITY"}
    if own:  # what lowers a label, such as a pseudonym, has no name of its own there
        steps = steps | {TRANSFORMATION}
    flows = [step for step in (AGGREGATION, TRANSFORMATION) if step in steps] or ["IDENTITY"]
    decides = [step for step in (CONDITIONAL, *(() if direct else (FILTER, JOIN, GROUP_BY, SORT, WINDOW))) if step in steps]
    return [
        *(column_lineage_dataset.Transformation(type="DIRECT", subtype=step) for step in flows if direct),
        *(column_lineage_dataset.Transformation(type="INDIRECT", subtype=step) for step in decides),
    ]


def _commits(store: Store) -> Iterator[Row]:
    """The commits whose lineage was recorded, each with what else was."""
    commit = ["table", "version", "run"]
    marks = store.read("meta.watermarks").groupBy(*commit).agg(F.min("at").alias("at"), F.first("inputs").alias("inputs"))
    rows = F.collect_list(F.struct("column", "source_table", "source_column", "direct", "steps"))
    lineage = store.read("meta.lineage").groupBy(*commit).agg(rows.alias("lineage"))
    seconds = store.read("meta.quality").groupBy(*commit).agg(F.max("seconds").alias("seconds"))
    jobs = store.read("meta.runs").groupBy("run").agg(F.first("job").alias("job"))
    form = "yyyy-MM-dd'T'HH:mm:ss.SSS'Z'"
    return (
        marks.join(lineage, commit)
        .join(seconds, commit, "left")
        .join(jobs, "run")
        .withColumn("started", F.expr("timestampadd(SECOND, -coalesce(seconds, 0), at)"))
        .orderBy("at", "table")
        .select(*commit, "job", "inputs", "lineage", *(F.date_format(time, form).alias(time) for time in ("started", "at")))
        .toLocalIterator()
    )


def _run(
    commit: Row, named: Callable[[str], tuple[str, str]], schema: Callable[[str, str], StructType | None]
) -> Iterator[RunEvent]:
    """The events of one commit."""
    rows = commit["lineage"]
    versions = {name: state.partition("@")[0] for name, state in json.loads(commit["inputs"]).items()}  # a state begins with it
    sources = {row["source_table"] for row in rows} | {name for name in versions if name.partition(".")[0] in LAYERS}
    written = str(commit["version"])
    output = OutputDataset(*named(commit["table"]), facets=_facets(schema(commit["table"], written), written))
    output.facets["columnLineage"] = _column_lineage(rows, named)
    inputs = []
    for source in sorted(sources):
        version = versions.get(source)
        inputs.append(InputDataset(*named(source), facets=_facets(schema(source, version) if version else None, version)))
    parent = parent_run.ParentRunFacet(parent_run.Run(_run_id(commit["run"])), parent_run.Job(NAMESPACE, commit["job"]))
    run = Run(_run_id(commit["run"], commit["table"], written), facets={"parent": parent})
    job = Job(NAMESPACE, commit["table"])
    yield RunEvent(eventType=RunState.START, eventTime=commit["started"], run=run, job=job)
    yield RunEvent(eventType=RunState.COMPLETE, eventTime=commit["at"], run=run, job=job, inputs=inputs, outputs=[output])


def _run_id(*parts: str) -> str:
    """The same for the same parts, so that exporting again changes nothing."""
    return str(uuid5(NAMESPACE_URL, "/".join((PRODUCER, *parts))))


def _facets(schema: StructType | None, version: str | None) -> dict[str, DatasetFacet]:
    facets: dict[str, DatasetFacet] = {}
    if schema is not None:
        facets["schema"] = schema_dataset.SchemaDatasetFacet(
            [
                schema_dataset.SchemaDatasetFacetFields(f.name, f.dataType.simpleString(), f.metadata.get("comment"), place)
                for place, f in enumerate(schema, 1)
            ]
        )
    if version is not None:
        facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(version)
    return facets


def _column_lineage(rows: list[Row], named: Callable[[str], tuple[str, str]]) -> column_lineage_dataset.ColumnLineageDatasetFacet:
    fields: dict[str, column_lineage_dataset.Fields] = {}
    dataset = []
    for row in sorted(rows, key=lambda row: (row["column"] or "", row["source_table"], row["source_column"])):
        kinds = transformations(row["direct"], set(row["steps"].split(",")))
        source = column_lineage_dataset.InputField(*named(row["source_table"]), row["source_column"], kinds)
        if row["direct"]:
            fields.setdefault(row["column"], column_lineage_dataset.Fields([])).inputFields.append(source)
        else:
            dataset.append(source)
    return column_lineage_dataset.ColumnLineageDatasetFacet(fields, dataset)


def _to_file(path: Path, found: Iterator[RunEvent]) -> int:
    try:
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise WaresError(
            f"The file {path} cannot be written.", found=error.strerror or "", do="name a file in a folder that is there"
        ) from None
    sent = 0
    with file:
        for event in found:
            file.write(Serde.to_json(event) + "\n")
            sent += 1
    return sent


def _to_service(url: str, found: Iterator[RunEvent]) -> int:
    parts = urlsplit(url)
    service = HttpConfig(f"{parts.scheme}://{parts.netloc}")
    if path := parts.path.strip("/"):
        service.endpoint = path
    service.auth = ApiKeyTokenProvider({"api_key": os.environ[KEY]}) if os.environ.get(KEY) else TokenProvider({})
    transport, sent = HttpTransport(service), 0
    try:
        for event in found:
            transport.emit(event)
            sent += 1
    except RequestException as error:
        answer = f"status {error.response.status_code}" if error.response is not None else type(error).__name__
        raise WaresError(
            "The lineage service did not take an event.",
            found=f"{answer} from {parts.hostname} after {sent} events",
            do=f"check the address, that the service is up, and {KEY} if it wants a key; sending all again does no harm",
        ) from None
    finally:
        transport.close()
    return sent
