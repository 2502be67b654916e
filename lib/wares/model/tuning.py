"""Search for better settings with Optuna (Akiba et al. 2019): each trial trains a network and ranks the validation days.

The test days are not looked at, so that they still tell how good the settings are that were chosen.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

import mlflow
import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState
from pydantic import Discriminator, Field, FiniteFloat, PositiveInt, Tag, model_validator

from wares.errors import ModelError
from wares.lake.store import Store
from wares.model import registry
from wares.model.evaluation import Report
from wares.model.plan import MEASURED, Plan
from wares.model.spec import Network, Spec, load_spec
from wares.model.training import check_columns, files, fingerprint_of, fit, measure, pinned
from wares.settings import Declared, Settings, Train, read_yaml, validate

SAMPLERS: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
    "random": optuna.samplers.RandomSampler,
    "tpe": optuna.samplers.TPESampler,
}
"""By the name of the option: at random, or by a tree-structured Parzen estimator (Bergstra et al. 2011)."""
BEST = 5
"""How many trials are shown."""
DIGITS = 3
"""Significant digits of a number that is tried: more make no difference, and nobody wants to copy them."""


class Range(Declared):
    """Numbers from `low` to `high`, both included; whole numbers if both are.

    Args:
        log: Whether each order of magnitude is tried alike often.
        step: What lies between two numbers that may be tried.
    """

    low: int | FiniteFloat
    high: int | FiniteFloat
    log: bool = False
    step: PositiveInt | Annotated[FiniteFloat, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Range:
        if self.is_whole and isinstance(self.step, float):
            raise ValueError("between whole numbers step must be a whole number")
        if self.low >= self.high:
            raise ValueError("low must be less than high")
        if self.log and (self.low <= 0 or self.step):
            raise ValueError("with log, low must be more than 0, and there can be no step")
        return self

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> list[Any]:
        return [self.low, self.high]

    def has(self, value: Any) -> bool:
        return self.low <= value <= self.high

    def param(self, value: Any) -> Any:
        return value

    def suggest(self, trial: optuna.Trial, name: str) -> int | float:
        if self.is_whole:
            return trial.suggest_int(name, self.low, self.high, step=self.step or 1, log=self.log)
        found = trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)
        return min(max(float(f"{found:.{DIGITS}g}"), self.low), self.high)


class Choice(Declared):
    """One of some values, which Optuna is told as JSON: it takes no lists."""

    choices: tuple[Any, ...] = Field(min_length=2)

    @property
    def ends(self) -> list[Any]:
        return list(self.choices)

    def has(self, value: Any) -> bool:
        return value in self.choices

    def param(self, value: Any) -> str:
        return json.dumps(value)

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        return json.loads(trial.suggest_categorical(name, [json.dumps(choice) for choice in self.choices]))


Tried = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choice, Tag("choice")],
    Discriminator(
        lambda told: "choice" if isinstance(told, Choice) or (isinstance(told, dict) and "choices" in told) else "range"
    ),
]
Tuned = Literal["learning_rate", "ftrl_learning_rate", "batch_size", "epochs", "min_steps", "precision"]
"""Settings that change what is learned. Not the seed: the best of several is the luckiest."""


class Space(Declared):
    """What is tried: settings of the training, and the network of the feature spec."""

    train: dict[Tuned, Tried] = Field(default_factory=dict)
    network: dict[str, Tried] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _tries(self) -> Space:
        if not self.tried:
            raise ValueError("nothing to try: name settings under `train` or `network`")
        return self

    @property
    def tried(self) -> dict[str, Range | Choice]:
        """All, by names such as `train.epochs`."""
        return {f"{part}.{name}": each for part in ("train", "network") for name, each in getattr(self, part).items()}


@dataclass(frozen=True)
class Search:
    """How a search goes.

    Args:
        space: The file with the search space.
        trials: How many trials there shall be, with those of earlier runs.
        minutes: After how many no new trial begins.
        sampler: A name of `SAMPLERS`.
    """

    space: str
    trials: int
    minutes: float
    sampler: str


@dataclass(frozen=True)
class Setup:
    """What a trial trains with."""

    train: Train
    spec: Spec

    def told(self) -> dict[str, Any]:
        """All that a space can name, by names such as `train.epochs`."""
        parts = {"train": self.train.model_dump(mode="json"), "network": self.spec.network.model_dump(mode="json")}
        return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}

    def changed(self, told: dict[str, Any], path: str) -> Setup:
        """With other values for some of them.

        Raises:
            SettingsError: A name or a value is not one that Wares knows.
        """
        parts: dict[str, dict[str, Any]] = {"train": {}, "network": {}}
        for name, value in told.items():
            part, _, key = name.partition(".")
            parts[part][key] = value
        train = validate(Train, self.train.model_dump() | parts["train"], path)
        network = validate(Network, self.spec.network.model_dump(mode="json") | parts["network"], path)
        return Setup(train, Spec(network=network, features=self.spec.features))


def tune(store: Store, source: str, search: Search, say: Callable[[str], None]) -> str:
    """Try settings until there have been enough trials; returns the best ones, as lines of text.

    The first trial is what the settings say now, where the space has it. A trial that was killed is tried again.

    Raises:
        SettingsError: The search space or the feature spec does not fit.
        ModelError: There is nothing to learn from, a rank died, or the first trial failed.
    """
    now = Setup(store.settings.train, load_spec(store.settings.features))
    check_columns(now.spec)
    space = load_space(search.space, now)
    client = registry.connect(store.settings)
    study = open_study(store.settings, source, [fingerprint_of(source, now.spec, store), space.model_dump()], search)
    start_anew(study, now, space)
    experiment = registry.experiment(client, store.settings)
    end = time.monotonic() + search.minutes * 60
    with mlflow.start_run(study.user_attrs.get("run"), experiment, f"tune {source}", tags={"source": source}) as parent:
        study.set_user_attr("run", parent.info.run_id)
        registry.mark_killed(client, experiment, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
        while len(ended(study)) < search.trials and time.monotonic() < end:
            trial = study.ask()
            setup = now.changed({name: each.suggest(trial, name) for name, each in space.tried.items()}, search.space)
            settings = {name: setup.told()[name] for name in space.tried}
            trial.set_user_attr("settings", settings)
            say(f"  trial {trial.number}: {_shown(settings)}")
            with mlflow.start_run(experiment_id=experiment, run_name=f"trial {trial.number}", nested=True):
                mlflow.log_params(settings)
                _try(trial, study, store, source, setup, say)
    return best(study, source)


def load_space(path: str, now: Setup) -> Space:
    """Read a search space.

    Raises:
        SettingsError: It names a setting that does not exist, or a value that the setting may not have.
    """
    space = validate(Space, read_yaml(path), path)
    for name, each in space.tried.items():
        for value in each.ends:
            now.changed({name: value}, path)
    return space


def open_study(settings: Settings, source: str, same: list[Any], search: Search) -> optuna.Study:
    """The study of a source, in an SQLite file in the lake's root; that of before, if all of `same` is what it was.

    Raises:
        ModelError: The lake is no local folder.
    """
    root = settings.lake.root
    if "://" in root:
        raise ModelError(
            "There is no place for the search.",
            found=f"lake.root is {root}, where no SQLite file can be kept",
            do="tune on a copy of the lake in a local folder",
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name = f"{source} {sha256(json.dumps(same).encode()).hexdigest()[:16]}"
    storage = optuna.storages.RDBStorage(f"sqlite:///{Path(root).absolute() / 'optuna.db'}")
    pruner = optuna.pruners.MedianPruner()
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize", pruner=pruner, load_if_exists=True)
    # With the same seed again, a sampler would suggest again what it has suggested before.
    study.sampler = SAMPLERS[search.sampler](seed=settings.train.seed + len(study.trials))
    return study


def start_anew(study: optuna.Study, now: Setup, space: Space) -> None:
    """Put in line what is to be tried first: what the settings say now, or the trials that were killed."""
    if not study.trials and all(each.has(now.told()[name]) for name, each in space.tried.items()):
        study.enqueue_trial({name: each.param(now.told()[name]) for name, each in space.tried.items()})
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)


def ended(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that came to an end of their own, and were not killed."""
    return [trial for trial in study.trials if "seconds" in trial.user_attrs and trial.state.is_finished()]


