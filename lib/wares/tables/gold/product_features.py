"""What a product was before a moment: its groups, how it sold, how often it is bought again, how it was promoted."""

from pyspark.sql import Column as Expression
from pyspark.sql import DataFrame
from pyspark.sql.functions import (
    array,
    avg,
    broadcast,
    coalesce,
    col,
    count,
    date_add,
    date_diff,
    greatest,
    least,
    lit,
    max,
    min,
    sum,
    to_date,
    to_timestamp,
    when,
)

from wares.lake.labels import BEHAVIOUR, CONFIDENTIAL, FINANCIAL, INTERNAL, PUBLIC
from wares.lake.table import Check, Column, Table

WEEKS = 8
COMING = 4
"""Weeks of promotions ahead."""

TABLE = Table(
    keys=("source", "product_id", "moment"),
    columns=(
        Column("source", "string", INTERNAL, "The shop that the row comes from."),
        Column("product_id", "string", CONFIDENTIAL + BEHAVIOUR, "The product."),
        Column("moment", "timestamp", CONFIDENTIAL + BEHAVIOUR, "Nothing from here on is known; in UTC."),
        Column("role", "string", CONFIDENTIAL + BEHAVIOUR, "What the moment is for: train, validation, test or now."),
        Column("is_offered", "boolean", PUBLIC, "Whether it may be recommended, as the source says today."),
        Column("brand", "string", PUBLIC, "Who makes it, or what kind of brand it is."),
        Column("department", "string", PUBLIC, "The widest of three groups."),
        Column("category", "string", PUBLIC, "The middle one of three groups."),
        Column("type", "string", PUBLIC, "The narrowest of three groups."),
        Column("baskets", "int", CONFIDENTIAL + BEHAVIOUR, "Baskets with the product; 0 for one never sold."),
        Column("baskets_month", "int", CONFIDENTIAL + BEHAVIOUR, "The same in the last 28 days."),
        Column("buyers", "int", CONFIDENTIAL + BEHAVIOUR, "Different users who bought it."),
        Column("buyers_month", "int", CONFIDENTIAL + BEHAVIOUR, "Different users who bought it in the last 28 days."),
        Column("new_buyers_month", "int", CONFIDENTIAL + BEHAVIOUR, "Those of them who bought it for the first time."),
        Column("fresh", "float", CONFIDENTIAL + BEHAVIOUR, "Baskets, each halved every 7 days."),
        Column("recent", "float", CONFIDENTIAL + BEHAVIOUR, "Baskets, each halved every 20 days."),
        Column("lasting", "float", CONFIDENTIAL + BEHAVIOUR, "Baskets, each halved every 60 days."),
        Column("days_since", "int", CONFIDENTIAL + BEHAVIOUR, "Days since the last sale; null for one never sold."),
        Column("days_known", "int", CONFIDENTIAL + BEHAVIOUR, "Days since the first sale; null for one never sold."),
        Column(
            "repeat_share", "float", CONFIDENTIAL + BEHAVIOUR, "Share of buyers who bought it again; null for one never sold."
        ),
        Column("price", "float", CONFIDENTIAL + BEHAVIOUR + FINANCIAL, "Mean value of a unit, in the source's currency."),
        Column("display_share", "float", CONFIDENTIAL + BEHAVIOUR, "Share of the last 28 days' sales when on display."),
        Column("mailer_share", "float", CONFIDENTIAL + BEHAVIOUR, "Share of the last 28 days' sales when in the mailer."),
        Column(
            "weeks", "array<float>", CONFIDENTIAL + BEHAVIOUR, f"Sales in each of the last {WEEKS} weeks, the last one first."
        ),
        *(
            Column(
                f"coming_{name}",
                "array<float>",
                CONFIDENTIAL + BEHAVIOUR,
                f"Share of the stores that promote, and of the days of each of the {COMING} weeks from the moment on, with it "
                f"{where}, by promotions that the shop knew of at the moment (where `known_at` is assumed, so is this).",
            )
            for name, where in (("display", "on display"), ("mailer", "in the mailer"))
        ),
    ),
    checks=(Check("known_role", "role IN ('train', 'validation', 'test', 'now')"),),
)


COUNTS = ("baskets", "baskets_month", "buyers", "buyers_month", "new_buyers_month")
"""What is 0 for a product never sold."""


