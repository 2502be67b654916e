"""Bad input gets rejected rows with reasons, or one error that says what is wrong, what was found and what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from helpers import HEADER, open_store, shop, write_csv, write_source
from pyspark.sql import SparkSession
from wares.cli import explain
from wares.errors import SettingsError, SeveralErrors, ShapeError, SourceError, WaresError
from wares.lake.sources import bronze_table, load_source, mapped
from wares.tables import TABLES

GOOD = "1,a,u1,p1,2024-03-01 10:00:00,2,1.50,"
LATER = 1_900_000_000
"""A modification time, in seconds, that no file here got by itself."""


def says(error: WaresError, *words: str) -> None:
    """An error is useful: it has its three parts, and names what it is about."""
    assert error.found and error.do
    for word in words:
        assert word in str(error), f"'{word}' is not in: {error}"


# Files


@pytest.fixture
def refused(spark: SparkSession, tmp_path: Path) -> Callable[..., SourceError]:
    """Take in what stands in `tmp_path`, see that it is refused and that nothing became visible."""

    def ingest(source: dict[str, Any] | None = None) -> SourceError:
        path = write_source(tmp_path, source or shop(tmp_path))
        store = open_store(spark, tmp_path, path)
        with pytest.raises(SourceError) as caught:
            store.ingest(path, "lines")
        assert not store.exists("bronze.shop_lines")
        assert not (tmp_path / "lake" / "bronze").exists()
        return caught.value

    return ingest


def test_a_source_without_files(refused: Callable[..., SourceError], tmp_path: Path) -> None:
    says(refused(), "shop", "lines", f"{tmp_path}/*.csv")


def test_a_package_that_is_not_installed(refused: Callable[..., SourceError], tmp_path: Path) -> None:
    source = shop(tmp_path)
    source["entities"]["lines"]["path"] = "package:no_such_package_of_data/lines.csv"
    says(refused(source), "no_such_package_of_data", "pip install")


def test_an_empty_file(refused: Callable[..., SourceError], tmp_path: Path) -> None:
    write_csv(tmp_path, "a.csv", GOOD)
    (tmp_path / "b.csv").write_bytes(b"")
    says(refused(), "is empty", "b.csv")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (HEADER.replace(",price", ""), ["missing: price"]),
        (HEADER.replace("price", "prize"), ["missing: price", "not declared: prize"]),
        (f"{HEADER},colour", ["not declared: colour"]),
        (HEADER.replace(",", ";"), ["missing: at, customer, item, line, note, number, price, quantity", "not declared"]),
        (f"{HEADER},price", ["price", "twice"]),
    ],
)
def test_another_header(refused: Callable[..., SourceError], tmp_path: Path, header: str, words: list[str]) -> None:
    write_csv(tmp_path, "a.csv", GOOD)
    write_csv(tmp_path, "b.csv", GOOD, header=header)
    says(refused(), "b.csv", *words)


def parquet_shop(folder: Path) -> dict[str, Any]:
    """The shop with Parquet files of two columns."""
    source = shop(folder)
    columns = {"number": {"type": "bigint"}, "item": {"type": "string"}}
    source["entities"]["lines"] = {"path": f"{folder}/*.parquet", "format": "parquet", "columns": columns}
    return source


def test_a_parquet_file_cut_in_the_middle(refused: Callable[..., SourceError], tmp_path: Path) -> None:
    whole = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"number": [1, 2], "item": ["p", "q"]}), whole)
    (tmp_path / "b.parquet").write_bytes(whole.read_bytes()[:-40])
    says(refused(parquet_shop(tmp_path)), "not a whole Parquet file", "b.parquet")


def test_a_parquet_column_of_another_type(refused: Callable[..., SourceError], tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"number": [1.5], "item": ["p"]}), tmp_path / "a.parquet")
    says(refused(parquet_shop(tmp_path)), "a.parquet", "number is double, declared bigint")


def test_a_parquet_column_that_is_missing(refused: Callable[..., SourceError], tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"number": [1]}), tmp_path / "a.parquet")
    says(refused(parquet_shop(tmp_path)), "a.parquet", "missing: item")


# Files that change after they were taken in


def test_a_file_that_changed_is_refused_and_one_that_was_only_touched_is_not(spark: SparkSession, tmp_path: Path) -> None:
    file = write_csv(tmp_path, "a.csv", GOOD)
    source = write_source(tmp_path, shop(tmp_path))
    store = open_store(spark, tmp_path, source)
    assert store.ingest(source, "lines").status == "written"
    before = file.read_bytes()

    def again() -> str:
        return open_store(spark, tmp_path, source).ingest(source, "lines").status

    os.utime(file, (LATER, LATER))
    assert again() == "unchanged"

    file.write_bytes(before.replace(b"u1", b"u2"))
    os.utime(file, (LATER, LATER))
    with pytest.raises(SourceError, match="changed after it was taken in") as refused:
        again()
    says(refused.value, "a.csv", "a new name")

    file.write_bytes(before + GOOD.encode())
    write_csv(tmp_path, "b.csv", GOOD)  # a good new file does not get past it either
    with pytest.raises(SourceError, match="changed after it was taken in") as refused:
        again()
    says(refused.value, "a.csv", f"{len(before)} bytes when taken in, {len(before) + len(GOOD)} now")
    assert store.version("bronze.shop_lines") == 0

    file.write_bytes(before)
    assert again() == "written"
    assert store.read("bronze.shop_lines").count() == 2


# Rows


@pytest.fixture(scope="module")
def lake(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A lake whose silver orders have met every kind of bad row."""
    root = tmp_path_factory.mktemp("bad_rows")
    write_csv(root, "a.csv", *(f"{n},a,u1,p1,2024-03-01 10:00:00,2,1.50," for n in range(1, 9)))
    write_csv(root, "b_types.csv", "20,a,u1,p1,2024-03-01 10:00:00,12x,1.50,", "21,a,u1,p1,yesterday,1,cheap,")
    write_csv(root, "c_header_only.csv")
    latin = f"{HEADER}\n30,a,u1,caf\u00e9,2024-03-01 10:00:00,1,1.50,\n31,a,u1,p1,2024-03-01 10:00:00,1,1.50,d\u00e9j\u00e0\n"
    (root / "d_latin.csv").write_bytes(latin.encode("latin-1"))
    (root / "e_cut.csv").write_text(f"{HEADER}\n40,a,u1,p1,2024-03-01 10:00:00,1,1.50,\n41,a,u1,p1,2024-0", encoding="utf-8")
    write_csv(root, "f_long.csv", "50,a,u1,p1,2024-03-01 10:00:00,1,1.50,,and,more")
    source = write_source(root, shop(root))
    with open_store(spark, root, source) as store:
        store.ingest(source, "lines")
        store.refresh("silver.orders")
    yield root


