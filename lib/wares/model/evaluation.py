"""Full-ranking tests: every user, every known product, no sampled negatives, beside the baselines that a model must beat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql.functions import collect_set
from pyspark.sql.pandas.types import from_arrow_schema

from wares.lake.declassify import MINIMUM_PEOPLE
from wares.model.baselines import BASELINES, Factors, K, Lists, Neighbours, baseline_lists, by_list, pasts
from wares.model.scorer import Catalogue, Network, Scorer, top
from wares.settings import Settings
from wares.tables.gold.moments import purchases_within
from wares.tables.gold.recommendations import with_past

RESAMPLES = 1000
GAIN = 1 / np.log2(np.arange(2, K + 2))
NAMES = {"wide_deep": "wide & deep", "champion": "champion so far", **BASELINES}
"""The rankers, with the names that people read."""
UNTAUGHT = ("popularity", "frequency", "decayed", "ease")
"""The baselines that `baseline_lists` ranks."""
Taught = Mapping[str, Neighbours | Factors]
"""Baselines that are fitted for each moment, by name."""
PURCHASES = ("all", "first_time")
TITLES = {"all": "all purchases", "first_time": "first-time purchases"}
SHOWN = (f"recall@{K}", f"map@{K}", "coverage", "diversity", "novelty")
"""The metrics that people see beside nDCG."""
TOO_FEW = f"not shown of fewer than {MINIMUM_PEOPLE} users"
AFTER_K = ("ndcg", "recall", "map")
"""Metrics whose names say how long the lists were."""
OF_LISTS = ("diversity", "novelty")
PER_USER = (*AFTER_K, *OF_LISTS)
ACTIVITY = 3
"""Groups of equally many users, by how many baskets they had before."""

Report = dict[str, Any]
"""{"users", "products", "all": {ranker: {metric: {"mean", "low", "high"}}}, "first_time": the same, "activity": [...]}; low and
high are the ends of the 95 % bootstrap interval over users, absent for coverage and calibration.

