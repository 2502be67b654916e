"""The one place that builds a Spark session."""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pyspark
from pyspark.logger import PySparkLogger
from pyspark.sql import SparkSession

from wares.errors import SettingsError
from wares.lake.java import know_short_names
from wares.settings import PROJECT, Settings

IVY = PROJECT / ".tools" / "ivy"
"""Where the jars are kept after the first download, so that later starts need no network."""

BY_SCRIPT = "WARES_SUBMITTED"
"""The environment variable by which `spark-submit.sh` says that the session's Spark settings are complete."""

# What every session must have, wherever it was started: rows and times mean the same everywhere.
MEANING = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.ansi.enabled": "true",
    "spark.sql.sources.partitionOverwriteMode": "static",
    # A file without rows makes a commit too: that commit is what says that the file was taken in.
    "spark.databricks.delta.skipRecordingEmptyCommits": "false",
}

TELLING = ("SQLQueryContextLogger", "DataFrameQueryContextLogger")
"""Loggers that print an expression that throws with the value for which it does, whoever may see that."""

# What suits a small machine; `spark.conf` in the settings overrides each.
LOCAL = {
    "spark.ui.enabled": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "20000",
    # Where a Column was written is told by the error's own stack; noting it for each Column takes three calls instead of one.
    "spark.python.sql.dataFrameDebugging.enabled": "false",
    # Many small jobs at once: a table whose input is one file leaves the other core to its neighbours.
    "spark.scheduler.mode": "FAIR",
    # Delta's own default of 50 costs seconds on each small commit; each part of a small log costs more than what it does.
    "spark.databricks.delta.snapshotPartitions": "1",
    # A list of all files beside each commit, by which Delta checks itself. Making it takes a Spark job for each commit.
    "spark.databricks.delta.allFilesInCrc.enabled": "false",
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "4",
}


def delta_package() -> str:
    """The Maven coordinates of the Delta jars that fit the installed pyspark and delta-spark."""
    spark_line = ".".join(version("pyspark").split(".")[:2])
    return f"io.delta:delta-spark_{spark_line}_2.13:{version('delta-spark')}"


def _jars() -> dict[str, str]:
    """The Delta jars: as files once `make setup` has fetched them, else fetched at start."""
    group, artifact, release = delta_package().split(":")
    if (IVY / "jars" / f"{group}_{artifact}-{release}.jar").exists():
        brought = {_artifact(jar.stem) for jar in (Path(pyspark.__file__).parent / "jars").glob("*.jar")}
        jars = [jar for jar in sorted((IVY / "jars").glob("*.jar")) if _artifact(jar.stem.partition("_")[2]) not in brought]
        return {"spark.jars": ",".join(map(str, jars))}
    return {"spark.jars.packages": delta_package(), "spark.jars.ivy": str(IVY)}


def _artifact(stem: str) -> str:
    """`jackson-core` of `jackson-core-2.13.5`."""
    return re.sub(r"-\d.*$", "", stem)


def spark_conf(settings: Settings) -> dict[str, str]:
    """All the Spark settings of a session that Wares starts; `spark-submit.sh` passes on the same."""
    return {
        **LOCAL,
        "spark.ui.showConsoleProgress": str(sys.stderr.isatty()).lower(),
        "spark.master": settings.spark.master,
        "spark.driver.memory": settings.spark.driver_memory,
        "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={(PROJECT / 'conf' / 'log4j2.properties').as_uri()}",
        "spark.sql.shuffle.partitions": str(settings.spark.shuffle_partitions),
        **_jars(),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        **settings.spark.conf,
        **MEANING,
    }


def open_session(settings: Settings, app: str) -> SparkSession:
    """The running session, or a new one as the settings say.

    Raises:
        SettingsError: The session is a Spark Connect one, which shows no analysed plan.
    """
    running = SparkSession.getActiveSession()
    if running is None and "DATABRICKS_RUNTIME_VERSION" not in os.environ:
        builder = SparkSession.builder.appName(f"wares {app}")
        if not came_by_script():
            # Python workers on this machine find the library where this process found it.
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT / "lib"), os.environ.get("PYTHONPATH")]))
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
            builder = builder.config(map=spark_conf(settings))
        running = builder.getOrCreate()
    running = running or SparkSession.builder.getOrCreate()
    if not hasattr(running, "_jsparkSession"):
        raise SettingsError(
            "This Spark session is a Spark Connect one.",
            found=type(running).__module__,
            do="use classic compute: column lineage is read from the analysed plan, which Connect does not show",
        )
    for key, value in MEANING.items():
        running.conf.set(key, value)
    know_short_names(running)
    for name in TELLING:
        PySparkLogger.getLogger(name).disabled = True
    return running


def came_by_script() -> bool:
    """Whether `spark-submit.sh` started this process: then the settings are in, and what its user passed stands above them.

    Told by the environment, since a `SparkConf` knows nothing before there is a session.
    """
    return "PYSPARK_GATEWAY_PORT" in os.environ and BY_SCRIPT in os.environ


if __name__ == "__main__":  # `make setup` fetches the jars with this, once
    open_session(Settings(), "setup").stop()
