"""One Spark session for the whole test run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from wares.lake.session import open_session
from wares.settings import Settings

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Data that stands beside the checkout on some machines; tests that need it are skipped where it is absent."""


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """The one session, small: most tests have a handful of rows."""
    settings = Settings.model_validate({"spark": {"master": "local[2]", "driver_memory": "3g", "shuffle_partitions": 2}})
    os.environ.setdefault("PYSPARK_PYTHON", os.sys.executable)
    session = open_session(settings, "tests")
    yield session
    session.stop()
