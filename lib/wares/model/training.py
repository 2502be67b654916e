"""A training run from end to end: encode, train on all ranks, evaluate, register, and see who is the champion."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import broadcast

from wares.errors import ModelError
from wares.lake.store import Store
from wares.model.baselines import Factors, neighbours
from wares.model.checkpoints import checkpoint_file, remove_checkpoints
from wares.model.encoding import learn
from wares.model.evaluation import Report, evaluate, flat, table, with_truth
from wares.model.launcher import launch
from wares.model.plan import LAST, MEASURED, Plan
from wares.model.reader import EXAMPLES, TABLES, read_known, read_split
from wares.model.scorer import Network
from wares.model.spec import Spec, load_spec
from wares.tables.gold.examples import FEATURES

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

READ = (
    "gold.examples",
    "gold.interactions",
    "gold.moments",
    "gold.user_features",
    "gold.product_features",
    "gold.pair_features",
    "gold.type_features",
    "gold.affinities",
)
"""The tables that a run reads; their versions are pinned when it begins."""
NUMBER = r"(tiny|small|big)?int|float|double|decimal\(.*\)|boolean"
TYPES = {"categorical": "string", "numeric": NUMBER, "vector": f"array<({NUMBER})>", "sequence": "array<string>"}
"""Of each kind of feature the types of the columns that it can be made of."""


@dataclass(frozen=True)
class TrainOutcome:
    """What a training run came to.

    Args:
        status: unchanged if a registered version was already trained from the same examples, spec and settings.
        model_version: The version of the registered model.
        run_id: Its MLflow run.
        metrics: Means of all metrics, such as `test.all.wide_deep.ndcg_10`.
        champion: Whether this version is now the champion.
    """

    source: str
    status: Literal["trained", "unchanged"]
    model_version: str
    run_id: str
    metrics: dict[str, float]
    champion: bool
    seconds: float


def train(store: Store, source: str) -> TrainOutcome:
    """Train, evaluate and register a model for a source, unless that has been done from the same things.

    Raises:
        SettingsError: The feature spec does not fit.
        ModelError: There is nothing to learn from, or a rank failed. After a `RankError` the next run goes on from the last
            checkpoint.
    """
    # MLflow takes seconds to import, and only this needs it.
    from wares.model import registry

    started = time.monotonic()
    spec = load_spec(store.settings.features)
    check_columns(spec)
    versions = pinned(store)
    client = registry.connect(store.settings)
    fingerprint = fingerprint_of(source, spec, store)
    found = registry.with_fingerprint(client, source, fingerprint)
    if found is not None:
        metrics = {
            name: value
            for name, value in client.get_run(found.run_id).data.metrics.items()
            if name.startswith(("test.", "validation."))
        }
        holder = registry.champion(client, source)
        if holder is None:  # somebody has taken the alias away
            registry.crown(client, found)
        return TrainOutcome(
            source,
            "unchanged",
            found.version,
            found.run_id,
            metrics,
            holder is None or holder.version == found.version,
            time.monotonic() - started,
        )
    with tempfile.TemporaryDirectory(prefix="wares-train-") as folder, registry.run(client, store.settings, source) as run_id:
        checkpoint = checkpoint_file(store.settings, source, fingerprint)
        plan = Plan(files(store, versions), source, spec, store.settings.train, Path(folder), checkpoint)
        fit(plan, store.spark)
        print("  evaluating on the validation and the test days", flush=True)
        reports = {}
        for role, weights, other in (("validation", MEASURED, _champion(client, source)), ("test", LAST, None)):
            network = registry.read_network(plan.folder, weights)
            reports[role] = measure(store, versions, network, source, role, other)
        print(table(reports["test"]), flush=True)
        metrics = {name: value for role, report in reports.items() for name, value in flat(report, role).items()}
        registry.log(client, run_id, plan, store.settings, versions, metrics, reports, store.run_id)
        version = registry.register(client, run_id, plan, fingerprint)
        remove_checkpoints(store.settings, source)
        better = is_better(reports["validation"])
        if better:
            registry.crown(client, version)
    return TrainOutcome(source, "trained", version.version, run_id, metrics, better, time.monotonic() - started)


def pinned(store: Store) -> dict[str, int]:
    """The version that each table has now, of those that training reads.

    Raises:
        ModelError: One does not exist.
    """
    return {name: _version(store, name) for name in READ}


def files(store: Store, versions: dict[str, int]) -> dict[str, list[str]]:
    """The Parquet files of the tables that ranks read."""
    return {name: store.files(name, versions[name]) for name in (EXAMPLES, *TABLES.values())}


def fit(plan: Plan, spark: SparkSession, watch: Callable[[], None] | None = None) -> None:
    """Train a network and leave it in the plan's folder.

    Args:
        watch: As in `launch`.

    Raises:
        ModelError: There is nothing to learn from, or a rank failed.
    """
    _prepare(plan)
    launch(plan, spark, watch)


def check_columns(spec: Spec, model: str | None = None) -> None:
    """Make sure that each feature's column is in its part's feature table, with a type that its kind can encode.

    Args:
        model: The registered model whose spec it is; None for the spec of the settings.

    Raises:
        ModelError: A column is missing, or is of another type; all such are named.
    """
    there = {part: {column.name: column.type for column in columns} for part, columns in FEATURES.items()}
    wrong = []
    for feature in spec.stored:
        found = there[feature.part].get(feature.source_column)
        if found is None:
            wrong.append(f"{feature.name} (from: {feature.origin})")
        elif not re.fullmatch(TYPES[feature.kind], found):
            wrong.append(f"{feature.name} (from: {feature.origin}, which is {found} and cannot be {feature.kind})")
    if wrong:
        raise ModelError(
            f"{model or 'The feature spec'} names columns that the feature tables do not have, or not in a type that fits.",
            found=", ".join(wrong),
            do="run jobs/train.py, whose model takes its place"
            if model
            else "mend `from` or `kind` in the feature spec, or add the column to the feature table",
        )


def _version(store: Store, name: str) -> int:
    version = store.version(name)
    if version is None:
        raise ModelError(f"The table {name} does not exist.", found="nothing to train on", do="run jobs/features.py first")
    return version


def fingerprint_of(source: str, spec: Spec, store: Store) -> str:
    """Names all that a training run depends on."""
    states = [store.lake.state(name) for name in (EXAMPLES, *TABLES.values())]
    train = store.settings.train.model_dump(exclude={"checkpoint_minutes", "hosts", "min_ranks"})
    told = [source, states, spec.model_dump(mode="json"), train, store.location(EXAMPLES)]
    return sha256(json.dumps(told).encode()).hexdigest()[:32]


def _prepare(plan: Plan) -> None:
    """Learn the encoding from the training rows and leave it in the plan's folder.

    Raises:
        ModelError: The source has no training rows, or a feature's arrays are not as long as the spec says.
    """
    known = read_known(plan.files, plan.spec, plan.source)
    chunks = read_split(plan.files, plan.spec, known, plan.source, ["train"])
    first = next(chunks, None)
    if first is None:
        raise ModelError(
            f"There is nothing to train on for {plan.source}.",
            found="no training rows in gold.examples",
            do="the source needs purchases of known users on at least four days",
        )
    encoding = learn(plan.spec, {part: each.rows for part, each in known.items()}, chain([first], chunks))
    encoding.save(plan.folder / "encoding.json")
    (plan.folder / "spec.json").write_text(plan.spec.model_dump_json(by_alias=True), encoding="utf-8")


def measure(
    store: Store,
    versions: dict[str, int],
    network: Network,
    source: str,
    role: str,
    champion: Network | None = None,
    als: Factors | None = None,
) -> Report:
    """Rank all products for each user at the moment of a role, validation or test, and compare with what they bought then.

    Args:
        als: The factors of `baselines.factors` at that moment, which are measured too.
    """
    frames = {name.removeprefix("gold."): store.read(name, versions[name]).where(f"source = '{source}'") for name in READ}
    moments = frames["moments"].where(f"role = '{role}'")
    users = with_truth(
        moments,
        frames["interactions"],
        frames["user_features"],
        frames["product_features"],
        pairs=frames["pair_features"],
        types=frames["type_features"],
        affinities=frames["affinities"],
    )
    products = frames["product_features"].where(f"role = '{role}' AND baskets > 0").toArrow()
    taught = {"item_knn": neighbours(pairs_before(store, versions, source, role))} | ({"als": als} if als else {})
    return evaluate(network, products, users, store.settings.train.seed, taught, champion)


def pairs_before(store: Store, versions: dict[str, int], source: str, role: str) -> DataFrame:
    """What all users of a source had bought before the moment of a role: rows of gold.pair_features."""
    moments, pairs = (store.read(name, versions[name]) for name in ("gold.moments", "gold.pair_features"))
    chosen = moments.where(f"role = '{role}' AND source = '{source}'").select("source", "moment")
    return pairs.join(broadcast(chosen), ["source", "moment"], "left_semi")


def _champion(client: MlflowClient, source: str) -> Network | None:
    """The champion so far, before it saw its validation days; None if there is none, or if its features are no longer there."""
    from wares.model import registry

    holder = registry.champion(client, source)
    network = registry.load_network(holder, MEASURED) if holder else None
    try:
        if network:
            check_columns(network.spec)
    except ModelError as error:
        print(f"  the champion cannot be compared with, and gives way: it needs {error.found}", flush=True)
        return None
    return network


def is_better(validation: Report) -> bool:
    """Whether a model is to be the champion: there was none, or it ranks the same users better beyond what chance explains.

    That is where the 95 % paired bootstrap interval of the gain in ndcg@10 on all purchases lies above 0.
    """
    gain = validation["all"].get("gain")
    return gain is None or (gain["low"] is not None and gain["low"] > 0)
