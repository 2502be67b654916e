"""Two runs at once on one table: one wins, the other says so, and nothing is doubled or lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import open_store, shop, write_csv, write_source
from pyspark.sql import SparkSession
from wares.errors import ConflictError
from wares.lake.store import Outcome, Store


@pytest.fixture
def path(tmp_path: Path) -> str:
    write_csv(tmp_path, "1.csv", "1,a,u1,p1,2024-03-01 10:00:00,2,1.50,", "2,a,u1,p1,2024-03-01 10:00:00,2,1.50,")
    return write_source(tmp_path, shop(tmp_path))


def meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch, method: str, other: Callable[[], Outcome]) -> None:
    """Let another run do something, once this one has begun and before it commits."""
    real = getattr(store.lake, method)

    def after_the_other(name: str, *rest: object, **more: object) -> object:
        begun = real(name, *rest, **more) if method == "begin" else None
        monkeypatch.setattr(store.lake, method, real)
        other()
        return begun if method == "begin" else real(name, *rest, **more)

    monkeypatch.setattr(store.lake, method, after_the_other)


def test_a_file_is_not_taken_in_twice(spark: SparkSession, tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    late, early = open_store(spark, tmp_path, path), open_store(spark, tmp_path, path)
    meanwhile(late, monkeypatch, "begin", lambda: early.ingest(path, "lines"))
    with pytest.raises(ConflictError, match="bronze.shop_lines") as refused:
        late.ingest(path, "lines")
    assert "run the job again" in refused.value.do
    assert early.read("bronze.shop_lines").count() == 2
    assert open_store(spark, tmp_path, path).ingest(path, "lines").status == "unchanged"


def test_a_build_in_full_that_comes_late_is_refused(
    spark: SparkSession, tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, early = open_store(spark, tmp_path, path), open_store(spark, tmp_path, path)
    late.ingest(path, "lines")
    meanwhile(late, monkeypatch, "begin", lambda: early.refresh("silver.orders"))
    with pytest.raises(ConflictError, match="silver.orders"):
        late.refresh("silver.orders")
    assert early.version("silver.orders") == 0
    files = [file.name for file in (tmp_path / "lake" / "silver" / "orders").glob("*.parquet")]
    assert len(files) == len(early.files("silver.orders", 0)), "what the late one wrote is gone"


def test_a_merge_that_comes_late_is_refused(
    spark: SparkSession, tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_store(spark, tmp_path, path)
    first.ingest(path, "lines")
    first.refresh("silver.orders")
    write_csv(tmp_path, "2.csv", "2,a,u1,p1,2024-03-01 10:00:00,7,1.50,", "3,a,u1,p1,2024-03-01 10:00:00,2,1.50,")
    late, early = open_store(spark, tmp_path, path), open_store(spark, tmp_path, path)
    late.ingest(path, "lines")
    meanwhile(late, monkeypatch, "merge", lambda: early.refresh("silver.orders"))
    with pytest.raises(ConflictError, match="silver.orders"):
        late.refresh("silver.orders")
    assert early.version("silver.orders") == 1
    assert sorted((row["order_id"], int(row["quantity"])) for row in early.read("silver.orders").collect()) == [
        ("1", 2),
        ("2", 7),
        ("3", 2),
    ]
    again = open_store(spark, tmp_path, path)
    assert again.refresh("silver.orders").status == "unchanged"
