"""What each product is and how it sold so far: one row for each product that is described, or that enough users bought."""

from pyspark.sql import DataFrame
from pyspark.sql.functions import coalesce, col, lit, max, try_divide

from wares.lake.declassify import AtLeast
from wares.lake.labels import BEHAVIOUR, CONFIDENTIAL, INTERNAL, PUBLIC
from wares.lake.table import Column, Table, by_key

MANY = AtLeast("user_id", "sums over several buyers, and products that several users bought")

TABLE = Table(
    keys=("source", "product_id"),
    columns=(
        Column("source", "string", INTERNAL, "The shop that the row comes from."),
        Column("product_id", "string", INTERNAL, "The shop's number for the product.", MANY),
        Column("name", "string", PUBLIC, "The name that users read; null for a product that no file describes."),
        Column("brand", "string", PUBLIC, "Who makes it, or what kind of brand it is."),
        Column("department", "string", PUBLIC, "The widest of three groups."),
        Column("category", "string", PUBLIC, "The middle one of three groups."),
        Column("type", "string", PUBLIC, "The narrowest of three groups."),
        Column("size", "string", PUBLIC, "Package size, as the shop writes it."),
        Column("is_offered", "boolean", PUBLIC, "Whether it may be recommended."),
        Column("buyers", "bigint", INTERNAL, f"Different known users who bought it; null if fewer than {MANY.k}.", MANY),
        Column("orders", "bigint", INTERNAL, "Orders that had it; null as `buyers`.", MANY),
        Column("units", "decimal(18,3)", INTERNAL, "How many were sold; null as `buyers`.", MANY),
        Column(
            "revenue",
            "decimal(18,4)",
            INTERNAL,
            "What it brought in, in `currency`, returns not taken off; null as `buyers`.",
            MANY,
        ),
        Column("price", "decimal(18,4)", INTERNAL, "Mean revenue a unit; null as `buyers`.", MANY),
        Column("currency", "string", PUBLIC, "ISO 4217; the last by name, if it was sold in several."),
        Column("last_at", "timestamp", CONFIDENTIAL + BEHAVIOUR, "Last sale, in UTC; null as `buyers`."),
    ),
    refresh=by_key("source", "product_id"),
)


def build(silver_orders: DataFrame, silver_products: DataFrame) -> DataFrame:
    product = ["source", "product_id"]
    totals = MANY.groups(
        silver_orders.where("kind = 'sale'"),
        product,
        MANY.count_distinct("user_id").alias("buyers"),
        MANY.count_distinct("order_id").alias("orders"),
        MANY.sum("quantity").cast("decimal(18,3)").alias("units"),
        MANY.sum("value").cast("decimal(18,4)").alias("revenue"),
        max("currency").alias("currency"),
        max("ordered_at").alias("last_at"),
    )
    return (
        silver_products.drop("updated_at")
        .join(totals, product, "full")
        .withColumn("is_offered", coalesce("is_offered", lit(True)))
        .withColumn("price", try_divide(col("revenue"), col("units")).try_cast("decimal(18,4)"))
        .select(*TABLE.by_name)
    )
