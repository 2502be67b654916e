"""Runs and models in MLflow: what was trained from what, how good it is, and which model is the champion."""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
import numpy as np
from mlflow.entities import Metric, Param
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types.schema import Array, ColSpec, Schema

from wares.errors import ModelError
from wares.model.encoding import Encoding
from wares.model.plan import LAST, Plan
from wares.model.scorer import Network
from wares.model.spec import Spec
from wares.settings import Settings

CHAMPION = "champion"
FILES = "wide_deep"
"""The artifact folder that holds a trained network: encoding.json, spec.json, weights.npz, measured.npz, model.keras."""

COLUMNS = {"categorical": "string", "numeric": "double", "vector": Array("double"), "sequence": Array("string")}
"""The type of each kind of feature in a registered model's signature."""

for noisy in ("mlflow", "alembic"):
    logging.getLogger(noisy).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="mlflow")  # hints about examples and integers, which a user cannot act on


def model_name(source: str) -> str:
    """The registered model of a source."""
    return f"wares_{source}"


def connect(settings: Settings) -> MlflowClient:
    """A client for the tracking store of the settings: by default an SQLite file in the lake's root.

    Raises:
        ModelError: The lake is no local folder, and the settings name no tracking store.
    """
    uri = settings.mlflow.tracking_uri
    if uri is None:
        if "://" in settings.lake.root:
            raise ModelError(
                "There is no place for MLflow's runs.",
                found=f"lake.root is {settings.lake.root}, where no SQLite file can be kept",
                do="set mlflow.tracking_uri to your tracking server, or to `databricks`",
            )
        root = Path(settings.lake.root).absolute()
        root.mkdir(parents=True, exist_ok=True)
        uri = f"sqlite:///{root / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return MlflowClient(uri)


def experiment(client: MlflowClient, settings: Settings) -> str:
    """The id of the experiment, made if it is new, with its artifacts beside the SQLite file.

    Raises:
        ModelError: The SQLite file came here from another lake, into which its artifacts would go.
    """
    beside = None if settings.mlflow.tracking_uri else (Path(settings.lake.root).absolute() / "mlartifacts").as_uri()
    found = client.get_experiment_by_name(settings.mlflow.experiment)
    if found is None:
        return str(client.create_experiment(settings.mlflow.experiment, artifact_location=beside))
    if beside not in (None, found.artifact_location):
        raise ModelError(
            "This lake has been copied or moved, and its models have not.",
            found=f"MLflow keeps the files of the experiment {found.name} in {found.artifact_location}",
            do="set mlflow.experiment to another name, or remove mlflow.db and mlartifacts of this lake; then train again",
        )
    return str(found.experiment_id)


def with_fingerprint(client: MlflowClient, source: str, fingerprint: str) -> ModelVersion | None:
    """The registered version that was trained from exactly this, if there is one."""
    found = client.search_model_versions(f"name = '{model_name(source)}' and tags.fingerprint = '{fingerprint}'")
    return max(found, key=lambda version: int(version.version)) if found else None


def champion(client: MlflowClient, source: str) -> ModelVersion | None:
    """The version that has the champion alias, if any."""
    try:
        return client.get_model_version_by_alias(model_name(source), CHAMPION)
    except MlflowException:
        return None


def crown(client: MlflowClient, version: ModelVersion) -> None:
    """Make a version the champion of its source, in place of the one so far."""
    client.set_registered_model_alias(version.name, CHAMPION, version.version)


def load_network(version: ModelVersion, weights: str = LAST) -> Network:
    """The network of a registered version, as numpy weights: no TensorFlow is needed.

    Raises:
        ModelError: Its files are not there.
    """
    return read_network(_downloaded(version, FILES), weights)


def read_network(folder: Path, weights: str = LAST) -> Network:
    """The network in a folder that holds encoding.json, spec.json and the weights."""
    spec = Spec.model_validate_json((folder / "spec.json").read_text(encoding="utf-8"))
    with np.load(folder / weights) as stored:
        return Network(spec, Encoding.load(folder / "encoding.json"), dict(stored))


