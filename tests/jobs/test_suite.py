"""A small cut of real rows goes through the whole suite."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import isclose
from pathlib import Path
from shutil import copytree

import pyarrow as pa
import pytest
from corner_shop import Shop, SuiteRun, run_suite
from pyspark.sql import SparkSession
from wares.lake.store import Outcome, Store
from wares.model import registry, scoring
from wares.model.scoring import Ranker, score
from wares.settings import Score, Settings
from wares.tables import TABLES


@pytest.fixture
def store(spark: SparkSession, first_run: SuiteRun) -> Store:
    assert first_run.code == 0, first_run.out + first_run.err
    return Store(spark, Settings.model_validate({"lake": {"root": str(first_run.lake)}}), TABLES, "test")


def test_every_table_is_made(store: Store) -> None:
    assert [name for name in TABLES if not store.exists(name)] == []


def test_every_raw_row_is_in_bronze(store: Store, shop: Shop) -> None:
    assert {entity: store.read(f"bronze.corner_{entity}").count() for entity in shop.rows} == shop.rows


def test_order_lines_are_kept_rejected_or_merged(store: Store, shop: Shop) -> None:
    kept, rejected, merged = store.read("silver.orders"), store.rejected("silver.orders"), store.merged("silver.orders")
    assert kept.count() + rejected.count() + merged.count() == shop.rows["transactions"]


def test_every_buyer_has_a_full_list(store: Store) -> None:
    lists = store.read("gold.recommendations").groupBy("user_id").count()
    buyers = store.read("gold.user_profiles").where("orders > 0")
    assert lists.where("count != 10").count() == 0
    assert buyers.join(lists, "user_id", "left_anti").count() == 0


def test_a_user_who_never_bought_is_recommended_what_many_buy(store: Store, shop: Shop) -> None:
    now = store.read("gold.product_features").where("role = 'now' AND is_offered").select("product_id", "baskets")
    listed = store.read("gold.recommendations").where(f"user_id = '{shop.newcomer}'").join(now, "product_id")
    baskets = [row.baskets for row in listed.collect()]
    assert len(baskets) == 10
    assert sum(baskets) / 10 > 3 * now.agg({"baskets": "avg"}).first()[0]


def test_it_ends_with_one_page(first_run: SuiteRun, shop: Shop) -> None:
    page = first_run.out[first_run.out.index("corner in ") :]
    assert re.search(rf"bronze\.corner_transactions +{shop.rows['transactions']:,} +{shop.rows['transactions']:,} +0 +0", page)
    for step in ("bronze", "silver", "gold", "features", "train", "score", "together"):
        assert re.search(rf"^  {step} +\d+\.\d s$", page, re.MULTILINE)
    for ranker in ("wide & deep", "popularity", "personal frequency"):
        assert ranker in page
    assert len(re.findall(r"^user \w+ of corner: [\d,]+ orders from 2017-\d\d-\d\d to ", page, re.MULTILINE)) == 3
    assert page.count("bought most") == page.count("recommended") == 3
    reason = (
        r"(bought (once|\d+ times)|goes with .+, which you bought|goes with what you bought|you bought its kind .+|many buy it)"
    )
    assert len(re.findall(rf"^.{{14,16}} *\d\.\d{{3}}  .+: {reason}(, every \d+ days)?$", page, re.MULTILINE)) == 3 * 5
    assert "ItemKNN" in page
    assert page.splitlines()[-1] == f"report: {first_run.lake}/report.html"
    assert first_run.err == ""


def test_a_page_to_look_at_says_the_same(first_run: SuiteRun, shop: Shop) -> None:
    page = first_run.page
    assert "All 6 steps done" in page
    assert f">{shop.rows['transactions']:,}</td>" in page
    assert page.count("Bought most, in orders") == 3
    assert re.findall(r"<h3>User (\w+)</h3>", page) == re.findall(r"^user (\w+) of", first_run.out, re.MULTILINE)
    assert "This page shows single users" in page
    assert "wares_corner@1" in page
    assert page.count("built in full") > 15
    assert "Could not be read" not in page


def test_a_second_run_with_nothing_new_writes_nothing(store: Store, first_run: SuiteRun, shop: Shop) -> None:
    before = {name: store.version(name) for name in TABLES}
    # Somebody takes the alias away: without it nothing could be scored, and no training would be due.
    registry.connect(store.settings).delete_registered_model_alias("wares_corner", registry.CHAMPION)
    second = run_suite(shop, first_run.lake)
    assert second.code == 0, second.out + second.err
    assert "Nothing was new: all" in second.page
    assert {name: store.version(name) for name in TABLES} == before
    assert "rows in, " not in second.out.partition("corner in ")[0]
    assert "wares_corner@1: unchanged, it is the champion" in second.out
    assert_names_nobody(second, [row["user_id"] for row in store.read("gold.user_profiles").collect()])


def assert_names_nobody(run: SuiteRun, users: list[str]) -> None:
    """Without `--show-users` there is no user and no single one's purchase, neither in the text nor on the page."""
    assert len(users) == 9
    for told in (run.out + run.err, run.page):
        # Ids are numbers, which rows and products have too.
        assert not re.search(rf"\b(user|household)(_id| id)?\W{{0,3}}({'|'.join(users)})\b", told, re.IGNORECASE)
        assert not re.search(r"bought (most|once|\d+ times)|which you bought|orders from", told, re.IGNORECASE)
    listed = r"^recommended to most users of corner \(how many, of 9 with a list\)\n( +[5-9]  .+\n)+"
    assert re.search(listed, run.out, re.MULTILINE)
    assert "This page names no user." in run.page


