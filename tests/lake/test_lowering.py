"""What makes a label lower through the store: keyed pseudonyms, and labels lowered on purpose."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import open_store, shop, write_csv, write_source
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import col
from wares.errors import FlowError, SettingsError, ShapeError
from wares.lake.declassify import Pseudonym
from wares.lake.labels import BEHAVIOUR, CONFIDENTIAL, FINANCIAL, INTERNAL, RESTRICTED
from wares.lake.pseudonym import with_pseudonyms
from wares.lake.registry import TableFile
from wares.lake.store import Store
from wares.lake.table import Column, Table
from wares.settings import Settings
from wares.tables import TABLES

MONEY = CONFIDENTIAL + BEHAVIOUR + FINANCIAL
SOURCE = Column("source", "string", INTERNAL, "The shop.")
ORDER = Column("order_id", "string", INTERNAL, "The order.")
USER = Column("user", "string", INTERNAL, "Who, by a pseudonym.", Pseudonym("to count what the same user did"))
KEY = b"a key of more than sixteen bytes"
RFC_4231 = b"\x0b" * 20, "Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
"""Test case 1 for HMAC-SHA256: key, text, and what it makes."""


@pytest.fixture(scope="module")
def root(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A lake with four orders: two of one user, one of another, one of a guest."""
    root = tmp_path_factory.mktemp("lowering")
    users = {1: RFC_4231[1], 2: "u2", 3: RFC_4231[1], 4: ""}
    write_csv(root, "1.csv", *(f"{n},a,{user},p1,2024-03-01 10:00:00,{n},1.50," for n, user in users.items()))
    path = write_source(root, shop(root))
    store = open_store(spark, root, path)
    store.ingest(path, "lines")
    store.refresh("silver.orders")
    yield root


def file_of(name: str, *columns: Column, code: str = "1", **more: Any) -> TableFile:
    """A table of orders, each with the columns of silver.orders that it declares; `user` is the user's id."""

    def build(silver_orders: DataFrame) -> DataFrame:
        return silver_orders.withColumnRenamed("user_id", "user").select(*(column.name for column in columns))

    table = Table(("source", "order_id"), columns, **more)
    return TableFile(name, table, build, ("silver.orders",), (), "Orders.", code)


def store_with(spark: SparkSession, root: Path, *files: TableFile, secret: str | None = None) -> Store:
    lake = {"root": str(root / "lake"), "secret": secret}
    settings = Settings.model_validate({"sources": [str(root / "shop.yaml")], "lake": lake})
    return Store(spark, settings, {**TABLES, **{file.name: file for file in files}}, "tests")


def key_file(folder: Path, key: bytes) -> str:
    (folder / "key").write_bytes(key)
    return f"file:{folder / 'key'}"


# Pseudonyms


