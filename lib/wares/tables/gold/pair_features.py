"""What a user had bought of a product before a moment: how often, how lately, and whether the next time is due."""

from pyspark.sql import Column as Expression
from pyspark.sql import DataFrame
from pyspark.sql.functions import avg, bool_or, broadcast, coalesce, col, count, exp, greatest, least, lit, max, min, sum, when

from wares.lake.labels import BEHAVIOUR, CONFIDENTIAL, IDENTIFIER, INTERNAL
from wares.lake.table import Check, Column, Table

PAIR = ("source", "user_id", "product_id")

TABLE = Table(
    keys=(*PAIR, "moment"),
    columns=(
        Column("source", "string", INTERNAL, "The shop that the row comes from."),
        Column("user_id", "string", CONFIDENTIAL + IDENTIFIER, "Who."),
        Column("product_id", "string", CONFIDENTIAL + BEHAVIOUR, "What this user bought before the moment."),
        Column("moment", "timestamp", CONFIDENTIAL + BEHAVIOUR, "Nothing from here on is known; in UTC."),
        Column("baskets", "int", CONFIDENTIAL + BEHAVIOUR, "The user's baskets with the product."),
        Column("baskets_month", "int", CONFIDENTIAL + BEHAVIOUR, "The same in the last 28 days."),
        Column("baskets_quarter", "int", CONFIDENTIAL + BEHAVIOUR, "The same in the last 84 days."),
        Column("recent", "float", CONFIDENTIAL + BEHAVIOUR, "Baskets, each halved every 20 days."),
        Column("steady", "float", CONFIDENTIAL + BEHAVIOUR, "Baskets, each halved every 120 days."),
        Column("days_since", "int", CONFIDENTIAL + BEHAVIOUR, "Days since the last one, the day begun counted."),
        Column("days_known", "int", CONFIDENTIAL + BEHAVIOUR, "Days since the first one, the day begun counted."),
        Column("gap", "float", CONFIDENTIAL + BEHAVIOUR, "Mean days between two; null after a single basket."),
        Column(
            "due", "float", CONFIDENTIAL + BEHAVIOUR, "Days since the last one in gaps, at most 8; null after a single basket."
        ),
        Column(
            "promoted_share", "float", CONFIDENTIAL + BEHAVIOUR, "Share of the baskets when it was on display or in the mailer."
        ),
    ),
    checks=(Check("bought_before", "baskets >= 1 AND days_since >= 1 AND days_known >= days_since"),),
)


def build(gold_interactions: DataFrame, gold_moments: DataFrame) -> DataFrame:
    baskets = (
        gold_interactions.where("kind = 'purchase'")
        # Both sums below find their rows together already: the lines are moved once, not once again for each moment.
        .repartition(*PAIR)
        .groupBy(*PAIR, "reference")
        .agg(min("at").alias("at"), min("day").alias("day"), bool_or(col("on_display") | col("in_mailer")).alias("promoted"))
    )
    moments = gold_moments.select("source", "moment", col("day").alias("moment_day"))
    ago = col("moment_day") - col("day")
    counts = (
        baskets.join(broadcast(moments), "source")
        .where("at < moment")
        .groupBy(*PAIR, "moment")
        .agg(
            count("*").cast("int").alias("baskets"),
            sum((ago <= 28).cast("int")).cast("int").alias("baskets_month"),
            sum((ago <= 84).cast("int")).cast("int").alias("baskets_quarter"),
            sum(halved(ago, 20)).cast("float").alias("recent"),
            sum(halved(ago, 120)).cast("float").alias("steady"),
            min(ago).alias("days_since"),
            max(ago).alias("days_known"),
            avg(coalesce("promoted", lit(False)).cast("int")).cast("float").alias("promoted_share"),
        )
    )
    gap = when(col("baskets") > 1, (col("days_known") - col("days_since")) / (col("baskets") - 1))
    due = when(col("baskets") > 1, least(lit(8.0), col("days_since") / greatest(col("gap"), lit(1.0))))
    return counts.withColumn("gap", gap.cast("float")).withColumn("due", due.cast("float")).select(*TABLE.by_name)


def halved(days: Expression, half_life: int) -> Expression:
    """The weight of something that happened `days` ago, halved every `half_life` days."""
    return exp(-0.6931471805599453 / half_life * days)
