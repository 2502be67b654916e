"""The ranked list of every user, as the champion model of the user's shop scores the catalogue now."""

from collections.abc import Callable, Iterator

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql.functions import broadcast, collect_list, struct

from wares.lake.labels import BEHAVIOUR, CONFIDENTIAL, DEMOGRAPHIC, FINANCIAL, IDENTIFIER, LOCATION
from wares.lake.table import Check, Column, Table, by_key

ALL_OF_A_USER = CONFIDENTIAL + IDENTIFIER + DEMOGRAPHIC + LOCATION + BEHAVIOUR + FINANCIAL
"""The model sees all features at once, so what it says may tell of any of them."""

REASONS = ("bought_before", "goes_with", "type_bought", "popular")
"""As `model/reasons.py` finds them."""

TABLE = Table(
    keys=("source", "user_id", "rank"),
    columns=(
        Column("source", "string", ALL_OF_A_USER, "The shop that the row comes from."),
        Column("user_id", "string", ALL_OF_A_USER, "Who."),
        Column("rank", "int", ALL_OF_A_USER, "1 for the best."),
        Column("product_id", "string", ALL_OF_A_USER, "What is recommended."),
        Column("score", "float", ALL_OF_A_USER, "The model's probability that the user buys it within the span of the labels."),
        Column(
            "reason", "string", ALL_OF_A_USER, "What of the user's past raises the score most: one of " + ", ".join(REASONS) + "."
        ),
        Column("reason_product_id", "string", ALL_OF_A_USER, "goes_with: the product of the past that counts most."),
        Column(
            "reason_times",
            "int",
            ALL_OF_A_USER,
            "bought_before: the user's baskets with the product; type_bought: how often the user bought one of its type.",
        ),
        Column("reason_days", "float", ALL_OF_A_USER, "bought_before: mean days between two; null after a single basket."),
        Column("moment", "timestamp", ALL_OF_A_USER, "What happened from here on was not known; in UTC."),
        Column("model_version", "string", ALL_OF_A_USER, "The registered model and its version, such as wares_myshop@3."),
    ),
    checks=(
        Check("probability", "score >= 0 AND score <= 1"),
        Check("rank_from_one", "rank >= 1"),
        Check("known_reason", f"reason IN {REASONS}"),
    ),
    # A list hangs on its user, the catalogue and the model; the model and the catalogue come with the scorer.
    refresh=by_key("source", "user_id", python_by_key=True),
)

Scorer = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]
"""From users with their past, as `with_past` gives them, to rows of this table."""


def build(
    gold_moments: DataFrame,
    gold_user_features: DataFrame,
    gold_product_features: DataFrame,
    gold_pair_features: DataFrame,
    gold_type_features: DataFrame,
    gold_affinities: DataFrame,
    scorer: Scorer,
) -> DataFrame:
    now = gold_moments.where("role = 'now'")
    offered = gold_product_features.where("role = 'now' AND is_offered").select("source", "product_id")
    ranked = (
        with_past(now, gold_user_features, pairs=gold_pair_features, types=gold_type_features, affinities=gold_affinities)
        # Spark puts these parts together to one for each core, or fewer for few users: each computes the catalogue's half anew.
        .repartition("source", "user_id")
        .mapInArrow(scorer, TABLE.schema())
    )
    return ranked.join(offered, ["source", "product_id"], "left_semi").select(*TABLE.by_name)


def with_past(moments: DataFrame, users: DataFrame, **past: DataFrame) -> DataFrame:
    """Users at some moments, each with its past: with products, with types, and what goes with it.

    Args:
        users: Rows of gold.user_features.
        past: Feature tables that have several rows for a user and moment, by the name that each gets.

    Returns:
        The users at these moments, with a column for each of `past`: the list of the user's rows there, as structs; null for
        a user who has none.
    """
    key = ["source", "user_id", "moment"]
    chosen = broadcast(moments.select("source", "moment"))
    found = users.join(chosen, ["source", "moment"], "left_semi")
    for name, frame in past.items():
        columns = [column for column in frame.columns if column not in key]
        here = frame.join(chosen, ["source", "moment"], "left_semi")
        found = found.join(here.groupBy(*key).agg(collect_list(struct(*columns)).alias(name)), key, "left")
    return found
