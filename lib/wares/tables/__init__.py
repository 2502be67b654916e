"""What the data is: one file for each table. `TABLES` finds them all; nothing else lists them."""

from __future__ import annotations

from wares.lake.registry import discover

TABLES = discover(__name__)
"""Every table by name, such as `silver.orders`, each after the tables that it reads."""
