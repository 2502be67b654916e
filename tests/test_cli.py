"""What a person sees of a mistake: one message, the right exit code, no stack trace."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from wares import stop
from wares.cli import Job, call, explain
from wares.errors import SourceError
from wares.settings import PROJECT
from wares.stop import SIGNALS, STOPPED, STOPPING


def never(job: Job) -> None:
    raise AssertionError("the job must not start")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "lake.rot=x"], "lake.rot: unknown key"),
        (["--set", "train.epochs=none"], "train.epochs"),
        (["--set", "train.epochs"], "--set KEY=VALUE"),
        (["--source", "nowhere"], "There is no source 'nowhere'."),
        (["--settings", "missing.yaml"], "The file missing.yaml cannot be read."),
    ],
)
def test_a_mistake_is_told_in_one_message(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(never, "silver", "", arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert said in err
    assert "do:" in err
    assert "Traceback" not in err


def test_wrong_options_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        call(never, "silver", "", ["--nonsense"])
    assert end.value.code == 2


@pytest.mark.usefixtures("spark")  # which the job opens
def test_ctrl_c_is_answered_at_once_whatever_cleaning_up_comes_to(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(job: Job) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # a second one does not disturb the cleaning up
            raise RuntimeError("the JVM is gone")

    try:
        assert call(interrupted, "silver", "", ["--set", "sources=[]"]) == 130
    finally:
        restore_signals()
    assert capsys.readouterr().err == f"{STOPPING}\n{STOPPED}\n"


def test_a_signal_cancels_what_spark_is_at_work_on_and_leaves_the_jvm_to_clean_up(spark: SparkSession, tmp_path: Path) -> None:
    tidied: list[int] = []

    def at_work(job: Job) -> None:
        with job.store():
            threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
            try:
                job.spark.range(10**13).selectExpr("sum(hash(id))").collect()
            finally:  # what was said to the JVM before is answered by now: this is the answer to this question
                tidied.append(job.spark.range(7).selectExpr("max(id)")._jdf.schema().length())

    started = time.monotonic()
    try:
        assert call(at_work, "silver", "", ["--set", "sources=[]", f"lake.root={tmp_path}"]) == 143
    finally:
        restore_signals()
    assert time.monotonic() - started < 30
    assert tidied == [1]
    assert spark.range(3).count() == 3


def restore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    logging.disable(logging.NOTSET)
    stop._stopping.clear()


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def test_an_error_of_ours_says_what_was_found_and_what_to_do() -> None:
    text = explain(raised(SourceError("The file is cut.", found="a.csv", do="deliver it again")), debug=False)
    assert text == "error: The file is cut.\n  found: a.csv\n  do:    deliver it again"


def test_the_text_of_an_unexpected_error_is_shown_only_by_debug() -> None:
    error = raised(ValueError("card number 4711"))
    assert "4711" not in explain(error, debug=False)
    assert "ValueError at test_cli.py" in explain(error, debug=False)
    assert "card number 4711" in explain(error, debug=True)
    assert "Traceback" in explain(error, debug=True)


def test_a_mistake_in_a_table_file_is_one_error(tmp_path: Path) -> None:
    """Of every job, since all of them load the table files."""
    shutil.copytree(PROJECT / "lib", tmp_path / "lib")
    (tmp_path / "lib" / "wares" / "tables" / "gold" / "bad.py").write_text('TABLE = Table("x")\n', encoding="utf-8")
    command, place = [sys.executable, "-m", "wares.submit", "jobs/gold.py"], {"PYTHONPATH": str(tmp_path / "lib")}
    ended = subprocess.run(command, env=os.environ | place, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        "error: The table file gold.bad cannot be loaded.\n"
        "  found: NameError in line 1: name 'Table' is not defined\n"
        "  do:    mend tables/gold/bad.py\n"
    )


def submit(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROJECT / "spark-submit.sh", *arguments], cwd=folder, capture_output=True, text=True, timeout=120)


def test_every_job_has_help_from_any_directory(tmp_path: Path) -> None:
    shown = submit(tmp_path, "jobs/suite.py", "--help")
    assert shown.returncode == 0
    assert "Runs all jobs in the order of conf/pipeline.yaml" in shown.stdout
    for option in ("--settings FILE", "--source NAME|FILE", "--set KEY=VALUE", "--debug"):
        assert option in shown.stdout


def test_the_script_passes_the_exit_code_on(tmp_path: Path) -> None:
    ended = submit(tmp_path, "jobs/silver.py", "--set", "lake.rot=x")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("error: conf/local.yaml with --set does not fit.")


def test_an_option_that_cannot_be_meant_is_refused_before_spark_starts(tmp_path: Path) -> None:
    ended = submit(tmp_path, "jobs/lineage.py", "--column", "spend_90d")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.endswith("'spend_90d' names no column of a table: write it as layer.table.column\n")


JOB = """
from wares.cli import main

def run(job):
    print("master", job.spark.sparkContext.master, flush=True)
    with job.store():
        job.spark.range(10**13).selectExpr("sum(hash(id))").collect()

main(run, "works for ever")
"""


@pytest.mark.spark  # in a process of its own
@pytest.mark.alone
def test_a_job_under_spark_submit_has_the_master_that_was_asked_for_and_stops_at_once(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(JOB, encoding="utf-8")
    command = [PROJECT / "spark-submit.sh", "--master", "local[3]", "work.py", "--set", "lake.root=lake"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert next(line for line in process.stdout if line.startswith("master")) == "master local[3]\n"
        time.sleep(2)
        process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        told = next(line for line in process.stderr if line.startswith("stopping"))
        at_once = time.monotonic() - started
        _, rest = process.communicate(timeout=60)
    assert (process.returncode, told, rest) == (143, f"{STOPPING}\n", f"{STOPPED}\n")
    assert at_once < 5
    assert not [line for line in os.popen("ps -eo args").read().splitlines() if str(tmp_path) in line]


def test_a_job_that_does_not_exist(tmp_path: Path) -> None:
    ended = submit(tmp_path, "jobs/nope.py")
    assert ended.returncode == 1
    assert "jobs/bronze.py, jobs/features.py" in ended.stderr
