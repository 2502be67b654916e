"""Who a user was before a moment: activity, what was bought most of late, and what the source tells of the user."""

from pyspark.sql import Column as Expression
from pyspark.sql import DataFrame
from pyspark.sql.functions import (
    array,
    avg,
    broadcast,
    coalesce,
    col,
    collect_list,
    count,
    lit,
    max,
    min,
    slice,
    sort_array,
    struct,
    sum,
    transform,
    weekday,
    when,
)

from wares.lake.labels import BEHAVIOUR, CONFIDENTIAL, DEMOGRAPHIC, FINANCIAL, IDENTIFIER, INTERNAL, LOCATION
from wares.lake.table import Check, Column, Table
from wares.tables.gold.pair_features import halved

HISTORY = 20
"""How many products and types a user's history holds."""
TRIED = 56

TABLE = Table(
    keys=("source", "user_id", "moment"),
    columns=(
        Column("source", "string", INTERNAL, "The shop that the row comes from."),
        Column("user_id", "string", CONFIDENTIAL + IDENTIFIER, "Who."),
        Column("moment", "timestamp", CONFIDENTIAL + BEHAVIOUR, "Nothing from here on is known; in UTC."),
        Column("role", "string", CONFIDENTIAL + BEHAVIOUR, "What the moment is for: train, validation, test or now."),
        Column("age_band", "string", CONFIDENTIAL + DEMOGRAPHIC, "Age, as a band such as 45-54."),
        Column("income_band", "string", CONFIDENTIAL + DEMOGRAPHIC + FINANCIAL, "Yearly income, as a band."),
        Column("household", "string", CONFIDENTIAL + DEMOGRAPHIC, "Who lives there."),
        Column("children", "string", CONFIDENTIAL + DEMOGRAPHIC, "How many children."),
        Column("country", "string", CONFIDENTIAL + LOCATION, "Where the user lives."),
        Column("baskets", "int", CONFIDENTIAL + BEHAVIOUR, "Baskets before the moment; 0 for one who never bought."),
        Column("baskets_month", "int", CONFIDENTIAL + BEHAVIOUR, "The same in the last 28 days."),
        Column("baskets_quarter", "int", CONFIDENTIAL + BEHAVIOUR, "The same in the last 84 days."),
        Column("recent", "float", CONFIDENTIAL + BEHAVIOUR, "Baskets, each halved every 20 days."),
        Column("lines_month", "int", CONFIDENTIAL + BEHAVIOUR, "Lines of the baskets in the last 28 days."),
        Column("basket_size", "float", CONFIDENTIAL + BEHAVIOUR, "Mean lines of a basket."),
        Column(
            "basket_value", "float", CONFIDENTIAL + BEHAVIOUR + FINANCIAL, "Mean value of a basket, in the source's currency."
        ),
        Column("days_since", "int", CONFIDENTIAL + BEHAVIOUR, "Days since the last basket."),
        Column("days_known", "int", CONFIDENTIAL + BEHAVIOUR, "Days since the first basket."),
        Column("products", "int", CONFIDENTIAL + BEHAVIOUR, "Different products bought."),
        Column("tried", "int", CONFIDENTIAL + BEHAVIOUR, f"Products first bought in the last {TRIED} days."),
        Column("repeat_share", "float", CONFIDENTIAL + BEHAVIOUR, "Share of those products that were bought again."),
        Column("promoted_share", "float", CONFIDENTIAL + BEHAVIOUR, "Share of lines bought when on display or in the mailer."),
        Column("weekdays", "array<float>", CONFIDENTIAL + BEHAVIOUR, "Share of baskets on each weekday in UTC, Monday first."),
        Column(
            "recent_products",
            "array<string>",
            CONFIDENTIAL + BEHAVIOUR,
            f"The {HISTORY} products bought most of late, first the most.",
        ),
        Column(
            "recent_types", "array<string>", CONFIDENTIAL + BEHAVIOUR, f"The {HISTORY} types bought most of late, first the most."
        ),
    ),
    checks=(Check("known_role", "role IN ('train', 'validation', 'test', 'now')"),),
)


COUNTS = ("baskets", "baskets_month", "baskets_quarter", "lines_month", "products", "tried")
"""What is 0 for a user who never bought."""


def build(
    gold_interactions: DataFrame,
    gold_moments: DataFrame,
    gold_pair_features: DataFrame,
    gold_type_features: DataFrame,
    silver_users: DataFrame,
) -> DataFrame:
    user = ["source", "user_id", "moment"]
    moments = gold_moments.select("source", "moment", "role", col("day").alias("moment_day"))
    # Whoever is known but never bought is scored too, and measured; there is nothing to learn from.
    scored = moments.where("role != 'train'")
    known = silver_users.select("source", "user_id").join(broadcast(scored), "source").select(*user)
    pairs = gold_pair_features.groupBy(*user).agg(
        count("*").cast("int").alias("products"),
        sum((col("days_known") <= TRIED).cast("int")).cast("int").alias("tried"),
        avg((col("baskets") > 1).cast("int")).cast("float").alias("repeat_share"),
        (sum(col("promoted_share") * col("baskets")) / sum("baskets")).cast("float").alias("promoted_share"),
        _most("product_id").alias("recent_products"),
    )
    types = gold_type_features.groupBy(*user).agg(_most("type").alias("recent_types"))
    described = silver_users.select("source", "user_id", "age_band", "income_band", "household", "children", "country")
    return (
        _activity(gold_interactions, moments)
        .join(known, user, "full")
        .join(pairs, user, "left")
        .join(types, user, "left")
        .join(described, ["source", "user_id"], "left")
        .join(broadcast(moments.drop("moment_day")), ["source", "moment"])
        .withColumns({name: coalesce(name, lit(0)) for name in COUNTS})
        .withColumn("recent", coalesce("recent", lit(0).cast("float")))
        .select(*TABLE.by_name)
    )


def _activity(interactions: DataFrame, moments: DataFrame) -> DataFrame:
    """Baskets before each moment: how many, how large, how lately, on which weekdays."""
    baskets = (
        interactions.where("kind = 'purchase'")
        .groupBy("source", "user_id", "reference")
        .agg(min("at").alias("at"), min("day").alias("day"), count("*").alias("lines"), sum("value").alias("value"))
    )
    ago = col("moment_day") - col("day")
    return (
        baskets.join(broadcast(moments), "source")
        .where("at < moment")
        .groupBy("source", "user_id", "moment")
        .agg(
            count("*").cast("int").alias("baskets"),
            sum((ago <= 28).cast("int")).cast("int").alias("baskets_month"),
            sum((ago <= 84).cast("int")).cast("int").alias("baskets_quarter"),
            sum(halved(ago, 20)).cast("float").alias("recent"),
            sum(when(ago <= 28, col("lines")).otherwise(0)).cast("int").alias("lines_month"),
            avg("lines").cast("float").alias("basket_size"),
            avg("value").cast("float").alias("basket_value"),
            min(ago).alias("days_since"),
            max(ago).alias("days_known"),
            array(*(avg((weekday("at") == day).cast("int")).cast("float") for day in range(7))).alias("weekdays"),
        )
    )


def _most(name: str) -> Expression:
    """The values of `name` that the user bought most of late, first the most; ties go by name."""
    ordered = sort_array(collect_list(struct("recent", name)), asc=False)
    return transform(slice(ordered, 1, HISTORY), lambda bought: bought[name])
