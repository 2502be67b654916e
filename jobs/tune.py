"""Looks for better settings: trains the model of each source with many of them, and ranks the validation days with each.

A search that was ended goes on where it was, as long as tables, settings and search space are the same. It ends with the best
trials, and with the lines to copy into the settings and the feature spec; nothing is registered.
"""

from argparse import ArgumentParser

from wares.cli import Job, main
from wares.lake.sources import load_source
from wares.model.tuning import SAMPLERS, Search, tune
from wares.pipeline import tables_of


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="trials in all, with those of before (default: 20)")
    parser.add_argument("--minutes", type=float, default=float("inf"), metavar="M", help="begin no trial after so many minutes")
    parser.add_argument("--sampler", choices=list(SAMPLERS), default="tpe", help="at random, or by what was good (default: tpe)")
    parser.add_argument("--space", default="conf/tune.yaml", metavar="FILE", help="the search space (default: conf/tune.yaml)")


def run(job: Job) -> None:
    search = Search(job.options.space, job.options.trials, job.options.minutes, job.options.sampler)
    with job.store() as store:
        store.refresh_all(tables_of("train"), job.report.table)
        for source in job.settings.sources:
            job.report.say(tune(store, load_source(source).name, search, job.report.say))


if __name__ == "__main__":
    main(run, __doc__, options)
