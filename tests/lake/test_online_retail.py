"""Three days of a real, dirty shop: every raw row is kept, rejected or merged, and the counts are those counted by hand."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from deliveries import LENIENT, contents, take_in
from helpers import SHARED, open_store, write_source
from pyspark.sql import DataFrame, Row, SparkSession
from wares.lake.store import Store
from wares.settings import PROJECT

DAYS = ("2010-12-22", "2011-01-28", "2011-02-18")

pytestmark = pytest.mark.skipif(
    not (SHARED / "online_retail").exists(), reason="the Online Retail files are not beside the checkout"
)


@pytest.fixture(scope="module")
def store(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    root = tmp_path_factory.mktemp("online_retail")
    source = yaml.safe_load((PROJECT / "conf" / "sources" / "online_retail.yaml").read_text(encoding="utf-8"))
    source["entities"]["invoices"]["path"] = str(SHARED / "online_retail" / f"{{{','.join(DAYS)}}}.csv")
    path = write_source(root, source)
    store = open_store(spark, root, path)  # not left, since nothing here reads the meta tables
    store.ingest(path, "invoices")
    store.refresh("silver.orders")
    yield store


def test_every_row_is_accounted_for(store: Store) -> None:
    def places(frame: DataFrame) -> list[Row]:
        return frame.select("_file", "_position").collect()

    rows, kept = places(store.read("bronze.online_retail_invoices")), places(store.read("silver.orders"))
    rejected, merged = places(store.rejected("silver.orders")), places(store.merged("silver.orders"))
    assert (len(rows), len(kept), len(rejected), len(merged)) == (2153, 2099, 45, 9)
    assert sorted(kept + rejected + merged) == sorted(rows)
    assert len(set(rows)) == 2153


def test_kinds_and_money(store: Store) -> None:
    kinds = {row["kind"]: row["count"] for row in store.read("silver.orders").groupBy("kind").count().collect()}
    assert kinds == {"sale": 1993, "return": 91, "fee": 15}
    revenue = store.read("silver.orders").where("kind = 'sale'").selectExpr("sum(value) AS value").collect()[0]["value"]
    assert revenue == Decimal("40343.43")


def test_rejected_rows_are_stock_notes(store: Store) -> None:
    """All of them take stock off without being a cancellation."""
    rules = {violation["rule"] for row in store.rejected("silver.orders").collect() for violation in row["_violations"]}
    assert rules == {"sale_not_negative"}


@pytest.mark.slow
def test_day_by_day_equals_at_once(spark: SparkSession, tmp_path: Path) -> None:
    """Thirty days of the year, each taken to gold on its own, in the order in which they came."""
    days = sorted((SHARED / "online_retail").glob("*.csv"))[::10][:30]
    source = yaml.safe_load((PROJECT / "conf" / "sources" / "online_retail.yaml").read_text(encoding="utf-8"))
    source["entities"]["invoices"]["path"] = str(tmp_path / "files" / "*.csv")
    path = write_source(tmp_path, source)
    (tmp_path / "files").mkdir()
    for day in days:
        shutil.copy(day, tmp_path / "files")
        with open_store(spark, tmp_path / "by day", path, tables=LENIENT) as store:
            outcomes = take_in(store, path)
        assert outcomes["silver.orders"].status != "unchanged"
    with open_store(spark, tmp_path / "at once", path, tables=LENIENT) as anew:
        take_in(anew, path)
    assert outcomes["gold.product_profiles"].status == "changed"
    assert contents(store) == contents(anew)