ndcg@10, recall@10 and map@10 are as in the literature, with binary gain. coverage: the share of all products that are in any
list. diversity: the share of pairs in a list that differ in type. novelty: the mean of -log2 of each listed product's share of
all baskets. calibration: of what was listed, purchases for each one that the model's probabilities promise. If a champion was
measured too, `gain` is how much higher the ndcg@10 of the same users is than with it. All of that is of users who had bought
before; `cold`, where there are any, has the ndcg@10 of those who had not, of the model and of popularity."""


def evaluate(
    network: Network,
    products: pa.Table,
    users: DataFrame,
    seed: int,
    taught: Taught,
    champion: Network | None = None,
) -> Report:
    """Rank all products for each user and compare with what the user went on to buy.

    Ties in frequency go to the more popular product, those in popularity to the later place in the catalogue, those of the
    model, of ItemKNN and of ALS to the earlier place.

    Args:
        products: Rows of gold.product_features that were sold before the moment.
        users: What `with_truth` gives.
        taught: Baselines that were fitted to what all users had bought before the moment.
        champion: Another network that ranks the same users.
    """
    networks = {"wide_deep": network} | ({"champion": champion} if champion else {})
    rankers = _rankers(networks, taught)
    schema = from_arrow_schema(_schema(rankers))
    # As in gold.recommendations: one part for each core.
    parts = users.repartition("source", "user_id")
    measured = parts.mapInArrow(_Measure(networks, products, taught), schema).toArrow()
    return _report(measured, rankers, products.num_rows, np.random.default_rng(seed))


def _report(users: pa.Table, rankers: list[str], products: int, random: np.random.Generator) -> Report:
    """What was measured of all users, put together. Those who had never bought are measured apart."""
    measured = users.filter(pc.greater(users["baskets"], 0))
    report: Report = {"users": measured.num_rows, "products": products}
    for purchases in PURCHASES:
        report[purchases] = {}
        for ranker in rankers:
            name = f"{purchases}_{ranker}"
            found = {f"{metric}@{K}": _interval(measured[f"{name}_{metric}"], random) for metric in AFTER_K}
            found |= {metric: _interval(measured[f"{name}_{metric}"], random) for metric in OF_LISTS}
            listed = pc.count_distinct(pc.list_flatten(measured[f"{name}_top"].combine_chunks())).as_py()
            found["coverage"] = {"mean": listed / max(products, 1)}
            report[purchases][ranker] = found
        known = measured[f"{purchases}_wide_deep_ndcg"]
        report[purchases]["users"] = len(known) - known.null_count
        if "champion" in rankers:
            gain = pc.subtract(known, measured[f"{purchases}_champion_ndcg"])
            report[purchases]["gain"] = _interval(gain, random)
    promised = pc.sum(measured["promised"]).as_py()
    report["all"]["wide_deep"] |= {
        "auc": _interval(measured["auc"], random),
        "log_loss": _interval(measured["log_loss"], random),
        "calibration": {"mean": pc.sum(measured["kept"]).as_py() / promised if promised else None},
    }
    report["activity"] = _by_activity(measured["baskets"], measured["all_wide_deep_ndcg"], random)
    cold = users.filter(pc.equal(users["baskets"], 0))
    if cold.num_rows:
        of_cold = {name: _interval(cold[f"all_{name}_ndcg"], random) for name in ("wide_deep", "popularity")}
        report["cold"] = {"users": cold.num_rows} | {name: {f"ndcg@{K}": found} for name, found in of_cold.items()}
    return report


def _rankers(networks: Iterable[str], taught: Taught) -> list[str]:
    """All that are measured: the networks, the baselines that need no fitting, and those that were fitted."""
    return [*networks, *UNTAUGHT, *taught]


def _schema(rankers: list[str]) -> pa.Schema:
    """What is measured of each user."""
    names = [f"{purchases}_{ranker}" for purchases in PURCHASES for ranker in rankers]
    return pa.schema(
        [(f"{name}_{metric}", pa.float64()) for name in names for metric in PER_USER]
        + [(f"{name}_top", pa.list_(pa.int32())) for name in names]
        + [(name, pa.float64()) for name in ("auc", "log_loss", "promised", "kept")]
        + [("baskets", pa.int32())]
    )


def _by_activity(baskets: pa.ChunkedArray, ndcg: pa.ChunkedArray, random: np.random.Generator) -> list[dict[str, Any]]:
    """The model's ndcg@10 on all purchases of users with few, some and many baskets before."""
    counts, values = baskets.to_numpy(), ndcg.to_numpy()
    groups = np.array_split(np.argsort(counts, kind="stable"), ACTIVITY)
    return [
        {
            "baskets": [int(counts[group].min()), int(counts[group].max())],
            "users": len(group),
            f"ndcg@{K}": _interval(pa.chunked_array([values[group]]), random),
        }
        for group in groups
        if len(group)
    ]


def with_truth(
    moments: DataFrame, interactions: DataFrame, users: DataFrame, products: DataFrame, **past: DataFrame
) -> DataFrame:
    """Users at one moment with their past, and `truth`: the known products that each bought within the moment's span.

    Users who bought nothing then are left out; those who had never bought before are there if the shop knew of them.

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
    return with_past(moments, users, **past).join(truth, key)


def flat(report: Report, role: str) -> dict[str, float]:
    """The report's means as MLflow metrics, such as `test.all.wide_deep.ndcg_10`."""
    metrics = {f"{role}.users": float(report["users"]), f"{role}.products": float(report["products"])}
    for purchases in PURCHASES:
        for ranker in NAMES.keys() & report[purchases].keys():
            for metric, value in report[purchases][ranker].items():
                if value["mean"] is not None:
                    metrics[f"{role}.{purchases}.{ranker}.{metric.replace('@', '_')}"] = value["mean"]
    return metrics


