"""What a user had bought of a type of product before a moment: how often, how lately, and how many products."""

from pyspark.sql import DataFrame
from pyspark.sql.functions import col, count, max, min, sum

from wares.lake.labels import BEHAVIOUR, CONFIDENTIAL, IDENTIFIER, INTERNAL
from wares.lake.table import Column, Table
from wares.tables.gold.pair_features import rhythm

TRIED = 120

TABLE = Table(
    keys=("source", "user_id", "type", "moment"),
    columns=(
        Column("source", "string", INTERNAL, "The shop that the row comes from."),
        Column("user_id", "string", CONFIDENTIAL + IDENTIFIER, "Who."),
        Column("type", "string", CONFIDENTIAL + BEHAVIOUR, "A type of which this user bought a product before the moment."),
        Column("moment", "timestamp", CONFIDENTIAL + BEHAVIOUR, "Nothing from here on is known; in UTC."),
        Column("products", "int", CONFIDENTIAL + BEHAVIOUR, "Different products of the type that the user bought."),
        Column("lines", "int", CONFIDENTIAL + BEHAVIOUR, "How often the user bought one of them."),
        Column("recent", "float", CONFIDENTIAL + BEHAVIOUR, "The same, each halved every 20 days."),
        Column("steady", "float", CONFIDENTIAL + BEHAVIOUR, "The same, each halved every 120 days."),
        Column("days_since", "int", CONFIDENTIAL + BEHAVIOUR, "Days since the last one."),
        Column("days_known", "int", CONFIDENTIAL + BEHAVIOUR, "Days since the first one."),
        Column(
            "due", "float", CONFIDENTIAL + BEHAVIOUR, "Days since the last one in mean gaps, at most 8; null after a single one."
        ),
        Column("tried", "int", CONFIDENTIAL + BEHAVIOUR, f"Products of the type first bought in the last {TRIED} days."),
        Column(
            "repeats",
            "float",
            CONFIDENTIAL + BEHAVIOUR,
            "Times bought for each different product: 1 for one who always tries another.",
        ),
    ),
)


def build(gold_pair_features: DataFrame, silver_products: DataFrame) -> DataFrame:
    types = silver_products.where("type IS NOT NULL").select("source", "product_id", "type")
    _, due = rhythm("lines")
    return (
        gold_pair_features.join(types, ["source", "product_id"])
        .groupBy("source", "user_id", "type", "moment")
        .agg(
            count("*").cast("int").alias("products"),
            sum("baskets").cast("int").alias("lines"),
            sum("recent").cast("float").alias("recent"),
            sum("steady").cast("float").alias("steady"),
            min("days_since").alias("days_since"),
            max("days_known").alias("days_known"),
            sum((col("days_known") <= TRIED).cast("int")).cast("int").alias("tried"),
        )
        .withColumn("due", due.cast("float"))
        .withColumn("repeats", (col("lines") / col("products")).cast("float"))
        .select(*TABLE.by_name)
    )
