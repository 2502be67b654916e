from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pyarrow as pa
import pytest
from wares.model.encoding import Encoding, encode_parts
from wares.model.network import build_network
from wares.model.scorer import Catalogue, Network, Scorer, top
from wares.model.spec import Spec


@pytest.fixture(scope="module")
def model(spec: Spec, encoding: Encoding) -> keras.Model:
    """The plain Keras network, with weights that let every part speak."""
    model = build_network(spec, encoding, 3)
    random = np.random.default_rng(4)
    for variable in model.variables:
        variable.assign(random.normal(0, 0.4, variable.shape))
    return model


@pytest.fixture(scope="module")
def scorer(model: keras.Model, spec: Spec, encoding: Encoding, products: pa.Table) -> Scorer:
    network = Network(spec, encoding, {variable.path: variable.numpy() for variable in model.variables})
    return Scorer(network, Catalogue(network, products))


@pytest.fixture(scope="module")
def by_keras(
    model: keras.Model, spec: Spec, encoding: Encoding, examples: pa.Table, users: pa.Table, products: pa.Table
) -> dict[tuple[str, str], float]:
    logits = model.predict(encode_parts(spec, encoding, examples), verbose=0)[:, 0]
    return dict(
        zip(zip(examples["user_id"].to_pylist(), examples["product_id"].to_pylist(), strict=True), logits.tolist(), strict=True)
    )


def test_scores_are_those_of_keras(scorer: Scorer, users: pa.Table, by_keras: dict[tuple[str, str], float]) -> None:
    names = scorer.catalogue.ids.to_pylist()
    seen = 0
    for scored in scorer.score(users):
        user = users["user_id"][scored.row].as_py()
        assert np.allclose(scored.logits, [by_keras[user, product] for product in names], atol=1e-5)
        seen += 1
    assert seen == users.num_rows


def test_what_a_part_tells_is_the_logit_without_it(
    model: keras.Model, scorer: Scorer, spec: Spec, encoding: Encoding, examples: pa.Table, users: pa.Table
) -> None:
    """By Keras, over examples whose columns of that part are all null."""
    names = scorer.catalogue.ids.to_pylist()
    keys = {"pair": ("pairs", "product_id"), "type": ("types", "type"), "affinity": ("affinities", "product_id")}
    types = dict(zip(examples["product_id"].to_pylist(), examples["product_type"].to_pylist(), strict=True))
    whole = model.predict(encode_parts(spec, encoding, examples), verbose=0)[:, 0]
    gains = {}
    for part in keys:
        without = examples
        for place, name in enumerate(examples.column_names):
            if name.startswith(f"{part}_"):
                without = without.set_column(place, name, pa.nulls(examples.num_rows, examples[name].type))
        gains[part] = whole - model.predict(encode_parts(spec, encoding, without), verbose=0)[:, 0]
    place = {
        pair: n for n, pair in enumerate(zip(*(examples[key].to_pylist() for key in ("user_id", "product_id")), strict=True))
    }
    seen = 0
    for scored in scorer.score(users):
        user = users.slice(scored.row, 1).to_pylist()[0]
        for part, told in scored.told(np.arange(len(names))).items():
            assert np.allclose(told.gain, [gains[part][place[user["user_id"], name]] for name in names], atol=1e-5)
            column, key = keys[part]
            own = {row[key]: n for n, row in enumerate(user[column] or [])}
            assert told.row.tolist() == [own.get(types[name] if part == "type" else name, -1) for name in names]
            seen += int((told.row >= 0).sum())
    assert seen > 100


