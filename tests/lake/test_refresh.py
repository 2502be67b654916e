"""Refresh by change gives what a refresh in full gives, and costs no commit where nothing is different."""

from __future__ import annotations

import csv
import json
import random
import re
from pathlib import Path

import pytest
from deliveries import FOLLOWING, HEADERS, LENIENT, SILVER, contents, declare, deliver, take_in
from helpers import open_store
from pyspark.sql import SparkSession
from wares.lake.store import Outcome


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_by_change_equals_in_full(spark: SparkSession, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    source = declare(tmp_path)
    ways: dict[str, list[str]] = {}
    for number in range(3):
        deliver(tmp_path, number, chance)
        with open_store(spark, tmp_path / "by change", source, tables=LENIENT) as store:
            for name, outcome in take_in(store, source).items():
                ways.setdefault(name, []).append(outcome.status)
                if outcome.account and name in SILVER:
                    account = outcome.account
                    assert account.rows_in == account.kept + account.rejected + account.merged
    with open_store(spark, tmp_path / "in full", source, tables=LENIENT) as anew:
        take_in(anew, source)
    by_change, in_full = contents(store), contents(anew)
    assert by_change == in_full
    for name in SILVER:
        assert store.meta.mark(name).account.rows_in == anew.meta.mark(name).account.rows_in
        assert store.meta.mark(name).account.kept == len(in_full[name])
        assert store.meta.mark(name).account.rejected == len(in_full[f"{name} rejected"])
    followed = {name for name, statuses in ways.items() if "changed" in statuses}
    assert {"silver.orders", "silver.products", "gold.interactions", "gold.product_profiles", "gold.sales_daily"} <= followed
    assert all(status in ("written", "unchanged") for name in ways for status in ways[name][:1]), "the first is always in full"
    assert set(FOLLOWING) <= set(ways)


def test_files_of_other_days_are_not_read(spark: SparkSession, tmp_path: Path) -> None:
    source = declare(tmp_path)
    (tmp_path / "offers").mkdir()

    def come(name: str, *rows: str) -> Outcome:
        with (tmp_path / "offers" / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([HEADERS["offers"], *(row.split() for row in rows)])
        with open_store(spark, tmp_path, source) as store:
            store.ingest(source, "offers")
            return store.refresh("silver.promotions")

    come("1.csv", "a 1 2024-01-01 2024-01-07 none", "b 1 2024-01-01 2024-01-07 none", "a 1 2024-01-15 2024-01-21 none")
    outcome = come("2.csv", "b 1 2024-01-01 2024-01-05 none", "c 1 2024-01-08 2024-01-14 none")  # one of them is corrected
    assert outcome.rows == (1, 1, 0)
    store = open_store(spark, tmp_path, source)
    found = store.read("silver.promotions").selectExpr("product_id", "string(starts_on)", "string(ends_on)").collect()
    assert sorted(map(tuple, found)) == [
        ("a", "2024-01-01", "2024-01-07"),
        ("a", "2024-01-15", "2024-01-21"),
        ("b", "2024-01-01", "2024-01-05"),
        ("c", "2024-01-08", "2024-01-14"),
    ]
    merged = store.lake.commit_info("silver.promotions", outcome.version)["operationParameters"]["predicate"]
    assert re.findall(r"starts_on#\d+ ([<>]= [\d-]+)", merged) == [">= 2024-01-01", "<= 2024-01-08"], "those of the second file"
    log = tmp_path / "lake" / "silver" / "promotions" / "_delta_log"
    added = [json.loads(line).get("add") for file in sorted(log.glob("*.json")) for line in file.read_text().splitlines()]
    assert {name for add in added if add for name in json.loads(add["stats"]).get("minValues", {})} == {"starts_on", "ends_on"}
