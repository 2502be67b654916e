"""The tests that need no Spark are those that start no JVM."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from helpers import NO_JAVA

START = "from pyspark.sql import SparkSession; SparkSession.builder.getOrCreate()"


def test_where_no_jvm_may_start_spark_says_which_mark_is_missing(request: pytest.FixtureRequest) -> None:
    if "not spark" in request.config.option.markexpr:
        assert os.environ["JAVA_HOME"] == NO_JAVA
    ended = subprocess.run([sys.executable, "-c", START], env=os.environ | {"JAVA_HOME": NO_JAVA}, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "mark it with pytest.mark.spark" in ended.stderr