def table(report: Report) -> str:
    """The report as lines of text: each ranker on all purchases and on first-time ones, and the model by users' activity."""
    lines = []
    for purchases, title in TITLES.items():
        heading = f"{title} ({report[purchases]['users']:,} users)"
        lines.append(f"{heading:<36} {f'nDCG@{K} (95 % interval)':<24}" + "".join(f"{name:>11}" for name in SHOWN))
        for ranker in measured_rankers(report, purchases):
            found = report[purchases][ranker]
            numbers = "".join(f"{found[metric]['mean']:>11.4f}" for metric in SHOWN)
            lines.append(f"  {NAMES[ranker]:<34} {_shown(found[f'ndcg@{K}']):<24}" + numbers)
        if not of_enough(report[purchases]):
            lines.append(f"  {TOO_FEW}")
    lines.append("wide & deep by activity")
    if "cold" in report:
        cold, popular = (_shown(report["cold"][name][f"ndcg@{K}"]) for name in ("wide_deep", "popularity"))
        told = f"{cold}, popularity {popular}, of {report['cold']['users']:,} users"
        lines.append(f"  {'0 baskets before':<34} {told if of_enough(report['cold']) else TOO_FEW}")
    groups = groups_by_activity(report)
    lines += [f"  {name:<34} {_shown(interval)}" for name, interval in groups] or [f"  {TOO_FEW}"]
    of_model = report["all"]["wide_deep"]
    if of_model["calibration"]["mean"] is not None and of_enough(report):
        told = f"{of_model['calibration']['mean']:.2f} purchases for each one that the lists' probabilities promise"
        lines.append(f"wide & deep: {told}; log loss {of_model['log_loss']['mean']:.5f}, AUC {of_model['auc']['mean']:.4f}")
    for purchases in PURCHASES:
        if better := surely_better(report[purchases]):
            names = " and ".join(NAMES[ranker] for ranker in better)
            lines.append(f"warning: of {purchases.replace('_', '-')} purchases {names} finds more than wide & deep")
    return "\n".join(lines)


def of_enough(measured: Mapping[str, Any]) -> bool:
    """Whether a measure is of enough users to be shown: that of fewer tells what single users bought."""
    return measured["users"] >= MINIMUM_PEOPLE


def measured_rankers(report: Report, purchases: str) -> list[str]:
    """The rankers whose measures on some purchases can be shown; none if they are of too few users."""
    if not of_enough(report[purchases]):
        return []
    # Nobody has a frequency of what is new: these rankers fall back to popularity there.
    fallen_back = ("frequency", "decayed") if purchases == "first_time" else ()
    there = [ranker for ranker in NAMES if ranker in report[purchases] and ranker not in fallen_back]
    return [ranker for ranker in there if report[purchases][ranker][f"ndcg@{K}"]["mean"] is not None]


def groups_by_activity(report: Report) -> list[tuple[str, dict[str, float]]]:
    """The model's nDCG by how many baskets users had before. The least and the most active user's own numbers are not named."""
    groups, found = report["activity"], []
    for place, group in enumerate(groups):
        low, high = group["baskets"]
        least, most = place == 0, place == len(groups) - 1
        name = f"up to {high:,}" if least else f"{low:,} or more" if most else f"{low:,}-{high:,}"
        if of_enough(group):
            found.append(("any number of" if least and most else name, group[f"ndcg@{K}"]))
    return [(f"{name} baskets before", interval) for name, interval in found]


def surely_better(of: Mapping[str, Any]) -> list[str]:
    """The baselines that rank the same users better beyond chance: whose interval lies above the model's."""
    model = of["wide_deep"][f"ndcg@{K}"]
    if model["mean"] is None:
        return []
    return [ranker for ranker in BASELINES if ranker in of and of[ranker][f"ndcg@{K}"]["low"] > model["high"]]


def _shown(interval: dict[str, float]) -> str:
    return f"{interval['mean']:.4f} ({interval['low']:.4f}-{interval['high']:.4f})"


def latest(settings: Settings, source: str) -> Report | None:
    """The champion's report on the test days, or None if the source has no champion."""
    from wares.model import registry

    client = registry.connect(settings)
    version = registry.champion(client, source)
    return (
        None if version is None else {"version": int(version.version), **registry.read_json(version, "evaluation.json")["test"]}
    )


