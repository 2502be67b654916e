# Databricks notebook source
# MAGIC %md
# MAGIC # A look into the lake
# MAGIC What its columns are and who may see them, where they come from, which rows were kept and which rejected, and what
# MAGIC one user gets. The lake is named by the widget `lake` on Databricks, and by the variable `WARES_LAKE` elsewhere.

# COMMAND ----------

import os
import sys
from pathlib import Path

for folder in (Path.cwd(), *Path.cwd().parents):
    if (folder / "lib" / "wares").is_dir():
        sys.path.insert(0, str(folder / "lib"))
        break

# COMMAND ----------

from pyspark.sql.functions import col, desc, explode

from wares.lake.session import open_session
from wares.lake.store import Store
from wares.settings import PROJECT, Settings
from wares.tables import TABLES

if "dbutils" in globals():
    dbutils.widgets.text("lake", "/Volumes/main/wares/lake")  # noqa: F821
    lake = dbutils.widgets.get("lake")  # noqa: F821
else:
    lake = os.environ.get("WARES_LAKE", str(PROJECT / "lake"))

settings = Settings.model_validate({"lake": {"root": lake}})
spark = open_session(settings, "explore")
store = Store(spark, settings, TABLES, job="explore")

# COMMAND ----------

# MAGIC %md
# MAGIC ## Labels
# MAGIC Each column carries its label in the Delta schema, so whoever reads the table, with whatever tool, sees it.

# COMMAND ----------

fields = store.read("gold.user_profiles").schema
labels = [(field.name, field.dataType.simpleString(), field.metadata["label"], field.metadata["comment"]) for field in fields]
spark.createDataFrame(labels, "column string, type string, label string, meaning string").show(50, truncate=False)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Lineage
# MAGIC Which columns flow into the columns of a table, read from Spark's plan at each write.

# COMMAND ----------

lineage = store.read("meta.lineage").where("table = 'gold.user_profiles' AND direct")
lineage.where(col("version") == store.version("gold.user_profiles")).select("column", "source_table", "source_column", "steps").orderBy(
    "column", "source_table", "source_column"
).show(50, truncate=False)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Kept, rejected, merged
# MAGIC Every raw row is in one of the three, and each of the three can be listed.

# COMMAND ----------

store.read("meta.quality").select("table", "version", "rows_in", "kept", "rejected", "merged").orderBy("table", desc("version")).show(50, truncate=False)

# COMMAND ----------

reasons = store.rejected("silver.orders").select(explode("_violations").alias("violation"))
reasons.groupBy("violation.rule", "violation.severity").count().orderBy(desc("count")).show(truncate=False)

# COMMAND ----------

# MAGIC %md
# MAGIC ## One user's list

# COMMAND ----------

user = store.read("gold.user_profiles").where("orders > 0").orderBy("source", "user_id").select("source", "user_id").limit(1)
names = store.read("gold.product_profiles").select("source", "product_id", "name")
recommended = store.read("gold.recommendations").join(user, ["source", "user_id"]).join(names, ["source", "product_id"], "left")
recommended.select("source", "user_id", "rank", "score", "name", "model_version").orderBy("rank").show(truncate=False)
