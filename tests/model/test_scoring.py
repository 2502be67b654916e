"""The lists that batch scoring makes."""

from __future__ import annotations

from datetime import UTC, datetime

import keras
import numpy as np
import pyarrow as pa
import pytest
from wares.model.encoding import Encoding
from wares.model.network import build_network
from wares.model.scorer import Catalogue, Network, Scorer, top
from wares.model.scoring import Model, Ranker
from wares.model.spec import Spec
from wares.settings import Score
from wares.tables.gold.recommendations import REASONS

pytestmark = pytest.mark.usefixtures("spark")  # with which the table's schema is read


@pytest.fixture(scope="module")
def network(spec: Spec, encoding: Encoding) -> Network:
    model: keras.Model = build_network(spec, encoding, 3)
    random = np.random.default_rng(4)
    return Network(
        spec, encoding, {variable.path: random.normal(0, 0.3, variable.shape).astype(np.float32) for variable in model.variables}
    )


@pytest.fixture(scope="module")
def here(users: pa.Table) -> pa.Table:
    moment = pa.array([datetime(2024, 1, 1, tzinfo=UTC)] * users.num_rows, pa.timestamp("us", "UTC"))
    return users.append_column("source", pa.array(["shop"] * users.num_rows)).append_column("moment", moment)


def ranked(network: Network, products: pa.Table, users: pa.Table, settings: Score) -> dict[str, list[dict[str, object]]]:
    ranker = Ranker({"shop": Model("wares_shop@1", network, products)}, settings)
    lists: dict[str, list[dict[str, object]]] = {}
    for row in pa.Table.from_batches(list(ranker(iter(users.to_batches())))).to_pylist():
        lists.setdefault(row["user_id"], []).append(row)
    return lists


def test_every_user_gets_the_exact_top(network: Network, products: pa.Table, here: pa.Table) -> None:
    lists = ranked(network, products, here, Score(top_k=7))
    scorer = Scorer(network, Catalogue(network, products))
    for scored in scorer.score(here):
        rows = lists[here["user_id"][scored.row].as_py()]
        best = top(scored.logits, 7)
        assert [row["product_id"] for row in rows] == scorer.catalogue.ids.take(pa.array(best)).to_pylist()
        assert [row["rank"] for row in rows] == list(range(1, 8))
        assert {row["reason"] for row in rows} <= set(REASONS)
        assert np.allclose([row["score"] for row in rows], 1 / (1 + np.exp(-scored.logits[best])), atol=1e-6)
    assert len(lists) == here.num_rows


def test_what_was_bought_can_be_left_out(network: Network, products: pa.Table, here: pa.Table) -> None:
    lists = ranked(network, products, here, Score(top_k=290, exclude_seen=True))
    for user in here.to_pylist():
        bought = {pair["product_id"] for pair in user["pairs"] or []}
        assert not bought & {row["product_id"] for row in lists[user["user_id"]]}


def test_candidates_are_what_was_bought_its_neighbours_and_the_popular(
    network: Network, products: pa.Table, here: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wares.model.scoring.POPULAR", 3)
    monkeypatch.setattr("wares.model.scoring.NEIGHBOURS", 2)
    lists = ranked(network, products, here, Score(top_k=300, candidates="history"))
    popular = {
        products["product_id"][int(place)].as_py() for place in np.argsort(-products["baskets"].to_numpy(), kind="stable")[:3]
    }
    known = set(products["product_id"].to_pylist())
    for user in here.to_pylist():
        listed = {row["product_id"] for row in lists[user["user_id"]]}
        bought = {pair["product_id"] for pair in user["pairs"] or []} & known
        assert bought <= listed
        assert len(listed - bought) <= 3 + len(bought)  # each is its own nearest neighbour, and has one other
    assert len(lists[here["user_id"][here.num_rows - 1].as_py()]) == len(popular)


def test_neighbours_are_the_most_alike(network: Network, products: pa.Table) -> None:
    catalogue = Catalogue(network, products)
    unit = catalogue.first / np.linalg.norm(catalogue.first, axis=1, keepdims=True)
    near = catalogue.neighbours(5)
    for place in (0, 17, 250):
        assert set(near[place]) == set(np.argsort(-(unit @ unit[place]))[:5])
