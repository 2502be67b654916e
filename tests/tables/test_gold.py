"""What the gold tables for people make of hand-written rows. The feature tables have tests of their own."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any

from helpers import rows_of
from pyspark.sql import DataFrame, Row, SparkSession
from wares.tables.gold import histories, interactions, product_profiles, sales_daily, user_profiles
from wares.tables.silver import events, orders, products, promotions, users


def order(
    number: str, user: str | None, product: str, at: datetime, quantity: int = 1, value: str = "1", **more: Any
) -> dict[str, Any]:
    amounts = {"quantity": Decimal(quantity), "value": Decimal(value), "currency": "EUR"}
    defaults = {"source": "s", "line": "1", "store_id": "7", "kind": "sale", "ordered_on": at.date()}
    return {"order_id": number, "user_id": user, "product_id": product, "ordered_at": at, **amounts, **defaults, **more}


def by(frame: DataFrame, *keys: str) -> dict[Any, Row]:
    """The collected rows by key; no two may share it."""
    rows = frame.collect()
    found = {tuple(row[key] for key in keys) if len(keys) > 1 else row[keys[0]]: row for row in rows}
    assert len(found) == len(rows)
    return found


def test_interactions(spark: SparkSession) -> None:
    silver_orders = rows_of(
        spark,
        orders.TABLE,
        order("1", "ann", "p", datetime(2024, 1, 1, 12), 2, "3.5"),
        order("2", "ann", "p", datetime(2024, 1, 2, 11, 59, 59)),
        order("3", "bob", "q", datetime(2024, 1, 2, 12)),
        order("4", None, "p", datetime(2023, 12, 31)),  # a guest, who does not start the count of days either
        order("5", "bob", "p", datetime(2023, 12, 30), -1, "-1", kind="return"),
        order("6", "bob", "post", datetime(2023, 12, 30), kind="fee"),
        order("1", "cid", "p", datetime(2024, 6, 1), source="t", store_id=None),
    )
    silver_events = rows_of(
        spark,
        events.TABLE,
        {
            "source": "s",
            "event_id": "e1",
            "user_id": "ann",
            "kind": "coupon",
            "product_id": "p",
            "at": datetime(2024, 1, 1, 11, 59),
        },
        {"source": "s", "event_id": "e2", "user_id": "ann", "kind": "view", "at": datetime(2024, 1, 3)},
        {"source": "s", "event_id": "e3", "user_id": "ann", "kind": "mailing", "product_id": "p", "at": datetime(2024, 1, 3)},
        {"source": "s", "event_id": "e4", "kind": "view", "product_id": "p", "at": datetime(2024, 1, 3)},
    )

    def promotion(product: str, store: str, first: int, last: int, display: str, mailer: str) -> dict[str, Any]:
        days = {"starts_on": date(2024, 1, first), "ends_on": date(2024, 1, last)}
        return {"source": "s", "product_id": product, "store_id": store, "display": display, "mailer": mailer, **days}

    silver_promotions = rows_of(
        spark,
        promotions.TABLE,
        promotion("p", "7", 1, 1, "5", "none"),
        promotion("p", "7", 1, 1, "6", "none"),  # twice on display is one sale still
        promotion("p", "7", 2, 8, "none", "A"),
        promotion("q", "8", 1, 8, "5", "A"),  # another store
    )
    gold_histories = histories.build(silver_orders)
    assert {tuple(row) for row in gold_histories.collect()} == {
        ("s", datetime(2024, 1, 1, 12), datetime(2024, 1, 2, 12)),
        ("t", datetime(2024, 6, 1), datetime(2024, 6, 1)),
    }
    built = interactions.build(silver_orders, silver_events, silver_promotions, gold_histories)
    found = by(built, "source", "kind", "reference")
    columns = ("user_id", "product_id", "line", "day", "quantity", "value", "on_display", "in_mailer")
    assert {key: tuple(row[name] for name in columns) for key, row in found.items()} == {
        ("s", "purchase", "1"): ("ann", "p", "1", 0, Decimal(2), Decimal("3.5"), True, False),
        ("s", "purchase", "2"): ("ann", "p", "1", 0, Decimal(1), Decimal(1), False, True),
        ("s", "purchase", "3"): ("bob", "q", "1", 1, Decimal(1), Decimal(1), False, False),
        ("t", "purchase", "1"): ("cid", "p", "1", 0, Decimal(1), Decimal(1), False, False),
        ("s", "coupon", "e1"): ("ann", "p", "", -1, None, None, None, None),
    }


def test_user_profiles(spark: SparkSession) -> None:
    def purchase(user: str, reference: str, product: str, day: int, value: str, **more: Any) -> dict[str, Any]:
        row = {"source": "s", "kind": "purchase", "user_id": user, "reference": reference, "line": product, "product_id": product}
        return {
            **row,
            "day": day,
            "at": datetime(2024, 1, 1 + day % 28, day // 28),
            "value": Decimal(value),
            "currency": "EUR",
            **more,
        }

    gold_interactions = rows_of(
        spark,
        interactions.TABLE,
        purchase("ann", "1", "milk", 0, "1.10"),
        purchase("ann", "1", "rye", 0, "2"),
        purchase("ann", "2", "milk", 10, "1.10"),  # 90 days before the last day: no longer recent
        purchase("ann", "3", "milk", 11, "1.20"),
        purchase("bob", "4", "rye", 100, "2"),
        purchase("bob", "4", "oat", 100, "3", currency="GBP", at=datetime(2024, 5, 1)),
        purchase("bob", "5", "milk", 99, "1"),
        purchase("ann", "6", "oat", 3, "9", kind="coupon"),  # no purchase
    )
    silver_users = rows_of(
        spark,
        users.TABLE,
        {"source": "s", "user_id": "ann", "age_band": "25-34", "country": "Malta", "updated_at": datetime(2024, 1, 1)},
        {"source": "s", "user_id": "cid", "home": "Owner"},
    )
    silver_products = rows_of(
        spark,
        products.TABLE,
        {"source": "s", "product_id": "milk", "category": "DAIRY"},
        {"source": "s", "product_id": "rye", "category": "BREAD"},
        {"source": "s", "product_id": "oat"},
        {"source": "t", "product_id": "oat", "category": "WRONG SHOP"},
    )
    # The 101st day is the last: 100 whole days and some hours after the first sale.
    history = {"source": "s", "first_at": datetime(2024, 1, 1), "last_at": datetime(2024, 4, 10, 23)}
    gold_histories = rows_of(spark, histories.TABLE, history)
    found = by(user_profiles.build(gold_interactions, silver_users, silver_products, gold_histories), "user_id")
    columns = ("age_band", "country", "home", "orders", "products", "spend", "spend_90d", "currency", "favourite_category")
    assert {user: tuple(row[name] for name in columns) for user, row in found.items()} == {
        "ann": ("25-34", "Malta", None, 3, 2, Decimal("5.4"), Decimal("1.2"), "EUR", "DAIRY"),
        "bob": (None, None, None, 2, 3, Decimal(6), Decimal(6), "GBP", "DAIRY"),  # one order each: the last by name
        "cid": (None, None, "Owner", 0, 0, Decimal(0), Decimal(0), None, None),
    }
    assert (found["ann"]["first_at"], found["ann"]["last_at"]) == (datetime(2024, 1, 1), datetime(2024, 1, 12))


FIVE = ("ann", "bob", "cid", "dan", "eve")


def test_product_profiles(spark: SparkSession) -> None:
    """What fewer than five known users bought shows no sales, and no product that nobody described."""

    def bought_by(users: tuple[str, ...], product: str, day: int) -> list[dict[str, Any]]:
        return [order(f"{product}-{user}", user, product, datetime(2024, 1, day)) for user in users]

    silver_orders = rows_of(
        spark,
        orders.TABLE,
        *bought_by(FIVE, "milk", 1),
        order("2", "ann", "milk", datetime(2024, 1, 2), 2, "3.5"),
        order("3", None, "milk", datetime(2024, 1, 3), 3, "4", currency="GBP"),  # a guest counts as sales, not as a buyer
        order("4", "fay", "milk", datetime(2024, 1, 4), -1, "-1", kind="return"),
        *bought_by(FIVE[:4], "rye", 5),
        order("5", "ann", "rye", datetime(2024, 1, 5)),
        order("6", None, "rye", datetime(2024, 1, 5)),
        *bought_by(FIVE, "new", 6),
        *bought_by(FIVE[:4], "rare", 6),
    )
    silver_products = rows_of(
        spark,
        products.TABLE,
        {"source": "s", "product_id": "milk", "name": "Milk", "category": "DAIRY", "is_offered": True},
        {"source": "s", "product_id": "rye", "name": "Rye", "category": "BREAD", "is_offered": True},
        {"source": "s", "product_id": "post", "name": "Postage", "is_offered": False},
    )
    found = by(product_profiles.build(silver_orders, silver_products), "product_id")
    columns = ("name", "category", "is_offered", "buyers", "orders", "units", "revenue", "price", "currency", "last_at")
    withheld = (None,) * 7
    assert {product: tuple(row[name] for name in columns) for product, row in found.items()} == {
        "milk": ("Milk", "DAIRY", True, 5, 7, Decimal(10), Decimal("12.5"), Decimal("1.25"), "GBP", datetime(2024, 1, 3)),
        "rye": ("Rye", "BREAD", True, *withheld),
        "post": ("Postage", None, False, *withheld),
        "new": (None, None, True, 5, 5, Decimal(5), Decimal(5), Decimal(1), "EUR", datetime(2024, 1, 6)),
    }


def test_sales_daily(spark: SparkSession) -> None:
    """A day needs five known users in all, and each number five of its own."""
    days = [datetime(2024, 1, day, 9) for day in (1, 2, 3)]
    silver_orders = rows_of(
        spark,
        orders.TABLE,
        *(order(f"1-{user}", user, "milk", days[0], 2, "3", line="1") for user in FIVE),
        order("1-ann", "ann", "cream", days[0], 1, "2", line="2"),
        order("2", None, "milk", days[0], 1, "1.5"),
        *(order(f"3-{user}", user, "milk", days[0], -1, "-1.5", kind="return") for user in FIVE[:4]),
        *(order(f"4-{user}", user, "post", days[0], 1, "18", kind="fee") for user in FIVE),
        *(order(f"5-{user}", user, "milk", days[0], 1, "1.4", currency="GBP") for user in FIVE[1:]),
        order("5", None, "milk", days[0], 1, "1.4", currency="GBP"),
        *(order(f"6-{user}", user, "milk", days[1]) for user in FIVE[:4]),
        order("6-ann-again", "ann", "cream", days[1]),
        *(order(f"7-{user}", user, "milk", days[2]) for user in FIVE[:2]),
        *(order(f"8-{user}", user, "milk", days[2], -1, "-1", kind="return") for user in FIVE[2:]),
    )
    silver_products = rows_of(
        spark,
        products.TABLE,
        {"source": "s", "product_id": "milk", "category": "DAIRY"},
        {"source": "s", "product_id": "cream", "category": "DAIRY"},
        {"source": "s", "product_id": "post"},
    )
    found = by(sales_daily.build(silver_orders, silver_products), "ordered_on", "category", "currency")
    columns = ("source", "orders", "buyers", "units", "revenue", "returns", "fees")
    assert {key: tuple(row[name] for name in columns) for key, row in found.items()} == {
        (date(2024, 1, 1), "DAIRY", "EUR"): ("s", 6, 5, Decimal(12), Decimal("18.5"), None, None),
        (date(2024, 1, 1), "unknown", "EUR"): ("s", None, None, None, None, None, Decimal(90)),
        (date(2024, 1, 3), "DAIRY", "EUR"): ("s", None, None, None, None, None, None),
    }
