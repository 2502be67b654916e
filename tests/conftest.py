"""One Spark session for each process of a test run, and which tests may run beside each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import NO_JAVA
from pyspark.sql import SparkSession
from wares.lake.session import open_session
from wares.settings import Settings

TESTS = Path(__file__).resolve().parent
FIRST = ("jobs", "model")
"""The folders whose tests take longest: they begin, so that no process waits for another at the end."""

JVM = " ".join(
    (
        # The tests make garbage and wait for nothing: the collector with the most throughput takes a tenth off their time.
        "-XX:+UseParallelGC",
        # Most plans are made once: compiling the planner's code well takes longer than it saves. The first of Java's two
        # compilers, alone, has by default a fifth of the room for code, which is too little: it would throw some away again.
        "-XX:TieredStopAtLevel=1",
        "-XX:ReservedCodeCacheSize=256m",
        # The classes of Spark and Delta are those of every run; tests need not verify their code.
        "-XX:+UnlockDiagnosticVMOptions",
        "-XX:-BytecodeVerificationRemote",
    )
)

FEW_ROWS = {
    # Where Spark compiles no whole stage, it would make code for each task of a few rows. Stages are compiled as ever.
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    # The text of each plan is for Spark's web pages, which are off.
    "spark.sql.ui.explainMode": "simple",
}
"""What else costs more than it gives where there are few rows."""


def pytest_configure(config: pytest.Config) -> None:
    """Where the tests without Spark are asked for, let no test start a JVM, in whatever process."""
    if "not spark" in config.option.markexpr:
        os.environ["JAVA_HOME"] = NO_JAVA


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs Spark, and what has to run in one process: the tests of a file, which share lakes and what was trained.

    All of jobs/ share one run of the suite. A test that is marked `alone` shares nothing.
    """
    for item in items:
        if "spark" in getattr(item, "fixturenames", ()):
            item.add_marker("spark")
        if not any(item.iter_markers("alone")) and not any(item.iter_markers("xdist_group")):
            file = item.path.relative_to(TESTS)
            item.add_marker(pytest.mark.xdist_group("jobs" if file.parts[0] == "jobs" else str(file)))
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    folder = item.path.relative_to(TESTS).parts[0]
    return FIRST.index(folder) if folder in FIRST else len(FIRST)


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """The process's one session, small: most tests have a handful of rows."""
    os.environ["WARES_TEST_KEY"] = "the key of the tests"  # here, since workers have the environment that the session started in
    warehouse = {"spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("warehouse"))}
    conf = {"spark.driver.defaultJavaOptions": JVM, **FEW_ROWS, **warehouse}
    small = {"master": "local[2]", "driver_memory": "3g", "shuffle_partitions": 2, "conf": conf}
    settings = Settings.model_validate({"spark": small})
    session = open_session(settings, "tests")
    yield session
    session.stop()