def test_bad_rows_are_rejected_with_their_reasons(spark: SparkSession, lake: Path) -> None:
    store = open_store(spark, lake, str(lake / "shop.yaml"))
    rejected = {}
    for row in store.rejected("silver.orders").collect():
        reasons = {violation["rule"]: violation["value"] for violation in row["_violations"]}
        rejected[row["_file"].rpartition("/")[2], row["_position"]] = reasons
    assert rejected.keys() == {("b_types.csv", 0), ("b_types.csv", 1), ("d_latin.csv", 0), ("e_cut.csv", 1), ("f_long.csv", 0)}
    assert rejected["b_types.csv", 0]["quantity_is_decimal(18,3)"] == "12x"
    assert rejected["b_types.csv", 1]["ordered_at_is_timestamp"] == "yesterday"
    assert rejected["b_types.csv", 1]["unit_price_is_decimal(18,4)"] == "cheap"
    assert rejected["d_latin.csv", 0].keys() == {"is_utf8"}
    assert rejected["e_cut.csv", 1]["line_fits_header"] == "41,a,u1,p1,2024-0"
    assert rejected["f_long.csv", 0]["line_fits_header"] == "50,a,u1,p1,2024-03-01 10:00:00,1,1.50,,and,more"
    kept = {row["order_id"] for row in store.read("silver.orders").collect()}
    assert kept == {"1", "2", "3", "4", "5", "6", "7", "8", "31", "40"}, (
        "bytes that are not UTF-8 only matter where they are mapped"
    )


