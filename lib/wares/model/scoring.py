"""Batch scoring: the champion of each source ranks the catalogue for every user, into gold.recommendations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql.pandas.types import to_arrow_schema

from wares.errors import ModelError
from wares.lake.store import Given, Outcome, Store
from wares.model import registry
from wares.model.reasons import reasons
from wares.model.scorer import LISTS, Catalogue, Network, Scorer, top
from wares.model.training import check_columns
from wares.settings import Score
from wares.tables.gold.recommendations import TABLE

POPULAR = 500
"""How many of the most sold products are everyone's candidates."""
NEIGHBOURS = 20
"""How many neighbours of each product that a user bought before are candidates."""


def score(store: Store) -> Outcome:
    """Refresh gold.recommendations for every source that has a champion; nothing is done if nothing has changed.

    Where only features of users have changed, only these users are ranked anew. A new champion, other products, or a new day
    rank all of them.

    Raises:
        ModelError: No source has a champion, or one needs features that the tables no longer have.
    """
    client = registry.connect(store.settings)
    sources = sorted(row["source"] for row in store.read("gold.moments").select("source").distinct().collect())
    champions = {source: version for source in sources if (version := registry.champion(client, source)) is not None}
    if not champions:
        raise ModelError(
            "There is no model to score with.",
            found=f"no champion for {', '.join(sources) or 'any source'}",
            do="run jobs/train.py first",
        )
    models = {
        source: Model(f"{version.name}@{version.version}", registry.load_network(version), _offered(store, source))
        for source, version in champions.items()
    }
    for model in models.values():
        check_columns(model.network.spec, model.version)
    settings = store.settings.score
    # Runs too: a registry that was made anew numbers its versions from 1 again.
    runs = [f"{models[source].version} {version.run_id}" for source, version in champions.items()]
    version = ", ".join([*runs, settings.model_dump_json(), store.lake.state("gold.product_features")])
    return store.refresh("gold.recommendations", given={"scorer": Given(Ranker(models, settings), version)})


def _offered(store: Store, source: str) -> pa.Table:
    """The products that can be recommended now. Each worker holds them all, so they are few enough to be read here."""
    products = store.read("gold.product_features").where("role = 'now' AND is_offered")
    return products.where(products["source"] == source).toArrow()


def history(catalogue: Catalogue) -> Callable[[np.ndarray], np.ndarray]:
    """From the places of what a user bought to those of the candidates: that, its neighbours, and what is popular."""
    neighbours = catalogue.neighbours(NEIGHBOURS)
    popular = top(catalogue.baskets.astype(np.float32), POPULAR)
    return lambda bought: np.unique(np.concatenate([popular, bought, neighbours[bought].ravel()]))


@dataclass(frozen=True)
class Model:
    """A source's champion.

    Args:
        version: Its registered name and version.
        network: Its weights.
        products: The rows of gold.product_features that can be recommended.
    """

    version: str
    network: Network
    products: pa.Table


class Ranker:
    """Ranks users where they are: what Spark sends to its Python workers.

    Args:
        models: The champion of each source; users of other sources get no list.
    """

    def __init__(self, models: dict[str, Model], settings: Score) -> None:
        self._models, self._settings = models, settings
        self._schema = to_arrow_schema(TABLE.schema())  # read here, since a worker has no session to read it with

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        scorers: dict[str, Scorer] = {}
        for batch in batches:
            users = pa.Table.from_batches([batch])
            for source in pc.unique(users["source"]).to_pylist():
                model = self._models.get(source)
                if model is not None:
                    if source not in scorers:
                        catalogue = Catalogue(model.network, model.products)
                        candidates = history(catalogue) if self._settings.candidates == "history" else None
                        scorers[source] = Scorer(model.network, catalogue, candidates)
                    yield from self._rank(users.filter(pc.equal(users["source"], source)), scorers[source], model.version)

    def _rank(self, users: pa.Table, scorer: Scorer, version: str) -> Iterator[pa.RecordBatch]:
        catalogue, settings = scorer.catalogue, self._settings
        rows, places, logits, why = [], [], [], []
        for scored in scorer.score(users):
            best = top(scored.logits, settings.top_k, scored.bought if settings.exclude_seen else None)
            rows.append(np.full(len(best), scored.row))
            places.append(best)
            logits.append(scored.logits[best].copy())
            why += reasons(scored.told(best), {name: users[name][scored.row] for name in LISTS.values()})
        ranks = np.concatenate([np.arange(1, len(best) + 1, dtype=np.int32) for best in places])
        which = users.take(np.concatenate(rows))
        columns = {
            "source": which["source"],
            "user_id": which["user_id"],
            "rank": ranks,
            "product_id": catalogue.ids.take(pa.array(np.concatenate(places))),
            "score": 1 / (1 + np.exp(-np.concatenate(logits))),
            **{name: [reason[name] for reason in why] for name in TABLE.by_name if name.startswith("reason")},
            "moment": which["moment"],
            "model_version": pa.repeat(version, len(ranks)),
        }
        yield from pa.table(columns).cast(self._schema).to_batches()