class _Measure:
    """Measures users where they are: what Spark sends to its Python workers.

    Args:
        networks: By the name of the ranker; `wide_deep` is the one whose probabilities are measured, too.
        products: Rows of gold.product_features.
        taught: Baselines with scores of their own.
    """

    def __init__(self, networks: dict[str, Network], products: pa.Table, taught: Taught) -> None:
        self._networks, self._products, self._taught = networks, products, taught

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        scorers = {name: Scorer(network, Catalogue(network, self._products)) for name, network in self._networks.items()}
        catalogue = scorers["wide_deep"].catalogue
        popular = np.argsort(catalogue.baskets, kind="stable")[::-1]
        rank = np.argsort(popular)
        surprise = -np.log2(catalogue.baskets / catalogue.baskets.sum())
        taught = {name: baseline.scores(catalogue.ids) for name, baseline in self._taught.items()}
        # What a fitted baseline knows nothing of comes by popularity.
        unknown = (-rank / len(rank)).astype(np.float32)
        schema = _schema(_rankers(scorers, taught))
        for batch in batches:
            users = pa.Table.from_batches([batch])
            truths = _places(batch.column("truth"), catalogue.ids)
            had = batch.column("baskets").to_pylist()
            rows = []
            together = zip(pasts(batch, catalogue.ids), *(scorer.score(users) for scorer in scorers.values()), strict=True)
            for past, *all_scored in together:
                row = all_scored[0].row
                measured = _pointwise(all_scored[0].logits, truths[row]) | {"baskets": had[row]}
                lists = baseline_lists(past, popular, rank)
                for name, scores in taught.items():
                    found = scores(past)
                    found = np.where(found == 0, unknown, found)
                    lists["all"][name], lists["first_time"][name] = top(found, K), top(found, K, past.bought)
                for name, scored in zip(scorers, all_scored, strict=True):
                    lists["all"][name] = top(scored.logits, K)
                    if name == "wide_deep":
                        measured |= _kept_promises(scored.logits, lists["all"][name], truths[row])
                    lists["first_time"][name] = top(scored.logits, K, scored.bought)
                rows.append(measured | _listwise(lists, truths[row], past.bought, catalogue.type_of, surprise))
            if rows:
                yield pa.RecordBatch.from_pylist(rows, schema=schema)


def _places(lists: pa.ListArray, ids: pa.Array) -> list[np.ndarray]:
    """For each list of products their places in the catalogue. All are looked up at once, as each time costs an index of it."""
    return by_list(lists, pc.index_in(lists.flatten(), ids).to_numpy())


def _pointwise(logits: np.ndarray, truth: np.ndarray) -> dict[str, float | None]:
    """AUC and log loss over all products, for one user."""
    bought = logits[truth]
    others = len(logits) - len(truth)
    below = np.array([np.count_nonzero(logits < logit) for logit in bought]) - np.argsort(np.argsort(bought))
    # -log(1 - p) = log(1 + e^logit) for all, put right for what was bought, where it is -log(p): a difference of the logit.
    losses = np.maximum(logits, 0) + np.log1p(np.exp(-np.abs(logits)))
    loss = losses.sum(dtype=np.float64) - bought.sum(dtype=np.float64)
    return {"auc": float(below.mean() / others) if others else None, "log_loss": float(loss / len(logits))}


def _kept_promises(logits: np.ndarray, listed: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """How many purchases of what is listed the probabilities promise, and how many there were, for one user."""
    return {"promised": float((1 / (1 + np.exp(-logits[listed]))).sum()), "kept": float(np.isin(listed, truth).sum())}


def _listwise(lists: Lists, truth: np.ndarray, bought: np.ndarray, type_of: np.ndarray, surprise: np.ndarray) -> dict[str, Any]:
    """The metrics of the top K of each ranker for one user, on all purchases and, without what was bought before, on new ones.

    Args:
        type_of: For each product of the catalogue its type.
        surprise: For each, -log2 of its share of all baskets.
    """
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
            types = type_of[listed]
            pairs = len(listed) * (len(listed) - 1)
            found = {
                "ndcg": gained,
                "recall": hits.sum() / len(right),
                "map": (precision * hits).sum() / min(K, len(right)),
                "diversity": (types[:, None] != types).sum() / pairs if pairs else 0.0,
                "novelty": surprise[listed].mean() if len(listed) else 0.0,
            }
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
