"""What each known user did with each product: sales, with what was promoted that day, and events."""

from pyspark.sql import DataFrame
from pyspark.sql.functions import bool_or, broadcast, coalesce, col, lit

from wares.lake.labels import BEHAVIOUR, CONFIDENTIAL, FINANCIAL, IDENTIFIER, INTERNAL, PUBLIC
from wares.lake.table import Column, Table, Through, by_key, same
from wares.tables.gold.histories import day_of

PROMOTED = f"{same('source', 'product_id', 'store_id')} AND found.ordered_on BETWEEN changed.starts_on AND changed.ends_on"
"""Which order lines a promotion has to do with."""

TABLE = Table(
    keys=("source", "kind", "reference", "line"),
    columns=(
        Column("source", "string", INTERNAL, "The shop that the row comes from."),
        Column("kind", "string", CONFIDENTIAL + BEHAVIOUR, "purchase, view, cart or coupon."),
        Column("reference", "string", CONFIDENTIAL + IDENTIFIER + BEHAVIOUR, "The order, or the event."),
        Column("line", "string", CONFIDENTIAL + BEHAVIOUR + FINANCIAL, "The line within the order; empty for an event."),
        Column("user_id", "string", CONFIDENTIAL + IDENTIFIER, "Who."),
        Column("product_id", "string", CONFIDENTIAL + BEHAVIOUR, "On which product."),
        Column("at", "timestamp", CONFIDENTIAL + BEHAVIOUR, "When, in UTC."),
        Column("day", "int", CONFIDENTIAL + BEHAVIOUR, "Whole days since the source's first sale to a known user."),
        Column("quantity", "decimal(18,3)", CONFIDENTIAL + BEHAVIOUR, "How many were bought; null for an event."),
        Column(
            "value", "decimal(18,4)", CONFIDENTIAL + BEHAVIOUR + FINANCIAL, "What was paid, in `currency`; null for an event."
        ),
        Column("currency", "string", PUBLIC, "ISO 4217."),
        Column("store_id", "string", CONFIDENTIAL + BEHAVIOUR, "In which store."),
        Column("on_display", "boolean", CONFIDENTIAL + BEHAVIOUR, "Whether the product was on display in that store that day."),
        Column("in_mailer", "boolean", CONFIDENTIAL + BEHAVIOUR, "Whether it was in that store's mailer that day."),
    ),
    refresh=by_key("source", "reference", through={"silver.promotions": Through("silver.orders", PROMOTED)}),
)


def build(
    silver_orders: DataFrame, silver_events: DataFrame, silver_promotions: DataFrame, gold_histories: DataFrame
) -> DataFrame:
    sales = silver_orders.where("kind = 'sale' AND user_id IS NOT NULL")
    purchases = sales.select(
        "source",
        lit("purchase").alias("kind"),
        col("order_id").alias("reference"),
        "line",
        "user_id",
        "product_id",
        col("ordered_at").alias("at"),
        "quantity",
        "value",
        "currency",
        "store_id",
        "ordered_on",
    )
    events = silver_events.where("kind != 'mailing' AND user_id IS NOT NULL AND product_id IS NOT NULL").select(
        "source", "kind", col("event_id").alias("reference"), lit("").alias("line"), "user_id", "product_id", "at"
    )
    rows = _with_promotions(purchases, silver_promotions).unionByName(events, allowMissingColumns=True)
    first = broadcast(gold_histories.select("source", "first_at"))
    return rows.join(first, "source").withColumn("day", day_of("at")).select(*TABLE.by_name)


def _with_promotions(purchases: DataFrame, promotions: DataFrame) -> DataFrame:
    """Add `on_display` and `in_mailer`, false where nothing was promoted.

    The 14 times larger table of promotions is met by each product of an order once, and by nothing else of it.
    """
    place = ["source", "reference", "product_id", "store_id", "ordered_on"]
    met = (
        purchases.select(*place)
        .distinct()
        .join(promotions, ["source", "product_id", "store_id"])
        .where("ordered_on BETWEEN starts_on AND ends_on")
        .groupBy(*place)
        .agg(bool_or(col("display") != "none").alias("on_display"), bool_or(col("mailer") != "none").alias("in_mailer"))
    )
    return purchases.join(met, place, "left").withColumns(
        {name: coalesce(name, lit(False)) for name in ("on_display", "in_mailer")}
    )
