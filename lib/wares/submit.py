"""Starts a job under Spark's own spark-submit; `spark-submit.sh` calls this once it has found the environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil
import pyspark

from wares.errors import SettingsError, WaresError

try:
    from wares.cli import description_of, explain, options_of, parser, settings_of
except WaresError as error:  # of a table file, all of which are loaded with the jobs' options
    raise SystemExit(f"error: {error}") from None
from wares.lake.session import BY_SCRIPT, spark_conf
from wares.settings import PROJECT, Settings, find_file
from wares.stop import SIGNALS, STOPPED, STOPPING

USAGE = """usage: ./spark-submit.sh [SPARK OPTIONS] jobs/NAME.py
       [--settings FILE] [--source NAME|FILE ...] [--set KEY=VALUE ...] [--debug] [OPTIONS OF THE JOB]

Runs a job: {jobs}.
jobs/NAME.py --help says what a job does. SPARK OPTIONS are those of Spark's own spark-submit, such as --master or --conf."""

ALONE = {"--verbose", "-v", "--supervise", "--version", "--help", "-h"}
"""The options of Spark's spark-submit that no value follows."""

SPARK_HOME = Path(pyspark.__file__).parent
PATIENCE = 13.0
"""Seconds that a job has to stop by itself after a signal."""
ONE_MACHINE = ("spark.driver.host", "spark.driver.bindAddress")
"""Settings of a session on one machine that would cut it off from a cluster."""


def main() -> None:
    """Run the job under spark-submit and exit with its code, or print why that is not possible and exit with 1."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        spark_options, job, job_options = split(arguments)
        if not job:
            print(USAGE.format(jobs=", ".join(job_names())))
            raise SystemExit(0 if {"-h", "--help"} & set(spark_options) else 2)
        # Mistakes in options and settings show now, before a JVM starts; --help needs none at all.
        options = parser(job.stem, description_of(job), options_of(job)).parse_args(job_options)
        command = submit_command(settings_of(options), spark_options, job, job_options)
    except WaresError as error:
        print(explain(error, debug), file=sys.stderr)
        raise SystemExit(1) from None
    raise SystemExit(run(command, environment(_option(spark_options, "--master") or _conf(spark_options, "spark.master"))))


def run(command: list[str], environ: dict[str, str]) -> int:
    """The exit code of spark-submit; 130 after Ctrl-C and 143 after SIGTERM, both answered at once.

    spark-submit is a JVM that starts the job's Python process. Ctrl-C reaches all processes of a terminal's group, and a JVM that
    dies of it leaves its Python process in the middle of whatever was being said to it. So both run in a group of their own, and
    only the Python process is told to stop: it stops Spark's work, takes away what is half-written, and ends the JVM. Whoever
    has not ended after PATIENCE is ended from here.
    """
    stop = _Stop()
    process = subprocess.Popen(command, env=environ, start_new_session=True)
    for number in SIGNALS:
        signal.signal(number, stop)
    code = None
    while code is None:
        try:
            code = process.wait(0.3)
        except subprocess.TimeoutExpired:
            if stop.is_overdue():
                _end_group(process.pid)
            elif stop.number is not None:
                _interrupt(process.pid)
    if stop.number is not None:
        _end_group(process.pid)
        print(STOPPED, file=sys.stderr, flush=True)
        return 128 + stop.number
    return code if code >= 0 else 128 - code


def _interrupt(jvm: int) -> None:
    """Send SIGINT to the job's Python process, again and again, since one that comes while Python starts may be lost; end a JVM
    that has not started it yet."""
    children = []
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(jvm).children()
    for child in children:
        with suppress(psutil.NoSuchProcess):  # a worker of Spark that has just ended
            if "pyspark.daemon" not in child.cmdline():
                child.send_signal(signal.SIGINT)
    if not children:
        with suppress(ProcessLookupError):
            os.kill(jvm, signal.SIGTERM)


class _Stop:
    """Answers the signals that stop a job.

    Attributes:
        number: The first signal that came; None if none has.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._since, self._times = 0.0, 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._times += 1
        if self.number is None:
            self.number, self._since = number, time.monotonic()
            print(STOPPING, file=sys.stderr, flush=True)

    def is_overdue(self) -> bool:
        """Whether nobody need wait for the job any longer: PATIENCE is over, or the signal came again and again."""
        return self.number is not None and (time.monotonic() - self._since > PATIENCE or self._times > 2)


