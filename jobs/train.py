"""Trains the wide & deep model of each source, measures it beside the baselines, and keeps the better one as champion."""

from wares.cli import Job, main
from wares.lake.sources import load_source
from wares.model.training import train


def run(job: Job) -> None:
    with job.store() as store:
        for source in job.settings.sources:
            job.report.model(train(store, load_source(source).name))


if __name__ == "__main__":
    main(run, __doc__)
