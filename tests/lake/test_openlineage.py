"""Recorded lineage as OpenLineage run events, in a file and at a service."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import attr
import pytest
from openlineage.client import facet_v2
from openlineage.client.event_v2 import RunEvent
from pyspark.sql import SparkSession
from report_lake import store_of
from wares.errors import WaresError
from wares.lake.openlineage import KEY, dataset_name, export, transformations
from wares.lake.store import Store

pytestmark = pytest.mark.xdist_group("report")  # the one lake of conftest.py

# The published shapes


FACETS = {
    kind._get_schema(): kind
    for module in vars(facet_v2).values()
    if isinstance(module, ModuleType)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, facet_v2.BaseFacet)
}
"""The library's classes for facets, by the address of the published schema that each was generated from."""


def misfits(data: Any, kind: Any, place: str = "event") -> list[str]:
    """Where JSON does not fit a class that the library generated from OpenLineage's published schemas."""
    if get_origin(kind) is UnionType:
        return min((misfits(data, option, place) for option in get_args(kind)), key=len)
    if get_origin(kind) is list:
        (inner,) = get_args(kind)
        return [m for n, item in enumerate(data) for m in misfits(item, inner, f"{place}[{n}]")]
    if get_origin(kind) is dict:
        _, inner = get_args(kind)
        return [m for name, item in data.items() for m in misfits(item, inner, f"{place}.{name}")]
    if isinstance(kind, type) and issubclass(kind, facet_v2.BaseFacet):
        published = FACETS.get(data.get("_schemaURL"))
        if published is None or not issubclass(published, kind):
            return [f"{place} is no {kind.__name__}"]
        kind = published
    if not attr.has(kind):
        fits = data in [member.value for member in kind] if issubclass(kind, Enum) else type(data) is kind
        return [] if fits else [f"{place} is {data!r}, not {kind.__name__}"]
    declared, types = {field.name: field for field in attr.fields(kind)}, get_type_hints(kind)
    required = {name for name, field in declared.items() if field.default is attr.NOTHING}
    wrong = [f"{place} lacks {name}" for name in sorted(required - data.keys())]
    wrong += [f"{place} has {name}" for name in sorted(data.keys() - declared.keys())]
    return wrong + [m for name in data.keys() & declared.keys() for m in misfits(data[name], types[name], f"{place}.{name}")]


def test_misfits_are_seen() -> None:
    event = {"eventTime": "2024-01-01T00:00:00Z", "run": {"runId": 7}, "job": {"name": "x", "color": "red"}, "eventType": "DONE"}
    assert sorted(misfits(event, RunEvent)) == [
        "event.eventType is 'DONE', not EventType",
        "event.job has color",
        "event.job lacks namespace",
        "event.run.runId is 7, not str",
    ]
    facet = {"_schemaURL": facet_v2.column_lineage_dataset.ColumnLineageDatasetFacet._get_schema(), "fields": {"a": {}}}
    assert misfits(facet, facet_v2.DatasetFacet) == ["event.fields.a lacks inputFields"]