def read_json(version: ModelVersion, name: str) -> dict[str, Any]:
    """A JSON artifact of the run that made a version.

    Raises:
        ModelError: It is not there.
    """
    return json.loads(_downloaded(version, name).read_text(encoding="utf-8"))


def _downloaded(version: ModelVersion, name: str) -> Path:
    try:
        return Path(mlflow.artifacts.download_artifacts(run_id=version.run_id, artifact_path=name))
    except (MlflowException, OSError) as error:
        raise ModelError(
            f"The files of {version.name}@{version.version} are not where MLflow says they are.",
            found=f"no {name} of run {version.run_id}: {str(error).splitlines()[0]}",
            do="bring them back, or the lake to where it was; or remove the version and the alias `champion` and train again",
        ) from None


@contextmanager
def run(client: MlflowClient, settings: Settings, source: str) -> Iterator[str]:
    """An MLflow run around a training; marked as failed if the block fails. Yields its id."""
    where, name = experiment(client, settings), f"train {source}"
    mark_killed(client, where, f"attributes.run_name = '{name}' and tags.source = '{source}'")
    with mlflow.start_run(experiment_id=where, run_name=name, tags={"source": source}) as started:
        yield started.info.run_id


def mark_killed(client: MlflowClient, experiment_id: str, those: str) -> None:
    """Mark runs that nobody has ended: what is killed cannot say so itself, and would be running for ever.

    Args:
        those: Which runs, as a filter of MLflow; nothing may be at work on them.
    """
    for left in client.search_runs([experiment_id], f"{those} and attributes.status = 'RUNNING'"):
        client.set_terminated(left.info.run_id, "KILLED")


def log(
    client: MlflowClient,
    run_id: str,
    plan: Plan,
    settings: Settings,
    versions: dict[str, int],
    metrics: dict[str, float],
    reports: dict[str, Any],
    lake_run: str,
) -> None:
    """Log what a run was made from, how it went, and how good the network is."""
    params = {
        "source": plan.source,
        "lake": settings.lake.root,
        "lake_run": lake_run,
        **{f"train.{name}": value for name, value in plan.train.model_dump().items()},
        **{f"version.{name}": version for name, version in versions.items()},
    }
    now = int(time.time() * 1000)
    series = [
        Metric(f"train.{name}", value, now, epoch)
        for epoch, measured in enumerate(plan.epochs(), 1)
        for name, value in measured.items()
    ]
    client.log_batch(
        run_id,
        metrics=[*series, *(Metric(name, value, now, 0) for name, value in metrics.items())],
        params=[Param(name, str(value)) for name, value in params.items()],
    )
    client.log_dict(run_id, reports, "evaluation.json")
    client.log_dict(run_id, plan.spec.model_dump(mode="json", by_alias=True), "features.yaml")
    client.log_artifacts(run_id, str(plan.folder), FILES)


def register(client: MlflowClient, run_id: str, plan: Plan, fingerprint: str) -> ModelVersion:
    """Log the network in the plan's folder as a pyfunc model with its signature, and register it as a new version."""
    logged = mlflow.pyfunc.log_model(
        name="model",
        python_model=str(Path(__file__).with_name("served.py")),
        artifacts={FILES: str(plan.folder)},
        signature=signature_of(plan.spec),
        code_paths=[str(Path(__file__).resolve().parents[1])],
        # Stated, since finding out would load the model in another process.
        pip_requirements=["tensorflow-cpu", "keras", "numpy", "pandas", "pyarrow", "pydantic", "pyyaml", "pyspark"],
    )
    name = model_name(plan.source)
    with suppress(MlflowException):  # it is there already
        client.create_registered_model(name, description=f"Wide & deep ranking of the products of {plan.source}.")
    return client.create_model_version(name, logged.model_uri, run_id, tags={"fingerprint": fingerprint})


def signature_of(spec: Spec) -> ModelSignature:
    """The columns that a registered model takes, each of which may be null: most pairs of user and product have no past.

    Numbers are doubles whatever they are in the tables, since pandas has no whole numbers that may be null.
    """
    columns = {feature.column: ColSpec(COLUMNS[feature.kind], feature.column, required=False) for feature in spec.stored}
    return ModelSignature(Schema([*columns.values()]), Schema([ColSpec("float", "probability")]))
