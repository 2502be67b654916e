"""Order lines, cleaned: one row for each product in each order."""

from pyspark.sql import DataFrame
from pyspark.sql.functions import coalesce, col, from_utc_timestamp, to_date, try_divide, try_multiply, when

from wares.lake.labels import BEHAVIOUR, CONFIDENTIAL, FINANCIAL, IDENTIFIER, INTERNAL, PUBLIC
from wares.lake.table import APPEND, Check, Column, Table

TABLE = Table(
    keys=("source", "order_id", "line"),
    columns=(
        Column("source", "string", INTERNAL, "The shop that the row comes from."),
        Column("order_id", "string", INTERNAL, "The shop's order number."),
        Column("line", "string", CONFIDENTIAL + BEHAVIOUR + FINANCIAL, "Names the line within its order."),
        Column("user_id", "string", CONFIDENTIAL + IDENTIFIER, "Who ordered; null for a guest."),
        Column("product_id", "string", CONFIDENTIAL + BEHAVIOUR, "What was ordered."),
        Column("store_id", "string", CONFIDENTIAL + BEHAVIOUR, "Where; null for a shop with one store."),
        Column("ordered_at", "timestamp", CONFIDENTIAL + BEHAVIOUR, "When, in UTC."),
        Column("ordered_on", "date", CONFIDENTIAL + BEHAVIOUR, "The shop's business day."),
        Column("kind", "string", CONFIDENTIAL + BEHAVIOUR, "sale, return, or fee (postage, bank charges, discounts)."),
        Column("quantity", "decimal(18,3)", CONFIDENTIAL + BEHAVIOUR, "How many, or how much; negative for a return."),
        Column("unit_price", "decimal(18,4)", CONFIDENTIAL + BEHAVIOUR + FINANCIAL, "Price of one, in `currency`."),
        Column("discount", "decimal(18,4)", CONFIDENTIAL + BEHAVIOUR + FINANCIAL, "Taken off the line, in `currency`."),
        Column("value", "decimal(18,4)", CONFIDENTIAL + BEHAVIOUR + FINANCIAL, "What the line brought in, in `currency`."),
        Column("currency", "string", PUBLIC, "ISO 4217."),
    ),
    checks=(
        Check("has_product", "product_id IS NOT NULL AND product_id != ''"),
        Check("has_time", "ordered_at IS NOT NULL"),
        # A wrong year would move the shop's newest day, from which all moments of the model are counted.
        Check("not_in_future", "ordered_at <= current_timestamp() + INTERVAL 1 DAY"),
        Check("has_value", "quantity IS NOT NULL AND value IS NOT NULL AND currency IS NOT NULL"),
        Check("known_kind", "kind IN ('sale', 'return', 'fee')"),
        Check("sale_not_negative", "kind != 'sale' OR (quantity >= 0 AND value >= 0)"),
        Check("return_not_positive", "kind != 'return' OR (quantity <= 0 AND value <= 0)"),
        Check("quantity_not_zero", "quantity != 0", severity="warn"),
    ),
    refresh=APPEND,
)


def build(bronze_orders: DataFrame) -> DataFrame:
    return bronze_orders.withColumns(
        {
            "ordered_on": to_date(from_utc_timestamp("ordered_at", col("_business_timezone"))),
            "kind": coalesce(col("kind"), when(col("quantity") < 0, "return").otherwise("sale")),
            "unit_price": coalesce(col("unit_price"), try_divide("value", "quantity").try_cast("decimal(18,4)")),
            "value": coalesce(col("value"), try_multiply("quantity", "unit_price").try_cast("decimal(18,4)")),
        }
    )
