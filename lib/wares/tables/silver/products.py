"""Products: one row for each product that a source describes; the newest description wins."""

from pyspark.sql import DataFrame
from pyspark.sql.functions import coalesce, col, lit

from wares.lake.labels import BEHAVIOUR, CONFIDENTIAL, INTERNAL, PUBLIC
from wares.lake.table import APPEND, Check, Column, Table

TABLE = Table(
    keys=("source", "product_id"),
    columns=(
        Column("source", "string", INTERNAL, "The shop that the row comes from."),
        Column("product_id", "string", PUBLIC, "The shop's number for the product."),
        Column("name", "string", PUBLIC, "The name that users read."),
        Column("brand", "string", PUBLIC, "Who makes it, or what kind of brand it is."),
        Column("department", "string", PUBLIC, "The widest of three groups."),
        Column("category", "string", PUBLIC, "The middle one of three groups."),
        Column("type", "string", PUBLIC, "The narrowest of three groups."),
        Column("size", "string", PUBLIC, "Package size, as the shop writes it."),
        Column("is_offered", "boolean", PUBLIC, "Whether it may be recommended; false for postage, fees and tests."),
        Column(
            "updated_at", "timestamp", CONFIDENTIAL + BEHAVIOUR, "When the source last said so, in UTC; null if it does not tell."
        ),
    ),
    checks=(Check("has_name", "name IS NOT NULL AND name != ''"),),
    newest=("updated_at",),
    refresh=APPEND,
)


def build(bronze_products: DataFrame) -> DataFrame:
    return bronze_products.withColumn("is_offered", coalesce(col("is_offered"), lit(True)))
