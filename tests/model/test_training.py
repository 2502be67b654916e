"""Real ranks under each launcher, and what happens when one of them goes wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Literal, cast

import keras
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from helpers import change_column, ranks_of
from mlflow.entities.model_registry import ModelVersion
from pyspark.sql import SparkSession
from wares.errors import ModelError, RankError
from wares.model import registry
from wares.model.encoding import Arrays, Encoding, encode_part, encode_parts
from wares.model.launcher import failure, launch
from wares.model.network import build_network
from wares.model.plan import LAST, MEASURED, Plan
from wares.model.reader import EXAMPLES, Batches, Known, read_known, read_split
from wares.model.scorer import Catalogue, Scorer
from wares.model.spec import Part, Spec
from wares.model.worker import Rate, finite_weights, ftrl_and_adam, with_enough_steps
from wares.settings import Lake, Mlflow, Settings, Train

NO_RUN = "0" * 32
NO_SPARK = cast(SparkSession, None)
"""Only the launcher `spark` needs one."""


def with_settings(plan: Plan, **settings: object) -> Plan:
    return dataclasses.replace(plan, train=plan.train.model_copy(update=settings))


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_ranks_share_all_rows(plan: Plan, spec: Spec, examples: pa.Table, known: dict[Part, Known], ranks: int) -> None:
    read = [read_split(plan.files, spec, known, "shop", ["train"], rank, ranks) for rank in range(ranks)]
    shares = [sum(chunk.rows.num_rows for chunk in chunks) for chunks in read]
    assert sum(shares) == examples["split"].to_pylist().count("train")
    assert max(shares) - min(shares) < 4


def test_an_epoch_has_each_row_once(
    plan: Plan, spec: Spec, encoding: Encoding, examples: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = read_known(plan.files, spec, "shop")
    encoded = {part: encode_part(spec, encoding, part, each.rows) for part, each in known.items()}
    read = partial(read_split, plan.files, spec, known, "shop", ["train"])
    whole = Batches(read, spec, encoding, encoded)
    monkeypatch.setattr("wares.model.reader.BUFFER_ROWS", 700)
    pieces = Batches(read, spec, encoding, encoded)
    encoded_whole = encode_parts(spec, encoding, examples.filter(pc.equal(examples["split"], "train")))
    right = _sorted(encoded_whole, encoded_whole)
    for batches in (whole, pieces):
        assert batches.rows == len(right)
        found = [batch() for batch in batches.epoch(64, np.random.default_rng(1))]
        assert np.array_equal(
            _sorted({name: np.concatenate([batch[name] for batch in found]) for name in found[0]}, encoded_whole), right
        )


def _sorted(arrays: Arrays, names: Iterable[str]) -> np.ndarray:
    """The rows of some arrays, side by side, in an order of their own."""
    rows = np.column_stack([arrays[name].reshape(len(arrays[name]), -1) for name in names])
    return rows[np.lexsort(rows.T)]


@pytest.mark.alone
@pytest.mark.parametrize("launcher", ["horovodrun", pytest.param("spark", marks=pytest.mark.spark)])
def test_each_launcher_trains(
    plan: Plan, launcher: Literal["horovodrun", "spark"], request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    spark = request.getfixturevalue("spark") if launcher == "spark" else NO_SPARK
    # Batches of 100 end short at different steps on the two ranks, whose files differ in size.
    launch(with_settings(plan, launcher=launcher, batch_size=100), spark)
    said = capfd.readouterr().out
    assert np.isfinite(_weights(plan.folder / LAST)).all()
    assert "2 ranks" in said
    assert "epoch 1/1: loss" in said


@pytest.fixture(scope="module")
def undisturbed(plan_in: Callable[[Path], Plan], tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """What one process has trained: 144 steps in each of two epochs, and then anew 180 in each of two."""
    plan = one_process(plan_in(tmp_path_factory.mktemp("undisturbed")))
    launch(plan, NO_SPARK)
    return plan


def one_process(plan: Plan) -> Plan:
    return with_settings(plan, epochs=2, batch_size=20, checkpoint_minutes=0)


def test_measured_weights_have_not_seen_the_validation_days(plan: Plan, undisturbed: Plan) -> None:
    for file in plan.files[EXAMPLES]:
        change_column(
            file,
            "label",
            lambda rows: pc.if_else(pc.equal(rows["split"], "validation"), pc.subtract(1.0, rows["label"]), rows["label"]),
        )
    launch(one_process(plan), NO_SPARK)
    assert np.array_equal(_weights(plan.folder / MEASURED), _weights(undisturbed.folder / MEASURED))
    assert not np.allclose(_weights(plan.folder / LAST), _weights(undisturbed.folder / LAST), atol=1e-3)


def test_fewer_bits_and_xla_train_the_same_network(plan: Plan, undisturbed: Plan) -> None:
    launch(with_settings(one_process(plan), precision="mixed_bfloat16", xla=True), NO_SPARK)
    losses, right = ([epoch["validation_loss"] for epoch in each.epochs()] for each in (plan, undisturbed))
    assert np.allclose(losses, right, rtol=0.02)
    found, undisturbed_weights = _weights(plan.folder / LAST), _weights(undisturbed.folder / LAST)
    assert not np.array_equal(found, undisturbed_weights)
    scores = keras.models.load_model(plan.folder / "model.keras", compile=False)
    assert {layer.compute_dtype for layer in scores.layers} == {"float32"}
    assert np.array_equal(np.concatenate([variable.numpy().ravel() for variable in scores.variables]), found)


@pytest.mark.alone
def test_nccl_is_refused_by_a_horovod_without_it(plan: Plan) -> None:
    with pytest.raises(ModelError, match="Horovod cannot use NCCL"):
        launch(with_settings(plan, nccl=True), NO_SPARK)


def _weights(path: Path) -> np.ndarray:
    """All weights in a file, one after the other."""
    with np.load(path) as weights:
        return np.concatenate([weights[name].ravel() for name in weights.files])


def test_a_killed_training_goes_on_to_the_same_weights(plan: Plan, undisturbed: Plan, capfd: pytest.CaptureFixture[str]) -> None:
    plan = dataclasses.replace(one_process(plan), checkpoint=str(plan.folder / "lake" / "checkpoint.npz"))
    for steps in (150, 400):  # within the second epoch, and in the second stage
        threading.Thread(target=_kill_at, args=(plan, steps), daemon=True).start()
        with pytest.raises(RankError, match="goes on from the last checkpoint"):
            launch(plan, NO_SPARK)
    launch(plan, NO_SPARK)
    said = capfd.readouterr().out
    assert [int(steps) // 144 for steps in re.findall(r"checkpoint: (\d+) of 648 steps", said)] == [1, 2]
    assert "1 ranks" in said
    for name in (MEASURED, LAST):
        assert np.isfinite(_weights(plan.folder / name)).all()
        assert np.array_equal(_weights(plan.folder / name), _weights(undisturbed.folder / name))


def _kill_at(plan: Plan, steps: int) -> None:
    """Kill the one rank of a plan once its checkpoint is that of so many steps."""
    while not Path(plan.checkpoint or "").exists() or _steps_done(plan) < steps:
        time.sleep(0.01)
    os.kill(ranks_of(plan.folder)[0], signal.SIGKILL)


def _steps_done(plan: Plan) -> int:
    with np.load(plan.checkpoint) as stored:
        return int(json.loads(str(stored["told"]))["steps"])


def test_weights_that_are_no_numbers_are_not_kept(spec: Spec, encoding: Encoding) -> None:
    model = build_network(spec, encoding, 3)
    assert set(finite_weights(model)) == {variable.path for variable in model.variables}
    model.get_layer("second").bias.assign(np.full(8, np.nan))
    with pytest.raises(ModelError, match="second/bias"):
        finite_weights(model)


def test_the_learning_rate_falls_in_each_stage(spec: Spec, encoding: Encoding) -> None:
    settings = Train(learning_rate=0.008, ftrl_learning_rate=0.003)
    optimizers = ftrl_and_adam(build_network(spec, encoding, 3), settings)
    rates = [optimizer.learning_rate for optimizer, _ in optimizers]
    found = []
    for begin, steps in ((0, 200), (200, 100)):
        rate = Rate(optimizers, settings.learning_rate, begin, steps)
        for step in (begin, begin + steps // 2, begin + steps):
            rate.at(step)
            found.append([float(each) for each in rates])
    assert np.allclose(found, [[0.003, 0.008], [0.003, 0.004], [0.003, 0]] * 2)


PREDICT = """
import sys, mlflow, pandas
uri, rows, scores = sys.argv[1:]
mlflow.set_tracking_uri(uri)
mlflow.pyfunc.load_model("models:/wares_shop/1").predict(pandas.read_parquet(rows)).to_parquet(scores)
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings with an MLflow of their own, which takes seconds to make."""
    return Settings.model_validate({"lake": {"root": str(tmp_path_factory.mktemp("mlflow"))}})


def test_another_process_gets_the_scores_of_batch_scoring_from_the_registry_alone(
    undisturbed: Plan, settings: Settings, users: pa.Table, products: pa.Table, examples: pa.Table, tmp_path: Path
) -> None:
    (undisturbed.folder / "spec.json").write_text(undisturbed.spec.model_dump_json(by_alias=True), encoding="utf-8")
    client = registry.connect(settings)
    with registry.run(client, settings, "shop") as run_id:
        registry.register(client, run_id, undisturbed, "abc")
    keys = {"source", "moment", "split", "label", "weight", "user_id"}
    rows = examples.select([name for name in examples.column_names if name not in keys])
    whole = pa.schema([field.with_type(pa.int32()) if field.type == pa.int64() else field for field in rows.schema])
    pq.write_table(rows.cast(whole), tmp_path / "rows.parquet")  # as in the feature tables
    command = [sys.executable, "-c", PREDICT, f"sqlite:///{settings.lake.root}/mlflow.db", "rows.parquet", "scores.parquet"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    network = registry.read_network(undisturbed.folder)
    scorer = Scorer(network, Catalogue(network, products))
    found = pq.read_table(tmp_path / "scores.parquet")["probability"].to_numpy().reshape(users.num_rows, products.num_rows)
    names = {name: place for place, name in enumerate(products["product_id"].to_pylist())}
    order = [names[name] for name in scorer.catalogue.ids.to_pylist()]
    for scored in scorer.score(users):
        assert np.allclose(found[scored.row][order], 1 / (1 + np.exp(-scored.logits)), atol=1e-5)


def test_a_run_that_was_killed_is_told_by_the_next_of_its_source(settings: Settings) -> None:
    client = registry.connect(settings)
    where = registry.experiment(client, settings)
    left = {  # what a training and a search leave that are killed: runs without an end
        (source, name): client.create_run(where, run_name=f"{name} {source}", tags={"source": source}).info.run_id
        for source in ("shop", "other")
        for name in ("train", "tune")
    }
    with registry.run(client, settings, "shop") as run_id:
        left["shop", "now"] = run_id
        found = {run: client.get_run(run_id).info.status for run, run_id in left.items()}
    assert found.pop(("shop", "train")) == "KILLED"
    assert set(found.values()) == {"RUNNING"}


def test_a_model_whose_files_are_gone_gives_one_clear_error(settings: Settings) -> None:
    gone = ModelVersion("wares_shop", "9", 0, run_id=NO_RUN)
    registry.connect(settings)
    with pytest.raises(ModelError, match=r"The files of wares_shop@9 are not where MLflow says they are"):
        registry.load_network(gone)


def test_a_lake_that_was_copied_does_not_train_into_the_other(settings: Settings, tmp_path: Path) -> None:
    registry.experiment(registry.connect(settings), settings)
    shutil.copy(Path(settings.lake.root) / "mlflow.db", tmp_path)
    copied = settings.model_copy(update={"lake": Lake(root=str(tmp_path))})
    client = registry.connect(copied)
    with pytest.raises(ModelError, match="This lake has been copied or moved"):
        registry.experiment(client, copied)
    named = copied.model_copy(update={"mlflow": Mlflow(experiment="other")})
    assert client.get_experiment(registry.experiment(client, named)).artifact_location == f"file://{tmp_path}/mlartifacts"


@pytest.mark.parametrize(
    ("rows", "epochs", "fitting"),
    [
        (2_835_493, 1, (1024, 1)),
        (1_024_000, 1, (1024, 1)),
        (512_000, 1, (512, 1)),  # batches of half as many rows
        (512_000, 2, (1024, 2)),
        (35_000, 1, (64, 2)),  # 1,000 batches of 64 are 1.8 times the rows
        (1_000, 1, (64, 30)),  # however few there are
        (1_000, 50, (64, 50)),
        (35_000, 20, (700, 20)),
    ],
)
def test_few_rows_make_small_batches_and_many_epochs(rows: int, epochs: int, fitting: tuple[int, int]) -> None:
    found = with_enough_steps(Train(epochs=epochs), rows)
    assert (found.batch_size, found.epochs) == fitting


@pytest.mark.alone
def test_few_rows_are_seen_until_there_are_enough_steps(plan: Plan) -> None:
    launch(with_settings(plan, min_steps=100), NO_SPARK)  # 100 batches of 64 are 2.2 times the rows
    assert [epoch["part"] for epoch in plan.epochs()] == [pytest.approx(n / 3) for n in (1, 2, 3)]


@pytest.mark.alone
def test_a_network_that_got_worse_is_refused(plan: Plan) -> None:
    with pytest.raises(ModelError, match="The training has made the network worse than none"):
        launch(with_settings(plan, learning_rate=1e4), NO_SPARK)


@pytest.mark.alone
def test_what_watches_a_training_can_end_it(plan: Plan) -> None:
    def enough() -> None:
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        launch(with_settings(plan, epochs=1000), NO_SPARK, enough)
    assert ranks_of(plan.folder) == []


@pytest.mark.alone
def test_infinite_values_give_one_clear_error(plan: Plan) -> None:
    change_column(plan.files[EXAMPLES][0], "weight", lambda rows: pa.array(np.full(rows.num_rows, np.inf)))
    with pytest.raises(ModelError, match="The loss is no longer a number"):
        launch(plan, NO_SPARK)


@pytest.mark.alone
def test_a_rank_without_rows_gives_one_clear_error(plan: Plan) -> None:
    pq.write_table(pq.read_table(plan.files[EXAMPLES][0]).slice(0, 1), plan.files[EXAMPLES][0])  # a validation row
    with pytest.raises(ModelError, match="A training rank has no examples"):
        launch(dataclasses.replace(plan, files=plan.files | {EXAMPLES: plan.files[EXAMPLES][:1]}), NO_SPARK)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("[1]<stderr>:KeyError: 'user 4711'", "[1]<stderr>:KeyError: ..."),
        ('[0]<stderr>:ValueError: could not convert string to float: "12 eggs"', "could not convert string to float: ..."),
        ("tensorflow.ResourceExhaustedError: OOM when allocating tensor, can't go on", "OOM when allocating tensor, can't go on"),
    ],
)
def test_last_words_hold_no_value(tmp_path: Path, line: str, found: str) -> None:
    told = failure(tmp_path, ["Loading", line], "exit status 1")
    assert isinstance(told, RankError)
    assert told.found.startswith("exit status 1; ")
    assert told.found.endswith(found)


@pytest.mark.alone
def test_a_dead_rank_ends_the_others(plan: Plan) -> None:
    killed: list[int] = []

    def kill_one() -> None:
        while not killed:
            time.sleep(0.5)
            ranks = ranks_of(plan.folder)
            if len(ranks) == 2:
                os.kill(ranks[1], 9)
                killed.append(ranks[1])

    threading.Thread(target=kill_one, daemon=True).start()
    with pytest.raises(RankError, match="A training rank died"):
        launch(with_settings(plan, launcher="horovodrun", epochs=1000), NO_SPARK)
    assert killed
    time.sleep(1)
    assert ranks_of(plan.folder) == []
