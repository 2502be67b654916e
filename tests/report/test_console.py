"""What a person sees of a job while it is silent."""

from __future__ import annotations

import re
import time

import pytest
from pyspark.sql import SparkSession
from wares.report import Report, console


def test_a_sign_of_life_names_the_table(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "SILENCE", 1.0)
    with Report(spark).job("silver"):
        spark.sparkContext.setLocalProperty("spark.scheduler.pool", "silver.orders")  # as the store does
        try:
            spark.sparkContext.parallelize([4.0, 0.0], 2).foreach(time.sleep)
        finally:
            spark.sparkContext.setLocalProperty("spark.scheduler.pool", None)
    first, *signs = capsys.readouterr().out.splitlines()
    assert first == "silver"
    assert any(re.fullmatch(r" +\.\.\. at work for \d+ s, on silver\.orders: \d of 2 tasks done", sign) for sign in signs), signs
