"""What the model learns from: products that a user did or did not buy after a moment, with what was known of the two before it.

What was known of the user alone, or of the product alone, stands in gold.user_features and gold.product_features under the
same moment, once and not in each of its examples.
"""

from pyspark.sql import Column as Expression
from pyspark.sql import DataFrame, Window
from pyspark.sql.functions import (
    bool_and,
    broadcast,
    col,
    count,
    explode,
    floor,
    greatest,
    least,
    lit,
    max,
    pmod,
    sequence,
    sum,
    when,
    xxhash64,
)

from wares.lake.labels import BEHAVIOUR, CONFIDENTIAL, IDENTIFIER, INTERNAL
from wares.lake.table import Check, Column, Table
from wares.tables.gold import affinities, pair_features, product_features, type_features, user_features
from wares.tables.gold.moments import purchases_within

DRAWS = 30
"""Products drawn for each user and moment; those that the user had not bought before, and that are not among the best
products that go with what was, become examples."""
AFFINITY_RATE = 0.2
"""The share of those best ones that is taken."""

PARTS = {
    "user": user_features,
    "product": product_features,
    "pair": pair_features,
    "type": type_features,
    "affinity": affinities,
}
OWN = ("pair", "type", "affinity")
"""The parts whose features stand in each example."""
NO_FEATURE = ("source", "user_id", "moment", "role", "is_new", "goes_with")
FEATURES = {
    part: [
        column
        for column in file.TABLE.columns
        if column.name not in NO_FEATURE and not (part in OWN and column.name in file.TABLE.keys)
    ]
    for part, file in PARTS.items()
}
"""Of each part the columns that may be features."""

TABLE = Table(
    keys=("source", "user_id", "product_id", "moment"),
    columns=(
        Column("source", "string", INTERNAL, "The shop that the row comes from."),
        Column("user_id", "string", CONFIDENTIAL + IDENTIFIER, "Who."),
        Column("product_id", "string", CONFIDENTIAL + BEHAVIOUR, "Which product."),
        Column("moment", "timestamp", CONFIDENTIAL + BEHAVIOUR, "Features are from before, the label from here on; in UTC."),
        Column("split", "string", CONFIDENTIAL + BEHAVIOUR, "train or validation."),
        Column("label", "float", CONFIDENTIAL + BEHAVIOUR, "1 if the user bought the product within the moment's span, else 0."),
        Column(
            "weight",
            "float",
            CONFIDENTIAL + IDENTIFIER + BEHAVIOUR,
            "One in how many such pairs was taken if the user did not buy; all were that did.",
        ),
        *(
            Column(f"{part}_{column.name}", column.type, column.label, column.description)
            for part in OWN
            for column in FEATURES[part]
        ),
    ),
    checks=(Check("known_label", "label IN (0, 1)"), Check("known_split", "split IN ('train', 'validation')")),
)


def build(
    gold_interactions: DataFrame,
    gold_moments: DataFrame,
    gold_user_features: DataFrame,
    gold_product_features: DataFrame,
    gold_pair_features: DataFrame,
    gold_type_features: DataFrame,
    gold_affinities: DataFrame,
) -> DataFrame:
    moments = gold_moments.where("role IN ('train', 'validation')")
    users = gold_user_features.where("role IN ('train', 'validation') AND baskets > 0")
    products = _with_slots(gold_product_features.where("role IN ('train', 'validation') AND baskets > 0"))
    pairs = gold_pair_features.join(broadcast(moments.select("source", "moment")), ["source", "moment"])
    affine = gold_affinities.join(broadcast(moments.select("source", "moment")), ["source", "moment"])
    # Each pair has one way to become an example if it was not bought: by the first that fits, at that way's rate.
    weight = (
        when(col("pair_baskets").isNotNull(), 1 / _own_rate(col("pair_recent")))
        .when(col("affinity_ease").isNotNull(), lit(1 / AFFINITY_RATE))
        .otherwise(col("all_slots") / (DRAWS * col("slots")))
    )
    return (
        _pairs(gold_interactions, moments, users, products, pairs, affine)
        .join(features_of("pair", pairs), ["source", "user_id", "product_id", "moment"], "left")
        .join(features_of("affinity", affine), ["source", "user_id", "product_id", "moment"], "left")
        # What the user had bought before, or what goes with it, is an example by its own rate, not because it was drawn.
        .where("NOT drawn OR (pair_baskets IS NULL AND affinity_ease IS NULL)")
        .join(products.select("source", "product_id", "moment", "type", "slots", "all_slots"), ["source", "product_id", "moment"])
        .join(features_of("type", gold_type_features), ["source", "user_id", "type", "moment"], "left")
        .join(users.select("source", "user_id", "moment"), ["source", "user_id", "moment"], "left_semi")
        .join(broadcast(moments.select("source", "moment", col("role").alias("split"))), ["source", "moment"])
        .withColumn("weight", greatest(lit(1.0), weight).cast("float"))
        .select(*TABLE.by_name)
    )


