"""Upkeep changes no row, and takes nothing away that somebody still needs."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from helpers import open_store, shop, write_csv, write_source
from pyspark.sql import SparkSession
from wares.lake.maintain import Upkeep, maintain, needed_versions
from wares.lake.meta import Account, Mark

DAY = 24 * 3600 * 1000


def test_the_slowest_reader_and_the_rejected_rows_are_needed() -> None:
    marks = {
        "silver.orders": Mark(5, "run", "", {"bronze.shop_lines": "3@aaa", "mapping of shop": "1f"}, Account(9, 8, 1, rejects=2)),
        "silver.products": Mark(7, "run", "", {"bronze.shop_lines": "1@aaa"}, Account(9, 9)),
        "gold.recommendations": Mark(1, "run", "", {"silver.orders": "5@bbb", "scorer": "wares_shop@7"}),
    }
    assert needed_versions(marks) == {
        "bronze.shop_lines": (1, "silver.products"),
        "silver.orders_rejected": (2, "silver.orders"),
        "silver.orders": (5, "gold.recommendations"),
    }


def test_what_was_done_is_told_in_words() -> None:
    assert str(Upkeep("t", 0, 0, 0, False, "", 0.1)) == "nothing to do"
    assert str(Upkeep("t", 1200, 2, 3, True, "", 0.1)) == "1,200 small files became 2, 3 old files deleted, checkpoint written"
    assert str(Upkeep("t", 0, 0, 0, False, "a, which has read version 0", 0.1)) == (
        "nothing to do; older files stay for a, which has read version 0"
    )


@pytest.mark.slow
def test_small_files_are_put_together_and_nothing_is_built_anew(spark: SparkSession, tmp_path: Path) -> None:
    path = write_source(tmp_path, shop(tmp_path))
    for number in (1, 2, 3):
        lines = f"{number},a,u1,p1,2024-03-01 10:00:00,2,1.50,", f"{number},b,u1,p1,2024-03-01 10:00:00,x,1.50,"
        write_csv(tmp_path, f"{number}.csv", *lines)
        with open_store(spark, tmp_path, path) as store:
            store.ingest(path, "lines")
            store.refresh("silver.orders")
    before = {name: store.lake.state(name) for name in ("bronze.shop_lines", "silver.orders", "meta.runs")}
    done: dict[str, Upkeep] = {}
    with open_store(spark, tmp_path, path) as store:
        store.maintain_all(lambda upkeep: done.setdefault(upkeep.table, upkeep))
    assert {"bronze.shop_lines", "silver.orders", "silver.orders_rejected", "meta.runs", "meta.watermarks"} <= done.keys()
    for name, state in before.items():
        assert done[name].small >= 3 and done[name].large == 1 and len(store.files(name, store.version(name))) == 1
        assert store.lake.state(name) == state
        log = tmp_path / "lake" / name.replace(".", "/") / "_delta_log"
        assert (log / f"{store.version(name):020d}.checkpoint.parquet").exists()
        assert str(done[name]) == f"{done[name].small} small files became 1, checkpoint written"
    again: dict[str, Upkeep] = {}
    with open_store(spark, tmp_path, path) as store:
        versions = {name: store.version(name) for name in before}
        store.maintain_all(lambda upkeep: again.setdefault(upkeep.table, upkeep))
        assert {name: str(again[name]) for name in before} == dict.fromkeys(before, "nothing to do")
        assert {name: store.version(name) for name in before} == versions
    with open_store(spark, tmp_path, path) as store:
        assert store.ingest(path, "lines").status == "unchanged"
        assert store.refresh("silver.orders").status == "unchanged"
        assert store.read("silver.orders").count() == 3
        assert sorted(json.loads(row["_raw"])["number"] for row in store.rejected("silver.orders").collect()) == ["1", "2", "3"]

    write_csv(tmp_path, "4.csv", "1,a,u1,p1,2024-03-01 10:00:00,5,1.50,", "4,b,u1,p1,2024-03-01 10:00:00,y,1.50,")
    with open_store(spark, tmp_path, path) as store:
        store.ingest(path, "lines")
        outcome = store.refresh("silver.orders")
        assert (outcome.status, outcome.rows, outcome.account.rejected) == ("changed", (0, 1, 0), 4)
        assert store.rejected("silver.orders").count() == 4


@pytest.mark.slow
def test_what_a_reader_has_not_consumed_stays_whatever_its_age(spark: SparkSession, tmp_path: Path) -> None:
    path = write_source(tmp_path, shop(tmp_path))
    with open_store(spark, tmp_path, path) as store:
        write_csv(tmp_path, "1.csv", "1,a,u1,p1,2024-03-01 10:00:00,2,1.50,")
        store.ingest(path, "lines")
        store.refresh("silver.orders")
    with open_store(spark, tmp_path, path) as store:
        write_csv(tmp_path, "2.csv", "2,a,u1,p1,2024-03-01 10:00:00,2,1.50,")
        store.ingest(path, "lines")  # and silver has not followed yet
    log = tmp_path / "lake" / "bronze" / "shop_lines" / "_delta_log" / f"{0:020d}.json"
    actions = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    for action in actions:
        if "commitInfo" in action:
            action["commitInfo"]["timestamp"] -= 100 * DAY
    log.write_text("".join(f"{json.dumps(action)}\n" for action in actions), encoding="utf-8")
    (log.parent / f".{log.name}.crc").unlink(missing_ok=True)
    done: dict[str, Upkeep] = {}
    with open_store(spark, tmp_path, path) as store:
        store.maintain_all(lambda upkeep: done.setdefault(upkeep.table, upkeep))
    assert done["bronze.shop_lines"].kept_for == "silver.orders, which has read version 0"
    assert done["silver.orders"].kept_for == ""
    with open_store(spark, tmp_path, path) as store:
        assert store.refresh("silver.orders").rows == (1, 0, 0)


@pytest.mark.slow
def test_old_files_go_and_only_they(spark: SparkSession, tmp_path: Path) -> None:
    path = write_source(tmp_path, shop(tmp_path))
    with open_store(spark, tmp_path, path) as store:
        write_csv(tmp_path, "1.csv", "1,a,u1,p1,2024-03-01 10:00:00,2,1.50,")
        store.ingest(path, "lines")
    folder = tmp_path / "lake" / "bronze" / "shop_lines"
    (kept,) = folder.glob("*.parquet")
    left, young = folder / "part-left.parquet", folder / "part-young.parquet"  # such as killed runs leave behind
    for file in (left, young):
        shutil.copy(kept, file)
    long_ago = time.time() - 100 * DAY / 1000
    for file in (kept, left):
        os.utime(file, (long_ago, long_ago))
    with open_store(spark, tmp_path, path) as store:
        done = maintain(store.lake, "bronze.shop_lines", None)
        assert str(done) == "1 old files deleted, checkpoint written"
        assert sorted(folder.glob("*.parquet")) == sorted([kept, young])
        assert str(maintain(store.lake, "bronze.shop_lines", None)) == "nothing to do"
