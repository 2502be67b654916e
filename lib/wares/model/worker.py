"""One Horovod rank of a training run: `python -m wares.model.worker PLAN.json`. It knows no Spark and no MLflow."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf

from wares.errors import ModelError
from wares.model.checkpoints import Checkpoints, Progress
from wares.model.devices import place_of_exchange, use_device
from wares.model.elastic import LOOK_STEPS, Changes, RanksChanged, again_with_other_ranks
from wares.model.encoding import Arrays, Encoding, encode_part
from wares.model.network import build_network, is_wide
from wares.model.plan import EPOCHS, LAST, MEASURED, PROGRESS, Plan, refusal
from wares.model.reader import Batches, read_known, read_split
from wares.settings import Train

WIDE_START, WIDE_L2 = 1e-6, 1e-5
"""FTRL's first accumulator and its L2: what holds a weight near 0 until enough examples speak for it. Gradients are means
over a batch, so a cross that one row has moves its weight by a gradient of about 1e-4."""
WEIGHT_DECAY, LONGEST_GRADIENT = 1e-4, 20.0
"""AdamW's decay, and the norm beyond which the gradient of the deep side is shortened."""
SMALLEST_BATCH, MOST_EPOCHS = 64, 30
"""Where there are few rows, batches shrink to so many of them, and then there are up to so many epochs."""
AVERAGE = 0.99
"""What the moving average of the deep side's weights keeps at each step; the average is the model."""


def main(plan_path: str) -> int:
    """Train one rank; returns the exit status. A mistake is left in `error-RANK.json` for the launcher to report."""
    _follow_parent()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    hvd.init()
    plan = Plan.load(Path(plan_path))
    try:
        use_device(plan.train)
        if plan.train.hosts is None:
            train(plan)
        else:
            again_with_other_ranks(partial(_train_unless_refused, plan))
    except ModelError as error:
        (plan.folder / f"error-{hvd.rank()}.json").write_text(
            json.dumps({"wrong": error.wrong, "found": error.found, "do": error.do})
        )
        return 3
    return 0


def _train_unless_refused(plan: Plan, changes: Changes) -> None:
    """Train, unless a rank has refused to go on: no other number of ranks would mend that, so all are to end.

    Raises:
        ModelError: What the rank said, or as in `train`.
    """
    if refused := refusal(plan.folder):
        raise refused
    train(plan, changes)


