"""Each feature table's build on a few hand-written rows, with hand-written answers."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from helpers import frame_of, rows_of
from pyspark.sql import DataFrame, SparkSession
from wares.tables.gold import affinities, examples, moments, pair_features, product_features, type_features, user_features
from wares.tables.silver import promotions

START = datetime(2024, 1, 1, 9)
INTERACTIONS = (
    "source string, user_id string, product_id string, kind string, at timestamp, day int, quantity decimal(18,3), "
    "value decimal(18,4), on_display boolean, in_mailer boolean, reference string, line string"
)
MOMENTS = "source string, moment timestamp, role string, day int, span int"


def interactions(spark: SparkSession, *rows: tuple[str, str, int, str]) -> DataFrame:
    """Purchases from (user, product, day, basket): one unit at 2.00, on display in basket `d`."""
    made = [
        (
            "shop",
            user,
            product,
            "purchase",
            START + timedelta(days=day, hours=1),
            day,
            Decimal(1),
            Decimal(2),
            basket == "d",
            False,
            basket,
            product,
        )
        for user, product, day, basket in rows
    ]
    return frame_of(spark, made, INTERACTIONS)


def history(spark: SparkSession, last_day: int) -> DataFrame:
    """A source whose last sale is so many whole days, and an hour, after its first."""
    first = START + timedelta(hours=1)
    last = first + timedelta(days=last_day, hours=1)
    return frame_of(spark, [("shop", first, last)], "source string, first_at timestamp, last_at timestamp")


def at(spark: SparkSession, day: int, role: str = "train", span: int = 28) -> DataFrame:
    return frame_of(spark, [("shop", START + timedelta(days=day), role, day, span)], MOMENTS)


def products(spark: SparkSession) -> DataFrame:
    rows = [
        ("shop", "milk", True, "Farm", "Food", "Dairy", "Milk"),
        ("shop", "oat milk", True, "Mill", "Food", "Dairy", "Milk"),
        ("shop", "bag", False, None, None, None, None),
    ]
    return frame_of(
        spark,
        rows,
        "source string, product_id string, is_offered boolean, brand string, department string, category string, type string",
    )


def promoted(spark: SparkSession, *rows: tuple[str, str, date, date, str, str, datetime | None]) -> DataFrame:
    """Promotions from (product, store, first day, last day, display, mailer, known at)."""
    names = ("product_id", "store_id", "starts_on", "ends_on", "display", "mailer", "known_at")
    return rows_of(spark, promotions.TABLE, *({"source": "shop", **dict(zip(names, row, strict=True))} for row in rows))


def near(spark: SparkSession, moment: datetime, *rows: tuple[str, str, bool]) -> DataFrame:
    """Affinities from (user, product, whether it is new to the user)."""
    names = ("user_id", "product_id", "is_new")
    made = ({"source": "shop", "moment": moment, "ease": 0.5, **dict(zip(names, row, strict=True))} for row in rows)
    return rows_of(spark, affinities.TABLE, *made)


def users(spark: SparkSession) -> DataFrame:
    rows = [("shop", "ann", "25-34", None, None, None, None), ("shop", "eve", "45-54", None, None, None, None)]
    return frame_of(
        spark,
        rows,
        "source string, user_id string, age_band string, income_band string, household string, children string, country string",
    )


def kept(frame: DataFrame) -> DataFrame:
    """The same rows as plain data, so that neither a second look nor a table made of them plans and makes them again."""
    return frame_of(frame.sparkSession, frame.collect(), frame.schema)


def rows(frame: DataFrame, *columns: str) -> list[tuple[Any, ...]]:
    return sorted((tuple(row) for row in frame.select(*columns).collect()), key=str)


def test_moments_of_a_long_source(spark: SparkSession) -> None:
    built = moments.build(history(spark, 364)).collect()
    assert sorted((row.day, row.role, row.span) for row in built) == [
        (113, "train", 28),
        (141, "train", 28),
        (169, "train", 28),
        (197, "train", 28),
        (225, "train", 28),
        (253, "train", 28),
        (281, "train", 28),
        (309, "validation", 28),
        (337, "test", 28),
        (365, "now", 28),
    ]
    # A moment falls a whole number of days after the very first purchase.
    assert {row.moment for row in built if row.role == "test"} == {START + timedelta(days=337, hours=1)}


def test_moments_of_a_short_source(spark: SparkSession) -> None:
    built = moments.build(history(spark, 19))
    assert sorted((row.day, row.role, row.span) for row in built.collect()) == [
        (5, "train", 5),
        (10, "validation", 5),
        (15, "test", 5),
        (20, "now", 5),
    ]


def test_pair_features_count_what_was_before_the_moment(spark: SparkSession) -> None:
    bought = interactions(
        spark,
        ("ann", "milk", 0, "a"),
        ("ann", "milk", 40, "d"),
        ("ann", "milk", 80, "c"),
        ("ann", "milk", 100, "later"),
        ("eve", "bag", 99, "e"),
    )
    built = kept(pair_features.build(bought, at(spark, 100)))
    assert rows(
        built, "user_id", "product_id", "baskets", "baskets_month", "baskets_quarter", "days_since", "days_known", "gap"
    ) == [
        ("ann", "milk", 3, 1, 2, 20, 100, 40.0),
        ("eve", "bag", 1, 1, 1, 1, 1, None),
    ]
    ann = built.where("user_id = 'ann'").first()
    assert ann.due == pytest.approx(0.5)
    assert ann.promoted_share == pytest.approx(1 / 3)
    assert ann.recent == pytest.approx(2**-5 + 2**-3 + 2**-1)


def test_pair_features_tell_how_evenly_and_of_which_visits(spark: SparkSession) -> None:
    bought = interactions(
        spark,
        ("ann", "bag", 0, "z"),
        ("ann", "milk", 10, "a"),
        ("ann", "milk", 20, "b"),
        ("ann", "bag", 30, "c"),
        ("ann", "bag", 30, "d"),
        ("ann", "milk", 60, "e"),
        ("ann", "bag", 93, "f"),
        ("ann", "milk", 100, "later"),
    )
    built = kept(pair_features.build(bought, at(spark, 100)))
    milk, bag = built.where("product_id = 'milk'").first(), built.where("product_id = 'bag'").first()
    assert milk.fresh == pytest.approx(2 ** (-90 / 7) + 2 ** (-80 / 7) + 2 ** (-40 / 7))
    assert milk.lasting == pytest.approx(2 ** (-90 / 60) + 2 ** (-80 / 60) + 2 ** (-40 / 60))
    assert milk.unevenness == pytest.approx(15 / 25)  # 10 and 40 days between
    assert (milk.visits_since, milk.visit_share) == (1, pytest.approx(3 / 5))  # of the days 10, 20, 30, 60 and 93
    assert (bag.visits_since, bag.visit_share) == (0, pytest.approx(4 / 6))
    assert bag.unevenness == pytest.approx((((30 - 31) ** 2 + 31**2 + (63 - 31) ** 2) / 3) ** 0.5 / 31)
    assert rows(pair_features.build(bought, at(spark, 50)), "product_id", "visits_since", "unevenness") == [
        ("bag", 0, pytest.approx(1.0)),
        ("milk", 1, None),
    ]


def test_a_product_twice_in_a_basket_counts_once(spark: SparkSession) -> None:
    built = pair_features.build(interactions(spark, ("ann", "milk", 0, "a"), ("ann", "milk", 0, "a")), at(spark, 10))
    assert rows(built, "baskets") == [(1,)]


def test_type_features(spark: SparkSession) -> None:
    bought = interactions(
        spark, ("ann", "milk", 0, "a"), ("ann", "milk", 5, "b"), ("ann", "oat milk", 6, "c"), ("ann", "bag", 6, "c")
    )
    built = kept(type_features.build(pair_features.build(bought, at(spark, 10)), products(spark)))
    assert rows(built, "user_id", "type", "products", "lines", "days_since", "repeats") == [("ann", "Milk", 2, 3, 4, 1.5)]
    assert rows(built, "days_known", "due", "tried") == [(10, pytest.approx(4 / 3), 2)]
    later = type_features.build(pair_features.build(bought, at(spark, 130)), products(spark))
    assert rows(later, "days_known", "due", "tried") == [(130, 8.0, 0)]


def test_user_features(spark: SparkSession) -> None:
    bought = interactions(spark, ("ann", "milk", 0, "a"), ("ann", "milk", 40, "d"), ("ann", "bag", 40, "d"))
    now = at(spark, 50, "now")
    pairs = kept(pair_features.build(bought, now))
    types = kept(type_features.build(pairs, products(spark)))
    built = kept(user_features.build(bought, now, pairs, types, users(spark)))
    assert rows(
        built, "user_id", "age_band", "baskets", "baskets_month", "lines_month", "products", "days_since", "repeat_share"
    ) == [
        ("ann", "25-34", 2, 1, 2, 2, 10, 0.5),
        ("eve", "45-54", 0, 0, 0, 0, None, None),  # known, but never bought: scored now
    ]
    for role, there in (("train", ["ann"]), ("validation", ["ann", "eve"]), ("test", ["ann", "eve"])):
        built_then = user_features.build(bought, at(spark, 50, role), pairs, types, users(spark))
        assert [user for (user,) in rows(built_then, "user_id")] == there
    ann = built.where("user_id = 'ann'").first()
    assert (ann.baskets_quarter, ann.tried) == (2, 2)
    assert ann.recent == pytest.approx(2 ** (-50 / 20) + 2 ** (-10 / 20))
    assert ann.recent_products == ["milk", "bag"]
    assert ann.recent_types == ["Milk"]
    assert ann.basket_value == pytest.approx(3.0)
    assert ann.weekdays == [0.5, 0, 0, 0, 0, 0.5, 0]  # 1 January 2024 was a Monday, day 40 a Saturday


def test_product_features(spark: SparkSession) -> None:
    bought = interactions(
        spark, ("ann", "milk", 0, "a"), ("ann", "milk", 48, "d"), ("eve", "milk", 49, "e"), ("eve", "bag", 49, "e")
    )
    now = at(spark, 50, "now")
    pairs = kept(pair_features.build(bought, now))
    built = kept(product_features.build(bought, now, pairs, products(spark), promoted(spark)))
    assert rows(built, "product_id", "type", "is_offered", "baskets", "baskets_month", "buyers", "repeat_share", "price") == [
        ("bag", None, False, 1, 1, 1, 0.0, 2.0),
        ("milk", "Milk", True, 3, 2, 2, 0.5, 2.0),
        ("oat milk", "Milk", True, 0, 0, 0, None, None),  # offered, but never sold: can be recommended now
    ]
    milk = built.where("product_id = 'milk'").first()
    assert milk.weeks == [2, 0, 0, 0, 0, 0, 0, 1]
    assert milk.display_share == pytest.approx(0.5)
    assert (milk.new_buyers_month, milk.days_since, milk.days_known) == (1, 1, 50)
    assert milk.fresh == pytest.approx(2 ** (-50 / 7) + 2 ** (-2 / 7) + 2 ** (-1 / 7))
    assert milk.coming_display == milk.coming_mailer == [0, 0, 0, 0]


def test_product_features_see_the_coming_promotions_that_are_known(spark: SparkSession) -> None:
    bought = interactions(spark, ("ann", "milk", 0, "a"), ("ann", "bag", 0, "a"))
    now = at(spark, 7, "now")  # on Monday 8 January
    soon, then, late = date(2024, 1, 8), date(2024, 1, 11), date(2024, 1, 22)
    known = datetime(2024, 1, 8, 8, tzinfo=UTC)
    told = promoted(
        spark,
        ("milk", "north", soon, date(2024, 1, 14), "end of aisle", "none", known),
        ("milk", "south", then, date(2024, 1, 17), "front", "cover", known),  # four days of one week, three of the next
        ("milk", "south", late, date(2024, 1, 28), "none", "inside", datetime(2024, 1, 8, 10, tzinfo=UTC)),  # not yet known
        ("bag", "west", date(2024, 1, 1), date(2024, 1, 9), "front", "none", None),  # known since it began
        ("bag", "east", then, date(2024, 1, 20), "front", "none", None),  # it has not begun
        ("oat milk", "north", date(2023, 12, 1), date(2024, 1, 7), "front", "none", None),  # it is over
    )
    built = product_features.build(bought, now, kept(pair_features.build(bought, now)), products(spark), told)
    # Three stores are known to promote.
    assert rows(built, "product_id", "coming_display", "coming_mailer") == [
        ("bag", pytest.approx([2 / 21, 0, 0, 0]), [0, 0, 0, 0]),
        ("milk", pytest.approx([11 / 21, 3 / 21, 0, 0]), pytest.approx([4 / 21, 3 / 21, 0, 0])),
        ("oat milk", [0, 0, 0, 0], [0, 0, 0, 0]),
    ]


def test_examples(spark: SparkSession) -> None:
    bought = interactions(
        spark,
        ("ann", "milk", 0, "a"),
        ("ann", "bag", 9, "b"),
        ("ann", "milk", 10, "at the moment"),
        ("ann", "oat milk", 37, "within the span"),
        ("ann", "bag", 38, "after the span"),
        ("eve", "oat milk", 5, "e"),
        ("new", "milk", 20, "not known before"),
    )
    moment = at(spark, 10)
    moment = moment.selectExpr(
        "source", "moment + INTERVAL 1 HOUR AS moment", "role", "day", "span"
    )  # at the hour of the first purchase
    pairs = kept(pair_features.build(bought, moment))
    types = kept(type_features.build(pairs, products(spark)))
    people = kept(user_features.build(bought, moment, pairs, types, users(spark)))
    goods = kept(product_features.build(bought, moment, pairs, products(spark), promoted(spark)))
    hour = START + timedelta(days=10, hours=1)
    affine = near(spark, hour, ("ann", "milk", False), ("ann", "oat milk", True))
    built = kept(examples.build(bought, moment, people, goods, pairs, types, affine))
    assert [(field.name, field.dataType.simpleString()) for field in built.schema] == [
        (column.name, column.type) for column in examples.TABLE.columns
    ]
    found = {(row.user_id, row.product_id): row for row in built.collect()}
    assert {pair for pair, row in found.items() if row.label == 1} == {("ann", "milk"), ("ann", "oat milk")}
    assert found["ann", "milk"].pair_baskets == 1  # what was bought at the moment is a label, no feature
    assert found["ann", "milk"].weight == pytest.approx(1 / 2**-0.5)
    assert found["ann", "oat milk"].pair_baskets is None
    assert found["ann", "oat milk"].affinity_ease == found["ann", "milk"].affinity_ease == 0.5
    assert found["ann", "oat milk"].weight == 5  # what goes with the past, and is new, is taken at a rate of its own
    assert found["ann", "bag"].affinity_ease is None
    assert found["ann", "oat milk"].type_lines == 1  # the user had bought the type
    assert {user for user, _ in found} == {"ann", "eve"}
    assert {row.split for row in found.values()} == {"train"}


def test_examples_are_the_same_each_time(spark: SparkSession) -> None:
    bought = interactions(spark, *((f"u{n % 7}", f"p{n * n % 31}", n % 40, f"b{n}") for n in range(200)))
    moment = at(spark, 20)
    pairs = kept(pair_features.build(bought, moment))
    types = kept(type_features.build(pairs, products(spark)))
    people = kept(user_features.build(bought, moment, pairs, types, users(spark)))
    goods = kept(product_features.build(bought, moment, pairs, products(spark), promoted(spark)))
    affine = kept(affinities.build(pairs, moment))
    first, second = (
        rows(examples.build(bought, moment, people, goods, pairs, types, affine), "user_id", "product_id", "label", "weight")
        for _ in range(2)
    )
    assert first == second
    assert len(first) == len({row[:2] for row in first}) > 20


def test_a_share_of_what_goes_with_the_past_is_drawn(spark: SparkSession) -> None:
    people, goods = [f"u{n}" for n in range(12)], [f"p{n}" for n in range(40)]
    bought = interactions(spark, *((user, f"p{n % 40}", 3, user) for n, user in enumerate(people)), ("u0", "p0", 3, "u0"))
    bought = bought.unionByName(interactions(spark, *(("all", product, 2, "all") for product in goods)))
    moment = at(spark, 20)
    pairs = kept(pair_features.build(bought, moment))
    types = kept(type_features.build(pairs, products(spark)))
    known = kept(user_features.build(bought, moment, pairs, types, users(spark)))
    offered = kept(product_features.build(bought, moment, pairs, products(spark), promoted(spark)))
    own = {(user, f"p{n}") for n, user in enumerate(people)}
    new = [(user, product, True) for user in people for product in goods if (user, product) not in own]
    affine = near(spark, START + timedelta(days=20), *new)
    built = examples.build(bought, moment, known, offered, pairs, types, affine).where("user_id != 'all'").collect()
    taken = [row for row in built if row.pair_baskets is None]
    # All that is new to a user is among the affinities: nothing is there for having been drawn.
    assert {row.weight for row in taken} == {5.0}
    assert 0.14 < len(taken) / len(new) < 0.26
