"""Each feature table's build on a few hand-written rows, with hand-written answers."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from helpers import frame_of
from pyspark.sql import DataFrame, SparkSession
from wares.tables.gold import examples, moments, pair_features, product_features, type_features, user_features

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


def users(spark: SparkSession) -> DataFrame:
    rows = [("shop", "ann", "25-34", None, None, None, None), ("shop", "eve", "45-54", None, None, None, None)]
    return frame_of(
        spark,
        rows,
        "source string, user_id string, age_band string, income_band string, household string, children string, country string",
    )


def kept(frame: DataFrame) -> DataFrame:
    """The same rows as plain data, so that a table made of tables does not carry all their plans."""
    return frame_of(frame.sparkSession, frame.collect(), frame.schema)


def rows(frame: DataFrame, *columns: str) -> list[tuple[Any, ...]]:
    return sorted((tuple(row) for row in frame.select(*columns).collect()), key=str)


def test_moments_of_a_long_source(spark: SparkSession) -> None:
    built = moments.build(history(spark, 364))
    assert sorted((row.day, row.role, row.span) for row in built.collect()) == [
        (197, "train", 28),
        (225, "train", 28),
        (253, "train", 28),
        (281, "train", 28),
        (309, "validation", 28),
        (337, "test", 28),
        (365, "now", 28),
    ]
    # A moment falls a whole number of days after the very first purchase.
    assert {row.moment for row in built.where("role = 'test'").collect()} == {START + timedelta(days=337, hours=1)}


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
    built = pair_features.build(bought, at(spark, 100))
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


def test_a_product_twice_in_a_basket_counts_once(spark: SparkSession) -> None:
    built = pair_features.build(interactions(spark, ("ann", "milk", 0, "a"), ("ann", "milk", 0, "a")), at(spark, 10))
    assert rows(built, "baskets") == [(1,)]


def test_type_features(spark: SparkSession) -> None:
    bought = interactions(
        spark, ("ann", "milk", 0, "a"), ("ann", "milk", 5, "b"), ("ann", "oat milk", 6, "c"), ("ann", "bag", 6, "c")
    )
    built = type_features.build(pair_features.build(bought, at(spark, 10)), products(spark))
    assert rows(built, "user_id", "type", "products", "lines", "days_since", "repeats") == [("ann", "Milk", 2, 3, 4, 1.5)]


def test_user_features(spark: SparkSession) -> None:
    bought = interactions(spark, ("ann", "milk", 0, "a"), ("ann", "milk", 40, "d"), ("ann", "bag", 40, "d"))
    now = at(spark, 50, "now")
    pairs = kept(pair_features.build(bought, now))
    built = user_features.build(bought, now, pairs, type_features.build(pairs, products(spark)), users(spark))
    assert rows(
        built, "user_id", "age_band", "baskets", "baskets_month", "lines_month", "products", "days_since", "repeat_share"
    ) == [
        ("ann", "25-34", 2, 1, 2, 2, 10, 0.5),
        ("eve", "45-54", 0, 0, 0, 0, None, None),  # known, but never bought: scored now
    ]
    ann = built.where("user_id = 'ann'").first()
    assert ann.recent_products == ["milk", "bag"]
    assert ann.recent_types == ["Milk"]
    assert ann.basket_value == pytest.approx(3.0)
    assert ann.weekdays == [0.5, 0, 0, 0, 0, 0.5, 0]  # 1 January 2024 was a Monday, day 40 a Saturday


def test_product_features(spark: SparkSession) -> None:
    bought = interactions(
        spark, ("ann", "milk", 0, "a"), ("ann", "milk", 48, "d"), ("eve", "milk", 49, "e"), ("eve", "bag", 49, "e")
    )
    now = at(spark, 50, "now")
    built = product_features.build(bought, now, pair_features.build(bought, now), products(spark))
    assert rows(built, "product_id", "type", "is_offered", "baskets", "baskets_month", "buyers", "repeat_share", "price") == [
        ("bag", None, False, 1, 1, 1, 0.0, 2.0),
        ("milk", "Milk", True, 3, 2, 2, 0.5, 2.0),
        ("oat milk", "Milk", True, 0, 0, 0, None, None),  # offered, but never sold: can be recommended now
    ]
    milk = built.where("product_id = 'milk'").first()
    assert milk.weeks == [2, 0, 0, 0, 0, 0, 0, 1]
    assert milk.display_share == pytest.approx(0.5)


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
    goods = kept(product_features.build(bought, moment, pairs, products(spark)))
    built = kept(examples.build(bought, moment, people, goods, pairs, types))
    assert [(field.name, field.dataType.simpleString()) for field in built.schema] == [
        (column.name, column.type) for column in examples.TABLE.columns
    ]
    found = {(row.user_id, row.product_id): row for row in built.collect()}
    assert {pair for pair, row in found.items() if row.label == 1} == {("ann", "milk"), ("ann", "oat milk")}
    assert found["ann", "milk"].pair_baskets == 1  # what was bought at the moment is a label, no feature
    assert found["ann", "milk"].weight == pytest.approx(1 / 2**-0.5)
    assert found["ann", "oat milk"].pair_baskets is None
    assert found["ann", "oat milk"].type_lines == 1  # the user had bought the type
    assert found["ann", "oat milk"].user_baskets == 2
    assert {user for user, _ in found} == {"ann", "eve"}
    assert {row.split for row in found.values()} == {"train"}


def test_examples_are_the_same_each_time(spark: SparkSession) -> None:
    bought = interactions(spark, *((f"u{n % 7}", f"p{n * n % 31}", n % 40, f"b{n}") for n in range(200)))
    moment = at(spark, 20)
    pairs = kept(pair_features.build(bought, moment))
    types = kept(type_features.build(pairs, products(spark)))
    people = kept(user_features.build(bought, moment, pairs, types, users(spark)))
    goods = kept(product_features.build(bought, moment, pairs, products(spark)))
    first, second = (
        rows(examples.build(bought, moment, people, goods, pairs, types), "user_id", "product_id", "label", "weight")
        for _ in range(2)
    )
    assert first == second
    assert len(first) == len({row[:2] for row in first}) > 20
