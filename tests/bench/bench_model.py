"""What the model costs: `make bench-model`. Each figure beside its goal, each ratio measured side by side in one run.

    training     the training loop, reading included, at the shape of the wide & deep paper (10 categorical features of 5,000
                 values, embeddings of 10, three layers of 400 with batch normalisation, batches of 4,096), against the
                 network's matrix products alone at the speed of a plain one on the same core, and against keras.Model.fit
    ranks        two ranks, each on a core of its own, against one; beside it two that do not exchange anything, since what two
                 cores of one processor share no exchange can win back
    scoring      the exact top 10 of the champion of the lake that `make demo-full` leaves, on one core, against model.predict
                 in a Spark function, against a plain matrix product, and against Spark's ALS.recommendForAllUsers
    candidates   the share of the exact top 10 that the setting score.candidates=history keeps
    re-scoring   scoring again after features of 1 % of the users have changed, against scoring all of them, in a copy of the
                 lake; with --copies N of each user and its past, since a shop with few users pays mostly for what any run costs

Medians of several rounds, the ways in turn in each.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from figures import Figure, tell
from mlflow.entities.model_registry import ModelVersion
from pyspark.sql import DataFrame
from pyspark.sql.functions import broadcast, col, concat_ws, explode, lit, sequence
from threadpoolctl import threadpool_limits
from wares.lake.session import open_session
from wares.lake.store import Store
from wares.model import registry
from wares.model.baselines import K, fit_als
from wares.model.encoding import Encoding, encode_parts
from wares.model.launcher import environment
from wares.model.plan import Plan
from wares.model.reader import EXAMPLES, TABLES
from wares.model.scorer import USERS, Catalogue, Network, Scorer, top
from wares.model.scoring import history, score
from wares.model.spec import Spec
from wares.model.training import pairs_before, pinned
from wares.settings import Train, load_settings
from wares.tables import TABLES as FILES
from wares.tables.gold.examples import PARTS, features_of
from wares.tables.gold.recommendations import with_past

FIELDS, VALUES, ROWS = 5, 5_000, 500_000
"""Categorical features of the user and of the product each, values of each, and examples."""
PREDICTED = 3
"""Users that model.predict scores: each takes seconds."""
WORKER = Path(__file__).with_name("bench_rank.py")


def paper(folder: Path) -> Plan:
    """A plan for the paper's shape, with tables of random values."""
    random = np.random.default_rng(1)
    names = {part: [f"{part}{n}" for n in range(FIELDS)] for part in TABLES}
    features = [
        {"name": name, "from": f"{part}.{name}", "kind": "categorical", "side": "both", "vocabulary": VALUES, "embedding": 10}
        for part, columns in names.items()
        for name in columns
    ]
    spec = Spec.model_validate({"network": {"hidden": [400, 400]}, "features": features})
    moment = pa.scalar(0, pa.timestamp("us", "UTC"))
    files = {EXAMPLES: [str(folder / "examples.parquet")]}
    many = 20_000
    for part, table in TABLES.items():
        values = {name: pa.array(random.integers(0, VALUES, many)).cast(pa.string()) for name in names[part]}
        keys = {f"{part}_id": pa.array(range(many)).cast(pa.string()), "moment": pa.repeat(moment, many)}
        told = {"source": pa.repeat("paper", many), "role": pa.repeat("train", many)}
        files[table] = [str(folder / f"{part}.parquet")]
        pq.write_table(pa.table(told | keys | values), files[table][0])
    examples = {f"{part}_id": pa.array(random.integers(0, many, ROWS)).cast(pa.string()) for part in TABLES} | {
        "source": pa.repeat("paper", ROWS),
        "split": pa.repeat("train", ROWS),
        "moment": pa.repeat(moment, ROWS),
        "label": pa.array(random.integers(0, 2, ROWS), pa.int8()),
        "weight": pa.repeat(pa.scalar(1, pa.float32()), ROWS),
    }
    pq.write_table(pa.table(examples), files[EXAMPLES][0], row_group_size=50_000)
    values = [str(value) for value in range(VALUES)]
    Encoding({feature["name"]: values for feature in features}, {}, {}).save(folder / "encoding.json")
    return Plan(files, "paper", spec, Train(batch_size=4096), folder)


