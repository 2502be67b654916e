"""The moments at which features are taken: one row for each training, validation and test moment, and one for now."""

from pyspark.sql import DataFrame
from pyspark.sql.functions import array, broadcast, col, expr, floor, greatest, inline, least, lit, struct

from wares.lake.labels import BEHAVIOUR, CONFIDENTIAL, INTERNAL
from wares.lake.table import Check, Column, Table
from wares.tables.gold.histories import day_of

TRAIN_MOMENTS = 7
"""More moments teach more than more passes: a second pass over the same examples makes the validation loss rise."""
SPAN = 28

TABLE = Table(
    keys=("source", "moment"),
    columns=(
        Column("source", "string", INTERNAL, "The shop that the row comes from."),
        # They are counted from the first and the last purchase of a source, each of which is some user's.
        Column(
            "moment",
            "timestamp",
            CONFIDENTIAL + BEHAVIOUR,
            "Features see what was before, labels what comes from here on; in UTC.",
        ),
        Column("role", "string", CONFIDENTIAL + BEHAVIOUR, "train, validation, test, or now (the moment that is scored)."),
        Column("day", "int", CONFIDENTIAL + BEHAVIOUR, "The moment in whole days since the source's first purchase."),
        Column("span", "int", CONFIDENTIAL + BEHAVIOUR, "The days from here on whose purchases are the labels."),
    ),
    checks=(Check("known_role", "role IN ('train', 'validation', 'test', 'now')"),),
)


def build(gold_histories: DataFrame) -> DataFrame:
    days = gold_histories.withColumn("days", day_of("last_at") + 1)
    # A source of less than 16 weeks has shorter spans, so that each role has its moment.
    sources = days.withColumn("span", greatest(lit(1), least(lit(SPAN), floor(col("days") / 4))).cast("int"))
    before_now = ["test", "validation"] + ["train"] * TRAIN_MOMENTS
    roles = [struct(lit("now").alias("role"), col("days").alias("day"))] + [
        struct(lit(role).alias("role"), (col("days") - spans * col("span")).alias("day"))
        for spans, role in enumerate(before_now, 1)
    ]
    return (
        sources.select("source", "first_at", "span", inline(array(*roles)))
        # Before the first span has passed there is hardly a history to learn from.
        .where("role != 'train' OR day >= span")
        .select("source", (col("first_at") + expr("make_dt_interval(day)")).alias("moment"), "role", "day", "span")
    )


def purchases_within(interactions: DataFrame, moments: DataFrame) -> DataFrame:
    """The purchases of gold.interactions within the span of each moment, with that moment: what its labels are made of."""
    span = expr("make_dt_interval(span) - INTERVAL 1 MICROSECOND")
    return (
        interactions.where("kind = 'purchase'")
        .join(broadcast(moments), "source")
        .where(col("at").between(col("moment"), col("moment") + span))
    )
