"""Real ranks that leave, join and die during a training."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from helpers import change_column, ranks_of
from pyspark.sql import SparkSession
from wares.errors import ModelError, RankError
from wares.model.launcher import launch
from wares.model.plan import LAST, Plan
from wares.model.reader import EXAMPLES

NO_SPARK = cast(SparkSession, None)
"""horovodrun needs none."""
TWO, TWO_HOSTS = "localhost:2\n", "localhost:1\n127.0.0.1:1\n"
"""Two ranks on one host, and the same with two names for this machine, which Horovod takes for two hosts."""
GOING_ON = r"(\d+) ranks x (\d+) steps.*\n.*going on from a checkpoint: (\d+) of (\d+) steps"


@pytest.fixture
def elastic(plan: Plan) -> Plan:
    """24 epochs of 72 steps on two ranks, from labels of which a fifth is wrong, so that no loss comes near 0."""
    random = np.random.default_rng(5)
    for file in plan.files[EXAMPLES]:
        change_column(
            file,
            "label",
            lambda rows: pc.if_else(pa.array(random.random(rows.num_rows) < 0.2), pc.subtract(1.0, rows["label"]), rows["label"]),
        )
    script = plan.folder / "tell hosts"
    script.write_text(f"#!/bin/sh\ncat '{plan.folder}/hosts'\n", encoding="utf-8")
    script.chmod(0o755)
    tell(plan, TWO)
    settings = {"launcher": "horovodrun", "hosts": str(script), "epochs": 24, "batch_size": 20, "checkpoint_minutes": 60}
    return dataclasses.replace(
        plan, train=plan.train.model_copy(update=settings), checkpoint=str(plan.folder / "lake" / "checkpoint.npz")
    )


def tell(plan: Plan, hosts: str) -> None:
    (plan.folder / "hosts").write_text(hosts, encoding="utf-8")


def once(*todo: tuple[Callable[[], bool], Callable[[], None]]) -> Callable[[], None]:
    """Does one thing after the other, each when it is time for it."""
    left = list(todo)

    def watch() -> None:
        if left and left[0][0]():
            left.pop(0)[1]()

    return watch


def kill(plan: Plan, rank: int) -> None:
    """Kill the process that began as this rank."""
    for process in ranks_of(plan.folder):
        if f"HOROVOD_RANK={rank}" in Path(f"/proc/{process}/environ").read_text(encoding="utf-8").split("\0"):
            os.kill(process, signal.SIGKILL)


@pytest.mark.slow
def test_ranks_leave_and_join(elastic: Plan, capfd: pytest.CaptureFixture[str]) -> None:
    leave = (lambda: len(elastic.epochs()) >= 3, lambda: tell(elastic, "localhost:1\n"))
    join = (lambda: len(ranks_of(elastic.folder)) == 1, lambda: tell(elastic, TWO))
    launch(elastic, NO_SPARK, once(leave, join))
    said, found = capfd.readouterr().out, elastic.epochs()
    assert [int(epoch) for epoch in re.findall(r"epoch (\d+)/24: loss", said)] == list(range(1, 25))
    starts = [[int(number) for number in start] for start in re.findall(GOING_ON, said)]
    assert [start[:2] for start in starts] == [[1, 144], [2, 72]]
    assert 3 / 24 < starts[0][2] / (starts[0][1] * 24) < starts[1][2] / (starts[1][1] * 24) < 1
    assert_whole(elastic)
    with np.load(elastic.folder / LAST) as weights:
        assert all(np.isfinite(weights[name]).all() for name in weights.files)

    train = elastic.train.model_copy(update={"hosts": None})
    launch(dataclasses.replace(elastic, train=train, checkpoint=None), NO_SPARK)
    undisturbed = elastic.epochs()
    assert losses(found[:3]) == losses(undisturbed[:3])
    assert np.allclose(losses(found[-1:]), losses(undisturbed[-1:]), atol=0.02)


def losses(epochs: list[dict[str, float]]) -> list[list[float]]:
    return [[epoch["loss"], epoch["validation_loss"]] for epoch in epochs]


def assert_whole(plan: Plan) -> None:
    """The last checkpoint is that of the first stage's end, where the learning rate has come down to nearly 0."""
    with np.load(plan.checkpoint) as stored:
        told = json.loads(str(stored["told"]))
        names = [path for path, _ in json.loads(told["layout"])["state"]]
        (rate,) = (stored[str(place)] for place, path in enumerate(names) if path.startswith("adam") and path.endswith("rate"))
    assert told["steps"] == 24 * 72
    assert 0 < rate < plan.train.learning_rate / 1e5


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_dies_and_its_host_comes_back(
    elastic: Plan, rank: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wares.model.launcher.COOLDOWN", ("1", "1"))
    tell(elastic, TWO_HOSTS)
    launch(elastic, NO_SPARK, once((lambda: len(elastic.epochs()) >= 3, lambda: kill(elastic, rank))))
    starts = re.findall(GOING_ON, capfd.readouterr().out)
    assert [start[0] for start in starts] == ["1", "2"]
    assert all(int(done) / int(steps) >= 2 for _, steps, done, _ in starts)  # the checkpoint of the second epoch's end
    assert_whole(elastic)
    assert ranks_of(elastic.folder) == []


@pytest.mark.slow
def test_a_rank_that_dies_takes_its_host_along(elastic: Plan, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RankError, match="goes on from the last checkpoint") as error:
        launch(elastic, NO_SPARK, once((lambda: len(elastic.epochs()) >= 20, lambda: kill(elastic, 1))))
    assert "137" in error.value.found
    assert ranks_of(elastic.folder) == []
    launch(elastic, NO_SPARK)
    (_, _, done, _), *more = re.findall(GOING_ON, capfd.readouterr().out)
    assert int(done) >= 19 * 72
    assert not more


@pytest.mark.slow
def test_too_few_places_give_one_clear_error(elastic: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOROVOD_ELASTIC_TIMEOUT", "5")
    with pytest.raises(ModelError, match="too few places"):
        launch(elastic, NO_SPARK, once((lambda: bool(elastic.epochs()), lambda: tell(elastic, ""))))
    assert ranks_of(elastic.folder) == []
    with pytest.raises(ModelError, match="too few places"):
        launch(elastic, NO_SPARK)


@pytest.mark.slow
def test_a_rank_that_refuses_ends_the_others(elastic: Plan) -> None:
    tell(elastic, TWO_HOSTS)
    change_column(elastic.files[EXAMPLES][0], "weight", lambda rows: pa.array(np.full(rows.num_rows, np.inf)))
    with pytest.raises(ModelError, match="The loss is no longer a number"):
        launch(elastic, NO_SPARK)


def test_a_script_that_cannot_be_run_gives_one_clear_error(elastic: Plan) -> None:
    Path(elastic.train.hosts or "").chmod(0o644)
    with pytest.raises(ModelError, match="cannot be run"):
        launch(elastic, NO_SPARK)
