"""The set-up: what the system lacks is said in one line, and what Spark is started with."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from wares.errors import SettingsError
from wares.lake.sources import load_source
from wares.settings import PROJECT, Settings
from wares.submit import split, submit_command
from wares.tables import TABLES

CHECK = PROJECT / "conf" / "check-system.sh"


def system(folder: Path, *tools: str, java: str = 'openjdk version "17.0.1" 2021-10-19') -> dict[str, str]:
    """An environment whose PATH has only these tools, Java being one that prints what it is told to."""
    for tool in ("bash", "sed", "head"):
        (folder / tool).symlink_to(shutil.which(tool))
    for tool in tools:
        file = folder / tool
        answer = {"python3": "3.11", "java": java}.get(tool, "")
        file.write_text(f"#!{folder / 'bash'}\necho '{answer}'\n", encoding="utf-8")
        file.chmod(0o755)
    return {"PATH": str(folder)}


def check(env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([shutil.which("bash"), CHECK, "python3"], env=env, capture_output=True, text=True, timeout=30)


def test_a_system_that_has_all(tmp_path: Path) -> None:
    ended = check(system(tmp_path, "python3", "java", "g++"))
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    ("tools", "java", "named", "command"),
    [
        (["python3", "g++"], "", "Java 17 or 21 (found none", "apt-get install openjdk-17"),
        (["python3", "java", "g++"], 'java version "1.8.0_292"', "Java 17 or 21 (found 1", "apt-get install openjdk-17"),
        (["python3", "java"], 'openjdk version "21.0.1"', "a C++ compiler", "apt-get install g++"),
        (["java", "g++"], 'openjdk version "17.0.1"', "Python 3.11 or 3.12 (found none", "apt-get install python3.11"),
    ],
)
def test_what_is_missing_is_said_in_one_line(tmp_path: Path, tools: list[str], java: str, named: str, command: str) -> None:
    ended = check(system(tmp_path, *tools, java=java))
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert named in ended.stderr
    assert command in ended.stderr


def test_the_system_is_checked_before_anything_is_fetched() -> None:
    steps = subprocess.run(["make", "-n", "-B", "setup"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    assert steps.index("check-system.sh") < steps.index("pip install") < steps.index("pip sync")


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test" in (PROJECT / "README.md").read_text(encoding="utf-8")
    assert (PROJECT / ".ci/run").read_text(encoding="utf-8").splitlines()[-1] == "make test"
    assert os.access(PROJECT / ".ci/run", os.X_OK)


def test_the_lock_has_hashes_and_no_addresses() -> None:
    lock = (PROJECT / "requirements.lock").read_text(encoding="utf-8")
    packages = re.findall(r"^[a-z0-9].*\\$", lock, re.MULTILINE)
    assert len(packages) > 100
    assert all("==" in package for package in packages)
    assert "://" not in lock


def test_spark_options_come_before_the_job_and_stand_above_the_settings() -> None:
    options, job, rest = split(["--master", "local[1]", "--conf", "a=b.py", "--verbose", "jobs/silver.py", "--debug"])
    assert options == ["--master", "local[1]", "--conf", "a=b.py", "--verbose"]
    assert job == PROJECT / "jobs" / "silver.py"
    assert rest == ["--debug"]
    command = submit_command(Settings(), options, job, rest)
    assert command.index("--master") > command.index("spark.master=local[2]")
    assert command[-2:] == [str(job), "--debug"]


def test_on_a_cluster_the_library_goes_along(tmp_path: Path) -> None:
    command = submit_command(Settings(), ["--master", "yarn", "--py-files", "mine.zip"], PROJECT / "jobs" / "silver.py", [])
    assert command[command.index("--py-files") + 1] == f"{PROJECT / '.tools' / 'wares.zip'},mine.zip"
    assert not any(part.startswith("spark.driver.host=") for part in command)


def test_no_job_of_that_name() -> None:
    with pytest.raises(SettingsError):
        split(["jobs/nope.py"])


def test_the_shop_that_the_readme_shows_is_one(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", (PROJECT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_shop.yaml").write_text(shown, encoding="utf-8")
    source = load_source(str(tmp_path / "my_shop.yaml"))
    (mapping,) = source.tables["orders"]
    assert mapping.columns.keys() <= TABLES["silver.orders"].table.by_name.keys()
    assert set(source.entities["sales"].columns) - {"customer"} <= set(mapping.columns.values())