def features_of(part: str, frame: DataFrame) -> DataFrame:
    """The keys of a feature table, and its features under the names that they have in the examples."""
    return frame.select(*PARTS[part].TABLE.keys, *(col(column.name).alias(f"{part}_{column.name}") for column in FEATURES[part]))


def _pairs(
    interactions: DataFrame, moments: DataFrame, users: DataFrame, products: DataFrame, pairs: DataFrame, affine: DataFrame
) -> DataFrame:
    """Each pair that may become an example, once, with `label` and `drawn`: there only because it was drawn.

    All choices hang on hashes of the keys, so the same tables give the same examples.
    """
    key = ["source", "user_id", "product_id", "moment"]
    bought = purchases_within(interactions, moments).select(*key, lit(1).alias("label"), lit(False).alias("drawn"))
    unbought = [lit(0).alias("label"), lit(False).alias("drawn")]
    own = pairs.where(_chance("own", key) < _own_rate(col("recent"))).select(*key, *unbought)
    near = affine.where(col("is_new") & (_chance("affinity", key) < AFFINITY_RATE)).select(*key)
    # The keys are those of users and products: what Python gave back is told of all that it had seen.
    near = (
        products.select("source", "moment", "product_id")
        .join(
            users.select("source", "moment", "user_id").join(near, ["source", "moment", "user_id"]),
            ["source", "moment", "product_id"],
        )
        .select(*key, *unbought)
    )
    drawn = _drawn(users, products).select(*key, lit(0).alias("label"), lit(True).alias("drawn"))
    return (
        bought.unionByName(own)
        .unionByName(near)
        .unionByName(drawn)
        .groupBy(*key)
        .agg(max("label").cast("float").alias("label"), bool_and("drawn").alias("drawn"))
    )


def _chance(what: str, key: list[str]) -> Expression:
    """A number from 0 to below 1 that hangs on the key alone."""
    return pmod(xxhash64(lit(what), *key), lit(1_000_000)) / 1_000_000


def _own_rate(recent: Expression) -> Expression:
    """The share of what a user had bought before that is taken: more of what was bought of late, which is the harder part."""
    return least(lit(1.0), greatest(lit(0.15), recent.cast("double")))


def _with_slots(products: DataFrame) -> DataFrame:
    """Lay the products of each moment out on a drum: `slots` up to `end` of `all_slots`, as many alike as by popularity."""
    moment = Window.partitionBy("source", "moment")
    popular = floor(col("baskets") * count("*").over(moment) / sum("baskets").over(moment))
    return (
        products.withColumn("slots", 1 + popular)
        .withColumn("end", sum("slots").over(moment.orderBy("product_id")))
        .withColumn("all_slots", sum("slots").over(moment))
    )


def _drawn(users: DataFrame, products: DataFrame) -> DataFrame:
    """`DRAWS` products for each user and moment, each from the slot that a hash points at."""
    moment = ["source", "moment"]
    slot = explode(sequence(col("end") - col("slots"), col("end") - 1))
    sizes = products.groupBy(*moment).agg(max("all_slots").alias("size"))
    draw = explode(sequence(lit(1), lit(DRAWS)))
    return (
        users.select(*moment, "user_id", draw.alias("draw"))
        .join(broadcast(sizes), moment)
        .select(*moment, "user_id", pmod(xxhash64(*moment, "user_id", "draw"), col("size")).alias("slot"))
        .join(products.select(*moment, "product_id", slot.alias("slot")), [*moment, "slot"])
    )