def _try(trial: optuna.Trial, study: optuna.Study, store: Store, source: str, setup: Setup, say: Callable[[str], None]) -> None:
    """One trial, from training to what the study and MLflow are told of it.

    Raises:
        ModelError: The training failed, and no trial before has shown that it can be done.
    """
    started = time.monotonic()
    state, value, told = TrialState.COMPLETE, None, {}
    try:
        report = _train_and_measure(trial, store, source, setup)
        ndcg, first = (report[purchases]["wide_deep"]["ndcg@10"] for purchases in ("all", "first_time"))
        value, told = ndcg["mean"], {"interval": ndcg, "first_time": first["mean"]}
        mlflow.log_metric("validation.all.wide_deep.ndcg_10", value)
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    except ModelError as error:
        if not study.get_trials(states=(TrialState.COMPLETE,)):
            raise
        state = TrialState.FAIL
        say(f"  {error}")
    for name, found in {**told, "seconds": time.monotonic() - started}.items():
        trial.set_user_attr(name, found)
    frozen = study.tell(trial, value, state)
    mlflow.set_tag("ended", state.name.lower())
    for percent, loss in frozen.intermediate_values.items():
        mlflow.log_metric("train.validation_loss", -loss, percent)


def _train_and_measure(trial: optuna.Trial, store: Store, source: str, setup: Setup) -> Report:
    versions = pinned(store)
    with tempfile.TemporaryDirectory(prefix="wares-tune-") as folder:
        plan = Plan(files(store, versions), source, setup.spec, setup.train, Path(folder), only_measured=True)
        fit(plan, store.spark, watcher(trial, plan))
        network = registry.read_network(plan.folder, MEASURED)
    return measure(store, versions, network, source, "validation")


