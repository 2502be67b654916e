"""A small made-up shop, with everything that the model's rooms need and no Spark."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from wares.model.encoding import Chunk, Encoding, learn
from wares.model.plan import Plan
from wares.model.reader import EXAMPLES, TABLES, Known
from wares.model.spec import Part, Spec
from wares.settings import Train

USERS, PRODUCTS, TYPES = 12, 300, 9
KEYS = ("user_id", "product_id")
MOMENT = datetime(2024, 3, 1, tzinfo=UTC)


@pytest.fixture(scope="session")
def spec() -> Spec:
    """One feature of each kind, in each part."""
    return Spec.model_validate(
        {
            "network": {"hidden": [16, 8], "match": 4},
            "features": [
                {
                    "name": "product",
                    "from": "product.product_id",
                    "kind": "categorical",
                    "side": "both",
                    "vocabulary": 200,
                    "embedding": 6,
                },
                {"name": "type", "from": "product.type", "kind": "categorical", "side": "both", "vocabulary": 50, "embedding": 4},
                {"name": "baskets", "from": "product.baskets", "kind": "numeric", "side": "both", "scale": "log"},
                {"name": "weeks", "from": "product.weeks", "kind": "vector", "side": "deep", "scale": "log", "length": 3},
                {"name": "age", "from": "user.age_band", "kind": "categorical", "side": "deep", "vocabulary": 9, "embedding": 2},
                {"name": "user_baskets", "from": "user.baskets", "kind": "numeric", "side": "both", "scale": "log"},
                {
                    "name": "history",
                    "from": "user.recent_products",
                    "kind": "sequence",
                    "side": "deep",
                    "like": "product",
                    "length": 5,
                },
                {"name": "pair_baskets", "from": "pair.baskets", "kind": "numeric", "side": "both", "scale": "log"},
                {"name": "pair_gap", "from": "pair.gap", "kind": "numeric", "side": "deep"},
                {"name": "type_lines", "from": "type.lines", "kind": "numeric", "side": "both", "scale": "log"},
                {"name": "affinity_ease", "from": "affinity.ease", "kind": "numeric", "side": "both"},
                {"name": "history_x_product", "kind": "cross", "side": "wide", "of": ["history", "product"], "buckets": 512},
                {"name": "age_x_type", "kind": "cross", "side": "wide", "of": ["age", "type"], "buckets": 64},
            ],
        }
    )


@pytest.fixture(scope="session")
def products() -> pa.Table:
    """The catalogue, shaped like gold.product_features; some products have no type."""
    random = np.random.default_rng(1)
    return pa.table(
        {
            "product_id": [f"p{n}" for n in range(PRODUCTS)],
            "type": [None if n % 50 == 0 else f"t{n % TYPES}" for n in range(PRODUCTS)],
            "baskets": pa.array(random.integers(1, 200, PRODUCTS), pa.int32()),
            "weeks": pa.array(list(random.random((PRODUCTS, 3), np.float32)), pa.list_(pa.float32())),
        }
    )


@pytest.fixture(scope="session")
def users() -> pa.Table:
    """Users with their past, shaped like `with_past`; the last one never bought anything."""
    random = np.random.default_rng(2)
    pairs, types, affinities, recent = [], [], [], []
    for _ in range(USERS - 1):
        bought = random.choice(PRODUCTS + 5, 20, replace=False)  # some are no longer in the catalogue
        pairs.append(
            [
                {
                    "product_id": f"p{n}",
                    "baskets": int(random.integers(1, 9)),
                    "gap": None if n % 3 == 0 else float(n),
                    "steady": float(n % 7),
                }
                for n in bought
            ]
        )
        types.append(
            [{"type": f"t{n}", "lines": int(random.integers(1, 30))} for n in random.choice(TYPES + 2, 4, replace=False)]
        )
        # Some of what was bought, and some of what was not.
        near = [*bought[:8], *random.choice(np.setdiff1d(np.arange(PRODUCTS + 5), bought), 12, replace=False)]
        affinities.append(
            [
                {"product_id": f"p{n}", "ease": float(random.normal()), "is_new": n not in bought, "goes_with": f"p{bought[0]}"}
                for n in near
            ]
        )
        recent.append([f"p{n}" for n in bought[: random.integers(1, 8)]])
    return pa.table(
        {
            "user_id": [f"u{n}" for n in range(USERS)],
            "age_band": [None if n % 4 == 0 else f"a{n % 3}" for n in range(USERS)],
            "baskets": pa.array(range(USERS), pa.int32()),
            "recent_products": [*recent, None],
            "pairs": pa.array(
                [*pairs, None],
                pa.list_(
                    pa.struct({"product_id": pa.string(), "baskets": pa.int32(), "gap": pa.float32(), "steady": pa.float32()})
                ),
            ),
            "types": pa.array([*types, None], pa.list_(pa.struct({"type": pa.string(), "lines": pa.int32()}))),
            "affinities": pa.array(
                [*affinities, None],
                pa.list_(
                    pa.struct({"product_id": pa.string(), "ease": pa.float32(), "is_new": pa.bool_(), "goes_with": pa.string()})
                ),
            ),
        }
    )


@pytest.fixture(scope="session")
def examples(users: pa.Table, products: pa.Table) -> pa.Table:
    """Every user with every product, all features side by side: what batch scoring must agree with, pair by pair."""
    rows = []
    for user in users.to_pylist():
        pairs = {pair["product_id"]: pair for pair in user["pairs"] or []}
        types = {past["type"]: past for past in user["types"] or []}
        near = {row["product_id"]: row["ease"] for row in user["affinities"] or []}
        for product in products.to_pylist():
            pair, past = pairs.get(product["product_id"], {}), types.get(product["type"], {})
            rows.append(
                {
                    "source": "shop",
                    "moment": MOMENT,
                    "split": "validation" if len(rows) % 5 == 0 else "train",
                    "label": float(bool(pair) and len(rows) % 2 == 0),
                    "weight": 1.0 if pair else 3.0,
                    "user_id": user["user_id"],
                    "product_id": product["product_id"],
                    **{f"user_{name}": user[name] for name in ("age_band", "baskets", "recent_products")},
                    **{f"product_{name}": product[name] for name in ("type", "baskets", "weeks")},
                    **{f"pair_{name}": pair.get(name) for name in ("baskets", "gap")},
                    "type_lines": past.get("lines"),
                    "affinity_ease": near.get(product["product_id"]),
                }
            )
    return pa.Table.from_pylist(rows)


@pytest.fixture(scope="session")
def known(users: pa.Table, products: pa.Table) -> dict[Part, Known]:
    """The users and the products at the one moment, shaped like their feature tables."""
    return {part: Known(part, at_moment(rows)) for part, rows in (("user", users), ("product", products))}


def at_moment(rows: pa.Table) -> pa.Table:
    """The rows with the columns that all feature tables have."""
    one = {"source": "shop", "role": "train", "moment": MOMENT}
    for name, value in one.items():
        rows = rows.append_column(name, pa.array([value] * rows.num_rows))
    return rows


@pytest.fixture(scope="session")
def chunk(examples: pa.Table, known: dict[Part, Known]) -> Chunk:
    """All examples as they are read."""
    return Chunk(examples, {part: each.find(examples) for part, each in known.items()})


@pytest.fixture(scope="session")
def encoding(spec: Spec, known: dict[Part, Known], chunk: Chunk) -> Encoding:
    return learn(spec, {part: each.rows for part, each in known.items()}, [chunk])


@pytest.fixture(scope="session")
def plan_in(spec: Spec, encoding: Encoding, examples: pa.Table, known: dict[Part, Known]) -> Callable[[Path], Plan]:
    """Makes a training plan in a folder, with two files of examples of unlike size."""

    def write(folder: Path) -> Plan:
        files = {EXAMPLES: [str(folder / name) for name in ("a.parquet", "b.parquet")]}
        own = examples.select(
            [name for name in examples.column_names if not name.startswith(("user_", "product_")) or name in KEYS]
        )
        pq.write_table(own.slice(0, 1000), files[EXAMPLES][0], row_group_size=300)
        pq.write_table(own.slice(1000), files[EXAMPLES][1])
        for part, each in known.items():
            files[TABLES[part]] = [str(folder / f"{part}.parquet")]
            pq.write_table(each.rows, files[TABLES[part]][0])
        encoding.save(folder / "encoding.json")
        return Plan(files, "shop", spec, Train(launcher="local", epochs=1, min_steps=1, batch_size=256), folder)

    return write


@pytest.fixture
def plan(tmp_path: Path, plan_in: Callable[[Path], Plan]) -> Plan:
    return plan_in(tmp_path)
