"""Runs all jobs in the order of conf/pipeline.yaml, in one Spark session, and ends with a summary.

The same is written as a page to look at: report.html in the lake's root.
"""

from argparse import ArgumentParser

from wares.cli import Job, main
from wares.pipeline import load_pipeline, run_suite


def options(parser: ArgumentParser) -> None:
    shown = "show a few users with their purchases and lists in the summary and in report.html"
    parser.add_argument("--show-users", action="store_true", help=shown)
    skipped = "do not run these jobs, such as train; those after them take what is there"
    parser.add_argument("--skip", nargs="+", action="extend", default=[], metavar="JOB", help=skipped)


def run(job: Job) -> None:
    run_suite(job, load_pipeline(), job.options.show_users, tuple(job.options.skip))


if __name__ == "__main__":
    main(run, __doc__, options)
