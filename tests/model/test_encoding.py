from __future__ import annotations

import numpy as np
import pyarrow as pa
from wares.model.encoding import NONE, OTHER, encode, encode_parts, learn
from wares.model.spec import Spec


def test_vocabulary_holds_what_was_bought_most(spec: Spec, examples: pa.Table) -> None:
    bought = examples.slice(0, 6).drop_columns(["label", "product_id"])
    rows = bought.append_column("label", pa.array([1.0, 1, 1, 1, 0, 0])).append_column(
        "product_id", pa.array(["b", "a", "b", "c", "z", "z"])
    )
    assert learn(spec, [rows]).vocabularies["product"] == ["b", "a", "c"]


def test_values_get_numbers(spec: Spec, examples: pa.Table) -> None:
    encoding = learn(spec, [examples])
    known = encoding.vocabularies["product"][3]
    columns = {
        "age_band": pa.array([None, "never seen"]).dictionary_encode(),
        "baskets": pa.array([None, 3], pa.int32()),
        "recent_products": pa.array([[known, "never seen"], None]),
    }
    arrays = encode(spec, encoding, "user", columns, 2)
    assert arrays["age"].tolist() == [NONE, OTHER]
    assert arrays["history"].tolist() == [[5, OTHER, NONE, NONE, NONE], [NONE] * 5]
    assert arrays["user_numbers"][0].tolist() == [0]  # null is the mean


def test_numbers_are_standardised(spec: Spec, examples: pa.Table) -> None:
    numbers = encode_parts(spec, learn(spec, [examples]), examples)["product_numbers"]
    assert np.allclose(numbers.mean(0), 0, atol=1e-3)
    assert np.allclose(numbers.std(0), 1, atol=1e-2)


def test_no_past_is_all_zero(spec: Spec, examples: pa.Table) -> None:
    numbers = encode_parts(spec, learn(spec, [examples]), examples)["pair_numbers"]
    bought = examples["pair_baskets"].is_valid().to_numpy()
    assert (numbers[bought, 0] == 1).all()
    assert not numbers[~bought].any()
