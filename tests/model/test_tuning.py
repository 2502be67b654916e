"""The search space, which trials are cut short, and what a search that was ended tries first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState
from wares.errors import SettingsError
from wares.model.plan import EPOCHS, Plan
from wares.model.spec import Spec
from wares.model.tuning import Search, Setup, best, ended, load_space, open_study, start_anew, watcher
from wares.settings import Settings, Train

SPACE = {
    "train": {"learning_rate": {"low": 0.001, "high": 0.1, "log": True}, "epochs": {"low": 1, "high": 3}},
    "network": {"hidden": {"choices": [[16, 8], [32, 16]]}},
}


@pytest.fixture
def now(spec: Spec) -> Setup:
    return Setup(Train(learning_rate=0.01), spec)


def written(folder: Path, space: dict[str, Any]) -> str:
    (folder / "space.yaml").write_text(yaml.safe_dump(space), encoding="utf-8")
    return str(folder / "space.yaml")


def test_what_is_tried_lies_in_the_space(tmp_path: Path, now: Setup) -> None:
    space = load_space(written(tmp_path, SPACE), now)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(20):
        trial = study.ask()
        setup = now.changed({name: each.suggest(trial, name) for name, each in space.tried.items()}, "space.yaml")
        assert 0.001 <= setup.train.learning_rate <= 0.1
        assert setup.train.epochs in (1, 2, 3)
        assert setup.spec.network.hidden in ((16, 8), (32, 16))
        assert (setup.train.batch_size, setup.spec.features) == (now.train.batch_size, now.spec.features)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"train": {"rate": {"low": 1, "high": 2}}}, "train.rate.*should be .learning_rate."),
        ({"train": {"epochs": {"low": 0, "high": 2}}}, "epochs: .* greater than or equal to 1"),
        ({"train": {"epochs": {"low": 2, "high": 2}}}, "low must be less than high"),
        ({"train": {"epochs": {"low": 1, "high": 3, "step": 0}}}, "step.* greater than 0"),
        ({"train": {"epochs": {"low": 1, "high": 3, "step": 0.5}}}, "step must be a whole number"),
        ({"train": {"learning_rate": {"low": 0.1, "high": float("inf")}}}, "high.* finite number"),
        ({"train": {"learning_rate": {"low": 0.1, "high": 0.2, "steps": 3}}}, "range.steps: unknown key"),
        ({"train": {"seed": {"low": 1, "high": 9}}}, "seed"),
        ({"train": {}}, "nothing to try"),
        ({"network": {"match": {"low": 0, "high": 8, "log": True}}}, "low must be more than 0"),
        ({"network": {"match": {"choices": [8]}}}, "at least 2 items"),
        ({"features": {}}, "features: unknown key"),
    ],
)
def test_a_space_with_a_mistake_is_refused(tmp_path: Path, now: Setup, change: dict[str, Any], found: str) -> None:
    with pytest.raises(SettingsError, match=found):
        load_space(written(tmp_path, change), now)


def test_a_trial_that_is_worse_than_most_is_cut_short(plan: Plan) -> None:
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner())
    for loss in (0.1, 0.2, 0.3, 0.4, 0.5):
        trial = study.ask()
        trial.report(-loss, 50)
        study.tell(trial, 0.5)
    for loss, is_pruned in ((0.29, False), (0.31, True)):
        trial = study.ask()
        watch = watcher(trial, plan)
        (plan.folder / EPOCHS).unlink(missing_ok=True)
        watch()  # before the end of an epoch there is nothing to judge by
        (plan.folder / EPOCHS).write_text(json.dumps([{"validation_loss": loss, "part": 0.5}]))
        if is_pruned:
            with pytest.raises(optuna.TrialPruned):
                watch()
        else:
            watch()
            watch()  # each epoch is told once
        assert study.trials[trial.number].intermediate_values == {50: -loss}


def test_a_search_begins_with_the_settings_of_now_and_tries_again_what_was_killed(tmp_path: Path, now: Setup) -> None:
    settings = Settings.model_validate({"lake": {"root": str(tmp_path)}})
    space = load_space(written(tmp_path, SPACE), now)
    search = Search("space.yaml", 9, 9, "random")
    asked = []
    for _ in range(2):  # the first is never told of an end, as if it had been killed
        study = open_study(settings, "shop", ["same"], search)
        start_anew(study, now, space)
        trial = study.ask()
        asked.append({name: each.suggest(trial, name) for name, each in space.tried.items()})
    assert asked == [{"train.learning_rate": 0.01, "train.epochs": 1, "network.hidden": [16, 8]}] * 2
    told = {"settings": asked[1], "interval": {"low": 0.1, "high": 0.3}, "first_time": None, "seconds": 1.5}
    for name, value in told.items():
        trial.set_user_attr(name, value)
    study.tell(trial, 0.25)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert [trial.number for trial in ended(study)] == [1]
    assert not open_study(settings, "shop", ["other rows"], search).trials
    table = best(study, "shop").splitlines()
    assert table[0] == "1 trials of shop: 0 pruned, 0 failed"
    assert table[2].split()[:3] == ["1", "0.2500", "(0.1000-0.3000)"]
    assert table[3:] == [
        "for the settings:",
        "train: {epochs: 1, learning_rate: 0.01}",
        "for the feature spec:",
        "network:",
        "  hidden: [16, 8]",
    ]
