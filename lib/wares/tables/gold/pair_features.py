"""What a user had bought of a product before a moment: how often, how lately, and whether the next time is due."""

from pyspark.sql import Column as Expression
from pyspark.sql import DataFrame, Window
from pyspark.sql.functions import (
    avg,
    bool_or,
    broadcast,
    coalesce,
    col,
    count,
    dense_rank,
    exp,
    greatest,
    lag,
    least,
    lit,
    max,
    min,
    sqrt,
    sum,
    when,
)

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
        Column("fresh", "float", CONFIDENTIAL + BEHAVIOUR, "Baskets, each halved every 7 days."),
        Column("recent", "float", CONFIDENTIAL + BEHAVIOUR, "Baskets, each halved every 20 days."),
        Column("lasting", "float", CONFIDENTIAL + BEHAVIOUR, "Baskets, each halved every 60 days."),
        Column("steady", "float", CONFIDENTIAL + BEHAVIOUR, "Baskets, each halved every 120 days."),
        Column("days_since", "int", CONFIDENTIAL + BEHAVIOUR, "Days since the last one, the day begun counted."),
        Column("days_known", "int", CONFIDENTIAL + BEHAVIOUR, "Days since the first one, the day begun counted."),
        Column("gap", "float", CONFIDENTIAL + BEHAVIOUR, "Mean days between two; null after a single basket."),
        Column(
            "due", "float", CONFIDENTIAL + BEHAVIOUR, "Days since the last one in gaps, at most 8; null after a single basket."
        ),
        Column(
            "unevenness",
            "float",
            CONFIDENTIAL + BEHAVIOUR,
            "Standard deviation of the days between two, in gaps (of at least a day); null after fewer than three baskets.",
        ),
        Column("visits_since", "int", CONFIDENTIAL + BEHAVIOUR, "Days on which the user bought something after the last one."),
        Column(
            "visit_share", "float", CONFIDENTIAL + BEHAVIOUR, "Baskets for each day of buying from the first one on, at most 1."
        ),
        Column(
            "promoted_share", "float", CONFIDENTIAL + BEHAVIOUR, "Share of the baskets when it was on display or in the mailer."
        ),
    ),
    checks=(Check("bought_before", "baskets >= 1 AND days_since >= 1 AND days_known >= days_since"),),
)


def build(gold_interactions: DataFrame, gold_moments: DataFrame) -> DataFrame:
    user = ["source", "user_id"]
    by_day = Window.partitionBy(*user).orderBy("day")
    before = col("day") - lag("day").over(Window.partitionBy(*PAIR).orderBy("day"))
    baskets = (
        gold_interactions.where("kind = 'purchase'")
        # All sums and windows below find their rows together already: the lines are moved once, not once again for each.
        .repartition(*user)
        .groupBy(*PAIR, "reference")
        .agg(min("at").alias("at"), min("day").alias("day"), bool_or(col("on_display") | col("in_mailer")).alias("promoted"))
        .withColumn("visit", dense_rank().over(by_day))
        .withColumn("between", before)
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
            sum(halved(ago, 7)).cast("float").alias("fresh"),
            sum(halved(ago, 20)).cast("float").alias("recent"),
            sum(halved(ago, 60)).cast("float").alias("lasting"),
            sum(halved(ago, 120)).cast("float").alias("steady"),
            min(ago).alias("days_since"),
            max(ago).alias("days_known"),
            sum(col("between") * col("between")).alias("squares"),
            min("visit").alias("first_visit"),
            max("visit").alias("last_visit"),
            avg(coalesce("promoted", lit(False)).cast("int")).cast("float").alias("promoted_share"),
        )
    )
    gap, due = rhythm("baskets")
    variance = greatest(lit(0.0), col("squares") / (col("baskets") - 1) - gap * gap)
    unevenness = when(col("baskets") > 2, sqrt(variance) / greatest(gap, lit(1.0)))
    # Each visit had some product, so the last one of all products is the user's last one.
    visits = max("last_visit").over(Window.partitionBy(*user, "moment"))
    return (
        counts.withColumn("visits", visits)
        .withColumns(
            {
                "gap": gap.cast("float"),
                "due": due.cast("float"),
                "unevenness": unevenness.cast("float"),
                "visits_since": col("visits") - col("last_visit"),
                "visit_share": least(lit(1.0), col("baskets") / (col("visits") - col("first_visit") + 1)).cast("float"),
            }
        )
        .select(*TABLE.by_name)
    )


def rhythm(times: str) -> tuple[Expression, Expression]:
    """The mean days between two, and the days since the last one in such gaps, at most 8; null for what happened once.

    Args:
        times: The column that says how often it happened, beside `days_known` and `days_since`.
    """
    gap = when(col(times) > 1, (col("days_known") - col("days_since")) / (col(times) - 1))
    return gap, when(col(times) > 1, least(lit(8.0), col("days_since") / greatest(gap, lit(1.0))))


def halved(days: Expression, half_life: int) -> Expression:
    """The weight of something that happened `days` ago, halved every `half_life` days."""
    return exp(-0.6931471805599453 / half_life * days)
