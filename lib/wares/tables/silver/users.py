"""Known users: one row for each user that a source describes; the newest description wins."""

from pyspark.sql import DataFrame

from wares.lake.labels import BEHAVIOUR, CONFIDENTIAL, DEMOGRAPHIC, FINANCIAL, IDENTIFIER, INTERNAL, LOCATION
from wares.lake.table import APPEND, Column, Table

TABLE = Table(
    keys=("source", "user_id"),
    columns=(
        Column("source", "string", INTERNAL, "The shop that the row comes from."),
        Column("user_id", "string", CONFIDENTIAL + IDENTIFIER, "The shop's number for the user."),
        Column("age_band", "string", CONFIDENTIAL + DEMOGRAPHIC, "Age, as a band such as 45-54."),
        Column("income_band", "string", CONFIDENTIAL + DEMOGRAPHIC + FINANCIAL, "Yearly income, as a band such as 35-49K."),
        Column("household", "string", CONFIDENTIAL + DEMOGRAPHIC, "Who lives there, such as 2 Adults No Kids."),
        Column("children", "string", CONFIDENTIAL + DEMOGRAPHIC, "How many children, such as 1 or 3+."),
        Column("home", "string", CONFIDENTIAL + DEMOGRAPHIC, "Owner, renter, or unknown."),
        Column("country", "string", CONFIDENTIAL + LOCATION, "Where the user lives, as the shop writes it."),
        Column(
            "updated_at", "timestamp", CONFIDENTIAL + BEHAVIOUR, "When the source last said so, in UTC; null if it does not tell."
        ),
    ),
    newest=("updated_at",),
    refresh=APPEND,
)


def build(bronze_users: DataFrame) -> DataFrame:
    return bronze_users