def test_the_counts_of_broken_rules_have_the_rules_names(spark: SparkSession, lake: Path) -> None:
    store = open_store(spark, lake, str(lake / "shop.yaml"))
    row = store.read("meta.quality").where("table = 'silver.orders'").collect()[0]
    hits = json.loads(row["hits"])
    assert hits["quantity_is_decimal(18,3)"] == 1
    assert hits["line_fits_header"] == 2
    assert hits["is_utf8"] == 1
    assert "" not in hits


# Mappings


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"product_id": "itm"}, ["shop.lines", "itm", "number, line, customer, item"]),
        ({"quantity": "cast(quantity AS int)"}, ["quantity: cast(quantity AS int)", "Cast", "try_"]),
        ({"quantity": "int(try_cast(quantity AS int)) * 2"}, ["Multiply", "try_multiply"]),
        ({"unit_price": "try_cast(price AS double) / try_cast(quantity AS double)"}, ["Divide"]),
        ({"unit_price": "price + 1"}, ["price + 1"]),
        ({"ordered_at": "to_timestamp(at, 'yyyy')"}, ["to_timestamp"]),
        ({"line": "element_at(split(line, '-'), 3)"}, ["element_at"]),
        ({"line": "raise_error(line)"}, ["raise_error"]),
        ({"colour": "item"}, ["fills columns that the table does not have", "colour"]),
        ({"line": None}, ["leaves out a key", "line"]),
        ({"product_id": "item +"}, ["shop.lines"]),
        ({"product_id": "sum(item)"}, ["shop.lines"]),
    ],
)
def test_mappings_that_cannot_be_followed(
    spark: SparkSession, lake: Path, tmp_path: Path, change: dict[str, str | None], words: list[str]
) -> None:
    source = shop(lake)
    columns = {**source["tables"]["orders"][0]["columns"], **change}
    source["tables"]["orders"][0]["columns"] = {name: text for name, text in columns.items() if text is not None}
    store = open_store(spark, lake, write_source(tmp_path, source))
    with pytest.raises(SettingsError) as refused:
        store.refresh("silver.orders")
    says(refused.value, *words)
    assert store.version("silver.orders") == 0
    assert store.version("silver.orders_rejected") == 0


@pytest.mark.parametrize(
    "text",
    [
        "try_to_timestamp(at)",
        "try_to_timestamp(at, 'yyyy-MM-dd HH:mm:ss')",
        "try_cast(at AS timestamp)",
        "nullif(trim(at), '')",
        "coalesce(at, '2024-01-01')",
        "CASE WHEN upper(item) LIKE 'P%' THEN at END",
        "concat_ws(' ', left(at, 10), substring_index(at, ' ', -1))",
        "try_divide(try_cast(price AS double), try_cast(quantity AS double))",
        "try_multiply(try_cast(quantity AS int), 7)",
        "try_cast(price AS double) * 2",
        "string(try_cast(quantity AS int))",
    ],
)
def test_expressions_that_cannot_throw(spark: SparkSession, lake: Path, text: str) -> None:
    source = load_source(str(lake / "shop.yaml"))
    mapping = source.tables["orders"][0]
    changed = mapping.model_copy(update={"columns": {**mapping.columns, "store_id": text}})
    raw = open_store(spark, lake).read("bronze.shop_lines")
    frame = mapped(source, changed, raw, TABLES["silver.orders"].table)
    assert frame.schema["store_id"].dataType.simpleString() == "string"


@pytest.mark.parametrize("name", ["completejourney", "online_retail"])
def test_the_mappings_of_wares_can_be_followed(spark: SparkSession, name: str) -> None:
    source = load_source(name)
    for table, mappings in source.tables.items():
        for mapping in mappings:
            raw = spark.createDataFrame([], bronze_table(source.entities[mapping.entity]).schema())
            declared = TABLES[f"silver.{table}"].table
            assert set(declared.by_name) < set(mapped(source, mapping, raw, declared).columns)


def test_a_condition_that_can_throw(spark: SparkSession, lake: Path, tmp_path: Path) -> None:
    source = shop(lake)
    source["tables"]["orders"][0]["where"] = "int(quantity) > 0"
    with pytest.raises(SettingsError) as refused:
        open_store(spark, lake, write_source(tmp_path, source)).refresh("silver.orders")
    says(refused.value, "where: int(quantity) > 0", "try_")


