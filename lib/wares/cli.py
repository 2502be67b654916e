"""What every job shares: its options, its session and store, and errors that say what to do."""

from __future__ import annotations

import ast
import sys
import traceback
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from pyspark.sql import SparkSession

from wares.errors import SeveralErrors, WaresError
from wares.lake.failures import plain
from wares.lake.session import came_by_script, open_session
from wares.lake.sources import load_source
from wares.lake.store import Store
from wares.report import Report
from wares.settings import Settings, load_settings
from wares.stop import STOPPED, Stop
from wares.tables import TABLES


@dataclass(frozen=True)
class Job:
    """One run of one job.

    Args:
        name: The job, as meta.runs calls it.
        settings: What it was told.
        spark: The session that it runs in.
        report: Tells its user what it does.
        debug: Whether errors come with their stack trace.
        options: All that was said on the command line, for a job that adds options of its own.
    """

    name: str
    settings: Settings
    spark: SparkSession
    report: Report
    debug: bool = False
    options: Namespace = field(default_factory=Namespace)

    def store(self) -> Store:
        """The lake, to be opened with `with`."""
        return Store(self.spark, self.settings, TABLES, self.name)


AddOptions = Callable[[ArgumentParser], None]
"""The function `options` of a job file, which adds options of the job's own."""


def parser(name: str, description: str, add_options: AddOptions | None = None) -> ArgumentParser:
    """The options that all jobs take, after those of the job's own."""
    options = ArgumentParser(
        prog=f"./spark-submit.sh jobs/{name}.py",
        description=description,
        formatter_class=RawDescriptionHelpFormatter,
        epilog="Settings and what they mean: README.md. Exit codes: 0 done, 1 failed, 2 wrong options, 130 stopped by Ctrl-C, "
        "143 stopped by SIGTERM.",
    )
    if add_options:
        add_options(options)
    options.add_argument("--settings", metavar="FILE", default="conf/local.yaml", help="settings file (default: conf/local.yaml)")
    options.add_argument(
        "--source",
        metavar="NAME|FILE",
        nargs="+",
        action="extend",
        help="sources in conf/sources, or YAML files; in place of the setting `sources`",
    )
    options.add_argument(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        dest="overrides",
        help="change settings for this run, such as lake.root=DIR train.epochs=5",
    )
    options.add_argument("--debug", action="store_true", help="show the stack trace of an error")
    return options


def settings_of(options: Namespace) -> Settings:
    """The settings that a job's options ask for.

    Raises:
        SettingsError: The file, a key, a value or a source is not one that Wares knows.
    """
    settings = load_settings(options.settings, options.overrides)
    if options.source:
        settings = settings.model_copy(update={"sources": tuple(options.source)})
    for source in settings.sources:
        load_source(source)
    return settings


def description_of(job: str | Path) -> str:
    """The docstring of a job file."""
    return ast.get_docstring(ast.parse(Path(job).read_text(encoding="utf-8"))) or ""


def options_of(job: Path) -> AddOptions | None:
    """The function by which a job file adds options of its own; None, without loading the file, if it has none."""
    names = {node.name for node in ast.parse(job.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}
    return load_file(job).options if "options" in names else None


def load_file(job: Path) -> ModuleType:
    """A job file as a module."""
    spec = spec_from_file_location(f"jobs.{job.stem}", job)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(run: Callable[[Job], None], description: str | None, add_options: AddOptions | None = None) -> None:
    """Run a job as a program, as its options say, and exit with its code."""
    sys.exit(call(run, Path(sys.argv[0]).stem, description, sys.argv[1:], add_options))


def call(
    run: Callable[[Job], None],
    name: str,
    description: str | None,
    arguments: list[str],
    add_options: AddOptions | None = None,
) -> int:
    """Run a job and return its exit code: 0, 1 after an error (which is printed), or 128 + the signal that stopped it.

    Where a job has an option `--json` and it is given, nothing is printed but what the job itself prints.
    """
    options = parser(name, description or "", add_options).parse_args(arguments)
    stop = Stop(quiet=came_by_script(), debug=options.debug)
    try:
        settings = settings_of(options)
        stop.listen()
        spark = open_session(settings, name)
        stop.listen()  # once more, since PySpark has put its own handler there
        report = Report(spark, quiet=getattr(options, "json", False))
        with report.job(name):
            run(Job(name, settings, spark, report, options.debug, options))
    except BaseException as error:
        if stop.number is not None:  # whatever cleaning up came to
            if not came_by_script():  # else the script says so
                print(STOPPED, file=sys.stderr, flush=True)
            return 128 + stop.number
        if not isinstance(error, Exception):
            raise
        print(explain(error, options.debug), file=sys.stderr, flush=True)
        return 1
    return 0


def explain(error: Exception, debug: bool) -> str:
    """What a person is told of an error: a mistake of theirs in full, anything else in one line, unless `debug`.

    The text of an unexpected error is not shown: Spark puts values of rows into its messages.
    """
    if debug:
        return "".join(traceback.format_exception(error)).rstrip()
    error = plain(error, "the lake") or error
    if isinstance(error, SeveralErrors):
        return "\n".join(explain(each, debug) for each in error.errors)
    if isinstance(error, WaresError):
        return f"error: {error}"
    where = traceback.extract_tb(error.__traceback__)[-1]
    code = getattr(error, "getCondition", lambda: None)() or type(error).__name__
    unexpected = WaresError(
        "Something went wrong that Wares did not expect.",
        found=f"{code} at {Path(where.filename).name}:{where.lineno}",
        do="run the job again; if it fails again, run it with --debug to see where",
    )
    return f"error: {unexpected}"
