"""A made-up run of the suite, so that the page can be looked at without a lake."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from math import sin
from typing import Any

from wares.lake.meta import Account, Outcome
from wares.pipeline import Step
from wares.report.summary import Broken, Model, Popular, Product, Rows, Sales, Summary, User

HOSTILE = "<script>alert('milk')</script>"
"""A product's name that would be a script if it were not escaped."""
USER = "user-4711"
FIRST = date(2017, 1, 2)
ROWS = {
    "bronze.shop_transactions": (1_469_307, 1_469_307, 0, 0),
    "bronze.shop_products": (92_331, 92_331, 0, 0),
    "bronze.shop_promotions": (20_940_529, 20_940_529, 0, 0),
    "silver.orders": (1_469_307, 1_465_002, 1_336, 2_969),
    "silver.products": (92_331, 92_331, 0, 0),
    "silver.users": (801, 795, 6, 0),
    "gold.interactions": (1_465_002, 1_465_002, 0, 0),
    "gold.pair_features": (6_046_605, 6_046_605, 0, 0),
    "gold.sales_daily": (52_114, 52_114, 0, 0),
    "gold.recommendations": (24_690, 24_690, 0, 0),
}
RANKERS = {
    "wide_deep": (0.4355, 0.4212, 0.4485),
    "popularity": (0.1823, 0.1741, 0.1904),
    "frequency": (0.3977, 0.3853, 0.4114),
    "decayed": (0.4139, 0.4002, 0.4263),
    "ease": (0.3614, 0.3490, 0.3738),
    "item_knn": (0.1658, 0.1574, 0.1738),
}


def interval(mean: float | None, low: float | None, high: float | None) -> dict[str, float | None]:
    return {"mean": mean, "low": low, "high": high}


def report(ease_on_new: float = 0.0485) -> dict[str, Any]:
    """A model's report on the test days.

    Args:
        ease_on_new: How well EASE finds first-time purchases.
    """
    more = {name: interval(0.1, 0.09, 0.11) for name in ("recall@10", "map@10", "diversity", "novelty")}
    every = {name: {"ndcg@10": interval(*found), **more, "coverage": {"mean": 0.0743}} for name, found in RANKERS.items()}
    new = {name: {**found, "ndcg@10": interval(0.04, 0.036, 0.044)} for name, found in every.items()}
    new["ease"]["ndcg@10"] = interval(ease_on_new, ease_on_new - 0.004, ease_on_new + 0.004)
    new["wide_deep"]["ndcg@10"] = interval(0.0592, 0.0551, 0.0639)
    every["wide_deep"] |= {"calibration": {"mean": 1.04}, "log_loss": interval(0.002, 0.001, 0.003), "auc": interval(0.9, 0.8, 1)}
    groups = [([1, 32], 0.2554), ([32, 71], 0.4354), ([71, 760], 0.6156)]
    return {
        "users": 2007,
        "products": 41_000,
        "all": {"users": 2007, **every},
        "first_time": {"users": 1975, **new},
        "activity": [
            {"baskets": baskets, "users": 669, "ndcg@10": interval(mean, mean - 0.02, mean + 0.02)} for baskets, mean in groups
        ],
    }


def sales(currency: str, days: int, size: float) -> Sales:
    """Daily revenue that goes up and down."""
    values = (size * (1.3 + 0.4 * sin(day / 25) + 0.25 * sin(day * 0.9)) for day in range(days))
    return Sales("shop", currency, tuple((FIRST + timedelta(day), value) for day, value in enumerate(values)))


def outcomes() -> tuple[Outcome, ...]:
    """A second night, in which new orders came."""
    account = Account(*ROWS["silver.orders"])
    return (
        Outcome("bronze.shop_transactions", "written", 4, account, (4_210, 0, 0), seconds=9.4),
        Outcome("bronze.shop_products", "unchanged", 1, seconds=0.2),
        Outcome("silver.orders", "changed", 7, account, (4_193, 12, 0), seconds=6.2, warnings=("4,210 rows, 1,900 are usual",)),
        Outcome("silver.products", "unchanged", 2, account, seconds=0.1),
        Outcome("gold.interactions", "changed", 7, account, (4_193, 12, 0), seconds=8.0),
        Outcome(
            "gold.pair_features", "written", 5, account, (6_046_605, 0, 6_010_118), "rows of gold.moments were changed", 66.1
        ),
        Outcome("gold.recommendations", "changed", 3, account, (0, 310, 0), seconds=12.9),
    )


def users() -> tuple[User, ...]:
    bought = tuple(Product(name, count) for name, count in ((HOSTILE, 14), ("Dry dog food 16.3 lb", 4), ("Bananas 40 lb", 2)))
    listed = (
        Product("Dry dog food 16.3 lb", 0.440, "bought 4 times, every 23 days"),
        Product("Fluid milk white only 1 ga (Private 1070820)", 0.237, "bought 3 times, every 88 days"),
        Product("Tea, sweetened", 0.088, f"goes with {HOSTILE}, which you bought"),
    )
    found = User(USER, "shop", 27, date(2017, 1, 22), date(2017, 12, 23), date(2018, 1, 1), bought, listed)
    return tuple(replace(found, user_id=f"{USER}{end}") for end in ("", "-2", "-3"))


def summary(**changed: Any) -> Summary:
    """A run in which all went well, without users; `changed` takes the place of parts of it."""
    names = ("bronze", "silver", "gold", "features", "train", "score")
    taken = (31.2, 24.8, 58.1, 203.4, 611.0, 84.9)
    steps = tuple(Step(name, "done", seconds) for name, seconds in zip(names, taken, strict=True))
    popular = (("Fluid milk white only 1 ga", 1_204), ("Bananas 40 lb", 1_188), (HOSTILE, 640), ("Gasoline-reg unleaded", 5))
    parts: dict[str, Any] = {
        "sources": ("shop",),
        "lake": "/data/lakes/north/shop",
        "started": datetime(2026, 11, 30, 3, 30, tzinfo=UTC),
        "ended": datetime(2026, 11, 30, 3, 47, tzinfo=UTC),
        "steps": steps,
        "runs": {name: f"20261130T0330{place:02}-0a1b2{place}" for place, name in enumerate(names) if name != "train"},
        "rows": tuple(Rows(table, *counts) for table, counts in ROWS.items()),
        "broken": (
            Broken("silver.orders", "ordered_at: no timestamp", 903),
            Broken("silver.orders", "not_in_the_future", 411),
            Broken("silver.orders", "has_order_id", 22),
            Broken("silver.orders", "source_product_id_in_silver.products", 87, rejects=False),
            Broken("silver.users", "has_user_id", 6),
        ),
        "outcomes": outcomes(),
        "sales": (sales("USD", 364, 12_000.0), sales("EUR", 40, 900.0)),
        "models": (Model("shop", 3, report()),),
        "popular": (Popular("shop", 2_469, popular),),
    }
    return Summary(**parts | changed)
