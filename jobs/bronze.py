"""Takes in the raw files of each source as they came, each file exactly once, with file, position and arrival."""

from wares.cli import Job, main


def run(job: Job) -> None:
    with job.store() as store:
        store.ingest_all(job.report.table)


if __name__ == "__main__":
    main(run, __doc__)
