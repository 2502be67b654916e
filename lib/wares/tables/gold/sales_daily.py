"""Sales of each business day in each product category, returns and fees apart."""

from pyspark.sql import DataFrame
from pyspark.sql.functions import coalesce, col, count_distinct, lit, sum, when

from wares.lake.labels import INTERNAL, PUBLIC
from wares.lake.table import Column, Table

MANY = "counts and sums over all orders of a day"

TABLE = Table(
    keys=("source", "ordered_on", "category", "currency"),
    columns=(
        Column("source", "string", INTERNAL, "The shop that the row comes from."),
        Column("ordered_on", "date", INTERNAL, "The shop's business day.", declassified=MANY),
        Column("category", "string", PUBLIC, "The product category, or 'unknown'."),
        Column("currency", "string", PUBLIC, "ISO 4217."),
        Column("orders", "bigint", INTERNAL, "Orders with a sale in the category.", declassified=MANY),
        Column("buyers", "bigint", INTERNAL, "Different known users who bought.", declassified=MANY),
        Column("units", "decimal(18,3)", INTERNAL, "How many were sold.", declassified=MANY),
        Column("revenue", "decimal(18,4)", INTERNAL, "What sales brought in.", declassified=MANY),
        Column("returns", "decimal(18,4)", INTERNAL, "What returns took back; zero or less.", declassified=MANY),
        Column("fees", "decimal(18,4)", INTERNAL, "Postage, charges and discounts.", declassified=MANY),
    ),
)


def build(silver_orders: DataFrame, silver_products: DataFrame) -> DataFrame:
    categories = silver_products.select("source", "product_id", "category")

    def of(kind: str, column: str):
        return when(col("kind") == kind, col(column))

    def total(kind: str, column: str, type: str):
        return coalesce(sum(of(kind, column)), lit(0)).cast(type)

    return (
        silver_orders.join(categories, ["source", "product_id"], "left")
        .withColumn("category", coalesce("category", lit("unknown")))
        .groupBy("source", "ordered_on", "category", "currency")
        .agg(
            count_distinct(of("sale", "order_id")).alias("orders"),
            count_distinct(of("sale", "user_id")).alias("buyers"),
            total("sale", "quantity", "decimal(18,3)").alias("units"),
            total("sale", "value", "decimal(18,4)").alias("revenue"),
            total("return", "value", "decimal(18,4)").alias("returns"),
            total("fee", "value", "decimal(18,4)").alias("fees"),
        )
    )
