"""Full-ranking tests: every user, every known product, no sampled negatives, beside the baselines that a model must beat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql.functions import collect_set
from pyspark.sql.pandas.types import from_arrow_schema

from wares.model.scorer import Catalogue, Network, Scored, Scorer, top
from wares.settings import Settings
from wares.tables.gold.moments import purchases_within
from wares.tables.gold.recommendations import PARTS, with_past

K = 10
RESAMPLES = 1000
GAIN = 1 / np.log2(np.arange(2, K + 2))
RANKERS = ("wide_deep", "popularity", "frequency")
PURCHASES = ("all", "first_time")
PER_USER = ("ndcg", "recall", "map")
ARROW_SCHEMA = pa.schema(
    [(f"{purchases}_{ranker}_{metric}", pa.float64()) for purchases in PURCHASES for ranker in RANKERS for metric in PER_USER]
    + [(f"{purchases}_{ranker}_top", pa.list_(pa.int32())) for purchases in PURCHASES for ranker in RANKERS]
    + [("auc", pa.float64()), ("log_loss", pa.float64())]
)

Report = dict[str, Any]
"""{"users", "products", "all": {ranker: {metric: {"mean", "low", "high"}}}, "first_time": the same}; low and high are the
ends of the 95 % bootstrap interval over users, absent for coverage."""


def evaluate(network: Network, products: pa.Table, users: DataFrame, seed: int) -> Report:
    """Rank all products for each user and compare with what the user went on to buy.

    Ties in frequency go to the more popular product, those in popularity to the later place in the catalogue.

    Args:
        products: Rows of gold.product_features that were sold before the moment.
        users: What `with_truth` gives.
    """
    rows = users.repartition(PARTS).mapInArrow(_Measure(network, products), from_arrow_schema(ARROW_SCHEMA)).toArrow()
    measured = {name: rows[name] for name in rows.column_names}
    random = np.random.default_rng(seed)
    report: Report = {"users": rows.num_rows, "products": products.num_rows}
    for purchases in PURCHASES:
        report[purchases] = {}
        for ranker in RANKERS:
            found = {f"{metric}@{K}": _interval(measured[f"{purchases}_{ranker}_{metric}"], random) for metric in PER_USER}
            listed = pc.count_distinct(pc.list_flatten(measured[f"{purchases}_{ranker}_top"].combine_chunks())).as_py()
            found["coverage"] = {"mean": listed / max(products.num_rows, 1)}
            report[purchases][ranker] = found
        report[purchases]["users"] = (
            len(measured[f"{purchases}_wide_deep_ndcg"]) - measured[f"{purchases}_wide_deep_ndcg"].null_count
        )
    report["all"]["wide_deep"] |= {"auc": _interval(measured["auc"], random), "log_loss": _interval(measured["log_loss"], random)}
    return report


def with_truth(
    moments: DataFrame, interactions: DataFrame, users: DataFrame, products: DataFrame, **past: DataFrame
) -> DataFrame:
    """Users at one moment with their past, and `truth`: the known products that each bought within the moment's span.

    Users who bought nothing then are left out.

    Args:
        past: As in `with_past`.
    """
    key = ["source", "user_id", "moment"]
    truth = (
        purchases_within(interactions, moments)
        .join(
            products.where("baskets > 0").select("source", "product_id", "moment"),
            ["source", "product_id", "moment"],
            "left_semi",
        )
        .groupBy(*key)
        .agg(collect_set("product_id").alias("truth"))
    )
    return with_past(moments, users.where("baskets > 0"), **past).join(truth, key)


def flat(report: Report, role: str) -> dict[str, float]:
    """The report's means as MLflow metrics, such as `test.all.wide_deep.ndcg_10`."""
    metrics = {f"{role}.users": float(report["users"]), f"{role}.products": float(report["products"])}
    for purchases in PURCHASES:
        for ranker in RANKERS:
            for metric, value in report[purchases][ranker].items():
                if value["mean"] is not None:
                    metrics[f"{role}.{purchases}.{ranker}.{metric.replace('@', '_')}"] = value["mean"]
    return metrics


def table(report: Report) -> str:
    """The report as lines of text: one for each ranker, on all purchases and on first-time ones."""
    names = {"wide_deep": "wide & deep", "popularity": "popularity", "frequency": "personal frequency"}
    lines = []
    for purchases, title in (("all", "all purchases"), ("first_time", "first-time purchases")):
        heading = f"{title} ({report[purchases]['users']:,} users)"
        lines.append(f"{heading:<38} nDCG@{K} (95 % interval)   recall@{K}   MAP@{K}   coverage")
        for ranker in RANKERS:
            found = report[purchases][ranker]
            ndcg = found[f"ndcg@{K}"]
            if ndcg["mean"] is not None:
                recall, precision, coverage = (found[name]["mean"] for name in (f"recall@{K}", f"map@{K}", "coverage"))
                interval = f"{ndcg['mean']:.4f} ({ndcg['low']:.4f}-{ndcg['high']:.4f})"
                lines.append(f"  {names[ranker]:<36} {interval}   {recall:.4f}      {precision:.4f}   {coverage:.4f}")
    return "\n".join(lines)


