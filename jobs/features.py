"""Describes users and products as they were at each moment."""

from wares.cli import Job, main
from wares.pipeline import tables_of


def run(job: Job) -> None:
    with job.store() as store:
        store.refresh_all(tables_of("features"), job.report.table)


if __name__ == "__main__":
    main(run, __doc__)