def _end_group(group: int) -> None:
    """End what is left of a group of processes."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def split(arguments: list[str]) -> tuple[list[str], Path | None, list[str]]:
    """Spark's options, the job, and the job's options; the job is None if none is named.

    Raises:
        SettingsError: The job does not exist.
    """
    place = 0
    while place < len(arguments) and arguments[place].startswith("-"):
        place += 1 if arguments[place] in ALONE or "=" in arguments[place].partition(" ")[0] else 2
    if place >= len(arguments):
        return arguments, None, []
    job = find_file(arguments[place])
    if job.suffix != ".py" or not job.is_file():
        raise SettingsError(
            f"There is no job {arguments[place]}.",
            found="no such Python file",
            do=f"name one of {', '.join(f'jobs/{name}.py' for name in job_names())}",
        )
    return arguments[:place], job.resolve(), arguments[place + 1 :]


def job_names() -> list[str]:
    """The jobs of the project, by name."""
    return sorted(file.stem for file in (PROJECT / "jobs").glob("*.py"))


def submit_command(settings: Settings, spark_options: list[str], job: Path, job_options: list[str]) -> list[str]:
    """The call of Spark's spark-submit. What the user passed comes last, and so stands above the settings."""
    conf = spark_conf(settings)
    master = _option(spark_options, "--master") or _conf(spark_options, "spark.master") or conf["spark.master"]
    shipped: list[str] = []
    if not master.startswith("local"):
        conf = {key: value for key, value in conf.items() if key not in ONE_MACHINE or key in settings.spark.conf}
        shipped = [str(ship_lib())]
    # These are lists: what the user passes is added, and replaces nothing.
    lists = {"--jars": conf.pop("spark.jars", "").split(","), "--py-files": shipped}
    for option, ours in lists.items():
        theirs = _option(spark_options, option)
        spark_options = _without(spark_options, option)
        together = ",".join(filter(None, [*ours, theirs]))
        if together:
            spark_options = [option, together, *spark_options]
    ours = [part for key, value in conf.items() for part in ("--conf", f"{key}={value}")]
    return [str(SPARK_HOME / "bin" / "spark-submit"), *ours, *spark_options, str(job), *job_options]


def environment(user_master: str | None = None) -> dict[str, str]:
    """The environment of spark-submit: this Python, this Spark, our library."""
    mine = {
        "SPARK_HOME": str(SPARK_HOME),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT / "lib"), os.environ.get("PYTHONPATH")])),
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        BY_SCRIPT: "true",
    }
    if user_master is None or user_master.startswith("local"):
        mine["PYSPARK_PYTHON"] = sys.executable
    return {**os.environ, **mine}


def ship_lib() -> Path:
    """The library as a zip, for the workers of a cluster."""
    made = PROJECT / ".tools" / "wares.zip"
    made.parent.mkdir(exist_ok=True)
    part = made.with_suffix(f".{os.getpid()}")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((PROJECT / "lib").rglob("*.py")):
            archive.write(file, file.relative_to(PROJECT / "lib"))
    part.replace(made)  # another job may be reading the old one
    return made


def _option(options: list[str], name: str) -> str | None:
    """The value of a Spark option, written as `--name value` or `--name=value`; None if it is not there."""
    for place, option in enumerate(options):
        if option == name and place + 1 < len(options):
            return options[place + 1]
        if option.startswith(f"{name}="):
            return option.partition("=")[2]
    return None


def _without(options: list[str], name: str) -> list[str]:
    """The options less `name` and its value."""
    kept, place = [], 0
    while place < len(options):
        if options[place] == name:
            place += 2
            continue
        if not options[place].startswith(f"{name}="):
            kept.append(options[place])
        place += 1
    return kept


def _conf(options: list[str], key: str) -> str | None:
    """The value of `--conf key=value`, the last if there are several."""
    pairs = zip(options, options[1:], strict=False)
    values = [after.partition("=")[2] for option, after in pairs if option == "--conf" and after.startswith(f"{key}=")]
    return values[-1] if values else None


if __name__ == "__main__":
    main()
