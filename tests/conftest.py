"""One Spark session for the whole test run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from pyspark.sql import SparkSession
from wares.lake.session import open_session
from wares.settings import Settings


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """The one session, small: most tests have a handful of rows."""
    os.environ["WARES_TEST_KEY"] = "the key of the tests"  # here, since workers have the environment that the session started in
    settings = Settings.model_validate({"spark": {"master": "local[2]", "driver_memory": "3g", "shuffle_partitions": 2}})
    session = open_session(settings, "tests")
    yield session
    session.stop()
