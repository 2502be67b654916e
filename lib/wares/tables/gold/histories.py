"""How far the sales of each source go back, and until when: what days are counted from, and to."""

from pyspark.sql import Column as Expression
from pyspark.sql import DataFrame
from pyspark.sql.functions import col, floor, lit, max, min, unix_micros

from wares.lake.labels import BEHAVIOUR, CONFIDENTIAL, INTERNAL
from wares.lake.table import Column, Table

MICROS_A_DAY = 86_400_000_000

TABLE = Table(
    keys=("source",),
    columns=(
        Column("source", "string", INTERNAL, "The shop."),
        Column("first_at", "timestamp", CONFIDENTIAL + BEHAVIOUR, "The first sale to a known user, in UTC."),
        Column("last_at", "timestamp", CONFIDENTIAL + BEHAVIOUR, "The last one."),
    ),
)


def build(silver_orders: DataFrame) -> DataFrame:
    sales = silver_orders.where("kind = 'sale' AND user_id IS NOT NULL")
    return sales.groupBy("source").agg(min("ordered_at").alias("first_at"), max("ordered_at").alias("last_at"))


def day_of(at: str) -> Expression:
    """Whole days from `first_at` to a time: the day on which it falls, counted from the source's first sale."""
    return floor((unix_micros(col(at)) - unix_micros("first_at")) / lit(MICROS_A_DAY)).cast("int")
