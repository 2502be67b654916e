"""Promotions: which product was on display or in the mailer, in which store, from when to when."""

from pyspark.sql import DataFrame

from wares.lake.labels import INTERNAL
from wares.lake.table import APPEND, Check, Column, Table

TABLE = Table(
    keys=("source", "product_id", "store_id", "starts_on", "display", "mailer"),
    columns=(
        Column("source", "string", INTERNAL, "The shop that the row comes from."),
        Column("product_id", "string", INTERNAL, "What was promoted."),
        Column("store_id", "string", INTERNAL, "Where."),
        Column("starts_on", "date", INTERNAL, "The first business day."),
        Column("ends_on", "date", INTERNAL, "The last business day."),
        Column("display", "string", INTERNAL, "Where in the store, as the shop codes it; 'none' if not on display."),
        Column("mailer", "string", INTERNAL, "Where in the mailer, as the shop codes it; 'none' if not in it."),
        Column("known_at", "timestamp", INTERNAL, "Since when the shop knew, in UTC; null if it does not tell."),
    ),
    checks=(Check("ends_after_start", "ends_on IS NOT NULL AND ends_on >= starts_on"),),
    refresh=APPEND,
)


def build(bronze_promotions: DataFrame) -> DataFrame:
    return bronze_promotions
