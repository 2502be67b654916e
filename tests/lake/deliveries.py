"""A shop whose files keep coming: late rows, corrections, repeats, bad rows, other categories, promotions after the fact."""

from __future__ import annotations

import csv
import random
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from helpers import write_source
from pyspark.sql import DataFrame
from wares.lake.store import Outcome, Store
from wares.tables import TABLES

SILVER = [name for name in TABLES if name.startswith("silver.")]
FOLLOWING = ["gold.histories", "gold.interactions", "gold.user_profiles", "gold.product_profiles", "gold.sales_daily"]
"""The gold tables that are made of silver ones by change."""
HEADERS = {
    "lines": ("number", "line", "customer", "item", "store", "at", "quantity", "price", "kind"),
    "items": ("item", "name", "category", "told"),
    "offers": ("item", "store", "starts", "ends", "display"),
    "people": ("customer", "age", "told"),
}
MAPPED = {
    "lines": (
        "orders",
        {
            "order_id": "number",
            "line": "line",
            "user_id": "nullif(customer, '')",
            "product_id": "item",
            "store_id": "store",
            "ordered_at": "at",
            "quantity": "quantity",
            "unit_price": "price",
            "kind": "kind",
            "currency": "'EUR'",
        },
    ),
    "items": ("products", {"product_id": "item", "name": "name", "category": "nullif(category, '')", "updated_at": "told"}),
    "offers": (
        "promotions",
        {
            "product_id": "item",
            "store_id": "store",
            "starts_on": "starts",
            "ends_on": "ends",
            "display": "display",
            "mailer": "'none'",
        },
    ),
    "people": ("users", {"user_id": "customer", "age_band": "age", "updated_at": "told"}),
}
LENIENT = {name: replace(file, table=replace(file.table, max_rejected=1.0)) for name, file in TABLES.items()}
"""The tables, where any share of a small delivery may be rejected."""
BUYERS = ["ann", "bob", "cid", "dee", "eve", "fay", "gus", "hal"]
START = datetime(2024, 1, 1, 9)


def declare(folder: Path) -> str:
    """Write the shop's YAML; returns its path."""
    personal = "CONFIDENTIAL + BEHAVIOUR + IDENTIFIER + FINANCIAL + DEMOGRAPHIC"
    labels = {"lines": personal, "people": personal, "items": "PUBLIC", "offers": "INTERNAL"}
    exact = {"number": "INTERNAL", "customer": "CONFIDENTIAL + IDENTIFIER", "age": "CONFIDENTIAL + DEMOGRAPHIC"}
    behaviour = ("item", "store", "at", "quantity", "kind", "told")

    def label(entity: str, column: str) -> str:
        if entity in ("items", "offers"):
            return labels[entity]
        if column in exact:
            return exact[column]
        return "CONFIDENTIAL + BEHAVIOUR" if column in behaviour else "CONFIDENTIAL + BEHAVIOUR + FINANCIAL"

    entities = {
        entity: {
            "path": f"{folder}/{entity}/*.csv",
            "format": "csv",
            "columns": {column: {"label": label(entity, column)} for column in columns},
        }
        for entity, columns in HEADERS.items()
    }
    tables = {table: [{"from": entity, "columns": columns}] for entity, (table, columns) in MAPPED.items()}
    return write_source(folder, {"name": "stall", "entities": entities, "tables": tables})


def deliver(folder: Path, number: int, chance: random.Random) -> None:
    """Write the files of one delivery. Keys repeat from delivery to delivery, and rows come late."""
    most = {"lines": 40}
    rows = {entity: [_row(entity, number, chance) for _ in range(chance.randint(1, most.get(entity, 12)))] for entity in HEADERS}
    if number == 0:  # the first sale of all, from which days are counted
        rows["lines"].append([0, "1", "ann", "a", "1", START - timedelta(days=1), 1, "1.50", "sale"])
    elif chance.random() < 0.5:
        rows["lines"].append(rows["lines"][0])  # the same row again
    for entity, made in rows.items():
        if number and entity != "lines" and chance.random() < 0.4:
            continue  # nothing of this kind today
        (folder / entity).mkdir(parents=True, exist_ok=True)
        with (folder / entity / f"{number:04}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([HEADERS[entity], *made])


def _row(entity: str, number: int, chance: random.Random) -> list[Any]:
    item, store = chance.choice("abcdef"), chance.choice(["1", "2"])
    told = START + timedelta(days=number, hours=chance.randint(-48, 24))
    if entity == "items":
        return [item, chance.choice(["", "Apple", "Bread"]), chance.choice(["", "FRUIT", "BAKERY"]), told]
    if entity == "people":
        return [chance.choice(BUYERS), chance.choice(["", "25-34", "45-54"]), told]
    if entity == "offers":
        first = START.date() + timedelta(days=chance.randint(-2, 4 + number))
        return [item, store, first, first + timedelta(days=chance.randint(-1, 6)), chance.choice(["none", "5"])]
    kind = chance.choice(["sale", "sale", "sale", "return", "fee", "gift"])
    quantity = chance.choice([-1, -2]) if kind == "return" else chance.choice([1, 2, 3, "x"])
    at = START + timedelta(days=chance.randint(0, 1 + number), minutes=chance.randint(0, 600))
    customer = chance.choice([*BUYERS, ""])
    return [chance.randint(1, 30), chance.choice("12"), customer, item, store, at, quantity, "1.50", kind]


def take_in(store: Store, source: str) -> dict[str, Outcome]:
    """Bring what was delivered into all tables."""
    outcomes: list[Outcome] = []
    store.ingest_all(outcomes.append)
    store.refresh_all([*SILVER, *FOLLOWING], outcomes.append)
    return {outcome.table: outcome for outcome in outcomes}


def contents(store: Store) -> dict[str, list[str]]:
    """The rows of all tables, and those that they left out, as sorted text."""
    frames: dict[str, DataFrame] = {name: store.read(name) for name in [*SILVER, *FOLLOWING]}
    frames |= {f"{name} rejected": store.rejected(name).drop("_run") for name in SILVER}
    return {name: sorted(str(row) for row in frame.collect()) for name, frame in frames.items()}
