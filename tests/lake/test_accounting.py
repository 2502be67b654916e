"""Every raw row is kept, rejected or merged, and taken in exactly once, whatever happens on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from helpers import HEADER, either, open_store, shop, write_csv, write_source
from pyspark.sql import DataFrame, SparkSession
from wares.lake.delta import Commit, Write
from wares.lake.meta import Account
from wares.lake.store import Outcome, Store


def market(folder: Path) -> dict[str, Any]:
    """A second source: Parquet files, in London time, whose order numbers are those of the shop."""
    source = shop(folder, "market")
    source["timezone"] = source["business_timezone"] = "Europe/London"
    types = {"number": "bigint", "item": "string", "at": "timestamp_ntz", "quantity": "int", "price": "double"}
    labels = {name: column.get("label") for name, column in source["entities"]["lines"]["columns"].items()}
    columns = {name: {"type": type, "label": labels[name]} for name, type in types.items()}
    source["entities"]["lines"] = {"path": f"{folder}/*.parquet", "format": "parquet", "columns": columns}
    mapping = source["tables"]["orders"][0]["columns"]
    source["tables"]["orders"][0]["columns"] = {name: text for name, text in mapping.items() if name != "user_id"} | {
        "order_id": "string(number)",
        "line": "item",
    }
    return source


def write_parquet(folder: Path, name: str, number: int, at: datetime) -> None:
    row = {
        "number": [number],
        "item": ["a"],
        "at": pyarrow.array([at], pyarrow.timestamp("us")),
        "quantity": pyarrow.array([1], pyarrow.int32()),
        "price": [2.5],
    }
    folder.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(row), folder / name)


def places(frame: DataFrame) -> set[tuple[str, int]]:
    """The file names and positions of rows; each place once."""
    rows = [(row["_file"].rpartition("/")[2], row["_position"]) for row in frame.collect()]
    assert len(set(rows)) == len(rows)
    return set(rows)


def take_in(store: Store, *sources: str) -> dict[str, Outcome]:
    outcomes = [*(store.ingest(source, "lines") for source in sources), store.refresh("silver.orders")]
    return {outcome.table: outcome for outcome in outcomes}


def counts(outcome: Outcome) -> tuple[str, int, int, int, int]:
    account = outcome.account
    assert account is not None
    return outcome.status, account.rows_in, account.kept, account.rejected, account.merged


# One lake that no test changes


@pytest.fixture(scope="module")
def lake(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, dict[str, Outcome], Path]]:
    """Two sources taken in by one run, and a store opened afterwards."""
    root = tmp_path_factory.mktemp("accounting")
    write_csv(
        root / "shop",
        "day 1.csv",
        "1,a,u1,p1,2024-03-01 10:00:00,2,1.50,first",
        "1,b,u1,p2,2024-03-01 10:00:00,12x,2.00,no number",
        '2,a,,p1,2024-03-01 23:30:00,1,1.50,"a note, ""quoted"",',
        'over two lines"',
        "3,a,u2,p3,2024-03-02 09:00:00,-1,4.00,back",
        "1,a,u1,p1,2024-03-01 10:00:00,5,1.50,same keys again",
    )
    write_csv(
        root / "shop",
        "day 2.csv",
        "4,a,u2,p1,2024-03-02 10:00:00,1,1.50,new",
        "1,a,u1,p1,2024-03-01 10:00:00,3,1.50,same keys in a later file",
        "5,a,u2",
        "6,a,u2,p9,2024-03-02 10:00:00,0,1.50,none of it",
    )
    write_parquet(root / "market", "week.parquet", 1, datetime(2024, 7, 1, 0, 30))
    paths = [write_source(root, shop(root / "shop")), write_source(root, market(root / "market"))]
    with open_store(spark, root, *paths) as store:
        outcomes = take_in(store, *paths)
    with open_store(spark, root, *paths) as store:
        yield store, outcomes, root


Lake = tuple[Store, dict[str, Outcome], Path]


def test_rows_in_are_kept_rejected_or_merged(lake: Lake) -> None:
    _, outcomes, _ = lake
    assert counts(outcomes["bronze.shop_lines"]) == ("written", 9, 9, 0, 0)
    assert counts(outcomes["bronze.market_lines"]) == ("written", 1, 1, 0, 0)
    assert counts(outcomes["silver.orders"]) == ("written", 10, 6, 2, 2)


def test_positions_are_true_over_several_files(lake: Lake) -> None:
    store, _, _ = lake
    notes = {
        (row["_file"].rpartition("/")[2], row["_position"]): row["note"] for row in store.read("bronze.shop_lines").collect()
    }
    assert notes == {
        ("day 1.csv", 0): "first",
        ("day 1.csv", 1): "no number",
        ("day 1.csv", 2): 'a note, "quoted",\nover two lines',
        ("day 1.csv", 3): "back",
        ("day 1.csv", 4): "same keys again",
        ("day 2.csv", 0): "new",
        ("day 2.csv", 1): "same keys in a later file",
        ("day 2.csv", 2): None,
        ("day 2.csv", 3): "none of it",
    }
    malformed = store.read("bronze.shop_lines").where("_malformed IS NOT NULL").collect()
    assert [(row["_position"], row["_malformed"]) for row in malformed] == [(2, "5,a,u2")]


def test_files_are_named_alike_in_rows_and_in_the_list_of_files(lake: Lake) -> None:
    store, _, _ = lake
    listed = {row["file"] for row in store.read("meta.files").collect()}
    frames = (store.read("bronze.shop_lines"), store.read("bronze.market_lines"), store.read("silver.orders"))
    assert {row["_file"] for frame in frames for row in frame.select("_file").collect()} == listed


def test_kept_rows(lake: Lake) -> None:
    store, _, _ = lake
    kept = {(row["source"], row["order_id"]): row for row in store.read("silver.orders").collect()}
    assert kept.keys() == {("shop", "1"), ("shop", "2"), ("shop", "3"), ("shop", "4"), ("shop", "6"), ("market", "1")}
    assert kept["shop", "1"]["quantity"] == 3, "the file that sorts last wins"
    assert kept["shop", "2"]["user_id"] is None
    assert kept["shop", "3"]["kind"] == "return"
    assert kept["market", "1"]["ordered_at"] == datetime(2024, 6, 30, 23, 30), "London is an hour ahead in summer"
    assert kept["market", "1"]["ordered_on"].isoformat() == "2024-07-01"
    assert str(kept["market", "1"]["value"]) == "2.5000"


def test_rejected_rows_can_be_listed_with_the_whole_raw_row(lake: Lake) -> None:
    store, _, _ = lake
    rejected = {
        json.loads(row["_raw"])["number"] + "/" + json.loads(row["_raw"])["line"]: row
        for row in store.rejected("silver.orders").collect()
    }
    assert rejected.keys() == {"1/b", "5/a"}
    cells = ("1", "b", "u1", "p2", "2024-03-01 10:00:00", "12x", "2.00", "no number")
    assert json.loads(rejected["1/b"]["_raw"]) == dict(zip(HEADER.split(","), cells, strict=True))
    rules = {violation["rule"]: (violation["severity"], violation["value"]) for violation in rejected["1/b"]["_violations"]}
    assert rules["quantity_is_decimal(18,3)"] == ("reject", "12x")


def test_merged_rows_can_be_listed_with_the_row_they_gave_way_to(lake: Lake) -> None:
    store, _, _ = lake
    merged = store.merged("silver.orders").collect()
    found = {(row["source"], row["order_id"], row["line"], row["_file"].rpartition("/")[2], row["_position"]) for row in merged}
    assert found == {("shop", "1", "a", "day 1.csv", 0), ("shop", "1", "a", "day 1.csv", 4)}
    assert {(row["_kept_file"].rpartition("/")[2], row["_kept_position"]) for row in merged} == {("day 2.csv", 1)}


def test_the_three_lists_hold_each_raw_row_once(lake: Lake) -> None:
    store, _, _ = lake
    parts = [
        places(frame) for frame in (store.read("silver.orders"), store.rejected("silver.orders"), store.merged("silver.orders"))
    ]
    assert [len(part) for part in parts] == [6, 2, 2]
    assert set.union(*parts) == places(store.read("bronze.shop_lines")) | places(store.read("bronze.market_lines"))


def test_a_broken_warning_is_counted_and_kept(lake: Lake) -> None:
    store, _, _ = lake
    quality = store.read("meta.quality").where("table = 'silver.orders'").collect()
    assert len(quality) == 1
    assert json.loads(quality[0]["hits"])["quantity_not_zero"] == 1
    assert (quality[0]["rows_in"], quality[0]["kept"], quality[0]["rejected"], quality[0]["merged"]) == (10, 6, 2, 2)


def test_labels_are_column_metadata_in_delta(lake: Lake) -> None:
    store, _, root = lake

    def labels(layer: str, table: str) -> dict[str, str]:
        log = root / "lake" / layer / table / "_delta_log" / f"{0:020d}.json"
        schema = next(
            action["metaData"]["schemaString"]
            for action in map(json.loads, log.read_text(encoding="utf-8").splitlines())
            if "metaData" in action
        )
        return {field["name"]: field["metadata"]["label"] for field in json.loads(schema)["fields"]}

    orders = labels("silver", "orders")
    assert orders["user_id"] == "CONFIDENTIAL + IDENTIFIER"
    assert orders["value"] == "CONFIDENTIAL + BEHAVIOUR + FINANCIAL"
    assert orders["currency"] == "PUBLIC"
    bronze = labels("bronze", "shop_lines")
    closed = "RESTRICTED + IDENTIFIER + CONTACT + DEMOGRAPHIC + LOCATION + BEHAVIOUR + FINANCIAL"
    assert bronze["number"] == "INTERNAL"
    assert bronze["note"] == closed, "nobody tagged it"
    assert bronze["_malformed"] == closed, "it may hold any column of the row"
    assert labels("silver", "orders_rejected")["_raw"] == closed
    assert store.read("silver.orders").schema["user_id"].metadata["comment"] == "Who ordered; null for a guest."


def test_lineage_and_runs_are_recorded(lake: Lake) -> None:
    store, outcomes, _ = lake
    lineage = store.read("meta.lineage").where("table = 'silver.orders' AND column = 'value'").collect()
    assert {(row["source_table"], row["source_column"]) for row in lineage} == {
        (f"bronze.{source}_lines", column) for source in ("shop", "market") for column in ("quantity", "price")
    }
    runs = store.read("meta.runs").collect()
    assert [(row["job"], row["status"], row["error"]) for row in runs] == [("tests", "succeeded", None)]


def test_a_second_run_with_nothing_new_commits_nothing(spark: SparkSession, lake: Lake) -> None:
    _, _, root = lake
    paths = [str(root / "shop.yaml"), str(root / "market.yaml")]
    before = sorted(str(file) for file in (root / "lake").rglob("*.json"))
    with open_store(spark, root, *paths) as store:
        outcomes = take_in(store, *paths)
    assert {outcome.status for outcome in outcomes.values()} == {"unchanged"}
    assert {outcome.version for outcome in outcomes.values()} == {0}
    assert sorted(str(file) for file in (root / "lake").rglob("*.json")) == before, "not even to the meta tables"


# Lakes that change


def test_a_new_file_of_one_source_is_taken_once_and_the_other_source_stays(
    spark: SparkSession, lake: Lake, tmp_path: Path
) -> None:
    before, _, root = lake
    shutil.copytree(root / "lake", tmp_path / "lake")
    path = write_source(tmp_path, shop(either(root / "shop", tmp_path)))
    write_csv(tmp_path, "3.csv", "7,a,u1,p1,2024-03-02 10:00:00,2,1.50,", "8,a,u1,p1,2024-03-02 10:00:00,2x,1.50,")
    with open_store(spark, tmp_path, path) as store:
        outcomes = take_in(store, path)
        assert counts(outcomes["bronze.shop_lines"]) == ("written", 2, 2, 0, 0)
        assert counts(outcomes["silver.orders"]) == ("changed", 12, 7, 3, 2)
        assert outcomes["silver.orders"].rows == (1, 0, 0)
        kept = {(row["source"], row["order_id"]) for row in store.read("silver.orders").collect()}
        assert kept == {("shop", "1"), ("shop", "2"), ("shop", "3"), ("shop", "4"), ("shop", "6"), ("shop", "7"), ("market", "1")}
        arrived = places(store.read("bronze.shop_lines")) - places(before.read("bronze.shop_lines"))
        assert arrived == {("3.csv", 0), ("3.csv", 1)} and store.read("bronze.shop_lines").count() == 11

        write_csv(tmp_path, "4.csv")  # a file without rows is taken in too
        outcomes = take_in(store, path)
        assert counts(outcomes["bronze.shop_lines"]) == ("written", 0, 0, 0, 0)
        assert store.rejected("silver.orders").count() == 3
    files = sorted(row["file"].rpartition("/")[2] for row in store.read("meta.files").collect())
    assert files == ["3.csv", "4.csv", "day 1.csv", "day 2.csv", "week.parquet"]

    # A table that was deleted is written again, once.
    shutil.rmtree(tmp_path / "lake" / "silver" / "orders")
    with open_store(spark, tmp_path, path) as store:
        outcome = store.refresh("silver.orders")
        assert (outcome.version, *counts(outcome)) == (0, "written", 12, 7, 3, 2)
    assert open_store(spark, tmp_path, path).__enter__().refresh("silver.orders").status == "unchanged"


def test_rejected_rows_are_replayed_once_their_mapping_is_repaired(spark: SparkSession, tmp_path: Path) -> None:
    source = shop(tmp_path)
    write_csv(tmp_path, "1.csv", "1,a,u1,p1,2024-03-01 10:00:00,2,1.50,", "2,a,u1,p1,2024-03-01 10:00:00,3 pcs,1.50,")
    source["entities"]["lines"]["columns"]["item"] = {"label": "PUBLIC"}
    source["tables"]["products"] = [{"from": "lines", "columns": {"product_id": "item", "name": "item", "updated_at": "at"}}]
    path = write_source(tmp_path, source)
    store = open_store(spark, tmp_path, path)
    assert counts(take_in(store, path)["silver.orders"]) == ("written", 2, 1, 1, 0)
    assert counts(store.refresh("silver.products")) == ("written", 2, 1, 0, 1)

    mapping = source["tables"]["orders"][0]["columns"]
    mapping |= {"quantity": "replace(quantity, ' pcs', '')", "store_id": "'main'"}  # which changes rows that were kept, too
    write_source(tmp_path, source)
    store = open_store(spark, tmp_path, path)
    outcomes = take_in(store, path)
    assert outcomes["bronze.shop_lines"].status == "unchanged"
    assert counts(outcomes["silver.orders"]) == ("written", 2, 2, 0, 0)
    assert outcomes["silver.orders"].why == "the mapping of shop has changed"
    assert store.refresh("silver.products").status == "unchanged", "what the source says of products is as it was"
    kept = {(row["order_id"], int(row["quantity"]), row["store_id"]) for row in store.read("silver.orders").collect()}
    assert kept == {("1", 2, "main"), ("2", 3, "main")}
    assert store.rejected("silver.orders").count() == 0


def test_tables_without_rows_can_be_written_again(spark: SparkSession, tmp_path: Path) -> None:
    """Delta leaves out commits that change nothing; the store's commit has to be there, for it names the inputs."""
    source = shop(tmp_path)
    write_csv(tmp_path, "1.csv")
    path = write_source(tmp_path, source)
    store = open_store(spark, tmp_path, path)
    assert counts(take_in(store, path)["silver.orders"]) == ("written", 0, 0, 0, 0)
    write_csv(tmp_path, "2.csv")
    store = open_store(spark, tmp_path, path)
    outcome = take_in(store, path)["silver.orders"]
    assert counts(outcome) == ("unchanged", 0, 0, 0, 0)
    assert open_store(spark, tmp_path, path).refresh("silver.orders").status == "unchanged"


