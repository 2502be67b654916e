"""What a person sees of a mistake: one message, the right exit code, no stack trace."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from wares.cli import Job, call, explain
from wares.errors import SourceError
from wares.settings import PROJECT


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
def test_ctrl_c_is_told_in_one_line_whatever_cleaning_up_comes_to(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(job: Job) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        finally:
            raise RuntimeError("the JVM is gone")

    try:
        assert call(interrupted, "silver", "", ["--set", "sources=[]"]) == 130
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        logging.disable(logging.NOTSET)
    told = capsys.readouterr()
    assert told.err.startswith("stopped; nothing half-written is visible")
    assert len(told.err.splitlines()) == 1


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


def test_a_job_that_does_not_exist(tmp_path: Path) -> None:
    ended = submit(tmp_path, "jobs/nope.py")
    assert ended.returncode == 1
    assert "jobs/bronze.py, jobs/features.py" in ended.stderr
