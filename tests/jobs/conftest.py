"""A small shop, and a lake that the whole suite has made of it."""

from __future__ import annotations

import pytest
from corner_shop import Shop, SuiteRun, cut_shop, run_suite
from pyspark.sql import SparkSession


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return cut_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="session")
def first_run(spark: SparkSession, shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> SuiteRun:
    """The suite's first run over the shop, into an empty lake."""
    return run_suite(shop, tmp_path_factory.mktemp("suite") / "lake", "--show-users")
