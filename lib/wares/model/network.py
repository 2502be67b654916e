"""The wide & deep network (Cheng et al. 2016) in plain Keras, made from the feature spec.

The logit of a pair is a sum of three:
    wide   one weight for each value, number and cross: what the data has shown often enough to be remembered
    deep   two dense layers over embeddings, the averaged history and all numbers: what carries over to what is rare
    match  the inner product of a vector of the user and one of the product

The first deep layer is written as a sum with one term for each part (user, product, pair, type, affinity), so that batch scoring
computes the user's and the product's terms once, not once for each pair (see scorer.py).

Under a mixed policy of Keras the layers of the deep side compute in fewer bits; the wide side, whose weights are small, and what
adds up to the logit stay in float32.
"""

from __future__ import annotations

import keras
from keras import layers, ops

from wares.model.encoding import NONE, Encoding, cross_bucket, width
from wares.model.spec import PARTS, Categorical, Part, Sequence, Spec

Inputs = dict[str, keras.KerasTensor]


def build_network(spec: Spec, encoding: Encoding, seed: int) -> keras.Model:
    """The network for encoded rows, as `encode_parts` makes them.

    Returns:
        A model from a dict of arrays [rows] or [rows, n] to logits, float32 [rows, 1].
    """
    keras.utils.set_random_seed(seed)
    inputs = _inputs(spec)
    joined = {part: _joined(spec, encoding, inputs, part) for part in PARTS}
    first = [layers.Dense(spec.network.hidden[0], use_bias=part == "user", name=f"first_{part}")(joined[part]) for part in PARTS]
    hidden = layers.ReLU(name="first_relu")(layers.Add(name="first")(first))
    hidden = layers.Dense(spec.network.hidden[1], activation="relu", name="second")(hidden)
    terms = [layers.Dense(1, dtype="float32", name="deep")(hidden), *_wide(spec, encoding, inputs)]
    if spec.network.match:
        vectors = [layers.Dense(spec.network.match, name=f"match_{part}")(joined[part]) for part in ("user", "product")]
        terms.append(layers.Dot(axes=1, dtype="float32", name="match")(vectors))
    return keras.Model(inputs, layers.Add(dtype="float32", name="logit")(terms), name="wide_deep")


def is_wide(variable: keras.Variable) -> bool:
    """True for the weights of the wide side, which FTRL trains; Adam trains all others."""
    return variable.path.startswith("wide_")


def _inputs(spec: Spec) -> Inputs:
    inputs = {f"{part}_numbers": keras.Input((width(spec, part),), name=f"{part}_numbers") for part in PARTS}
    for part in PARTS:
        for feature in spec.ids(part):
            shape = (feature.length,) if isinstance(feature, Sequence) else ()
            inputs[feature.name] = keras.Input(shape, dtype="int32", name=feature.name)
    return inputs


def _joined(spec: Spec, encoding: Encoding, inputs: Inputs, part: Part) -> keras.KerasTensor:
    """All that the deep side sees of a part, side by side, [rows, n]."""
    found = [inputs[f"{part}_numbers"]]
    for feature in spec.ids(part):
        if feature.is_deep:
            table = spec.vocabulary_of(feature)
            # A history has vectors of its own: what a purchase tells of the user is not what the product is.
            embed = layers.Embedding(encoding.size(table), spec.by_name[table].embedding, name=f"embed_{feature.name}")
            embedded = embed(inputs[feature.name])
            if isinstance(feature, Sequence):
                embedded = MeanOfKnown(name=f"mean_{feature.name}")(embedded, inputs[feature.name])
            found.append(embedded)
    return layers.Concatenate(name=f"joined_{part}")(found) if len(found) > 1 else found[0]


def _wide(spec: Spec, encoding: Encoding, inputs: Inputs) -> list[keras.KerasTensor]:
    """The wide side's terms, each [rows, 1]."""
    terms = []
    for part in PARTS:
        linear = layers.Dense(1, use_bias=False, kernel_initializer="zeros", dtype="float32", name=f"wide_{part}_numbers")
        terms.append(linear(inputs[f"{part}_numbers"]))
        for feature in spec.ids(part):
            if isinstance(feature, Categorical) and feature.is_wide:
                weights = layers.Embedding(
                    encoding.size(feature.name), 1, embeddings_initializer="zeros", dtype="float32", name=f"wide_{feature.name}"
                )
                terms.append(weights(inputs[feature.name]))
    for cross in spec.crosses:
        has, offered = (inputs[name] for name in cross.of)
        terms.append(CrossWeights(cross.buckets, dtype="float32", name=f"wide_{cross.name}")(has, offered))
    return terms


@keras.saving.register_keras_serializable("wares")
class MeanOfKnown(layers.Layer):
    """The mean of the vectors whose number is not NONE: [rows, length, n] and [rows, length] to [rows, n]."""

    def call(self, vectors: keras.KerasTensor, numbers: keras.KerasTensor) -> keras.KerasTensor:
        known = ops.cast(ops.not_equal(numbers, NONE), vectors.dtype)
        return ops.einsum("bl,bln->bn", known, vectors) / ops.maximum(ops.sum(known, axis=1, keepdims=True), 1.0)


@keras.saving.register_keras_serializable("wares")
class CrossWeights(layers.Layer):
    """The sum of a weight for each of the user's values with the offered one: [rows, length] and [rows] to [rows, 1]."""

    def __init__(self, buckets: int, **options: object) -> None:
        super().__init__(**options)
        self.buckets = buckets

    def build(self, has_shape: tuple[int | None, ...], offered_shape: tuple[int | None, ...]) -> None:
        self.weights_of = self.add_weight(shape=(self.buckets,), initializer="zeros", name="weights")

    def call(self, has: keras.KerasTensor, offered: keras.KerasTensor) -> keras.KerasTensor:
        if len(has.shape) == 1:
            has = ops.expand_dims(has, 1)
        bucket = cross_bucket(ops.cast(has, "int64"), ops.expand_dims(ops.cast(offered, "int64"), 1), self.buckets)
        known = ops.cast(ops.not_equal(has, NONE), "float32")
        return ops.sum(ops.take(self.weights_of, bucket) * known, axis=1, keepdims=True)

    def compute_output_shape(
        self, has_shape: tuple[int | None, ...], offered_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return (has_shape[0], 1)

    def get_config(self) -> dict[str, object]:
        return super().get_config() | {"buckets": self.buckets}