# Declarations


def test_an_unknown_source() -> None:
    with pytest.raises(SettingsError, match="no source 'amazon'") as refused:
        load_source("amazon")
    says(refused.value, "conf/sources/amazon.yaml", "completejourney", "online_retail")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda source: source["entities"]["lines"]["columns"]["item"].update(label="SECRET"),
            ["entities.lines.columns.item.label", "SECRET", "RESTRICTED"],
        ),
        (lambda source: source.update(timezone="Europe/Londres"), ["timezone", "Europe/Londres"]),
        (lambda source: source.update(colour="red"), ["colour: unknown key"]),
        (lambda source: source.update(name="My Shop"), ["name", "My Shop"]),
        (lambda source: source["entities"]["lines"].update(format="xlsx"), ["entities.lines.format", "xlsx"]),
        (lambda source: source["tables"]["orders"][0].update({"from": "baskets"}), ["orders", "baskets", "lines"]),
        (
            lambda source: source["entities"]["lines"]["columns"]["price"].update(type="double"),
            ["entities.lines", "price", "cast in the mapping"],
        ),
    ],
)
def test_declarations_that_do_not_fit(tmp_path: Path, change: Callable[[dict[str, Any]], None], words: list[str]) -> None:
    source = shop(tmp_path)
    change(source)
    with pytest.raises(SettingsError) as refused:
        load_source(write_source(tmp_path, source))
    says(refused.value, *words)


def test_a_mapping_to_a_table_that_does_not_exist(spark: SparkSession, tmp_path: Path) -> None:
    """Its rows would be lost without a word."""
    source = shop(tmp_path)
    source["tables"]["ordrs"] = source["tables"].pop("orders")
    path = write_source(tmp_path, source)
    with pytest.raises(SettingsError, match="a silver table that does not exist") as refused:
        open_store(spark, tmp_path, path).ingest(path, "lines")
    says(refused.value, "ordrs", "orders, products")


def test_files_of_one_entity_do_not_hold_up_those_of_others(spark: SparkSession, tmp_path: Path) -> None:
    source = shop(tmp_path)
    lines = source["entities"]["lines"]
    source["entities"] = {
        "empty": {**lines, "path": str(tmp_path / "empty.csv")},
        "gone": {**lines, "path": str(tmp_path / "gone.csv")},
        "lines": lines,
    }
    (tmp_path / "empty.csv").write_text("", encoding="utf-8")
    write_csv(tmp_path, "1.csv", "1,a,u1,p1,2024-03-01 10:00:00,2,1.50,")
    lines["path"] = str(tmp_path / "1.csv")
    told: list[str] = []
    with (
        open_store(spark, tmp_path, write_source(tmp_path, source)) as store,
        pytest.raises(SeveralErrors) as refused,
    ):
        store.ingest_all(lambda outcome: told.append(outcome.table))
    assert told == ["bronze.shop_lines"]
    parts = sorted(explain(refused.value, debug=False).split("error: "))
    assert [part.splitlines()[0] for part in parts[1:]] == [
        "A file of shop.empty is empty.",
        "The source shop has no files for gone.",
    ]
    assert all("  do:    " in part for part in parts[1:])


# Questions that cannot be answered


@pytest.mark.parametrize(("name", "near"), [("gold.sales_dayly", "gold.sales_daily"), ("orders", "silver.orders")])
def test_a_table_that_nobody_makes(spark: SparkSession, tmp_path: Path, name: str, near: str) -> None:
    with pytest.raises(ShapeError, match=f"There is no table {name}") as refused:
        open_store(spark, tmp_path).read(name)
    says(refused.value, near)


def test_merged_rows_of_a_table_that_merges_none(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="Only silver tables merge raw rows") as refused:
        open_store(spark, tmp_path).merged("gold.sales_daily")
    says(refused.value, "silver.orders")


def test_a_table_that_was_never_written(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="silver.orders does not exist") as refused:
        open_store(spark, tmp_path).read("silver.orders")
    says(refused.value, "jobs/silver.py")
