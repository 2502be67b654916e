"""What a column is made of, and what is made of it, asked of a small lake."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import open_store
from pyspark.sql import SparkSession
from report_lake import EARLIER, MONEY, store_of
from wares.cli import call, load_file, parser
from wares.errors import SettingsError
from wares.lake.lineage import Ref
from wares.lake.lineage_query import ROWS, Answer, Edge, as_json, as_tree, ask, neighbours_in, newest_edges, reached
from wares.lake.store import Store
from wares.settings import PROJECT

pytestmark = pytest.mark.xdist_group("report")  # the one lake of conftest.py

# Questions


def test_upstream_down_to_the_raw_file(store: Store) -> None:
    assert as_tree(ask(store, "gold.report.value")).splitlines() == [
        "gold.report.value [CONFIDENTIAL + BEHAVIOUR + FINANCIAL]",
        "└─ silver.orders.value [CONFIDENTIAL + BEHAVIOUR + FINANCIAL]  AGGREGATION, TRANSFORMATION",
        "   ├─ bronze.shop_lines.price [CONFIDENTIAL + BEHAVIOUR + FINANCIAL]  CONDITIONAL, TRANSFORMATION",
        "   │  └─ files.shop_lines.price  IDENTITY",
        "   └─ bronze.shop_lines.quantity [CONFIDENTIAL + BEHAVIOUR]  CONDITIONAL, TRANSFORMATION",
        "      └─ files.shop_lines.quantity  IDENTITY",
    ]


def test_a_depth_ends_the_tree(store: Store) -> None:
    whole = ask(store, "gold.report.value")
    near = ask(store, "gold.report.value", depth=2)
    assert as_tree(ask(store, "gold.report.value", depth=1)).splitlines() == [
        "gold.report.value [CONFIDENTIAL + BEHAVIOUR + FINANCIAL]",
        "└─ silver.orders.value [CONFIDENTIAL + BEHAVIOUR + FINANCIAL]  AGGREGATION, TRANSFORMATION",
    ]
    assert len(as_tree(near).splitlines()) == 4
    assert {str(edge.source) for edge in near.edges} == {
        "silver.orders.value",
        "bronze.shop_lines.price",
        "bronze.shop_lines.quantity",
    }
    assert as_tree(ask(store, "gold.report.value", depth=9)) == as_tree(whole)


def test_downstream_of_a_raw_column(store: Store) -> None:
    found = {str(edge.target) for edge in ask(store, "files.shop_lines.price", upstream=False).edges}
    assert found == {"bronze.shop_lines.price", "silver.orders.unit_price", "silver.orders.value", "gold.report.value"}


def test_what_decides_rows_is_shown_on_demand_and_once(store: Store) -> None:
    lines = as_tree(ask(store, "gold.report.source", indirect=True)).splitlines()
    assert lines[0] == "gold.report.source [INTERNAL]"
    assert lines[1] == "├─ silver.orders.source [INTERNAL]  GROUP_BY"
    assert "└─ which rows gold.report has" in lines
    below = lines[lines.index("└─ which rows gold.report has") + 1 :]
    assert below[0].startswith("   ├─ silver.orders.kind [") and below[0].endswith("  FILTER, TRANSFORMATION")
    assert below[-1] == "   └─ silver.orders.source [INTERNAL]  GROUP_BY"
    assert not any("which rows" in line for line in as_tree(ask(store, "gold.report.source")).splitlines())


def test_downstream_of_what_decides_rows(store: Store) -> None:
    """A column that decides rows reaches all that is made of them."""
    answer = ask(store, "silver.orders.kind", upstream=False, indirect=True)
    assert [(str(edge.target), edge.steps) for edge in answer.edges] == [("gold.report.*", ("FILTER", "TRANSFORMATION"))]
    assert ask(store, "silver.orders.kind", upstream=False).edges == []


def test_the_newest_commit_counts_and_not_the_highest_version(spark: SparkSession, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "lake" / "gold" / "report")
    with store_of(spark, tmp_path, EARLIER) as store:
        assert store.refresh("gold.report").version == 0
    sources = {str(edge.source) for edge in newest_edges(store) if edge.target == Ref("gold.report", "value")}
    assert sources == {"silver.orders.quantity"}


def test_a_column_made_of_nothing_exists(store: Store) -> None:
    assert as_tree(ask(store, "bronze.shop_lines._arrived")).splitlines()[1:] == ["└─ made of no column"]


@pytest.mark.parametrize(
    ("asked", "near", "found"),
    [
        ("gold.report.valu", "gold.report.value", "no such column in gold.report"),
        ("gold.reprot.value", "gold.report.value", "no table gold.reprot"),
        ("unit_price", "silver.orders.unit_price", "no table named"),
        ("silver.orders", "silver.orders.", "no table silver"),
    ],
)
def test_a_column_that_does_not_exist(store: Store, asked: str, near: str, found: str) -> None:
    with pytest.raises(SettingsError, match=f"There is no column {asked} in this lake.") as caught:
        ask(store, asked)
    assert caught.value.found == found
    assert near in caught.value.do


def test_a_question_where_there_is_no_lake_makes_none(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No lineage has been recorded."), open_store(spark, tmp_path) as store:
        ask(store, "gold.report.value")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("upstream", [True, False])
def test_a_ring_ends(upstream: bool) -> None:
    """Tables cannot read each other in a ring today, but their lineage may have been recorded at different times."""
    a, b = Ref("gold.a", "x"), Ref("gold.b", "x")
    edges = [Edge(a, b, ("IDENTITY",)), Edge(b, a, ("IDENTITY",)), Edge(b, Ref("gold.a", ROWS), ("FILTER",))]
    neighbours = neighbours_in(edges, upstream, indirect=True)
    found = reached(neighbours, a, upstream)
    assert {a, b} <= {ref for edge in found for ref in (edge.source, edge.target)}
    assert "(as above)" in as_tree(Answer(a, upstream, found, {}, neighbours))


def test_as_json(store: Store) -> None:
    answer = as_json(ask(store, "gold.report.value"))
    assert (answer["column"], answer["direction"]) == ("gold.report.value", "upstream")
    assert answer["columns"][0] == {"table": "gold.report", "column": "value", "label": str(MONEY)}
    assert {"table": "files.shop_lines", "column": "price", "label": None} in answer["columns"]
    assert answer["edges"][0] == {
        "source": "silver.orders.value",
        "target": "gold.report.value",
        "direct": True,
        "steps": ["AGGREGATION", "TRANSFORMATION"],
    }
    assert len(answer["edges"]) == 5


# The job


def run_job(root: Path, *arguments: str) -> int:
    job = load_file(PROJECT / "jobs" / "lineage.py")
    return call(job.run, "lineage", "", [*arguments, "--set", f"lake.root={root}/lake"], job.options)


def test_the_job_prints_json_and_nothing_else(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not to standard error either: Spark's spark-submit joins the two."""
    assert run_job(root, "--column", "silver.orders.kind", "--downstream", "--indirect", "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["edges"][0]["target"] == "gold.report.*"
    assert printed.err == ""


def test_the_job_tells_of_a_column_that_does_not_exist(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_job(root, "--column", "gold.report.valu") == 1
    assert "gold.report.value" in capsys.readouterr().err


def test_a_jobs_own_options_stand_beside_those_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    add_options = load_file(PROJECT / "jobs" / "lineage.py").options
    options = parser("lineage", "", add_options).parse_args(["--column", "a.b.c", "--downstream", "--debug"])
    assert (options.column, options.upstream, options.debug) == ("a.b.c", False, True)
    for wrong in ([], ["--column", "a.b.c", "--openlineage", "f"], ["--column", "a.b.c", "--upstream", "--downstream"]):
        with pytest.raises(SystemExit):
            parser("lineage", "", add_options).parse_args(wrong)
