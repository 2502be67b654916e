"""The set-up: what the system lacks is said in one line, and what Spark is started with."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from wares.errors import SettingsError
from wares.lake.sources import load_source
from wares.settings import PROJECT, Settings
from wares.submit import split, submit_command
from wares.tables import TABLES

CHECK = PROJECT / "conf" / "check-system.sh"


def system(folder: Path, *tools: str, java: str = 'openjdk version "17.0.1" 2021-10-19', **answers: str) -> dict[str, str]:
    """An environment whose PATH has only these tools, Java being one that prints what it is told to."""
    for tool in {"bash", "sed", "head", "awk", "df", "uname"} - answers.keys():
        (folder / tool).symlink_to(shutil.which(tool))
    for tool in (*tools, *answers):
        file = folder / tool
        answer = {"python3": "3.11", "java": java, **answers}.get(tool, "")
        file.write_text(f"#!{folder / 'bash'}\necho '{answer}'\n", encoding="utf-8")
        file.chmod(0o755)
    return {"PATH": str(folder)}


def check(env: dict[str, str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [shutil.which("bash"), CHECK, "python3"]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=30)


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


def test_a_java_home_without_java(tmp_path: Path) -> None:
    ended = check(system(tmp_path, "python3", "java", "g++") | {"JAVA_HOME": "/nowhere"})
    assert (ended.returncode, ended.stderr) == (
        1,
        "error: JAVA_HOME names a folder without bin/java (/nowhere): unset it, or let it name a Java 17 or 21\n",
    )


def test_a_disk_without_room_for_the_packages(tmp_path: Path) -> None:
    full = "Filesystem 1024-blocks Used Available Capacity Mounted\n/dev/vda 9999999 7999999 2000000 80% /"
    ended = check(system(tmp_path, "python3", "java", "g++", df=full), tmp_path)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "5 GB are needed here, 1 GB are free" in ended.stderr


def test_another_kind_of_machine(tmp_path: Path) -> None:
    ended = check(system(tmp_path, "python3", "java", "g++", uname="Darwin"))
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "Linux on x86_64" in ended.stderr


def project(folder: Path) -> Path:
    """The parts of the project that set-up needs, elsewhere, with a uv that fetches nothing and says why."""
    for name in ("conf/setup.sh", "conf/check-system.sh", "requirements.lock"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(PROJECT / name, folder / name)
    return folder


def set_up(folder: Path, uv: str, **variables: str) -> subprocess.Popen[str]:
    """Set-up with a `uv` of its own that does what the shell lines `uv` say."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "uv").write_text(f'#!/usr/bin/env bash\n[[ $1 == --version ]] && echo "uv 1.2.3" && exit\n{uv}\n', encoding="utf-8")
    (tools / "java").write_text("#!/usr/bin/env bash\necho 'openjdk version \"17.0.1\"'\n", encoding="utf-8")
    for tool in ("uv", "java"):
        (tools / tool).chmod(0o755)
    environ = {name: value for name, value in os.environ.items() if name != "JAVA_HOME"}
    environ |= {"PATH": f"{tools}:{environ['PATH']}", **variables}
    command = [folder / "conf" / "setup.sh", sys.executable, "requirements.lock", "1.2.3"]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_system_is_checked_before_anything_is_fetched(tmp_path: Path) -> None:
    with set_up(project(tmp_path), "exit 1", JAVA_HOME="/nowhere") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.count("\n")) == (1, "", 1)
    assert "JAVA_HOME" in err
    assert list((tmp_path / ".tools").iterdir()) == []  # no uv, no log of a step


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("error: Failed to fetch: dns error: failed to lookup address", "could not be fetched: see that the network is there"),
        ("OSError: [Errno 28] No space left on device", "the disk is full: free some space"),
        ("error: a hash does not match", "it said: error: a hash does not match"),
    ],
)
def test_a_step_that_fails_says_in_one_line_what_to_do(tmp_path: Path, said: str, advice: str) -> None:
    with set_up(project(tmp_path), f"echo 'trying'; echo '{said}' >&2; exit 2") as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out.splitlines()[-1].endswith("uv 1.2.3, into .tools")
    assert err.startswith("error: set-up failed at: Python packages, into .venv; ")
    assert advice in err and "run make again" in err
    assert err.count("\n") == 1


def test_set_up_can_be_stopped_and_goes_on(tmp_path: Path) -> None:
    with set_up(project(tmp_path), "echo at work; sleep 120") as process:
        while not (tmp_path / ".tools" / "setup-packages.log").exists() and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "stopping ...\nstopped; run make again, it goes on\n")
    with set_up(tmp_path, "exit 1") as process:
        out, err = process.communicate(timeout=30)
    assert "uv 1.2.3" not in out  # done before, and not again


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