def test_new_products_are_scored_by_what_they_are(scorer: Scorer, users: pa.Table, products: pa.Table) -> None:
    """What was never sold, or too rarely to be in the vocabulary, has the number of all such products, and its own content."""
    fields = {"baskets": 0, "weeks": [0.0, 0.0, 0.0]}
    new = [{"product_id": name, "type": type_, **fields} for name, type_ in (("n1", "t1"), ("n2", "t2"), ("n3", "t2"))]
    whole = pa.concat_tables([products, pa.Table.from_pylist(new, products.schema)])
    # Only the types speak, and all users like the one more than the other.
    weights = {name: np.zeros_like(values) for name, values in scorer.network.weights.items()}
    liked = weights["wide_type/embeddings"]
    liked[scorer.network.encoding.vocabularies["type"].index("t1") + 2] = 2
    liked[scorer.network.encoding.vocabularies["type"].index("t2") + 2] = 1
    network = Network(scorer.network.spec, scorer.network.encoding, weights)
    catalogue = Catalogue(network, whole)
    place = {name: catalogue.ids.to_pylist().index(name) for name in ("n1", "n2", "n3")}
    for scored in Scorer(network, catalogue).score(users):
        assert [scored.logits[place[name]] for name in ("n1", "n2", "n3")] == pytest.approx([2, 1, 1])
    # With all weights at work, new products of one kind are alike, and their places in the catalogue do not matter.
    catalogue = Catalogue(scorer.network, whole)
    for scored, before in zip(Scorer(scorer.network, catalogue).score(users), scorer.score(users), strict=True):
        assert np.isfinite(scored.logits).all()
        places = catalogue.ids.to_pylist().index("n2"), catalogue.ids.to_pylist().index("n3")
        assert scored.logits[places[0]] == pytest.approx(scored.logits[places[1]], abs=1e-5)
        kept = ~np.isin(catalogue.ids.to_pylist(), ["n1", "n2", "n3"])
        assert np.allclose(scored.logits[kept], before.logits, atol=1e-5)


def test_scores_do_not_depend_on_blocks_and_batches(
    scorer: Scorer, users: pa.Table, by_keras: dict[tuple[str, str], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wares.model.scorer.BLOCK", 64)
    monkeypatch.setattr("wares.model.scorer.USERS", 5)
    test_scores_are_those_of_keras(Scorer(scorer.network, scorer.catalogue), users, by_keras)


def test_only_candidates_are_scored(
    scorer: Scorer, users: pa.Table, by_keras: dict[tuple[str, str], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wares.model.scorer.BLOCK", 16)
    names = scorer.catalogue.ids.to_pylist()
    # What was bought, but for one product, and some others.
    some = Scorer(scorer.network, scorer.catalogue, lambda bought: np.union1d(bought[1:], np.arange(100, 130)))
    for scored in some.score(users):
        user = users["user_id"][scored.row].as_py()
        chosen = np.union1d(scored.bought[1:], np.arange(100, 130))
        assert np.allclose(scored.logits[chosen], [by_keras[user, names[place]] for place in chosen], atol=1e-5)
        assert np.isneginf(np.delete(scored.logits, chosen)).all()


def test_top_is_that_of_a_full_sort(scorer: Scorer, users: pa.Table, by_keras: dict[tuple[str, str], float]) -> None:
    names = scorer.catalogue.ids.to_pylist()
    for scored in scorer.score(users):
        user = users["user_id"][scored.row].as_py()
        best = sorted(names, key=lambda product: -by_keras[user, product])[:10]
        assert [names[place] for place in top(scored.logits, 10)] == best


def test_top_breaks_ties_by_place_and_leaves_out() -> None:
    logits = np.array([1, 3, 3, 2, 3], np.float32)
    assert top(logits.copy(), 2).tolist() == [1, 2]
    assert top(logits.copy(), 3, np.array([1])).tolist() == [2, 4, 3]
    assert top(logits.copy(), 9).tolist() == [1, 2, 4, 3, 0]


@pytest.mark.parametrize("values", [3, 200, 10**6])  # many ties, some, hardly any
def test_top_of_many_is_that_of_a_full_sort(values: int) -> None:
    random = np.random.default_rng(values)
    for _ in range(50):
        logits = random.integers(0, values, random.integers(1, 5000)).astype(np.float32)
        excluded = random.choice(len(logits), random.integers(0, len(logits) + 1), replace=False)
        k = int(random.integers(1, 30))
        order = np.argsort(-logits, kind="stable")
        assert top(logits, k, excluded).tolist() == order[~np.isin(order, excluded)][:k].tolist()


def test_a_saved_network_scores_the_same(
    model: keras.Model, spec: Spec, encoding: Encoding, examples: pa.Table, tmp_path: Path
) -> None:
    model.save(tmp_path / "model.keras")
    inputs = encode_parts(spec, encoding, examples)
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert np.allclose(model.predict(inputs, verbose=0), again.predict(inputs, verbose=0), atol=1e-6)