def train(plan: Plan, changes: Changes | None = None) -> None:
    """The training of one rank, in two stages: on the rows before the validation days, and then, once it has been measured,
    anew on those rows and the validation days. Where the second one is not asked for, or there are no validation days, the last
    weights are the measured ones.

    In each stage all ranks begin with rank 0's weights, average their gradients in each step, and take the same number of
    steps. Rank 0 leaves the weights that have not seen the validation days in `measured.npz`, and the last ones in
    `weights.npz`.

    Where rank 0 finds a checkpoint, all go on from there: each draws the batches of the stage's steps that were taken, without
    making them, and so comes to the batch that was next. Where other ranks left it, they go on at the same part of the training.

    Args:
        changes: Tells when there are to be other ranks; None if there never are.

    Raises:
        ModelError: A rank has no rows, the loss or a weight is no number, or the network got worse than none.
        RanksChanged: There are to be other ranks.
    """
    encoding = Encoding.load(plan.folder / "encoding.json")
    rank, ranks, settings = hvd.rank(), hvd.size(), plan.train
    known = read_known(plan.files, plan.spec, plan.source)
    encoded = {part: encode_part(plan.spec, encoding, part, each.rows) for part, each in known.items()}

    def batches_of(*splits: str) -> Batches:
        read = partial(read_split, plan.files, plan.spec, known, plan.source, splits, rank, ranks)
        return Batches(read, plan.spec, encoding, encoded)

    batches, held_out = batches_of("train"), batches_of("validation")
    rows, newest = ([int(n) for n in hvd.allgather(tf.constant([found.rows])).numpy()] for found in (batches, held_out))
    if min(rows) == 0:
        raise ModelError(
            "A training rank has no examples.",
            found=f"rows on each rank: {', '.join(map(str, rows))}",
            do="train with fewer ranks (train.ranks), or on a source with a longer history",
        )
    settings = with_enough_steps(settings, sum(rows))
    every = [before + more for before, more in zip(rows, newest, strict=True)]
    steps, of_all = (math.ceil(max(found) / settings.batch_size) for found in (rows, every))
    measuring = settings.epochs * steps
    anew = settings.epochs * of_all if sum(newest) and not plan.only_measured else 0
    model = build_network(plan.spec, encoding, settings.seed)
    optimizers = ftrl_and_adam(model, settings)
    step = training_step(model, optimizers, settings)
    state = [*model.variables, *(variable for optimizer, _ in optimizers for variable in optimizer.variables)]
    fresh = [variable.numpy() for variable in state]
    file = plan.checkpoint or (str(plan.folder / "checkpoint.npz") if changes else None)
    layout = [[sum(rows)], [sum(newest)]] if changes else [rows, newest]
    checkpoints = Checkpoints(file if rank == 0 else None, settings.checkpoint_minutes, state, layout)
    progress = checkpoints.restore()
    if progress.of != (steps, anew):
        progress.share_out_anew((steps, anew), settings.epochs)
    _begin_alike(state)
    progress.steps = int(hvd.broadcast(tf.constant(progress.steps), root_rank=0))
    if rank == 0:
        size = f"{ranks} ranks x {steps} steps of {settings.batch_size} x {settings.epochs} epochs"
        print(f"{PROGRESS}training on {sum(rows):,} examples: {size}, {model.count_params():,} weights", flush=True)
        if progress.steps:
            print(f"{PROGRESS}going on from a checkpoint: {progress.steps} of {measuring + anew} steps are done", flush=True)
    rate = Rate(optimizers, settings.learning_rate, 0, measuring)
    stream = _stream(batches, settings, rank, 0, progress.steps)
    for epoch in range(progress.steps // steps + 1, settings.epochs + 1):
        start, done = time.perf_counter(), progress.steps
        loss, even = _take_steps(step, rate, stream, progress, epoch * steps, checkpoints, changes)
        seconds = time.perf_counter() - start
        if epoch == settings.epochs:
            _average(optimizers)
            progress.measured = finite_weights(model)
        means = hvd.allreduce(tf.constant([loss, _mean_loss(model, held_out, settings.batch_size), even])).numpy()
        if epoch == settings.epochs and means[0] > means[2]:
            raise ModelError(
                "The training has made the network worse than none.",
                found=f"a loss of {means[0]:.4g} in the last epoch, where even odds for all pairs have {means[2]:.4g}",
                do="lower train.learning_rate or train.ftrl_learning_rate",
            )
        measured = {
            "part": epoch / settings.epochs,
            "loss": float(means[0]),
            "validation_loss": float(means[1]),
            "samples_per_second": (progress.steps - done) * settings.batch_size * ranks / seconds,
            "seconds": seconds,
        }
        progress.epochs.append(measured)
        if rank == 0:
            _write_epochs(plan, progress)
            print(
                f"{PROGRESS}epoch {epoch}/{settings.epochs}: loss {means[0]:.4f}, validation {means[1]:.4f}, "
                f"{measured['samples_per_second']:,.0f} samples/s, {seconds:.0f} s",
                flush=True,
            )
        checkpoints.write(progress)
        _make_way(changes, checkpoints, progress)
    del stream, batches, held_out  # which may hold as many rows as come now
    if anew:
        if rank == 0:
            print(f"{PROGRESS}training anew on all {sum(every):,} examples, the validation days too: {anew} steps", flush=True)
        if progress.steps == measuring:
            for variable, value in zip(state, fresh, strict=True):
                variable.assign(value)
            _begin_alike(state)
        rate = Rate(optimizers, settings.learning_rate, measuring, anew)
        stream = _stream(batches_of("train", "validation"), settings, rank, 1, progress.steps - measuring)
        _take_steps(step, rate, stream, progress, measuring + anew, checkpoints, changes)
        _average(optimizers)
    if rank == 0:
        np.savez(plan.folder / MEASURED, **progress.measured)
        np.savez(plan.folder / LAST, **finite_weights(model))
        keras.config.set_dtype_policy("float32")  # in which it scores, whatever it was trained in
        scores = build_network(plan.spec, encoding, settings.seed)
        scores.set_weights(model.get_weights())
        scores.save(plan.folder / "model.keras")
        _write_epochs(plan, progress)


def with_enough_steps(settings: Train, rows: int) -> Train:
    """Settings by which all ranks together take `min_steps` batches in a stage, if they can: first of fewer rows, then in more
    epochs.

    It goes by what all ranks have, and not by each one's steps, so that it is the same where other ranks go on.

    Args:
        rows: The examples of the first stage on all ranks.
    """
    fitting = settings.epochs * rows // settings.min_steps
    size = min(settings.batch_size, max(SMALLEST_BATCH, fitting))
    epochs = max(settings.epochs, min(MOST_EPOCHS, math.ceil(settings.min_steps * size / rows)))
    return settings.model_copy(update={"batch_size": size, "epochs": epochs})


def _begin_alike(state: list[keras.Variable]) -> None:
    """Give all ranks what rank 0 has."""
    hvd.broadcast_variables([variable.value for variable in state], root_rank=0)


def _stream(batches: Batches, settings: Train, rank: int, stage: int, done: int) -> Iterator[Callable[[], Arrays]]:
    """A rank's batches in a stage without an end, after those that were `done`."""
    return islice(_endless(batches, settings.batch_size, np.random.default_rng((settings.seed, rank, stage))), done, None)


def _take_steps(
    step: Callable[[Arrays], tf.Tensor],
    rate: Rate,
    stream: Iterator[Callable[[], Arrays]],
    progress: Progress,
    until: int,
    checkpoints: Checkpoints,
    changes: Changes | None,
) -> tuple[float, float]:
    """Take steps until so many have been taken; returns the mean loss of those that were taken now, and of even odds.

    Raises:
        ModelError: The loss is no number.
        RanksChanged: There are to be other ranks.
    """
    losses, even = [], []
    while progress.steps < until:
        rate.at(progress.steps)
        batch = next(stream)()
        losses.append(float(step(batch)))
        even.append(float(sampled_loss(batch["label"], np.zeros((len(batch["label"]), 1), np.float32), batch["weight"])))
        progress.steps += 1
        if not math.isfinite(losses[-1]):
            raise ModelError(
                "The loss is no longer a number.",
                found=f"{losses[-1]} in step {progress.steps} of {until}",
                do="lower train.learning_rate or train.ftrl_learning_rate, and look for infinite values in gold.examples",
            )
        if progress.steps < until:  # what comes after the last one is not a step, and is not to be left out
            checkpoints.write_if_due(progress)
            if progress.steps % LOOK_STEPS == 0:
                _make_way(changes, checkpoints, progress)
    return float(np.mean(losses)), float(np.mean(even))


def _make_way(changes: Changes | None, checkpoints: Checkpoints, progress: Progress) -> None:
    """Leave a checkpoint and end here if there are to be other ranks.

    Raises:
        RanksChanged: There are.
    """
    if changes and changes.are_due():
        checkpoints.write(progress)
        raise RanksChanged


def _write_epochs(plan: Plan, progress: Progress) -> None:
    """Leave what was measured so far, at once: who watches the training may read it at any time."""
    beside = plan.folder / f"{EPOCHS}.new"
    beside.write_text(json.dumps(progress.epochs), encoding="utf-8")
    beside.replace(plan.folder / EPOCHS)


def finite_weights(model: keras.Model) -> dict[str, np.ndarray]:
    """The network's weights by the paths of its variables.

    Raises:
        ModelError: One is no number: the last step went wrong, whose loss nobody has seen.
    """
    weights = {variable.path: variable.numpy() for variable in model.variables}
    broken = [path for path, weight in weights.items() if not np.isfinite(weight).all()]
    if broken:
        raise ModelError(
            "Weights are no longer numbers.",
            found=", ".join(broken),
            do="lower train.learning_rate or train.ftrl_learning_rate, and look for infinite values in gold.examples",
        )
    return weights


Optimizers = list[tuple[keras.optimizers.Optimizer, list[keras.Variable]]]
"""Each optimiser with the weights that it moves."""


def ftrl_and_adam(model: keras.Model, settings: Train) -> Optimizers:
    """FTRL for the wide side and AdamW for the deep one, which keeps a moving average of its weights."""
    wide = [variable for variable in model.trainable_variables if is_wide(variable)]
    deep = [variable for variable in model.trainable_variables if not is_wide(variable)]
    ftrl = keras.optimizers.Ftrl(
        settings.ftrl_learning_rate, initial_accumulator_value=WIDE_START, l2_regularization_strength=WIDE_L2
    )
    adam = keras.optimizers.AdamW(
        settings.learning_rate,
        weight_decay=WEIGHT_DECAY,
        global_clipnorm=LONGEST_GRADIENT,
        use_ema=True,
        ema_momentum=AVERAGE,
    )
    ftrl.build(wide)
    adam.build(deep)
    return [(ftrl, wide), (adam, deep)]


@dataclass(frozen=True)
class Rate:
    """AdamW's learning rate in one stage, which falls to 0 along a cosine.

    It follows from the steps that were taken in the whole training, and not from what the optimiser counts: where ranks come
    and go, they stand at the same part of another number of steps.

    Args:
        optimizers: As `ftrl_and_adam` gives them.
        highest: The rate of the first step.
        begin: Steps of the whole training before the stage.
        steps: Steps of the stage.
    """

    optimizers: Optimizers
    highest: float
    begin: int
    steps: int

    def at(self, step: int) -> None:
        """Set the rate for the step after so many of the whole training."""
        _, (adam, _) = self.optimizers
        adam.learning_rate = self.highest * (1 + math.cos(math.pi * (step - self.begin) / self.steps)) / 2


def _average(optimizers: Optimizers) -> None:
    """Put the moving averages in the place of the weights."""
    for optimizer, variables in optimizers:
        optimizer.finalize_variable_values(variables)


def training_step(model: keras.Model, optimizers: Optimizers, settings: Train) -> Callable[[Arrays], tf.Tensor]:
    """A function that takes one batch, moves all weights, and returns the loss.

    Gradients of embeddings travel dense: the tables are small (some MB in all), a batch touches much of them, and a
    dense sum costs the same whatever the ranks' batches share. A catalogue of millions would want them sparse.
    """

    def loss_and_gradients(batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            loss = sampled_loss(batch["label"], model(_inputs(batch), training=True), batch["weight"])
        found = tape.gradient(loss, [variable.value for _, variables in optimizers for variable in variables])
        return loss, [tf.convert_to_tensor(gradient) for gradient in found]

    if settings.xla:  # Horovod's exchange can't be compiled
        loss_and_gradients = tf.function(loss_and_gradients, jit_compile=True)

    # Traced once for batches of any size: a second trace would name its exchanges anew, and ranks whose short batches
    # come at different steps would wait for each other for ever.
    @tf.function(input_signature=[_signature(model)])
    def step(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        loss, gradients = loss_and_gradients(batch)
        if hvd.size() > 1:
            gradients = [hvd.allreduce(gradient, device_dense=place_of_exchange(settings)) for gradient in gradients]
        gradients = iter(gradients)
        for optimizer, variables in optimizers:
            optimizer.apply(list(islice(gradients, len(variables))), variables)
        return loss

    return lambda batch: step({name: tf.constant(array) for name, array in batch.items()})


def sampled_loss(label: tf.Tensor, logit: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """Log loss of examples of which only one in `weight` was taken if the user did not buy.

    Among the examples the odds of a purchase are `weight` times what they are among all pairs. Adding that to the logit
    leaves the network to learn the true odds, and no row has to count a thousandfold.
    """
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(label, logit[:, 0] + tf.math.log(weight)))


def _signature(model: keras.Model) -> dict[str, tf.TensorSpec]:
    """A batch as `training_step` takes it."""
    rows = {name: tf.TensorSpec([None], tf.float32) for name in ("label", "weight")}
    return rows | {name: tf.TensorSpec(tensor.shape, tensor.dtype) for name, tensor in model.input.items()}


def _inputs(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {name: tensor for name, tensor in batch.items() if name not in ("label", "weight")}


def _mean_loss(model: keras.Model, rows: Batches, size: int) -> float:
    """Loss over all of a rank's rows, without a step; 0 for no rows."""

    @tf.function(input_signature=[_signature(model)])
    def measure(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        return sampled_loss(batch["label"], model(_inputs(batch)), batch["weight"])

    losses = [float(measure({name: tf.constant(array) for name, array in batch().items()})) for batch in rows.epoch(size)]
    return float(np.mean(losses)) if losses else 0.0


def _endless(batches: Batches, size: int, random: np.random.Generator) -> Iterator[Callable[[], Arrays]]:
    """Epoch after epoch without an end, so that a rank with fewer rows takes as many steps as the others."""
    while True:
        yield from batches.epoch(size, random)


def _follow_parent() -> None:
    """End with the process that asked for this training, however that one ends."""
    parent = int(os.environ.get("WARES_PARENT", os.getppid()))

    def watch() -> None:
        while True:
            try:
                os.kill(parent, 0)
            except ProcessLookupError:
                os._exit(1)
            time.sleep(2)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
