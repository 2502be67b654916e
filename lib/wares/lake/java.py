"""Java's classes by their full names: written with dots, py4j asks for each part, and the JVM looks for it in all its jars."""

from __future__ import annotations

from py4j.java_gateway import JavaClass
from pyspark.sql import SparkSession

SHORT = {
    "functions": "org.apache.spark.sql.functions",
    "PythonUtils": "org.apache.spark.api.python.PythonUtils",
    "PythonSQLUtils": "org.apache.spark.sql.api.python.PythonSQLUtils",
}
"""Classes that PySpark itself asks for by a short name, for each Column and each list of columns."""


def java_class(spark: SparkSession, name: str) -> JavaClass:
    """A class of the JVM, such as `scala.Option`, without asking the JVM for it."""
    return JavaClass(name, spark.sparkContext._gateway._gateway_client)


def know_short_names(spark: SparkSession) -> None:
    """Let PySpark have the classes that it asks for most, for as long as its JVM lives."""
    for short, name in SHORT.items():
        setattr(spark._jvm, short, java_class(spark, name))
