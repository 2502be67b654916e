"""How good the model is: `make quality`, the reference test of full ranking, over several seeds.

The features of the lake that `make demo-full` leaves are taken as they are. For each seed a network is trained as `jobs/train.py`
trains it, once with and once without the features of coming promotions, and ranks all products for every test user. Nothing is
chosen by what it says: settings are tuned on the 28 days before, by `--role validation`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from pathlib import Path

from wares.lake.session import open_session
from wares.lake.store import Store
from wares.model import registry
from wares.model.baselines import BASELINES, factors
from wares.model.evaluation import Report
from wares.model.plan import Plan
from wares.model.spec import Spec, load_spec
from wares.model.training import files, fit, measure, pairs_before, pinned
from wares.settings import load_settings
from wares.tables import TABLES

COMING = "product.coming_"
GOALS = {"wide & deep": (0.435, 0.055), "without coming promotions": (0.430, None)}
"""ndcg@10 on all purchases and on first-time ones."""


def without_coming(spec: Spec) -> Spec:
    """The spec without the features of promotions that are still to come."""
    kept = [feature for feature in spec.stored if not feature.origin.startswith(COMING)]
    return Spec(network=spec.network, features=(*kept, *spec.crosses))


def ndcg(report: Report, ranker: str = "wide_deep") -> tuple[float, float]:
    """On all purchases, and on first-time ones."""
    return tuple(report[purchases][ranker]["ndcg@10"]["mean"] for purchases in ("all", "first_time"))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--lake", default="lake-full", help="the lake whose features are used (default: lake-full)")
    options.add_argument("--source", default="completejourney")
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--role", choices=["test", "validation"], default="test")
    options.add_argument("--out", default="quality.json", help="where the figures are written as JSON")
    chosen = options.parse_args()
    settings = load_settings(overrides=[f"lake.root={chosen.lake}"])
    whole, found, baselines = load_spec(settings.features), {}, {}
    with Store(open_session(settings, "quality"), settings, TABLES, "quality") as store:
        versions = pinned(store)
        als = factors(pairs_before(store, versions, chosen.source, chosen.role), settings.train.seed)
        for name, spec in (("wide & deep", whole), ("without coming promotions", without_coming(whole))):
            found[name] = []
            for seed in range(1, chosen.seeds + 1):
                with tempfile.TemporaryDirectory(prefix="wares-quality-") as folder:
                    seeded = settings.train.model_copy(update={"seed": seed})
                    plan = Plan(
                        files(store, versions),
                        chosen.source,
                        spec,
                        seeded,
                        Path(folder),
                        only_measured=chosen.role == "validation",
                    )
                    fit(plan, store.spark)
                    network = registry.read_network(plan.folder)
                    report = measure(store, versions, network, chosen.source, chosen.role, als=als)
                found[name].append(ndcg(report))
                baselines = {title: ndcg(report, ranker) for ranker, title in BASELINES.items()}
                print(f"{name}, seed {seed}: {found[name][-1][0]:.4f} {found[name][-1][1]:.4f}", flush=True)
    print(f"\nnDCG@10 on the {chosen.role} days, {chosen.seeds} seeds    all purchases             first-time purchases")
    for title, (every, first) in baselines.items():
        print(f"  {title:<34} {every:.4f}                    {first:.4f}")
    for name, seeds in found.items():
        shown = []
        for place, goal in enumerate(GOALS[name]):
            values = [seed[place] for seed in seeds]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            shown.append(f"{statistics.mean(values):.4f} +- {spread:.4f}" + (f" (goal {goal:.3f})" if goal else ""))
        print(f"  {name:<34} {shown[0]:<25} {shown[1]}")
    machine = {"cores": os.cpu_count(), "machine": platform.machine()}
    told = {"role": chosen.role, "seeds": found, "baselines": baselines, "settings": settings.train.model_dump(), **machine}
    Path(chosen.out).write_text(json.dumps(told, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
