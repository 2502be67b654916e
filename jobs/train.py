"""Makes the training examples, trains the wide & deep model of each source, and measures it beside the baselines.

A model that is surely better than the champion takes its place.
"""

from wares.cli import Job, main
from wares.lake.sources import load_source
from wares.model.training import train
from wares.pipeline import tables_of


def run(job: Job) -> None:
    with job.store() as store:
        store.refresh_all(tables_of("train"), job.report.table)
        for source in job.settings.sources:
            job.report.model(train(store, load_source(source).name))


if __name__ == "__main__":
    main(run, __doc__)