@pytest.fixture(scope="module")
def pseudonyms(spark: SparkSession, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store of a run that has written gold.pseudonyms, with the key of RFC 4231."""
    secret = key_file(tmp_path_factory.mktemp("secret"), RFC_4231[0] + b"\n")
    with store_with(spark, root, file_of("gold.pseudonyms", SOURCE, ORDER, USER), secret=secret) as store:
        store.refresh("gold.pseudonyms")
    return store


def test_the_store_puts_pseudonyms_in_the_place_of_ids(pseudonyms: Store) -> None:
    key, _, made = RFC_4231
    store = pseudonyms
    rows = store.read("gold.pseudonyms").collect()
    other = hmac.new(key, b"u2", hashlib.sha256).hexdigest()
    assert {row["order_id"]: row["user"] for row in rows} == {"1": made, "2": other, "3": made, "4": None}
    steps = store.read("meta.lineage").where("table = 'gold.pseudonyms' AND column = 'user'").collect()
    assert [(row["source_column"], row["steps"]) for row in steps] == [("user_id", "PSEUDONYM")]


def test_the_key_is_nowhere_to_be_seen(spark: SparkSession, pseudonyms: Store, tmp_path: Path) -> None:
    """Neither in the plan nor in what is kept of the settings; and its place only in the plan."""
    rows = with_pseudonyms(spark.range(3).selectExpr("string(id) AS user"), Table((), (USER,)), key_file(tmp_path, KEY))
    plans = rows._jdf.queryExecution().toString() + rows._jdf.queryExecution().analyzed().toJSON()
    assert "pseudonym" in plans and KEY.decode() not in plans and KEY.hex() not in plans.lower()
    settings = pseudonyms.read("meta.runs").where(col("run") == pseudonyms.run_id).first()["settings"]
    place = pseudonyms.settings.lake.secret.get_secret_value()
    assert '"secret":"**********"' in settings and place not in settings and place.partition(":")[2] not in settings


def test_a_key_in_the_environment(spark: SparkSession) -> None:
    """The tests' session was started with this variable (see conftest): its workers have it, whoever asks."""
    rows = with_pseudonyms(spark.range(1).selectExpr("'u2' AS user"), Table((), (USER,)), "env:WARES_TEST_KEY")
    assert rows.first()["user"] == hmac.new(b"the key of the tests", b"u2", hashlib.sha256).hexdigest()


@pytest.mark.parametrize(
    ("secret", "found"),
    [
        (None, "lake.secret is not set"),
        ("env:WARES_NO_SUCH_KEY", "the variable is not set"),
        ("file:/no/such/key", "the file cannot be read: No such file or directory"),
        ("file:KEY", "the key has 15 bytes"),
        ("file:EMPTY", "the file is empty"),
    ],
)
def test_without_a_key_nothing_is_written(
    spark: SparkSession, root: Path, tmp_path: Path, secret: str | None, found: str
) -> None:
    if secret in ("file:KEY", "file:EMPTY"):
        secret = key_file(tmp_path, KEY[:15] if secret == "file:KEY" else b"\n")
    store = store_with(spark, root, file_of("gold.keyless", SOURCE, ORDER, USER), secret=secret)
    with pytest.raises(SettingsError, match="The key for pseudonyms cannot be used") as refused:
        store.refresh("gold.keyless")
    assert refused.value.found == found and "at least 16 bytes" in refused.value.do
    assert not store.exists("gold.keyless")


def test_only_texts_have_pseudonyms() -> None:
    with pytest.raises(ShapeError, match="The column user is to hold pseudonyms"):
        replace(USER, type="bigint")


# Labels lowered on purpose


def access(store: Store, table: str) -> list[tuple[str, ...]]:
    """What `meta.access` says of a table."""
    if not store.exists("meta.access"):
        return []
    rows = store.read("meta.access").where(col("table") == table).orderBy("at").collect()
    assert all(row["run"] and row["at"] <= datetime.now(UTC).replace(tzinfo=None) for row in rows)
    return [(row["column"], row["before"], row["after"], row["reason"]) for row in rows]


def test_raising_is_free_and_lowering_takes_a_reason(spark: SparkSession, root: Path) -> None:
    value = Column("value", "decimal(18,4)", MONEY, "What it brought in.")
    high = replace(value, label=RESTRICTED + MONEY)
    kept = ("value", "RESTRICTED + BEHAVIOUR + FINANCIAL", str(MONEY), "the shop's own sales team reads it")

    def refresh(store: Store, column: Column, code: str, **more: Any) -> None:
        store.tables["gold.relabelled"] = file_of("gold.relabelled", SOURCE, ORDER, column, code=code, **more)
        store.refresh("gold.relabelled")

    with store_with(spark, root) as store:
        refresh(store, value, "1")
        refresh(store, high, "2")
    assert access(store, "gold.relabelled") == []
    for reason in ({}, {"value": " "}, {"order_id": "another column"}):
        with pytest.raises(FlowError, match="would lower labels of a table that has data") as refused:
            refresh(store, value, "3", relabel=reason)
        assert refused.value.found == f"value: [{high.label}] in the lake, [{MONEY}] declared"
        assert "relabel" in refused.value.do
    with store_with(spark, root) as store:
        refresh(store, value, "3", relabel={"value": kept[3]})
        assert store.read("gold.relabelled").schema["value"].metadata["label"] == str(MONEY)
        refresh(store, value, "4", relabel={"value": kept[3]})
    assert access(store, "gold.relabelled") == [kept], "it was lowered once"
    with pytest.raises(FlowError, match="would lower labels"):  # as high, but without a category
        refresh(store, replace(value, label=RESTRICTED + BEHAVIOUR), "5")


def test_a_run_that_died_after_lowering_a_label_is_made_up_for(spark: SparkSession, root: Path) -> None:
    value = Column("value", "decimal(18,4)", RESTRICTED + MONEY, "What it brought in.")
    store_with(spark, root, file_of("gold.died", SOURCE, ORDER, value)).refresh("gold.died")
    lower = file_of("gold.died", SOURCE, ORDER, replace(value, label=MONEY), code="2", relabel={"value": "why not"})
    dead = store_with(spark, root, lower)
    dead.refresh("gold.died")  # and never leaves the store
    assert access(dead, "gold.died") == []
    for _ in range(2):
        with store_with(spark, root, lower) as store:
            assert store.refresh("gold.died").status == "unchanged"
    assert access(store, "gold.died") == [("value", str(value.label), str(MONEY), "why not")]
    assert store.read("meta.access").where("table = 'gold.died'").first()["run"] == dead.run_id


def test_a_lowered_label_counts_once_its_table_was_written_with_it(spark: SparkSession, root: Path) -> None:
    """Else a file that was changed, and refused, would open what other tables read of it."""
    value = Column("value", "decimal(18,4)", RESTRICTED + MONEY, "What it brought in.")
    reader = TableFile(
        "gold.reader",
        Table(("source", "order_id"), (SOURCE, ORDER, replace(value, label=MONEY))),
        lambda gold_read: gold_read,
        ("gold.read",),
        (),
        "What was read.",
        "1",
    )
    store_with(spark, root, file_of("gold.read", SOURCE, ORDER, value)).refresh("gold.read")
    lower = file_of("gold.read", SOURCE, ORDER, replace(value, label=MONEY), code="2", relabel={"value": "why not"})
    store = store_with(spark, root, lower, reader)
    with pytest.raises(FlowError):
        store.refresh("gold.reader")
    store.refresh("gold.read")
    assert store.refresh("gold.reader").status == "written"


def test_a_source_that_lowers_a_label_says_why(spark: SparkSession, tmp_path: Path) -> None:
    write_csv(tmp_path, "1.csv", "1,a,u1,p1,2024-03-01 10:00:00,1,1.50,hello")
    source = shop(tmp_path)
    path = write_source(tmp_path, source)
    store = open_store(spark, tmp_path, path)
    store.ingest(path, "lines")
    closed = store.read("bronze.shop_lines").schema["note"].metadata["label"]
    columns = source["entities"]["lines"]["columns"]
    columns["note"] = {"label": "CONFIDENTIAL + CONTACT"}
    write_source(tmp_path, source)
    with pytest.raises(FlowError, match="would lower labels"):
        open_store(spark, tmp_path, path).ingest(path, "lines")
    columns["note"]["relabel"] = "the helpdesk reads it"
    Path(path).write_text(yaml.safe_dump(source), encoding="utf-8")
    for _ in range(2):
        with open_store(spark, tmp_path, path) as store:
            store.ingest(path, "lines")
    assert store.read("bronze.shop_lines").schema["note"].metadata["label"] == "CONFIDENTIAL + CONTACT"
    whole = "CONFIDENTIAL + IDENTIFIER + CONTACT + BEHAVIOUR + FINANCIAL"  # of a line that fits no column
    assert sorted(access(store, "bronze.shop_lines")) == [
        ("_malformed", closed, whole, "note: the helpdesk reads it"),
        ("note", closed, "CONFIDENTIAL + CONTACT", "the helpdesk reads it"),
    ]
