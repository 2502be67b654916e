"""What is gathered of the accounts that the store keeps."""

from __future__ import annotations

import json

from pyspark.sql import Row
from wares.lake.meta import Outcome
from wares.report.summary import Broken, _broken, _latest
from wares.tables import TABLES


def written(table: str, way: str, **hits: int) -> Row:
    return Row(table=table, way=way, hits=json.dumps(hits))


def test_broken_rules_are_added_up_since_the_last_full_build() -> None:
    orders = "silver.orders"
    quality = [
        written("bronze.shop_sales", "full", drift_rows=50),
        written(orders, "full", has_order_id=900),
        written(orders, "full: its table file has changed", has_order_id=2, quantity_not_zero=7),
        written(orders, "change", has_order_id=1, has_line=30, drift_rows=31),
    ]
    assert _broken(TABLES, quality) == (
        Broken("bronze.shop_sales", "drift_rows", 50, rejects=False),
        Broken(orders, "drift_rows", 31, rejects=False),
        Broken(orders, "has_line", 30),
        Broken(orders, "quantity_not_zero", 7, rejects=False),  # as its table file says
        Broken(orders, "has_order_id", 3),
    )


def test_of_a_job_that_was_tried_again_the_outcome_that_wrote_counts() -> None:
    first, again = Outcome("silver.orders", "written", 1), Outcome("silver.orders", "unchanged", 1)
    other, later = Outcome("silver.users", "unchanged", 1), Outcome("silver.users", "changed", 2)
    assert _latest([first, other, again, later]) == (first, later)
