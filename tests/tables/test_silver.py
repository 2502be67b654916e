"""What the silver tables make of hand-written rows, and which rows they refuse."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any

from chispa import assert_df_equality
from helpers import frame_of, rows_of
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import array, array_compact, expr, lit, when
from wares.lake.table import Table
from wares.tables.silver import events, orders, products, promotions, users


def broken(frame: DataFrame, table: Table) -> list[set[str]]:
    """For each row the names of the checks that it breaks; as in the store, a rule that gives null is kept."""
    rules = [when(expr(f"NOT coalesce({check.rule}, true)"), lit(check.name)) for check in table.checks]
    return [set(row["names"]) for row in frame.select(array_compact(array(*rules)).alias("names")).collect()]


def test_orders_fill_in_what_a_source_leaves_out(spark: SparkSession) -> None:
    def line(number: str, at: datetime, zone: str, **more: Any) -> dict[str, Any]:
        return {
            "source": "s",
            "order_id": "1",
            "line": number,
            "product_id": "p",
            "ordered_at": at,
            "currency": "USD",
            "_business_timezone": zone,
            **more,
        }

    night = datetime(2017, 1, 2, 3, 30)  # UTC; in New York still the evening before
    summer = datetime(2017, 7, 1, 23, 30)  # UTC; in London already the day after
    raw = rows_of(
        spark,
        orders.TABLE,
        line("a", night, "America/New_York", quantity=Decimal(2), unit_price=Decimal("1.25")),
        line("b", summer, "Europe/London", quantity=Decimal(3), value=Decimal("10")),
        line("c", night, "UTC", quantity=Decimal(-1), unit_price=Decimal("4.0001")),
        line("d", night, "UTC", quantity=Decimal(1), unit_price=Decimal(18), kind="fee"),
        line("e", night, "UTC", quantity=Decimal(0), value=Decimal(0)),
        line("f", night, "UTC", value=Decimal(5)),
        extra="_business_timezone string",
    )
    built = orders.build(raw).select("line", "ordered_on", "kind", "unit_price", "value")
    expected = [
        ("a", date(2017, 1, 1), "sale", Decimal("1.2500"), Decimal("2.5000")),
        ("b", date(2017, 7, 2), "sale", Decimal("3.3333"), Decimal("10.0000")),
        ("c", date(2017, 1, 2), "return", Decimal("4.0001"), Decimal("-4.0001")),
        ("d", date(2017, 1, 2), "fee", Decimal("18.0000"), Decimal("18.0000")),
        ("e", date(2017, 1, 2), "sale", None, Decimal("0.0000")),  # no price can be told from nothing for nothing
        ("f", date(2017, 1, 2), "sale", None, Decimal("5.0000")),
    ]
    assert_df_equality(built, frame_of(spark, expected, built.schema), ignore_row_order=True, ignore_nullable=True)


def test_orders_rules(spark: SparkSession) -> None:
    good = {
        "product_id": "p",
        "ordered_at": datetime(2024, 1, 1),
        "kind": "sale",
        "quantity": Decimal(1),
        "value": Decimal(1),
        "currency": "USD",
    }
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({}, set()),
        ({"product_id": ""}, {"has_product"}),
        ({"product_id": None}, {"has_product"}),
        ({"ordered_at": None}, {"has_time"}),
        ({"ordered_at": datetime(2999, 1, 1)}, {"not_in_future"}),
        ({"quantity": None}, {"has_value"}),
        ({"currency": None}, {"has_value"}),
        ({"kind": "gift"}, {"known_kind"}),
        ({"value": Decimal("-0.01")}, {"sale_not_negative"}),
        ({"kind": "return"}, {"return_not_positive"}),
        ({"kind": "return", "quantity": Decimal(-1), "value": Decimal(-1)}, set()),
        ({"kind": "fee", "quantity": Decimal(-1), "value": Decimal(-1)}, set()),
        ({"quantity": Decimal(0)}, {"quantity_not_zero"}),
    ]
    frame = rows_of(spark, orders.TABLE, *({**good, **change} for change, _ in cases))
    assert broken(frame, orders.TABLE) == [names for _, names in cases]
    assert {check.name for check in orders.TABLE.checks if check.severity == "warn"} == {"quantity_not_zero"}


def test_products_are_offered_unless_the_source_says_otherwise(spark: SparkSession) -> None:
    raw = rows_of(
        spark,
        products.TABLE,
        {"source": "s", "product_id": "1", "name": "Milk"},
        {"source": "s", "product_id": "2", "name": "Postage", "is_offered": False},
        {"source": "s", "product_id": "3", "name": "", "is_offered": True},
        {"source": "s", "product_id": "4"},
    )
    built = products.build(raw)
    assert [(row["product_id"], row["is_offered"]) for row in built.collect()] == [
        ("1", True),
        ("2", False),
        ("3", True),
        ("4", True),
    ]
    assert broken(built, products.TABLE) == [set(), set(), {"has_name"}, {"has_name"}]


def test_users_come_as_they_are_described(spark: SparkSession) -> None:
    raw = rows_of(
        spark,
        users.TABLE,
        {"source": "s", "user_id": "1", "age_band": "45-54", "country": "Malta"},
        {"source": "s", "user_id": "2"},
    )
    assert_df_equality(users.build(raw), raw)
    assert users.TABLE.newest == ("updated_at",)


def test_events_need_a_time_and_a_known_kind(spark: SparkSession) -> None:
    at = datetime(2024, 1, 1)
    raw = rows_of(
        spark,
        events.TABLE,
        {"source": "s", "event_id": "1", "user_id": "u", "kind": "coupon", "at": at, "detail": "campaign 8"},
        {"source": "s", "event_id": "2", "kind": "mailing", "at": at},
        {"source": "s", "event_id": "3", "kind": "view"},
        {"source": "s", "event_id": "4", "kind": "dance", "at": at},
        {"source": "s", "event_id": "5", "kind": "view", "at": datetime(2999, 1, 1)},
    )
    assert_df_equality(events.build(raw), raw)
    assert broken(raw, events.TABLE) == [set(), set(), {"has_time"}, {"known_kind"}, {"not_in_future"}]


def test_promotions_end_after_they_start(spark: SparkSession) -> None:
    def promotion(first: int | None, last: int | None) -> dict[str, Any]:
        days = {"starts_on": first and date(2017, 1, first), "ends_on": last and date(2017, 1, last)}
        return {"source": "s", "product_id": "p", "store_id": "7", "display": "none", "mailer": "A", **days}

    raw = rows_of(spark, promotions.TABLE, promotion(2, 8), promotion(2, 2), promotion(2, 1), promotion(2, None))
    assert_df_equality(promotions.build(raw), raw)
    assert broken(raw, promotions.TABLE) == [set(), set(), {"ends_after_start"}, {"ends_after_start"}]
