"""One rank of `make bench-model`, on a core of its own: `bench_rank.py PLAN.json WAY NUMBER`, or without NUMBER under horovodrun.

WAY is `loop` (the training loop of wares.model.worker), `fit` (the same network under keras.Model.fit, on all cores), or
`matmul` (nothing but the network's matrix products). It leaves what it measured in WAY-NUMBER.json beside the plan.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf
from keras import layers
from wares.model.encoding import Arrays, Encoding, encode_part
from wares.model.plan import Plan
from wares.model.reader import Batches, read_known, read_split
from wares.model.worker import _endless, ftrl_and_adam, training_step

EMBEDDING, HIDDEN = 10, (400, 400, 400)
WARM_UP, STEPS = 8, 40
GEMM = 1024


def network(plan: Plan, encoding: Encoding) -> keras.Model:
    """The paper's deep side with batch normalisation, and a linear wide side, from the plan's categorical features."""
    keras.utils.set_random_seed(plan.train.seed)
    features = [feature for part in ("user", "product") for feature in plan.spec.ids(part)]
    inputs = {feature.name: keras.Input((), dtype="int32", name=feature.name) for feature in features}
    embedded = [
        layers.Embedding(encoding.size(feature.name), EMBEDDING, name=f"embed_{feature.name}")(inputs[feature.name])
        for feature in features
    ]
    hidden = layers.Concatenate()(embedded)
    for width in HIDDEN:
        hidden = layers.ReLU()(layers.BatchNormalization()(layers.Dense(width, use_bias=False)(hidden)))
    wide = [
        layers.Embedding(encoding.size(feature.name), 1, embeddings_initializer="zeros", name=f"wide_{feature.name}")(
            inputs[feature.name]
        )
        for feature in features
    ]
    return keras.Model(inputs, layers.Add()([layers.Dense(1)(hidden), *wide]))


def taken(batch: Arrays, model: keras.Model) -> Arrays:
    """What the network takes of a batch: these features have no numbers, which the reader brings for every part."""
    return {name: batch[name] for name in (*model.input, "label", "weight")}


def loop(plan: Plan) -> dict[str, float]:
    """The whole loop, reading included: samples a second of this rank, and the share of the time spent waiting for data."""
    encoding = Encoding.load(plan.folder / "encoding.json")
    known = read_known(plan.files, plan.spec, plan.source)
    encoded = {part: encode_part(plan.spec, encoding, part, each.rows) for part, each in known.items()}
    read = partial(read_split, plan.files, plan.spec, known, plan.source, ["train"], hvd.rank(), hvd.size())
    batches = Batches(read, plan.spec, encoding, encoded)
    model = network(plan, encoding)
    step = training_step(model, ftrl_and_adam(model, plan.train), plan.train)
    hvd.broadcast_variables([variable.value for variable in model.variables], root_rank=0)
    stream = _endless(batches, plan.train.batch_size, np.random.default_rng(hvd.rank()))
    waiting = 0.0
    for number in range(WARM_UP + STEPS):
        if number == WARM_UP:
            waiting, start = 0.0, time.perf_counter()
        before = time.perf_counter()
        batch = taken(next(stream)(), model)
        waiting += time.perf_counter() - before
        float(step(batch))
    seconds = time.perf_counter() - start
    return {"samples_per_second": STEPS * plan.train.batch_size / seconds, "waiting": waiting / seconds}


def fit(plan: Plan) -> dict[str, float]:
    """keras.Model.fit on arrays in memory, with one optimizer."""
    encoding = Encoding.load(plan.folder / "encoding.json")
    known = read_known(plan.files, plan.spec, plan.source)
    encoded = {part: encode_part(plan.spec, encoding, part, each.rows) for part, each in known.items()}
    read = partial(read_split, plan.files, plan.spec, known, plan.source, ["train"])
    whole = next(Batches(read, plan.spec, encoding, encoded).epoch((WARM_UP + STEPS) * plan.train.batch_size))()
    model = network(plan, encoding)
    whole = taken(whole, model)
    label, _ = whole.pop("label"), whole.pop("weight")
    model.compile(keras.optimizers.Adam(plan.train.learning_rate), keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit(whole, label, batch_size=plan.train.batch_size, epochs=1, verbose=0)
    start = time.perf_counter()
    model.fit(whole, label, batch_size=plan.train.batch_size, epochs=1, verbose=0)
    return {"samples_per_second": len(label) / (time.perf_counter() - start)}


def matmul(plan: Plan) -> dict[str, float]:
    """Samples a second if training were nothing but matrix products, at the speed that a plain square one reaches."""
    square = tf.random.normal((GEMM, GEMM))
    multiply = tf.function(tf.matmul)
    for _ in range(3):
        multiply(square, square).numpy()
    times = []
    for _ in range(20):
        before = time.perf_counter()
        multiply(square, square).numpy()
        times.append(time.perf_counter() - before)
    speed = 2 * GEMM**3 / statistics.median(times)
    widths = [EMBEDDING * len([*plan.spec.ids("user"), *plan.spec.ids("product")]), *HIDDEN, 1]
    # Forward, and backward for the inputs and for the weights: three products of the same size for each layer.
    flops = sum(3 * 2 * before * after for before, after in zip(widths, widths[1:], strict=False))
    return {"samples_per_second": speed / flops, "gemm_gflops": speed / 1e9}


def main(path: str, way: str, number: str = "") -> None:
    hvd.init()
    cores = sorted(os.sched_getaffinity(0))
    if way != "fit":
        os.sched_setaffinity(0, {cores[hvd.local_rank() % len(cores)]})
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    plan = Plan.load(Path(path))
    found = {"loop": loop, "fit": fit, "matmul": matmul}[way](plan)
    (plan.folder / f"{way}-{number or hvd.rank()}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
