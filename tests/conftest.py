"""One Spark session for the whole test run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from pyspark.sql import SparkSession
from wares.lake.session import open_session
from wares.settings import Settings

JVM = "-XX:+UseParallelGC"
"""The tests make garbage and wait for nothing: the collector with the most throughput takes a tenth off their time."""

FEW_ROWS = {
    # Where Spark compiles no whole stage, it would make code for each task of a few rows. Stages are compiled as ever.
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    # The text of each plan is for Spark's web pages, which are off.
    "spark.sql.ui.explainMode": "simple",
}
"""What else costs more than it gives where there are few rows."""


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """The one session, small: most tests have a handful of rows."""
    os.environ["WARES_TEST_KEY"] = "the key of the tests"  # here, since workers have the environment that the session started in
    warehouse = {"spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("warehouse"))}
    conf = {"spark.driver.defaultJavaOptions": JVM, **FEW_ROWS, **warehouse}
    small = {"master": "local[2]", "driver_memory": "3g", "shuffle_partitions": 2, "conf": conf}
    settings = Settings.model_validate({"spark": small})
    session = open_session(settings, "tests")
    yield session
    session.stop()
