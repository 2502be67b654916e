"""What users did besides ordering: views, carts, coupons redeemed, mailings received."""

from pyspark.sql import DataFrame

from wares.lake.labels import BEHAVIOUR, CONFIDENTIAL, IDENTIFIER, INTERNAL
from wares.lake.table import APPEND, Check, Column, Table

TABLE = Table(
    keys=("source", "event_id"),
    columns=(
        Column("source", "string", INTERNAL, "The shop that the row comes from."),
        Column("event_id", "string", CONFIDENTIAL + IDENTIFIER + BEHAVIOUR, "Names the event within its source."),
        Column("user_id", "string", CONFIDENTIAL + IDENTIFIER, "Who; null if the shop does not know."),
        Column("kind", "string", CONFIDENTIAL + BEHAVIOUR, "view, cart, coupon, mailing."),
        Column("product_id", "string", CONFIDENTIAL + BEHAVIOUR, "On which product; null where there is none."),
        Column("at", "timestamp", CONFIDENTIAL + BEHAVIOUR, "When, in UTC."),
        Column("detail", "string", CONFIDENTIAL + BEHAVIOUR, "Such as the campaign."),
    ),
    checks=(
        Check("known_kind", "kind IN ('view', 'cart', 'coupon', 'mailing')"),
        Check("has_time", "at IS NOT NULL"),
        Check("not_in_future", "at <= current_timestamp() + INTERVAL 1 DAY"),
    ),
    refresh=APPEND,
)


def build(bronze_events: DataFrame) -> DataFrame:
    return bronze_events
