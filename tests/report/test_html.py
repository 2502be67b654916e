"""The page: what it shows, what it never shows, and where it is put."""

from __future__ import annotations

from datetime import date
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up import FIRST, HOSTILE, USER, report, sales, summary, users
from pyspark.sql import SparkSession
from wares.errors import StorageError
from wares.pipeline import Step
from wares.report import html
from wares.report.html import as_html, chart, compact, date_ticks, nice, percent, seconds, write_page
from wares.report.summary import Model, Popular, Sales

VOID = {"meta", "link", "img", "br", "hr", "input", "path"}


class Page(HTMLParser):
    """The tags and the text of a page; each tag must be closed where it was opened."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


def test_it_shows_each_part() -> None:
    page = Page(as_html(summary()))
    for told in (
        "All 6 steps done",
        "/data/lakes/north/shop",
        "2026-11-30 03:30 to 03:47 UTC",
        "20261130T033000-0a1b20 to 20261130T033005-0a1b25",
        "orders 1,469,307 1,465,002 1,336 2,969",
        "1,336 of 1,469,307 rows quarantined, 0.09 % ordered_at: no timestamp 903 not_in_the_future 411",
        "silver.orders source_product_id_in_silver.products 87",
        "USD a week",
        "EUR a day",
        "wide & deep 0.4355 0.4212 to 0.4485 0.1000",
        "up to 32 baskets before 0.2554",
        "5 tables were written, 2 were left as they were.",
        "silver.orders followed a change 4,193 12 0",
        "gold.pair_features built in full rows of gold.moments were changed 6,046,605 0 6,010,118",
        "silver.orders: 4,210 rows, 1,900 are usual",
        "Bananas 40 lb 1,188 users",
        "train 10 min 11 s",
        "gold.pair_features 1 min 06 s",
        "This page names no user.",
    ):
        assert told in page.text, told
    assert "rejected" not in page.text


def test_it_needs_nothing_but_itself() -> None:
    page = Page(as_html(summary(shows_users=True, users=users())))
    used = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href", "action", "srcset")]
    assert [place for place in used if not place.startswith(("#", "data:"))] == []
    assert not {"script", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    assert [name for _, attrs in page.tags for name in attrs if name.startswith("on")] == []


def test_every_link_within_the_page_leads_somewhere() -> None:
    for made in (summary(), summary(rows=(), models=(), sales=(), popular=())):
        page = Page(as_html(made))
        ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
        assert {attrs["href"].removeprefix("#") for tag, attrs in page.tags if tag == "a"} <= ids


def test_what_the_shop_wrote_is_no_markup() -> None:
    bad = '"><img src=x onerror=alert(1)>'
    made = summary(
        sources=(bad,),
        shows_users=True,
        users=users(),
        popular=(Popular(bad, None, ((HOSTILE, 9),)),),
        sales=(Sales(bad, bad, sales("USD", 9, 10.0).days),),
        models=(Model(bad, 1, report()),),
    )
    found = as_html(made)
    page = Page(found)
    assert HOSTILE in page.text
    assert bad in page.text
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert HOSTILE not in found


def test_users_are_there_only_if_they_were_asked_for() -> None:
    assert USER not in as_html(summary())
    page = Page(as_html(summary(shows_users=True, users=users())))
    assert page.text.count("This page shows single users' purchases.") == 2
    assert f"User {USER} shop, 27 orders from 2017-01-22 to 2017-12-23 ; as-of date 2018-01-01" in page.text
    assert "0.440 Dry dog food 16.3 lb bought 4 times, every 23 days" in page.text
    assert "1,188 users" not in page.text


def test_a_failed_step_is_named() -> None:
    steps = (Step("bronze", "done", 3.0), Step("silver", "failed", 1.0), Step("gold", "left out"))
    page = Page(as_html(summary(steps=steps, unread=("gold.sales_daily",))))
    assert "2 of 3 steps not done" in page.text
    assert "silver: failed gold: left out" in page.text
    assert "Could not be read from the lake: gold.sales_daily." in page.text
    assert "All" not in page.text.split("Lake")[0]
    assert "these lists may be those of an earlier run" in page.text


def test_what_is_not_there_is_said() -> None:
    page = Page(as_html(summary(models=(), sales=(), popular=(), outcomes=(), broken=(), rows=summary().rows[:3], runs={})))
    for told in (
        "There is no model yet.",
        "There are no sales to show.",
        "There are no lists yet.",
        "The run came to no table.",
        "No row is quarantined.",
        "none: nothing was written",
    ):
        assert told in page.text
    assert "No product is in the lists" in Page(as_html(summary(popular=(Popular("shop", None, ()),)))).text


def test_a_lake_without_tables() -> None:
    nothing = {"rows": (), "broken": (), "outcomes": (), "sales": (), "models": (), "popular": (), "runs": {}}
    page = Page(as_html(summary(**nothing, steps=(Step("bronze", "failed", 0.2),))))
    assert "The lake holds no table yet." in page.text
    assert "Run time 0.2 s" in page.text


def test_a_night_with_nothing_new() -> None:
    outcomes = tuple(outcome for outcome in summary().outcomes if outcome.status == "unchanged")
    assert "Nothing was new: all 2 tables are as they were." in Page(as_html(summary(outcomes=outcomes))).text


def test_a_baseline_that_is_surely_better_is_warned_of() -> None:
    page = Page(as_html(summary(models=(Model("shop", 3, report(ease_on_new=0.07)),))))
    assert "On first-time purchases, EASE is surely better than wide & deep." in page.text
    assert [attrs["class"] for _, attrs in page.tags if attrs.get("class") == "dot better"] == ["dot better"]


def test_measures_of_few_users_are_not_shown() -> None:
    few = report()
    few["all"]["users"] = few["users"] = few["activity"][0]["users"] = 4
    page = Page(as_html(summary(models=(Model("shop", 3, few),))))
    assert "All purchases 4 users Not shown of fewer than 5 users." in page.text
    assert "0.4355" not in page.text
    assert "up to 32 baskets before" not in page.text
    assert "promise" not in page.text


def test_sales_are_summed_by_what_the_time_asks_for() -> None:
    assert [chart(sales("USD", days, 1.0)).unit for days in (62, 63, 910, 911)] == ["day", "week", "week", "month"]
    found = chart(Sales("shop", "USD", tuple((date(2017, 1, day), 10.0) for day in (4, 8, 9)) + ((date(2017, 4, 1), 1.0),)))
    assert [(point.name, point.value) for point in found.points] == [
        ("week of 2017-01-02", 20.0),
        ("week of 2017-01-09", 10.0),
        ("week of 2017-03-27", 1.0),
    ]
    assert found.line == "M0.00,0.00 L8.33,50.00 L100.00,95.00"
    assert found.values == [(0.0, "0"), (25.0, "5"), (50.0, "10"), (75.0, "15"), (100.0, "20")]
    assert [(round(left, 2), round(width, 2)) for _, left, width in found.spots] == [(0, 4.17), (4.17, 50.0), (54.17, 45.83)]


def test_a_single_day_has_no_line() -> None:
    assert "M0" not in as_html(summary(sales=(Sales("shop", "USD", ((FIRST, 12.0),)),)))
    assert chart(Sales("shop", "USD", ((FIRST, 0.0),))).total == 0


@pytest.mark.parametrize(("highest", "end", "step"), [(143_000, 150_000, 50_000), (0.6156, 0.8, 0.2), (4.0, 4.0, 1.0), (0, 1, 1)])
def test_axes_end_at_round_numbers(highest: float, end: float, step: float) -> None:
    assert nice(highest) == (pytest.approx(end), pytest.approx(step))


@pytest.mark.parametrize(
    ("first", "last", "labels"),
    [
        (date(2017, 1, 2), date(2017, 12, 31), ["Mar 2017", "May 2017", "Jul 2017", "Sep 2017", "Nov 2017"]),
        (date(2015, 6, 1), date(2018, 3, 1), ["Jul 2015", "Jan 2016", "Jul 2016", "Jan 2017", "Jul 2017", "Jan 2018"]),
        (date(2017, 1, 30), date(2017, 2, 3), ["30 Jan", "31 Jan", "1 Feb", "2 Feb", "3 Feb"]),
        (date(2017, 1, 2), date(2017, 1, 2), ["2 Jan"]),
    ],
)
def test_dates_below_an_axis_are_few(first: date, last: date, labels: list[str]) -> None:
    assert [label for _, label in date_ticks(first, last)] == labels


def test_numbers_as_people_read_them() -> None:
    assert [compact(value) for value in (0, 0.05, 500, 1500, 150_000, 2_500_000)] == ["0", "0.05", "500", "1.5k", "150k", "2.5M"]
    shares = [percent(part, 10_000).replace("\N{NO-BREAK SPACE}", " ") for part in (0, 0.5, 5, 90)]
    assert shares == ["0.0 %", "< 0.01 %", "0.05 %", "0.9 %"]
    assert percent(0, 0) == percent(0, 1)
    assert [seconds(value) for value in (0.04, 59.9, 61, 3720)] == ["0.0 s", "59.9 s", "1 min 01 s", "1 h 02 min"]


def test_it_takes_the_place_of_the_one_before(tmp_path: Path, spark: SparkSession) -> None:
    """In a local folder, and through Spark's file systems."""
    for root in (str(tmp_path), tmp_path.as_uri()):
        for page in ("before", "Käse"):
            assert write_page(spark, root, page) == f"{root}/report.html"
        assert (tmp_path / html.FILE).read_text(encoding="utf-8") == "Käse"
        assert {file.name for file in tmp_path.iterdir()} <= {"report.html", ".report.html.crc"}  # which is Hadoop's own
        with pytest.raises(StorageError, match="no folder|nothing at"):
            write_page(spark, f"{root}/none", "page")
    assert not (tmp_path / "none").exists()
