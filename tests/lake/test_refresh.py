"""Refresh by change gives what a refresh in full gives, and costs no commit where nothing is different."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from deliveries import FOLLOWING, LENIENT, SILVER, contents, declare, deliver, take_in
from helpers import open_store
from pyspark.sql import SparkSession


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
