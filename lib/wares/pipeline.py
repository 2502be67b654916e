"""The pipeline: `conf/pipeline.yaml` says which jobs there are and what each waits for; nothing else does."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from graphlib import CycleError, TopologicalSorter
from typing import Literal

from pydantic import Field
from pyspark.sql import SparkSession

from wares.cli import Job, explain, load_file
from wares.errors import ConflictError, RankError, SettingsError, WaresError
from wares.lake.registry import downstream
from wares.settings import PROJECT, Declared, read_yaml, validate
from wares.stop import cancel_work, is_stopping
from wares.tables import TABLES

PIPELINE = "conf/pipeline.yaml"
EXAMPLES = "gold.examples"
GRACE = 10.0
"""Seconds that a job has to end by itself once its time is up and Spark has been told to stop its work."""


class JobTimeout(WaresError):
    """A job took longer than the pipeline allows."""


class Task(Declared):
    """A job's place in the pipeline.

    Args:
        after: The jobs that must have succeeded before.
        retries: How often it is tried again after a failure that trying again may mend.
        timeout_minutes: How long one try may take.
    """

    after: tuple[str, ...] = ()
    retries: int = Field(0, ge=0)
    timeout_minutes: float = Field(60, gt=0)


class Pipeline(Declared):
    """Which jobs there are, and when they run.

    Args:
        schedule: When the whole runs, as a cron line, in UTC.
        jobs: The jobs by name; each is a file in jobs/.
    """

    schedule: str = Field(pattern=r"^\S+( \S+){4}$")
    jobs: dict[str, Task] = Field(min_length=1)

    def order(self) -> list[str]:
        """The jobs, each after those that it waits for."""
        return list(TopologicalSorter({name: task.after for name, task in self.jobs.items()}).static_order())


@dataclass(frozen=True)
class Step:
    """What became of a job: done, failed, left out because a job that it waits for was not done, or skipped as asked for."""

    job: str
    status: Literal["done", "failed", "left out", "skipped"]
    seconds: float = 0.0

    @property
    def is_well(self) -> bool:
        """Whether the jobs after it can run. Those after a skipped one take what is there from before."""
        return self.status in ("done", "skipped")


def load_pipeline(path: str = PIPELINE) -> Pipeline:
    """Read the pipeline file.

    Raises:
        SettingsError: A key is unknown, a job has no file or waits for one that is not in the pipeline, or jobs wait
            for each other in a ring.
    """
    pipeline = validate(Pipeline, read_yaml(path), path)
    for name, task in pipeline.jobs.items():
        if not (PROJECT / "jobs" / f"{name}.py").is_file():
            raise SettingsError(
                f"{path} names a job that does not exist.", found=name, do=f"write jobs/{name}.py, or take '{name}' away"
            )
        for before in task.after:
            if before not in pipeline.jobs:
                raise SettingsError(
                    f"{path}: the job {name} waits for one that is not in the pipeline.",
                    found=f"after: {before}",
                    do=f"name one of {', '.join(pipeline.jobs)}",
                )
    try:
        pipeline.order()
    except CycleError as error:
        raise SettingsError(
            f"{path}: jobs wait for each other in a ring.", found=" -> ".join(error.args[1]), do="take one `after` away"
        ) from None
    return pipeline


def run_suite(job: Job, pipeline: Pipeline, show_users: bool = False, skip: tuple[str, ...] = ()) -> None:
    """Run the pipeline in the job's session, and close with a summary: as text, and as a page in the lake.

    Args:
        show_users: Whether the summary shows a few users with their purchases and lists.
        skip: Jobs not to run.

    Raises:
        SettingsError: A job to skip is not in the pipeline.
        WaresError: A job failed; what it said has been printed.
    """

    def run(name: str, task: Task) -> None:
        with job.report.job(name), deadline(job.spark, name, task.timeout_minutes):
            load_job(name)(replace(job, name=name))

    def failed(name: str, error: Exception, left: int) -> None:
        print(explain(error, job.debug), file=sys.stderr, flush=True)
        job.report.say(f"  {name} failed{f', trying again ({left} left)' if left else ''}")

    started = datetime.now(UTC)
    if unknown := sorted(set(skip) - pipeline.jobs.keys()):
        raise SettingsError(
            "A job to skip is not in the pipeline.", found=", ".join(unknown), do=f"name some of {', '.join(pipeline.jobs)}"
        )
    steps = run_pipeline(pipeline, run, failed, skip)
    close(job, steps, started, show_users)
    undone = [f"{step.job} {step.status}" for step in steps if not step.is_well]
    if undone:
        raise WaresError(
            "The suite could not do all its jobs.",
            found=", ".join(undone),
            do="mend what the messages above name, and run it again; what is done is not done twice",
        )


def close(job: Job, steps: list[Step], started: datetime, show_users: bool) -> None:
    """Print the summary of a run, and write its page. Neither fails the run: what it was for has been done, or has failed."""
    # They import what measures a model, which takes most of a second, and of all jobs only the suite needs it.
    from wares.report.html import as_html, write_page
    from wares.report.summary import gather
    from wares.report.text import as_text

    try:
        with job.store() as store:
            summary = gather(store, steps, job.report.outcomes, started, show_users)
        job.report.say(as_text(summary))
        job.report.say(f"\nreport: {write_page(job.spark, summary.lake, as_html(summary))}")
    except Exception as error:
        why = explain(error, job.debug).removeprefix("error: ")
        job.report.say(f"warning: no report was written: {why if job.debug else why.partition(chr(10))[0]}")


def run_pipeline(
    pipeline: Pipeline,
    run: Callable[[str, Task], None],
    failed: Callable[[str, Exception, int], None],
    skip: tuple[str, ...] = (),
) -> list[Step]:
    """Run the jobs one after the other. A job whose predecessor was not done is left out; the others still run.

    Args:
        run: Runs one job; it raises if the job fails.
        failed: Told of each failure: the job, the error, and how many tries are left.
        skip: Jobs not to run.
    """
    steps: dict[str, Step] = {}
    for name in pipeline.order():
        task = pipeline.jobs[name]
        if name in skip:
            steps[name] = Step(name, "skipped")
            continue
        if not all(steps[before].is_well for before in task.after):
            steps[name] = Step(name, "left out")
            continue
        steps[name] = _run_job(name, task, run, failed)
    return list(steps.values())


def _run_job(name: str, task: Task, run: Callable[[str, Task], None], failed: Callable[[str, Exception, int], None]) -> Step:
    started = time.monotonic()
    for left in range(task.retries, -1, -1):
        try:
            run(name, task)
            return Step(name, "done", time.monotonic() - started)
        except Exception as error:
            if is_stopping():  # what was at work has been cancelled
                raise
            left = left if may_mend(error) else 0
            failed(name, error, left)
            if left == 0:
                return Step(name, "failed", time.monotonic() - started)
    raise AssertionError("the last try returns")


def may_mend(error: Exception) -> bool:
    """Whether trying again may help: not where a person must mend something first."""
    return not isinstance(error, WaresError) or isinstance(error, (ConflictError, JobTimeout, RankError))


def load_job(name: str) -> Callable[[Job], None]:
    """The `run` function of a job file.

    Raises:
        SettingsError: The file has none.
    """
    module = load_file(PROJECT / "jobs" / f"{name}.py")
    if not callable(getattr(module, "run", None)):
        raise SettingsError(
            f"The job {name} cannot be run by the suite.",
            found=f"no function `run` in jobs/{name}.py",
            do="write def run(job: Job) -> None",
        )
    return module.run


@contextmanager
def deadline(spark: SparkSession, name: str, minutes: float) -> Iterator[None]:
    """Stop what the block does, in Spark and in Python, when its time is up. To be used in the main thread.

    Raises:
        JobTimeout: The block took too long.
    """
    late, ended = threading.Event(), threading.Event()

    def watch() -> None:
        if ended.wait(minutes * 60):
            return
        late.set()
        cancel_work(spark.sparkContext)
        if not ended.wait(GRACE):
            os.kill(os.getpid(), signal.SIGALRM)  # whatever the main thread waits for, such as training, ends with this

    def interrupt(number: int, frame: object) -> None:
        raise JobTimeout("too late")

    before = signal.signal(signal.SIGALRM, interrupt)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    except Exception as error:
        if late.is_set():
            do = f"raise timeout_minutes of {name} in {PIPELINE}, or give it more cores or memory"
            raise JobTimeout(
                f"The job {name} took too long and was stopped.", found=f"more than {minutes:g} minutes", do=do
            ) from error
        raise
    finally:
        ended.set()
        watcher.join()
        signal.signal(signal.SIGALRM, before)


def tables_of(job: str) -> list[str]:
    """The tables that a job refreshes: those of silver; of gold, what does not depend on a moment; as `features`, what does; and
    as `train`, the examples, which only training reads.

    A table that needs more than tables, such as a model, belongs to the job that has it.
    """
    if job == "silver":
        return [name for name, file in TABLES.items() if file.layer == "silver"]
    momentary = downstream(TABLES, "gold.moments")
    if job == "features":
        return [name for name in momentary if name != EXAMPLES]
    if job == "train":
        return [EXAMPLES]
    return [name for name, file in TABLES.items() if file.layer == "gold" and not file.given and name not in momentary]