@pytest.fixture(scope="module")
def exported(store: Store, root: Path) -> list[dict[str, Any]]:
    assert export(store, str(root / "events.jsonl")) == 8
    return [json.loads(line) for line in (root / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def test_events_fit_the_published_shapes(exported: list[dict[str, Any]]) -> None:
    assert [misfits(event, RunEvent) for event in exported] == [[]] * 8


def test_each_commit_starts_and_completes(exported: list[dict[str, Any]]) -> None:
    assert [(event["job"]["name"], event["eventType"]) for event in exported] == [
        (table, kind)
        for table in ("bronze.shop_lines", "silver.orders", "gold.report", "gold.report")
        for kind in ("START", "COMPLETE")
    ]
    assert len({event["run"]["runId"] for event in exported}) == 4
    assert len({event["run"]["facets"]["parent"]["run"]["runId"] for event in exported}) == 2, "two jobs ran"
    assert {event["run"]["facets"]["parent"]["job"]["name"] for event in exported} == {"tests"}
    for start, complete in zip(exported[::2], exported[1::2], strict=True):
        assert start["run"]["runId"] == complete["run"]["runId"]
        assert start["eventTime"] <= complete["eventTime"]


def test_the_column_lineage_of_an_aggregate(root: Path, exported: list[dict[str, Any]]) -> None:
    orders = {"namespace": "file", "name": f"{root}/lake/silver/orders"}

    def kind(type: str, subtype: str) -> dict[str, str]:
        return {"type": type, "subtype": subtype}

    (output,) = exported[-1]["outputs"]
    assert (output["namespace"], output["name"]) == ("file", f"{root}/lake/gold/report")
    lineage = output["facets"]["columnLineage"]
    assert lineage["fields"] == {
        "source": {"inputFields": [{**orders, "field": "source", "transformations": [kind("DIRECT", "IDENTITY")]}]},
        "value": {
            "inputFields": [
                {
                    **orders,
                    "field": "value",
                    "transformations": [kind("DIRECT", "AGGREGATION"), kind("DIRECT", "TRANSFORMATION")],
                }
            ]
        },
    }
    assert lineage["dataset"] == [
        {**orders, "field": "kind", "transformations": [kind("INDIRECT", "FILTER")]},
        {**orders, "field": "source", "transformations": [kind("INDIRECT", "GROUP_BY")]},
    ]


def test_schemas_and_versions_are_those_of_the_commit(root: Path, exported: list[dict[str, Any]]) -> None:
    first, second = exported[5]["outputs"][0]["facets"], exported[7]["outputs"][0]["facets"]
    assert (first["version"]["datasetVersion"], second["version"]["datasetVersion"]) == ("0", "1")
    assert [field["description"] for field in first["schema"]["fields"]] == ["The shop.", "How much was sold."]
    described = {"name": "value", "type": "decimal(18,4)", "description": "What it brought in.", "ordinal_position": 2}
    assert described.items() <= second["schema"]["fields"][1].items()
    (orders,) = exported[7]["inputs"]
    assert orders["name"] == f"{root}/lake/silver/orders"
    assert orders["facets"]["version"]["datasetVersion"] == "0"
    assert "order_id" in {field["name"] for field in orders["facets"]["schema"]["fields"]}


def test_raw_files_are_named_by_where_they_are(root: Path, exported: list[dict[str, Any]]) -> None:
    assert exported[1]["inputs"] == [{"namespace": "file", "name": f"{root}/*.csv", "facets": {}, "inputFacets": {}}]


def test_exporting_again_makes_the_same_events(store: Store, root: Path, exported: list[dict[str, Any]]) -> None:
    export(store, str(root / "again.jsonl"))
    assert (root / "again.jsonl").read_bytes() == (root / "events.jsonl").read_bytes()


def test_a_version_that_is_gone_has_no_schema(spark: SparkSession, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "lake" / "gold" / "report")
    with store_of(spark, tmp_path) as store:
        export(store, str(tmp_path / "events.jsonl"))
    last = json.loads((tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()[-1])["outputs"][0]
    assert last["facets"].keys() == {"version", "columnLineage"}


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("file:/data/lake/gold/report", ("file", "/data/lake/gold/report")),
        ("/data/raw/*.csv", ("file", "/data/raw/*.csv")),
        ("s3a://bucket/lake/gold/report", ("s3://bucket", "lake/gold/report")),
        ("abfss://box@account.dfs.core.windows.net/lake", ("abfss://box@account.dfs.core.windows.net", "lake")),
        ("hdfs://node:8020/lake/gold", ("hdfs://node:8020", "/lake/gold")),
    ],
)
def test_datasets_are_named_by_the_rules(place: str, name: tuple[str, str]) -> None:
    assert dataset_name(place) == name


@pytest.mark.parametrize(
    ("direct", "steps", "kinds"),
    [
        (True, "IDENTITY", ["DIRECT IDENTITY"]),
        (True, "GROUP_BY", ["DIRECT IDENTITY"]),
        (True, "CONDITIONAL", ["DIRECT IDENTITY", "INDIRECT CONDITIONAL"]),
        (True, "AGGREGATION,CONDITIONAL", ["DIRECT AGGREGATION", "INDIRECT CONDITIONAL"]),
        (False, "FILTER,TRANSFORMATION", ["INDIRECT FILTER"]),
        (False, "GROUP_BY,JOIN,SORT,WINDOW", ["INDIRECT JOIN", "INDIRECT GROUP_BY", "INDIRECT SORT", "INDIRECT WINDOW"]),
    ],
)
def test_kinds_of_step_in_openlineages_words(direct: bool, steps: str, kinds: list[str]) -> None:
    assert [f"{kind.type} {kind.subtype}" for kind in transformations(direct, set(steps.split(",")))] == kinds


# A service


@contextmanager
def service(*answers: int) -> Iterator[tuple[str, list[tuple[str, str | None, dict[str, Any]]]]]:
    """A server on this machine that keeps what it is sent: path, key and event. The last answer is given for ever."""
    taken: list[tuple[str, str | None, dict[str, Any]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(answers[min(len(taken), len(answers) - 1)])
            self.end_headers()
            taken.append((self.path, self.headers["Authorization"], json.loads(body)))

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", taken
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_service_is_sent_the_same_events(store: Store, exported: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    with service(201) as (url, taken):
        assert export(store, url) == 8
    assert [event for _, _, event in taken] == exported
    assert {(path, key) for path, key, _ in taken} == {("/api/v1/lineage", None)}


def test_a_service_with_a_path_and_a_key(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret")
    with service(200) as (url, taken):
        export(store, f"{url}/openapi/openlineage/api/v1/lineage")
    assert {(path, key) for path, key, _ in taken} == {("/openapi/openlineage/api/v1/lineage", "Bearer secret")}


def test_a_service_that_refuses(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret")
    with service(201, 201, 401) as (url, taken), pytest.raises(WaresError) as caught:
        export(store, url)
    assert caught.value.found == "status 401 from 127.0.0.1 after 2 events"
    assert "secret" not in str(caught.value)
    assert len(taken) == 3


def test_a_file_that_cannot_be_written(store: Store, tmp_path: Path) -> None:
    with pytest.raises(WaresError, match="cannot be written"):
        export(store, str(tmp_path / "missing" / "events.jsonl"))
