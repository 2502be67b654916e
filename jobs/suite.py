"""Runs all jobs in the order of conf/pipeline.yaml, in one Spark session, and ends with one page."""

from wares.cli import Job, main
from wares.pipeline import load_pipeline, run_suite


def run(job: Job) -> None:
    run_suite(job, load_pipeline())


if __name__ == "__main__":
    main(run, __doc__)
