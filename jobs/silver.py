"""Cleans: brings the rows of all sources into one shape; bad rows are kept apart with their reasons."""

from wares.cli import Job, main
from wares.pipeline import tables_of


def run(job: Job) -> None:
    with job.store() as store:
        store.refresh_all(tables_of("silver"), job.report.table)


if __name__ == "__main__":
    main(run, __doc__)