def ranks(plan: Plan, way: str, number: int, apart: bool = False) -> list[dict[str, float]]:
    """Run `bench_rank.py` on so many ranks, on a core each; what each measured.

    Args:
        apart: Run them side by side as trainings of their own.
    """
    command = [sys.executable, str(WORKER), str(plan.folder / "plan.json"), way]
    environ = {**environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
    if way == "fit":
        environ.pop("OMP_NUM_THREADS")
    cores = sorted(os.sched_getaffinity(0))
    if apart:
        commands = [["taskset", "-c", str(cores[rank]), *command, str(rank)] for rank in range(number)]
    elif number == 1:
        commands = [[*command, "0"]]
    else:
        launcher = [str(Path(sys.executable).with_name("horovodrun")), "-np", str(number), "-H", f"localhost:{number}", "--gloo"]
        commands = [[sys.executable, *launcher, *command]]
    running = [subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for words in commands]
    for process in running:
        said = process.communicate()[0]
        if process.returncode:
            raise SystemExit(said.decode()[-3000:])
    return [json.loads((plan.folder / f"{way}-{rank}.json").read_text(encoding="utf-8")) for rank in range(number)]


def training(folder: Path, rounds: int) -> list[Figure]:
    """The training loop, alone, against its limit and against `fit`, and on two ranks."""
    plan = paper(folder)
    plan.save()
    ways = {"limit": ("matmul", 1, False), "loop": ("loop", 1, False), "two": ("loop", 2, False), "apart": ("loop", 2, True)}
    ways["fit"] = ("fit", 1, False)
    found: dict[str, list[float]] = {way: [] for way in ways}
    waiting = []
    for number in range(rounds):
        for name, (way, size, apart) in ways.items():
            measured = ranks(plan, way, size, apart)
            found[name].append(sum(rank["samples_per_second"] for rank in measured))
            waiting += [rank["waiting"] for rank in measured if name == "loop"]
            print(f"  round {number + 1} of {rounds}, {name}: {found[name][-1]:,.0f} samples/s", flush=True)

    def ratio(above: str, below: str, times: float = 1.0) -> float:
        return statistics.median(a / (b * times) for a, b in zip(found[above], found[below], strict=True))

    median = {name: f"{statistics.median(values):,.0f}" for name, values in found.items()}
    return [
        Figure(
            "training on one core / its matrix products alone",
            ratio("loop", "limit"),
            "x",
            0.75,
            f"{median['loop']} of {median['limit']} samples/s",
            True,
        ),
        Figure("waiting for data, of the loop's time", statistics.median(waiting), "", 0.03, "one core"),
        Figure(
            "two ranks / keras.Model.fit on both cores",
            ratio("two", "fit"),
            "x",
            3.0,
            f"{median['two']} against {median['fit']} samples/s",
            True,
        ),
        Figure(
            "two ranks / twice one rank",
            ratio("two", "loop", 2),
            "x",
            0.9,
            f"{median['two']} against {median['loop']} samples/s",
            True,
        ),
        Figure(
            "two ranks / two trainings side by side",
            ratio("two", "apart"),
            "x",
            None,
            f"what the exchange costs; {median['apart']} samples/s",
        ),
    ]


def scoring(lake: str, source: str, many: int, rounds: int) -> list[Figure]:
    """The champion's exact top K on one core, beside other ways."""
    settings = load_settings(overrides=[f"lake.root={lake}"])
    with Store(open_session(settings, "bench"), settings, FILES, "bench") as store:
        version = registry.champion(registry.connect(settings), source)
        if version is None:
            raise SystemExit(f"{lake} has no champion of {source}: run `make demo-full` first, or name its lake by --lake")
        network = registry.load_network(version)
        at = {
            name: store.read(f"gold.{name}").where(col("source") == source)
            for name in ("moments", "user_features", "product_features")
        }
        past = {
            name: store.read(f"gold.{table}")
            for name, table in (("pairs", "pair_features"), ("types", "type_features"), ("affinities", "affinities"))
        }
        now = at["moments"].where("role = 'now'")
        offered = at["product_features"].where("role = 'now' AND is_offered")
        print("  reading users and products", flush=True)
        users = with_past(
            now, at["user_features"].where("role = 'now' AND baskets > 0").orderBy("user_id").limit(many), **past
        ).toArrow()
        products = offered.toArrow()
        print(f"  scoring {users.num_rows} users", flush=True)
        with threadpool_limits(1):
            found, figures = exact(network, products, users, rounds)
            figures.append(kept(network, products, users, found, figures[0].value * 1e6))
        seconds, lists = predicted(network, version, at["user_features"], offered, past, sorted(found)[:PREDICTED])
        pairs = PREDICTED * products.num_rows / seconds
        same = statistics.mean(len(np.intersect1d(found[user], lists[user])) / K for user in lists)
        # The Spark function runs on all cores, the scorer on one.
        speed = figures[0].value * 1e6 * len(os.sched_getaffinity(0)) / pairs
        figures += [
            Figure(
                "scoring / model.predict in a Spark function, same cores",
                speed,
                "x",
                10,
                f"{pairs:,.0f} pairs/s by predict, which loads the model first",
                True,
            ),
            Figure(
                "top 10 that is the same as by model.predict",
                same,
                "",
                None,
                f"{PREDICTED} users; pairs within 1e-5 of each other may change places",
            ),
            als(store, source),
        ]
    return figures


def exact(network: Network, products: pa.Table, users: pa.Table, rounds: int) -> tuple[dict[str, np.ndarray], list[Figure]]:
    """The exact top K of each user on one core, and how near it comes to the speed of a matrix product."""
    catalogue = Catalogue(network, products)
    scorer, found = Scorer(network, catalogue), {}
    hidden, second = network.weights["second/kernel"].shape
    square = np.random.default_rng(1).random((1024, 1024), np.float32)
    speeds, ratios = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(20):
            square @ square
        gemm = 20 * 2 * 1024**3 / (time.perf_counter() - start)
        start = time.perf_counter()
        for scored in scorer.score(users):
            found[users["user_id"][scored.row].as_py()] = top(scored.logits, K)
        pairs = users.num_rows * products.num_rows / (time.perf_counter() - start)
        speeds.append(pairs / 1e6)
        ratios.append(pairs * 2 * (hidden * second + second) / gemm)
    named = {user: np.array(catalogue.ids.take(pa.array(places)).to_pylist()) for user, places in found.items()}
    told = f"{users.num_rows} users x {products.num_rows:,} products, {USERS} users at a time"
    return named, [
        Figure("scoring on one core, exact", statistics.median(speeds), "M/s", None, f"pairs; {told}"),
        Figure(
            "its second layer's products / a plain matrix product",
            statistics.median(ratios),
            "x",
            0.6,
            f"all else that scoring does counted as lost; layers of {hidden} and {second}",
            True,
        ),
    ]


def kept(network: Network, products: pa.Table, users: pa.Table, found: dict[str, np.ndarray], speed: float) -> Figure:
    """The share of the exact top K that is among the candidates, and how much faster those are.

    Args:
        found: The exact top K of each user.
        speed: Pairs a second of the exact way.
    """
    catalogue = Catalogue(network, products)
    candidates, shares = history(catalogue), []
    start = time.perf_counter()
    for scored in Scorer(network, catalogue, candidates).score(users):
        listed = catalogue.ids.take(pa.array(top(scored.logits, K))).to_pylist()
        shares.append(len(np.intersect1d(found[users["user_id"][scored.row].as_py()], listed)) / K)
    faster = users.num_rows * products.num_rows / speed / (time.perf_counter() - start)
    how = f"{faster:.1f} times as fast"
    return Figure("exact top 10 kept by score.candidates=history", float(np.mean(shares)), "", 0.99, how, True)


def predicted(
    network: Network,
    version: ModelVersion,
    users: DataFrame,
    offered: DataFrame,
    past: dict[str, DataFrame],
    chosen: list[str],
) -> tuple[float, dict[str, list[str]]]:
    """How long model.predict takes in a Spark function over pairs with all their features, and its top K of each user."""
    folder = registry.mlflow.artifacts.download_artifacts(run_id=version.run_id, artifact_path=registry.FILES)
    spec, encoding = network.spec, network.encoding
    own = col("user_id").isin(chosen)
    people = features_of("user", users.where(own & (col("role") == "now")))
    goods = features_of("product", offered).withColumn("type", col("product_type"))
    pairs = people.join(goods, ["source", "moment"])
    for name, part in (("pairs", "pair"), ("types", "type"), ("affinities", "affinity")):
        pairs = pairs.join(features_of(part, past[name].where(own)), list(PARTS[part].TABLE.keys), "left")
    print(f"  model.predict for {PREDICTED} users", flush=True)
    # Joined before the clock starts: only the function is measured, at its best.
    ready = pairs.repartition(len(os.sched_getaffinity(0))).cache()
    ready.count()

    def predict(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import keras
        import wares.model.network  # noqa: F401, since it registers the layers

        model = keras.models.load_model(f"{folder}/model.keras", compile=False)
        for batch in batches:
            table = pa.Table.from_batches([batch])
            logits = model.predict(encode_parts(spec, encoding, table), batch_size=4096, verbose=0)[:, 0]
            yield pa.RecordBatch.from_arrays(
                [table["user_id"].combine_chunks(), table["product_id"].combine_chunks(), pa.array(logits)],
                ["user_id", "product_id", "logit"],
            )

    start = time.perf_counter()
    scored = ready.mapInArrow(predict, "user_id string, product_id string, logit float").toArrow()
    seconds = time.perf_counter() - start
    lists = {}
    for user in chosen:
        of = scored.filter(pa.compute.equal(scored["user_id"], user)).sort_by([("logit", "descending")])
        lists[user] = of["product_id"].slice(0, K).to_pylist()
    return seconds, lists


def als(store: Store, source: str) -> Figure:
    """Spark's ALS with implicit feedback, as the baseline has it: the time of recommendForAllUsers, for the same products."""
    print("  Spark's ALS", flush=True)
    model, _ = fit_als(pairs_before(store, pinned(store), source, "now"), store.settings.train.seed)
    start = time.perf_counter()
    model.recommendForAllUsers(K).write.format("noop").mode("overwrite").save()
    seconds = time.perf_counter() - start
    speed = model.userFactors.count() * model.itemFactors.count() / seconds / 1e6
    how = f"pairs, all cores; {seconds:.1f} s"
    return Figure(f"Spark's ALS.recommendForAllUsers, {model.rank} factors", speed, "M/s", None, how)


def rescoring(lake: str, source: str, copies: int, folder: Path) -> Figure:
    """Scoring again after a change, in a copy of the lake that has each user so many times."""
    print(f"  scoring again, with each user {copies} times", flush=True)
    shutil.copytree(lake, folder / "lake")
    # A list of another length than the lake's holds for all users.
    settings = load_settings(overrides=[f"lake.root={folder / 'lake'}", f"score.top_k={K - 1}"])
    spark = open_session(settings, "bench")

    def seconds() -> float:
        with Store(spark, settings, FILES, "bench") as store:
            start = time.perf_counter()
            score(store)
            return time.perf_counter() - start

    with Store(spark, settings, FILES, "bench") as store:
        users = f"delta.`{store.location('gold.user_features')}`"
        if copies > 1:
            _copy_users(store, source, copies)
    everyone, nothing = seconds(), seconds()
    chosen = "pmod(xxhash64(user_id), 100) = 0"
    spark.sql(f"UPDATE {users} SET recent = recent + 1 WHERE role = 'now' AND {chosen}")
    some = seconds()
    share, many = spark.sql(f"SELECT avg(int({chosen})), count(*) FROM {users} WHERE role = 'now'").first()
    how = f"{share:.2%} of {many:,} users changed; {some:.1f} and {everyone:.1f} s; nothing changed: {nothing:.1f} s"
    return Figure("scoring again after 1 % of the users changed / all users", some / everyone, "x", 0.05, how)


def _copy_users(store: Store, source: str, copies: int) -> None:
    """Add to each user of a source, and to its past, copies that are other users, until there are so many of each."""
    now = store.read("gold.moments").where("role = 'now'").where(col("source") == source).select("source", "moment")
    for name in ("gold.user_features", "gold.pair_features", "gold.type_features", "gold.affinities"):
        rows = store.read(name)
        more = rows.join(broadcast(now), ["source", "moment"], "left_semi").withColumn(
            "copy", explode(sequence(lit(2), lit(copies)))
        )
        more = more.withColumn("user_id", concat_ws("-", "user_id", "copy")).select(*rows.columns)
        more.write.format("delta").mode("append").save(store.location(name))


def main() -> None:
    """Run all of it and print each figure beside its goal."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--lake", default="lake-full", help="a lake with a champion (default: lake-full, of `make demo-full`)")
    options.add_argument("--source", default="completejourney")
    options.add_argument("--users", type=int, default=256, help="users that are scored (default: 256)")
    options.add_argument("--copies", type=int, default=10, help="of each user, for scoring again (default: 10)")
    options.add_argument("--rounds", type=int, default=3, help="rounds of each measurement (default: 3)")
    options.add_argument("--json", type=Path, default=Path("bench-model.json"), help="where the figures go")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="wares-bench-") as name:
        figures = training(Path(name), chosen.rounds)
        figures += scoring(chosen.lake, chosen.source, chosen.users, chosen.rounds)
        figures.append(rescoring(chosen.lake, chosen.source, chosen.copies, Path(name)))
    tell(figures, __doc__, chosen.json)


if __name__ == "__main__":
    main()