def test_only_users_whose_features_changed_are_ranked_anew(
    spark: SparkSession, first_run: SuiteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert first_run.code == 0
    copytree(first_run.lake, tmp_path / "lake")
    chosen = {"lake": {"root": str(tmp_path / "lake")}, "train": {"epochs": 1}}
    seen = tmp_path / "seen"
    seen.mkdir()

    class Watched(Ranker):
        """Leaves a file for each user that it ranks."""

        def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            def watched() -> Iterator[pa.RecordBatch]:
                for batch in batches:
                    for user in batch.column("user_id").to_pylist():
                        (seen / user).touch()
                    yield batch

            return super().__call__(watched())

    def ranked_by(settings: Score) -> tuple[Outcome, set[str], dict[tuple[str, int], tuple[str, float]]]:
        with Store(spark, Settings.model_validate({**chosen, "score": settings.model_dump()}), TABLES, "test") as store:
            outcome = score(store)
            rows = store.read("gold.recommendations").collect()
        users = {file.name for file in seen.iterdir()}
        for file in seen.iterdir():
            file.unlink()
        return outcome, users, {(row["user_id"], row["rank"]): (row["product_id"], row["score"]) for row in rows}

    monkeypatch.setattr(scoring, "Ranker", Watched)
    outcome, users, before = ranked_by(Score())
    assert (outcome.status, users) == ("unchanged", set())
    everyone = {user for user, _ in before}
    someone = min(everyone)
    features = f"delta.`{tmp_path}/lake/gold/user_features`"
    spark.sql(
        f"UPDATE {features} SET age_band = NULL, baskets = 900, days_since = 90 WHERE user_id = '{someone}' AND role = 'now'"
    )
    outcome, users, after = ranked_by(Score())
    assert (outcome.status, outcome.why, users) == ("changed", "", {someone})
    assert {user for user, _ in dict(set(before.items()) ^ set(after.items()))} == {someone}
    # Other settings hold for all, as another champion does; and alone a user gets the list that comes of all together.
    outcome, users, _ = ranked_by(Score(candidates="history"))
    assert (outcome.why, users) == ("scorer has changed, which is no table", everyone)
    outcome, users, together = ranked_by(Score())
    assert users == everyone
    assert {place: product for place, (product, _) in together.items()} == {
        place: product for place, (product, _) in after.items()
    }
    assert all(isclose(score, after[place][1], abs_tol=1e-6) for place, (_, score) in together.items())
