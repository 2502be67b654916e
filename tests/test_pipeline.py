"""The pipeline: order, what is refused, retries, and what is left out."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from wares import pipeline as module
from wares.errors import ConflictError, RankError, SettingsError, SourceError
from wares.pipeline import JobTimeout, Pipeline, Task, deadline, load_job, load_pipeline, run_pipeline, tables_of
from wares.settings import PROJECT
from wares.tables import TABLES


def pipeline(**jobs: dict) -> Pipeline:
    return Pipeline.model_validate({"schedule": "0 3 * * *", "jobs": jobs})


def test_the_pipeline_of_the_project() -> None:
    assert load_pipeline().order() == ["bronze", "silver", "gold", "features", "train", "score"]


def test_every_job_of_the_project_can_be_loaded() -> None:
    for file in (PROJECT / "jobs").glob("*.py"):
        assert callable(load_job(file.stem))


def test_every_table_belongs_to_one_job() -> None:
    belonging = [name for job in ("silver", "gold", "features", "train") for name in tables_of(job)]
    assert sorted([*belonging, "gold.recommendations"]) == sorted(TABLES)


@pytest.mark.parametrize(
    ("jobs", "wrong", "found"),
    [
        ("bronze: {tries: 3}", "does not fit", "jobs.bronze.tries: unknown key"),
        ("bronze: {}\n  publsh: {}", "a job that does not exist", "publsh"),
        ("silver: {after: [bronze]}", "waits for one that is not in the pipeline", "after: bronze"),
        ("bronze: {after: [silver]}\n  silver: {after: [bronze]}", "in a ring", "bronze -> silver -> bronze"),
    ],
)
def test_what_is_refused(tmp_path: Path, jobs: str, wrong: str, found: str) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text(f'schedule: "0 3 * * *"\njobs:\n  {jobs}\n', encoding="utf-8")
    with pytest.raises(SettingsError) as error:
        load_pipeline(str(file))
    assert wrong in error.value.wrong
    assert set(found.split(" -> ")) == set(error.value.found.split(" -> "))


class Runner:
    """Runs jobs that fail as told, and remembers what was run."""

    def __init__(self, **errors: list[Exception]) -> None:
        self.errors, self.ran, self.told = errors, [], []

    def __call__(self, name: str, task: Task) -> None:
        self.ran.append(name)
        if self.errors.get(name):
            raise self.errors[name].pop(0)

    def failed(self, name: str, error: Exception, left: int) -> None:
        self.told.append((name, left))


def test_a_failure_is_tried_again_as_often_as_declared() -> None:
    runner = Runner(bronze=[OSError(), ConflictError("wrong"), RankError("died")])
    steps = run_pipeline(pipeline(bronze={"retries": 3}), runner, runner.failed)
    assert runner.ran == ["bronze"] * 4
    assert runner.told == [("bronze", 3), ("bronze", 2), ("bronze", 1)]
    assert [step.status for step in steps] == ["done"]


def test_a_persons_mistake_is_not_tried_again() -> None:
    runner = Runner(bronze=[SourceError("wrong")])
    run_pipeline(pipeline(bronze={"retries": 2}), runner, runner.failed)
    assert runner.ran == ["bronze"]


def test_a_failed_job_stops_those_that_wait_for_it_and_no_others() -> None:
    jobs = pipeline(bronze={}, silver={"after": ["bronze"]}, gold={"after": ["silver"]}, train={})
    runner = Runner(bronze=[OSError()])
    statuses = {step.job: step.status for step in run_pipeline(jobs, runner, runner.failed)}
    assert statuses == {"bronze": "failed", "silver": "left out", "gold": "left out", "train": "done"}


def test_a_skipped_job_is_not_run_and_those_after_it_are() -> None:
    runner = Runner()
    steps = run_pipeline(
        pipeline(features={}, train={"after": ["features"]}, score={"after": ["train"]}), runner, runner.failed, ("train",)
    )
    assert runner.ran == ["features", "score"]
    assert [step.status for step in steps] == ["done", "skipped", "done"]


def test_a_job_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE", 0.1)
    cancelled = []
    spark = SimpleNamespace(sparkContext=SimpleNamespace(cancelJobsWithTag=lambda tag: cancelled.append(True)))
    started = time.monotonic()
    with pytest.raises(JobTimeout) as error, deadline(spark, "train", 0.2 / 60):
        time.sleep(30)
    assert time.monotonic() - started < 10
    assert cancelled == [True]
    assert "raise timeout_minutes of train" in str(error.value)


def test_a_job_in_time_is_left_alone() -> None:
    with deadline(SimpleNamespace(), "train", 1):
        pass
