"""Ranks the whole catalogue for every user with the champion model of the user's source."""

from wares.cli import Job, main
from wares.model.scoring import score


def run(job: Job) -> None:
    with job.store() as store:
        job.report.table(score(store))


if __name__ == "__main__":
    main(run, __doc__)
