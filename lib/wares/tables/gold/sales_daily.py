"""Sales of each business day in each product category, returns and fees apart, where enough users took part."""

from pyspark.sql import Column as Expression
from pyspark.sql import DataFrame
from pyspark.sql.functions import coalesce, col, lit, when

from wares.lake.declassify import AtLeast
from wares.lake.labels import INTERNAL, PUBLIC
from wares.lake.table import Column, Table, Through, by_key, same

MANY = AtLeast("user_id", "sums over several users of a day, and days on which several users bought")

TABLE = Table(
    keys=("source", "ordered_on", "category", "currency"),
    columns=(
        Column("source", "string", INTERNAL, "The shop that the row comes from."),
        Column(
            "ordered_on", "date", INTERNAL, f"The shop's business day, if at least {MANY.k} known users had lines on it.", MANY
        ),
        Column("category", "string", PUBLIC, "The product category, or 'unknown'."),
        Column("currency", "string", PUBLIC, "ISO 4217."),
        Column("orders", "bigint", INTERNAL, f"Orders with a sale in the category; null if of fewer than {MANY.k} users.", MANY),
        Column("buyers", "bigint", INTERNAL, "Different known users who bought; null as `orders`.", MANY),
        Column("units", "decimal(18,3)", INTERNAL, "How many were sold; null as `orders`.", MANY),
        Column("revenue", "decimal(18,4)", INTERNAL, "What sales brought in; null as `orders`.", MANY),
        Column("returns", "decimal(18,4)", INTERNAL, "What returns took back, zero or less; null as `orders`.", MANY),
        Column("fees", "decimal(18,4)", INTERNAL, "Postage, charges and discounts; null as `orders`.", MANY),
    ),
    refresh=by_key("source", "ordered_on", through={"silver.products": Through("silver.orders", same("source", "product_id"))}),
)


def build(silver_orders: DataFrame, silver_products: DataFrame) -> DataFrame:
    categories = silver_products.select("source", "product_id", "category")
    lines = silver_orders.join(categories, ["source", "product_id"], "left").withColumn(
        "category", coalesce("category", lit("unknown"))
    )

    def of(kind: str, column: str) -> Expression:
        return when(col("kind") == kind, col(column))

    return MANY.groups(
        lines,
        ["source", "ordered_on", "category", "currency"],
        MANY.count_distinct(of("sale", "order_id")).alias("orders"),
        MANY.count_distinct(of("sale", "user_id")).alias("buyers"),
        MANY.sum(of("sale", "quantity")).cast("decimal(18,3)").alias("units"),
        MANY.sum(of("sale", "value")).cast("decimal(18,4)").alias("revenue"),
        MANY.sum(of("return", "value")).cast("decimal(18,4)").alias("returns"),
        MANY.sum(of("fee", "value")).cast("decimal(18,4)").alias("fees"),
    )
