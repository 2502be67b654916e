from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from wares.errors import ModelError
from wares.model.encoding import NONE, OTHER, Chunk, Encoding, encode, encode_parts, learn
from wares.model.reader import Known
from wares.model.spec import Part, Spec


def test_vocabulary_holds_what_was_bought_most(spec: Spec, known: dict[Part, Known], examples: pa.Table) -> None:
    rows = examples.slice(0, 6).drop_columns(["label", "product_id"])
    rows = rows.append_column("label", pa.array([1.0, 1, 1, 1, 0, 0]))
    rows = rows.append_column("product_id", pa.array(["p7", "p2", "p7", "p3", "p9", "p9"]))
    chunk = Chunk(rows, {part: each.find(rows) for part, each in known.items()})
    learned = learn(spec, {part: each.rows for part, each in known.items()}, [chunk])
    assert learned.vocabularies["product"] == ["p7", "p2", "p3"]
    assert learned.vocabularies["type"] == ["t7", "t2", "t3"]


def test_what_is_not_known_is_refused(known: dict[Part, Known], examples: pa.Table) -> None:
    rows = examples.slice(0, 2).drop_columns(["user_id"]).append_column("user_id", pa.array(["u0", "nobody"]))
    with pytest.raises(ModelError, match="1 of 2 examples whose user is not there"):
        known["user"].find(rows)


def test_values_get_numbers(spec: Spec, encoding: Encoding) -> None:
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


def test_numbers_are_standardised(spec: Spec, encoding: Encoding, examples: pa.Table) -> None:
    numbers = encode_parts(spec, encoding, examples)["product_numbers"]
    assert np.allclose(numbers.mean(0), 0, atol=1e-3)
    assert np.allclose(numbers.std(0), 1, atol=1e-2)


def test_no_past_is_all_zero(spec: Spec, encoding: Encoding, examples: pa.Table) -> None:
    numbers = encode_parts(spec, encoding, examples)["pair_numbers"]
    bought = examples["pair_baskets"].is_valid().to_numpy()
    assert (numbers[bought, 0] == 1).all()
    assert not numbers[~bought].any()


def test_arrays_of_another_length_are_refused(spec: Spec, encoding: Encoding, products: pa.Table) -> None:
    longer = pa.array([[1.0, 2, 3, 4], None], pa.list_(pa.float32()))
    columns = {name: products[name].slice(0, 2) for name in ("product_id", "type", "baskets")} | {"weeks": longer}
    with pytest.raises(ModelError, match="4 in product.weeks, and length: 3"):
        encode(spec, encoding, "product", columns, 2)
