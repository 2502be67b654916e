"""What each product is and how it sold so far: one row for each product that is described or has been sold."""

from pyspark.sql import DataFrame
from pyspark.sql.functions import coalesce, col, count_distinct, lit, max, max_by, sum, try_divide

from wares.lake.labels import INTERNAL, PUBLIC
from wares.lake.table import Column, Table

MANY = "counts and sums over all buyers of a product"

TABLE = Table(
    keys=("source", "product_id"),
    columns=(
        Column("source", "string", INTERNAL, "The shop that the row comes from."),
        Column(
            "product_id",
            "string",
            INTERNAL,
            "The shop's number for the product.",
            declassified="the catalogue of what was ever sold",
        ),
        Column("name", "string", PUBLIC, "The name that users read; null for a product that no file describes."),
        Column("brand", "string", PUBLIC, "Who makes it, or what kind of brand it is."),
        Column("department", "string", PUBLIC, "The widest of three groups."),
        Column("category", "string", PUBLIC, "The middle one of three groups."),
        Column("type", "string", PUBLIC, "The narrowest of three groups."),
        Column("size", "string", PUBLIC, "Package size, as the shop writes it."),
        Column("is_offered", "boolean", PUBLIC, "Whether it may be recommended."),
        Column("buyers", "bigint", INTERNAL, "Different known users who bought it.", declassified=MANY),
        Column("orders", "bigint", INTERNAL, "Orders that had it.", declassified=MANY),
        Column("units", "decimal(18,3)", INTERNAL, "How many were sold.", declassified=MANY),
        Column(
            "revenue", "decimal(18,4)", INTERNAL, "What it brought in, in `currency`, returns not taken off.", declassified=MANY
        ),
        Column("price", "decimal(18,4)", INTERNAL, "Mean revenue a unit.", declassified=MANY),
        Column("currency", "string", PUBLIC, "ISO 4217; the last one used.", declassified=MANY),
        Column("last_at", "timestamp", INTERNAL, "Last sale, in UTC.", declassified=MANY),
    ),
)


def build(silver_orders: DataFrame, silver_products: DataFrame) -> DataFrame:
    product = ["source", "product_id"]
    totals = (
        silver_orders.where("kind = 'sale'")
        .groupBy(*product)
        .agg(
            count_distinct("user_id").alias("buyers"),
            count_distinct("order_id").alias("orders"),
            sum("quantity").cast("decimal(18,3)").alias("units"),
            sum("value").cast("decimal(18,4)").alias("revenue"),
            max_by("currency", "ordered_at").alias("currency"),
            max("ordered_at").alias("last_at"),
        )
    )
    return (
        silver_products.drop("updated_at")
        .join(totals, product, "full")
        .withColumns(
            {
                "is_offered": coalesce("is_offered", lit(True)),
                "buyers": coalesce("buyers", lit(0)),
                "orders": coalesce("orders", lit(0)),
                "units": coalesce("units", lit(0)).cast("decimal(18,3)"),
                "revenue": coalesce("revenue", lit(0)).cast("decimal(18,4)"),
            }
        )
        .withColumn("price", try_divide(col("revenue"), col("units")).try_cast("decimal(18,4)"))
        .select(*TABLE.by_name)
    )
