"""Puts small files together, and deletes files and log entries that are past their retention and needed by nobody."""

from wares.cli import Job, main


def run(job: Job) -> None:
    with job.store() as store:
        store.maintain_all(job.report.upkeep)


if __name__ == "__main__":
    main(run, __doc__)
