"""One Spark session for the whole test run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from pyspark.sql import SparkSession
from wares.lake.session import open_session
from wares.settings import Settings

JVM = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=512m -XX:+UseSerialGC"
"""The tests plan much and compute little: in a run of the whole suite C2 took 91 of 326 CPU seconds, for code that hardly runs.
With C1 alone the JVM would keep only 48 MB of compiled code; that fills up, and from then on Spark is interpreted."""


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """The one session, small: most tests have a handful of rows."""
    os.environ["WARES_TEST_KEY"] = "the key of the tests"  # here, since workers have the environment that the session started in
    conf = {"spark.driver.defaultJavaOptions": JVM}
    small = {"master": "local[2]", "driver_memory": "3g", "shuffle_partitions": 2, "conf": conf}
    settings = Settings.model_validate({"spark": small})
    session = open_session(settings, "tests")
    yield session
    session.stop()
