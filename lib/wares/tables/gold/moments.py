"""The moments at which features are taken: one row for each training, validation and test moment, and one for now."""

from pyspark.sql import DataFrame
from pyspark.sql.functions import array, col, expr, floor, greatest, inline, least, lit, max, min, struct

from wares.lake.labels import INTERNAL
from wares.lake.table import Check, Column, Table

TRAIN_MOMENTS = 4
"""More moments teach more than more passes: a second pass over the same examples makes the validation loss rise."""
SPAN = 28
WHOLE_SOURCE = "the first and the last purchase of a whole source, no user's in particular"

TABLE = Table(
    keys=("source", "moment"),
    columns=(
        Column("source", "string", INTERNAL, "The shop that the row comes from."),
        Column(
            "moment", "timestamp", INTERNAL, "Features see what was before, labels what comes from here on; in UTC.", WHOLE_SOURCE
        ),
        Column("role", "string", INTERNAL, "train, validation, test, or now (the moment that is scored).", WHOLE_SOURCE),
        Column("day", "int", INTERNAL, "The moment in whole days since the source's first purchase.", WHOLE_SOURCE),
        Column("span", "int", INTERNAL, "The days from here on whose purchases are the labels.", WHOLE_SOURCE),
    ),
    checks=(Check("known_role", "role IN ('train', 'validation', 'test', 'now')"),),
)


def build(gold_interactions: DataFrame) -> DataFrame:
    sources = (
        gold_interactions.where("kind = 'purchase'")
        .groupBy("source")
        .agg(min("at").alias("first_at"), (max("day") + 1).alias("days"))
        # A source of less than 16 weeks has shorter spans, so that each role has its moment.
        .withColumn("span", greatest(lit(1), least(lit(SPAN), floor(col("days") / 4))).cast("int"))
    )
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
