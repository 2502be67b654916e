"""Who each user is and what they bought so far: one row for each user who is described or has ordered."""

from pyspark.sql import DataFrame
from pyspark.sql.functions import (
    broadcast,
    coalesce,
    col,
    collect_set,
    count_distinct,
    lit,
    max,
    max_by,
    min,
    size,
    struct,
    sum,
    when,
)

from wares.lake.labels import BEHAVIOUR, CONFIDENTIAL, DEMOGRAPHIC, FINANCIAL, IDENTIFIER, INTERNAL, LOCATION
from wares.lake.table import Column, Table, Through, by_key, same
from wares.tables.gold.histories import day_of

TABLE = Table(
    keys=("source", "user_id"),
    columns=(
        Column("source", "string", INTERNAL, "The shop that the row comes from."),
        Column("user_id", "string", CONFIDENTIAL + IDENTIFIER, "The shop's number for the user."),
        Column("age_band", "string", CONFIDENTIAL + DEMOGRAPHIC, "Age, as a band."),
        Column("income_band", "string", CONFIDENTIAL + DEMOGRAPHIC + FINANCIAL, "Yearly income, as a band."),
        Column("household", "string", CONFIDENTIAL + DEMOGRAPHIC, "Who lives there."),
        Column("children", "string", CONFIDENTIAL + DEMOGRAPHIC, "How many children."),
        Column("home", "string", CONFIDENTIAL + DEMOGRAPHIC, "Owner, renter, or unknown."),
        Column("country", "string", CONFIDENTIAL + LOCATION, "Where the user lives."),
        Column("orders", "bigint", CONFIDENTIAL + IDENTIFIER + BEHAVIOUR, "Orders so far."),
        Column("products", "bigint", CONFIDENTIAL + BEHAVIOUR, "Different products bought so far."),
        Column(
            "spend", "decimal(18,4)", CONFIDENTIAL + BEHAVIOUR + FINANCIAL, "Spent so far, in `currency`, returns not taken off."
        ),
        Column("spend_90d", "decimal(18,4)", CONFIDENTIAL + BEHAVIOUR + FINANCIAL, "Spent in the source's last 90 days."),
        Column("currency", "string", CONFIDENTIAL + BEHAVIOUR, "ISO 4217; the last one used, if a user paid in several."),
        Column("first_at", "timestamp", CONFIDENTIAL + BEHAVIOUR, "First sale, in UTC."),
        Column("last_at", "timestamp", CONFIDENTIAL + BEHAVIOUR, "Last sale, in UTC."),
        Column(
            "favourite_category",
            "string",
            CONFIDENTIAL + IDENTIFIER + BEHAVIOUR,
            "The product category bought in the most orders; ties by name.",
        ),
    ),
    refresh=by_key("source", "user_id", through={"silver.products": Through("gold.interactions", same("source", "product_id"))}),
)


def build(
    gold_interactions: DataFrame, silver_users: DataFrame, silver_products: DataFrame, gold_histories: DataFrame
) -> DataFrame:
    user = ["source", "user_id"]
    sales = gold_interactions.where("kind = 'purchase'")
    last_day = broadcast(gold_histories.select("source", day_of("last_at").alias("last_day")))
    recent = col("day") > col("last_day") - 90
    totals = (
        sales.join(last_day, "source")
        .groupBy(*user)
        .agg(
            # A user's sets are small, while two times count(DISTINCT) would copy every row twice.
            size(collect_set("reference")).cast("bigint").alias("orders"),
            size(collect_set("product_id")).cast("bigint").alias("products"),
            sum("value").cast("decimal(18,4)").alias("spend"),
            sum(when(recent, col("value")).otherwise(0)).cast("decimal(18,4)").alias("spend_90d"),
            max_by("currency", "at").alias("currency"),
            min("at").alias("first_at"),
            max("at").alias("last_at"),
        )
    )
    favourites = (
        sales.join(silver_products.select("source", "product_id", "category"), ["source", "product_id"])
        .where("category IS NOT NULL")
        .groupBy(*user, "category")
        .agg(count_distinct("reference").alias("times"))
        .groupBy(*user)
        .agg(max_by("category", struct("times", "category")).alias("favourite_category"))
    )
    counts = {name: coalesce(name, lit(0)) for name in ("orders", "products", "spend", "spend_90d")}
    return (
        silver_users.drop("updated_at")
        .join(totals, user, "full")
        .join(favourites, user, "left")
        .withColumns(counts)
        .withColumns({name: col(name).cast("decimal(18,4)") for name in ("spend", "spend_90d")})
        .select(*TABLE.by_name)
    )