def test_a_run_that_died_before_it_could_say_what_it_took(spark: SparkSession, tmp_path: Path) -> None:
    write_csv(tmp_path, "1.csv", "1,a,u1,p1,2024-03-01 10:00:00,2,1.50,", "2,a,u1,p1,2024-03-01 10:00:00,x,1.50,")
    path = write_source(tmp_path, shop(tmp_path))
    dead = open_store(spark, tmp_path, path)
    take_in(dead, path)  # never left: the data is committed, the meta tables are not
    assert not dead.exists("meta.files")

    write_csv(tmp_path, "2.csv", "3,a,u1,p1,2024-03-01 10:00:00,2,1.50,")
    dead = open_store(spark, tmp_path, path).__enter__()
    assert dead.ingest(path, "lines").rows == (1, 0, 0)  # and died again, before silver

    with open_store(spark, tmp_path, path) as store:
        outcomes = take_in(store, path)
        assert outcomes["bronze.shop_lines"].status == "unchanged"
        assert counts(outcomes["silver.orders"]) == ("changed", 3, 2, 1, 0)
    files = store.read("meta.files").collect()
    assert sorted((row["file"].rpartition("/")[2], row["table"]) for row in files) == [
        ("1.csv", "bronze.shop_lines"),
        ("2.csv", "bronze.shop_lines"),
    ]
    assert len({row["run"] for row in files}) == 2 and store.run_id not in {row["run"] for row in files}
    with open_store(spark, tmp_path, path) as store:
        assert {outcome.status for outcome in take_in(store, path).values()} == {"unchanged"}


