"""The run that is disturbed: takes in what a shop has delivered, each time that it is told to. `victim.py LAKE SOURCE`.

Spark's work is done in a process of its own, as on a cluster, so that it can be killed apart from the driver.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from deliveries import LENIENT, contents, take_in
from helpers import open_store
from wares.cli import explain
from wares.lake.session import open_session
from wares.settings import Settings

MASTER = "local-cluster[1,2,1024]"
CONF = {
    "spark.executor.memory": "1g",
    "spark.deploy.maxExecutorRetries": "-1",
    # Few rows need no other plan on the way and no code of their own; without these more runs fit into the time.
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
}


def main(root: Path, source: str) -> None:
    """Read a word a line: `run`, `maintain`, or `show FILE`; answer `done` or `failed: why`."""
    settings = Settings.model_validate(
        {"spark": {"master": MASTER, "driver_memory": "2g", "shuffle_partitions": 2, "conf": CONF}}
    )
    spark = open_session(settings, "victim")
    print("ready", flush=True)
    for line in sys.stdin:
        word, _, place = line.strip().partition(" ")
        try:
            with open_store(spark, root, source, tables=LENIENT) as store:
                if word == "run":
                    take_in(store, source)
                elif word == "maintain":
                    store.maintain_all(lambda done: None)
                else:
                    bronze = {name: store.read(name).drop("_arrived") for name in store.bronze_tables()}
                    rows = contents(store) | {name: sorted(map(str, frame.collect())) for name, frame in bronze.items()}
                    Path(place).write_text(json.dumps(rows), encoding="utf-8")
            print("done", flush=True)
        except Exception as error:
            print(f"failed: {' '.join(explain(error, debug=False).split())}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
