"""Keeps Spark jobs out of `build`: a value that a build looked at comes back as a literal, whose origin no plan tells."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from pyspark.sql import SparkSession

from wares.errors import LineageError

GROUP = "wares-build"
"""The job group of builds, whose jobs are cancelled before they start."""

_JOB_GROUP = "spark.jobGroup.id"


@contextmanager
def no_jobs(spark: SparkSession, name: str) -> Iterator[None]:
    """Let no Spark job of this thread start, whatever asks for it: an action, a pivot without values, a SQL command.

    Args:
        spark: The session.
        name: The table that is built.

    Raises:
        LineageError: A job was asked for.
    """
    context = spark.sparkContext
    before = context.getLocalProperty(_JOB_GROUP)
    context._jsc.sc().cancelJobGroupAndFutureJobs(GROUP)
    context.setLocalProperty(_JOB_GROUP, GROUP)
    try:
        yield
    except Exception as error:
        if GROUP not in str(error):
            raise
        raise LineageError(
            f"The build of {name} runs a Spark job.",
            found=_called(error),
            do="only describe the rows: no collect, count, first, show, write, pivot without values, or SQL command",
        ) from None
    finally:
        context.setLocalProperty(_JOB_GROUP, before)


def _called(error: Exception) -> str:
    """What the build called, as py4j tells."""
    called = re.search(r"while calling (?:\S+\.)?(\w+)\.", str(error))
    return called[1] if called else "a Spark job"