def watcher(trial: optuna.Trial, plan: Plan) -> Callable[[], None]:
    """A function that tells the trial of the epochs that have ended since, and raises `TrialPruned` if it is not promising.

    That is if its loss on the validation days is above the median of the trials that had come as far, in parts of all
    their epochs: where the learning rate is yet to fall, the loss is yet to fall, too.
    """
    told = 0

    def watch() -> None:
        nonlocal told
        epochs = plan.epochs()
        for measured in epochs[told:]:
            trial.report(-measured["validation_loss"], round(100 * measured["part"]))
        if len(epochs) > told and trial.should_prune():
            raise optuna.TrialPruned()
        told = len(epochs)

    return watch


def best(study: optuna.Study, source: str) -> str:
    """The best trials as a table, and the settings of the very best as lines to copy."""
    trials = ended(study)
    complete = sorted((trial for trial in trials if trial.state == TrialState.COMPLETE), key=lambda trial: -trial.value)
    pruned = sum(trial.state == TrialState.PRUNED for trial in trials)
    lines = [
        f"{len(trials)} trials of {source}: {pruned} pruned, {len(trials) - len(complete) - pruned} failed",
        f"  trial  {'nDCG@10, validation days':<26}{'first-time':>10}{'seconds':>9}  settings",
    ]
    for trial in complete[:BEST]:
        told = trial.user_attrs
        interval = f"{trial.value:.4f} ({told['interval']['low']:.4f}-{told['interval']['high']:.4f})"
        first = "" if told["first_time"] is None else f"{told['first_time']:.4f}"
        lines.append(f"  {trial.number:>5}  {interval:<26}{first:>10}{told['seconds']:>9.0f}  {_shown(told['settings'])}")
    for part, where in (("train", "the settings"), ("network", "the feature spec")):
        found = {
            name.partition(".")[2]: value
            for name, value in (complete[0].user_attrs["settings"] if complete else {}).items()
            if name.startswith(f"{part}.")
        }
        if found:
            lines += [f"for {where}:", yaml.safe_dump({part: found}, sort_keys=False, default_flow_style=None).rstrip()]
    return "\n".join(lines)


def _shown(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
