"""Brings together: what each user did, profiles of users and products, and daily sales."""

from wares.cli import Job, main
from wares.pipeline import tables_of


def run(job: Job) -> None:
    with job.store() as store:
        store.refresh_all(tables_of("gold"), job.report.table)


if __name__ == "__main__":
    main(run, __doc__)
