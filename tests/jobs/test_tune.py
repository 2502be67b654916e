"""A search for better settings on the lake that the suite has made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from corner_shop import SETTINGS, Shop, SuiteRun
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from wares.cli import call, load_file
from wares.model import registry
from wares.settings import PROJECT, Settings

PARENT = "mlflow.parentRunId"
SPACE = """
train:
  learning_rate: {low: 0.001, high: 0.02, log: true}
network:
  hidden: {choices: [[128, 64], [16, 8]]}
"""


def test_a_search_goes_on_where_it_was(
    first_run: SuiteRun, shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "space.yaml").write_text(SPACE, encoding="utf-8")
    client = registry.connect(Settings.model_validate({"lake": {"root": str(first_run.lake)}}))
    for trials in (1, 2):
        said = tune(first_run, shop, "--trials", str(trials), "--space", str(tmp_path / "space.yaml"), capsys=capsys)
        assert re.findall(r"trial (\d): (.*)", said)[0][0] == str(trials - 1)
        assert f"{trials} trials of corner: 0 pruned, 0 failed" in said
        if trials == 1:
            assert "trial 0: train.learning_rate 0.008, network.hidden [128, 64]" in said
            [first] = runs_of(client, "trial 0")
            # What a trial leaves that is killed: a run without an end.
            client.create_run(first.info.experiment_id, run_name="trial 1", tags={PARENT: first.data.tags[PARENT]})
    assert re.search(r"for the settings:\ntrain: \{learning_rate: 0\.\d+\}\nfor the feature spec:\nnetwork:\n  hidden: \[", said)
    [parent] = runs_of(client, "tune corner")
    trials = [run for name in ("trial 0", "trial 1") for run in runs_of(client, name)]
    assert {run.data.tags[PARENT] for run in trials} == {parent.info.run_id}
    assert sorted(run.info.status for run in trials) == ["FINISHED", "FINISHED", "KILLED"]
    for run in trials:
        if run.info.status == "FINISHED":
            assert 0 <= run.data.metrics["validation.all.wide_deep.ndcg_10"] <= 1
    assert len(client.search_model_versions("name = 'wares_corner'")) == 1


def runs_of(client: MlflowClient, name: str) -> list[Run]:
    return client.search_runs([client.get_experiment_by_name("wares").experiment_id], f"attributes.run_name = '{name}'")


def tune(first_run: SuiteRun, shop: Shop, *options: str, capsys: pytest.CaptureFixture[str]) -> str:
    job = load_file(PROJECT / "jobs" / "tune.py")
    arguments = [*options, "--source", str(shop.source), "--set", f"lake.root={first_run.lake}", *SETTINGS]
    assert call(job.run, "tune", "", arguments, job.options) == 0, capsys.readouterr()
    return capsys.readouterr().out