def latest(settings: Settings, source: str) -> Report | None:
    """The champion's report on the test days, or None if the source has no champion."""
    from wares.model import registry

    client = registry.connect(settings)
    version = registry.champion(client, source)
    return (
        None if version is None else {"version": int(version.version), **registry.read_json(version, "evaluation.json")["test"]}
    )


class _Measure:
    """Measures users where they are: what Spark sends to its Python workers."""

    def __init__(self, network: Network, products: pa.Table) -> None:
        self._network, self._products = network, products

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        catalogue = Catalogue(self._network, self._products)
        scorer = Scorer(self._network, catalogue)
        popular = np.argsort(catalogue.baskets, kind="stable")[::-1]
        rank = np.argsort(popular)
        for batch in batches:
            users = pa.Table.from_batches([batch])
            truths = _places(batch.column("truth"), catalogue.ids)
            rows = []
            for scored in scorer.score(users):
                truth = truths[scored.row]
                rows.append(_pointwise(scored.logits, truth) | _listwise(_lists(scored, popular, rank), truth, scored.bought))
            if rows:
                yield pa.RecordBatch.from_pylist(rows, schema=ARROW_SCHEMA)


def _places(lists: pa.ListArray, ids: pa.Array) -> list[np.ndarray]:
    """For each list of products their places in the catalogue. All are looked up at once, as each time costs an index of it."""
    ends = np.cumsum(pc.list_value_length(lists).to_numpy(zero_copy_only=False))
    return np.split(pc.index_in(lists.flatten(), ids).to_numpy(), ends[:-1])


def _pointwise(logits: np.ndarray, truth: np.ndarray) -> dict[str, float | None]:
    """AUC and log loss over all products, for one user."""
    bought = logits[truth]
    others = len(logits) - len(truth)
    below = np.array([np.count_nonzero(logits < logit) for logit in bought]) - np.argsort(np.argsort(bought))
    # -log(1 - p) = log(1 + e^logit) for all, put right for what was bought, where it is -log(p): a difference of the logit.
    losses = np.maximum(logits, 0) + np.log1p(np.exp(-np.abs(logits)))
    loss = losses.sum(dtype=np.float64) - bought.sum(dtype=np.float64)
    return {"auc": float(below.mean() / others) if others else None, "log_loss": float(loss / len(logits))}


Lists = dict[str, dict[str, np.ndarray]]
"""By `PURCHASES`, then by `RANKERS`: the places of the top K, best first."""


def _lists(scored: Scored, popular: np.ndarray, rank: np.ndarray) -> Lists:
    """Each ranker's top K for one user, of all products and of those not bought before. Changes the logits.

    Args:
        popular: The places of all products, the most popular first.
        rank: For each place its own in `popular`.
    """
    new = popular[: K + len(scored.bought)]
    new = new[~np.isin(new, scored.bought)][:K]
    # What was bought comes before all else, and in the order of popularity among equals.
    own = scored.bought[np.lexsort((rank[scored.bought], -scored.baskets))]
    frequent = np.concatenate([own, new])[:K]
    return {
        "all": {"wide_deep": top(scored.logits, K), "popularity": popular[:K], "frequency": frequent},
        "first_time": {"wide_deep": top(scored.logits, K, scored.bought), "popularity": new, "frequency": new},
    }


def _listwise(lists: Lists, truth: np.ndarray, bought: np.ndarray) -> dict[str, Any]:
    """The metrics of the top K of each ranker for one user, on all purchases and, without what was bought before, on new ones."""
    row: dict[str, Any] = {}
    for purchases, right in (("all", truth), ("first_time", np.setdiff1d(truth, bought))):
        for ranker, listed in lists[purchases].items():
            name = f"{purchases}_{ranker}"
            if len(right) == 0:
                row |= {f"{name}_{metric}": None for metric in (*PER_USER, "top")}
                continue
            hits = np.isin(listed, right)
            gained = (hits * GAIN[: len(hits)]).sum() / GAIN[: len(right)].sum()
            precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
            found = {"ndcg": gained, "recall": hits.sum() / len(right), "map": (precision * hits).sum() / min(K, len(right))}
            row |= {f"{name}_{metric}": float(value) for metric, value in found.items()} | {f"{name}_top": listed.tolist()}
    return row


def _interval(values: pa.ChunkedArray, random: np.random.Generator) -> dict[str, float | None]:
    """The mean over users, and the ends of its 95 % bootstrap interval."""
    known = values.drop_null().to_numpy()
    if len(known) == 0:
        return {"mean": None, "low": None, "high": None}
    means = [known[random.integers(0, len(known), len(known))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(known.mean()), "low": float(low), "high": float(high)}