def build(
    gold_interactions: DataFrame,
    gold_moments: DataFrame,
    gold_pair_features: DataFrame,
    silver_products: DataFrame,
    silver_promotions: DataFrame,
) -> DataFrame:
    product = ["source", "product_id", "moment"]
    moments = gold_moments.select("source", "moment", "role", col("day").alias("moment_day"))
    buyers = gold_pair_features.groupBy(*product).agg(
        count("*").cast("int").alias("buyers"),
        sum("baskets").cast("int").alias("baskets"),
        sum((col("baskets_month") > 0).cast("int")).cast("int").alias("buyers_month"),
        sum("baskets_month").cast("int").alias("baskets_month"),
        sum((col("days_known") <= 28).cast("int")).cast("int").alias("new_buyers_month"),
        *(sum(name).cast("float").alias(name) for name in ("fresh", "recent", "lasting")),
        min("days_since").alias("days_since"),
        max("days_known").alias("days_known"),
        avg((col("baskets") > 1).cast("int")).cast("float").alias("repeat_share"),
    )
    described = silver_products.select("source", "product_id", "is_offered", "brand", "department", "category", "type")
    nothing = array(*[lit(0).cast("float")] * COMING)
    # What is offered but was never sold can be recommended too.
    offered = described.where("is_offered").join(broadcast(moments.where("role = 'now'")), "source").select(*product)
    return (
        buyers.join(_sales(gold_interactions, moments), product)
        .join(offered, product, "full")
        .join(_coming(silver_promotions, gold_moments), product, "left")
        .join(described, ["source", "product_id"], "left")
        .join(broadcast(moments.drop("moment_day")), ["source", "moment"])
        .withColumns({name: coalesce(name, lit(0)) for name in COUNTS})
        .withColumns({name: coalesce(name, nothing) for name in ("coming_display", "coming_mailer")})
        .withColumn("is_offered", coalesce("is_offered", lit(True)))
        .select(*TABLE.by_name)
    )


def _sales(interactions: DataFrame, moments: DataFrame) -> DataFrame:
    """Sales before each moment, from sums over each product and day, of which there are far fewer than lines."""
    days = (
        interactions.where("kind = 'purchase'")
        # A moment falls at the time of day of the first purchase, where days as counted here begin too.
        .groupBy("source", "product_id", "day")
        .agg(
            count("*").alias("lines"),
            sum("quantity").alias("quantity"),
            sum("value").alias("value"),
            sum(col("on_display").cast("int")).alias("displayed"),
            sum(col("in_mailer").cast("int")).alias("mailed"),
        )
    )
    ago = col("moment_day") - col("day")
    lately = ago <= 28
    return (
        days.join(broadcast(moments), "source")
        .where("day < moment_day")
        .groupBy("source", "product_id", "moment")
        .agg(
            when(sum("quantity") > 0, sum("value").cast("double") / sum("quantity").cast("double")).cast("float").alias("price"),
            (sum(when(lately, col("displayed"))) / sum(when(lately, col("lines")))).cast("float").alias("display_share"),
            (sum(when(lately, col("mailed"))) / sum(when(lately, col("lines")))).cast("float").alias("mailer_share"),
            array(
                *(
                    sum(when(ago.between(7 * week + 1, 7 * week + 7), col("lines")).otherwise(0)).cast("float")
                    for week in range(WEEKS)
                )
            ).alias("weeks"),
        )
    )


def _coming(promotions: DataFrame, moments: DataFrame) -> DataFrame:
    """The coming weeks' promotions at each moment, from sums over stores, which are few rows for each product.

    A promotion in two places of a store at once counts twice, so the share is held to 1.
    """
    told = promotions.withColumn("known_at", coalesce("known_at", to_timestamp("starts_on")))
    here = broadcast(moments.select("source", "moment", to_date("moment").alias("today")))
    stores = (
        told.groupBy("source", "store_id")
        .agg(min("known_at").alias("known_at"))
        .join(here, "source")
        .where("known_at <= moment")
        .groupBy("source", "moment")
        .agg(count("*").alias("stores"))
    )
    sums = told.groupBy("source", "product_id", "starts_on", "ends_on", "known_at").agg(
        *(sum((col(name) != "none").cast("int")).alias(name) for name in ("display", "mailer"))
    )

    def share(name: str, week: int) -> Expression:
        begins, ends = date_add("today", 7 * week), date_add("today", 7 * week + 6)
        days = greatest(lit(0), date_diff(least("ends_on", ends), greatest("starts_on", begins)) + 1)
        return least(lit(1.0), sum(days * col(name)) / (7 * max("stores"))).cast("float")

    return (
        sums.join(here, "source")
        .where("known_at <= moment AND ends_on >= today")
        .where(col("starts_on") < date_add("today", 7 * COMING))
        .join(broadcast(stores), ["source", "moment"])
        .groupBy("source", "product_id", "moment")
        .agg(*(array(*(share(name, week) for week in range(COMING))).alias(f"coming_{name}") for name in ("display", "mailer")))
    )
