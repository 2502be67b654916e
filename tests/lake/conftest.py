"""One lake for all tests that only ask it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from report_lake import make_lake, store_of
from wares.lake.store import Store


@pytest.fixture(scope="session")
def root(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a lake with gold.report, which no test changes."""
    root = tmp_path_factory.mktemp("report")
    make_lake(spark, root)
    return root


@pytest.fixture(scope="session")
def store(spark: SparkSession, root: Path) -> Iterator[Store]:
    """A store on that lake, which no test writes through."""
    with store_of(spark, root) as store:
        yield store