def test_rejected_rows_of_a_run_that_died_do_not_count(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(tmp_path, "1.csv", "1,a,u1,p1,2024-03-01 10:00:00,2,1.50,", "2,a,u1,p1,2024-03-01 10:00:00,x,1.50,")
    path = write_source(tmp_path, shop(tmp_path))

    def dying(store: Store) -> Store:
        """A run that dies after the rejected rows are committed and before the kept ones are."""
        begin = store.lake.begin

        def begin_and_die(name: str) -> Write:
            write = begin(name)
            if name == "silver.orders":
                monkeypatch.setattr(write, "commit", die)
            return write

        def die(*rest: Any, **more: Any) -> Commit:
            raise KeyboardInterrupt

        monkeypatch.setattr(store.lake, "begin", begin_and_die)
        monkeypatch.setattr(store.lake, "merge", die)
        return store

    store = dying(open_store(spark, tmp_path, path))
    with pytest.raises(KeyboardInterrupt):
        take_in(store, path)
    assert store.exists("silver.orders_rejected")
    assert store.rejected("silver.orders").count() == 0

    store = open_store(spark, tmp_path, path)
    assert counts(store.refresh("silver.orders")) == ("written", 2, 1, 1, 0)
    assert store.rejected("silver.orders").count() == 1

    write_csv(tmp_path, "2.csv", "3,a,u1,p1,2024-03-01 10:00:00,x,1.50,", "4,a,u1,p1,2024-03-01 10:00:00,1,1.50,")
    with pytest.raises(KeyboardInterrupt):
        take_in(dying(open_store(spark, tmp_path, path)), path)
    store = open_store(spark, tmp_path, path)
    assert store.version("silver.orders") == 0
    assert [json.loads(row["_raw"])["number"] for row in store.rejected("silver.orders").collect()] == ["2"], (
        "those of the run that wrote the table"
    )

    assert counts(open_store(spark, tmp_path, path).refresh("silver.orders")) == ("changed", 4, 2, 2, 0)
    rejected = open_store(spark, tmp_path, path).rejected("silver.orders").collect()
    assert sorted(json.loads(row["_raw"])["number"] for row in rejected) == ["2", "3"], "those of the dead run are gone"


def test_a_table_that_nothing_provides_is_there_and_follows_a_source_that_comes(spark: SparkSession, tmp_path: Path) -> None:
    declared = shop(tmp_path / "shop")
    path = write_source(tmp_path, declared)
    write_csv(tmp_path / "shop", "1.csv", "1,a,u1,p1,2024-03-01 10:00:00,2,1.50,")
    with open_store(spark, tmp_path, path) as store:
        store.ingest(path, "lines")
        outcome = store.refresh("silver.users")
        assert (outcome.status, outcome.account, store.read("silver.users").count()) == ("written", Account(0, 0), 0)
        assert store.lake.labels("silver.users")["user_id"] == "CONFIDENTIAL + IDENTIFIER"
    with open_store(spark, tmp_path, path) as store:
        assert store.refresh("silver.users").status == "unchanged"
        quality = store.read("meta.quality").where("`table` = 'silver.users'").collect()
        assert [(row["rows_in"], row["kept"]) for row in quality] == [(0, 0)]
    declared["tables"]["users"] = [{"from": "lines", "columns": {"user_id": "customer"}}]
    path = write_source(tmp_path, declared)
    with open_store(spark, tmp_path, path) as store:
        assert store.refresh("silver.users").rows == (1, 0, 0)
        assert [row["user_id"] for row in store.read("silver.users").collect()] == ["u1"]
