"""Starts the ranks of a training run: as a child process, under horovodrun, or in the slots of a Spark cluster."""

from __future__ import annotations

import functools
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pyspark import BarrierTaskContext, InheritableThread
from pyspark.sql import SparkSession

from wares.errors import ModelError, RankError
from wares.model.plan import PROGRESS, Plan, refusal
from wares.settings import Train, find_file

LIB = Path(__file__).resolve().parents[2]
LINES_KEPT = 1000
"""How many last lines of a run the reason of its end is sought in: each rank that ends after it leaves some twenty."""
COOLDOWN = ("5", "300")
"""For how many seconds a host whose rank died gets no new one: two to three times the first, twice that each time, at most
the second."""
JOIN_SECONDS = "120"
"""How long the ranks wait for a new one to come up; Horovod's 30 are too few where TensorFlow loads slowly."""
AFTERMATH = ("Horovod background loop", "Horovod detected", "BrokenPipeError")
"""Errors that follow when a rank has died, at the other ranks and in horovodrun, and say nothing of why."""
QUOTED = re.compile(r"""(?<!\w)'[^']*'|"[^"]*"|`[^`]*`""")
"""What Python quotes in an error may be a value out of a row, whoever may see that."""


Watch = Callable[[], None]


def launch(plan: Plan, spark: SparkSession, watch: Watch | None = None) -> None:
    """Run all ranks to their end, printing their progress.

    Args:
        watch: Called after each line of progress; what it raises ends the ranks, and is raised on.

    Raises:
        ModelError: A rank refused to go on; the others have been ended.
        RankError: A rank died; the others have been ended.
    """
    path = str(plan.save())
    worker = [sys.executable, "-m", "wares.model.worker", path]
    if plan.train.launcher == "local":
        _run(plan, worker, watch)
    elif plan.train.launcher == "horovodrun":
        horovodrun = str(Path(sys.executable).with_name("horovodrun"))
        _run(plan, [sys.executable, horovodrun, *_where(plan.train), "--gloo", *worker], watch)
    else:
        _run_on_spark(plan, spark, watch)


def _where(train: Train) -> list[str]:
    """What tells horovodrun how many ranks there are, and where.

    Raises:
        ModelError: The script that is to say so cannot be run.
    """
    ranks = ["-np", str(train.ranks)]
    if train.hosts is None:
        return [*ranks, "-H", f"localhost:{train.ranks}"]
    script = find_file(train.hosts).resolve()
    if not os.access(script, os.X_OK) or script.is_dir():
        raise ModelError(
            "The script that tells the hosts cannot be run.",
            found=f"train.hosts: {train.hosts}",
            do="name an executable file that prints HOST:RANKS lines, such as localhost:2",
        )
    elastic = ["--min-np", str(train.min_ranks), "--host-discovery-script", shlex.quote(str(script))]
    patience = ["--blacklist-cooldown-range", *COOLDOWN, "--gloo-timeout-seconds", JOIN_SECONDS]
    return [*ranks, *elastic, *patience, "--network-interface", "lo"]


def environment() -> dict[str, str]:
    """What a rank's process finds: one thread, no GPU talk, and the id of the process to end with."""
    mine = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(LIB), os.environ.get("PYTHONPATH", "")])),
        "OMP_NUM_THREADS": "1",
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONUNBUFFERED": "1",
        "WARES_PARENT": str(os.getpid()),
    }
    return {**os.environ, **mine}


def _run(plan: Plan, command: list[str], watch: Watch | None) -> None:
    process = subprocess.Popen(
        command,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        kept = show(process.stdout or [], watch)
        status = process.wait()
    finally:
        _end(process)
    if status:
        raise failure(plan.folder, kept, f"exit status {status}")


def _end(process: subprocess.Popen[str]) -> None:
    """End the launcher, which ends its ranks; harmless if it has ended already."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, sign)
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                continue


def show(lines: Iterable[str], watch: Watch | None = None) -> list[str]:
    """Print the progress among the lines as they come, and call `watch` after each; return the last of the others."""
    kept: deque[str] = deque(maxlen=LINES_KEPT)
    for line in lines:
        before, progress, text = line.rstrip().partition(PROGRESS)
        if progress:
            print(f"  {text}", flush=True)
            if watch:
                watch()
        elif before:
            kept.append(before)
    return list(kept)


def failure(folder: Path, kept: list[str], end: str) -> ModelError:
    """The one error to show for a run that failed: what a rank said of itself, or else its last words."""
    if refused := refusal(folder):
        return refused
    if any("minimum number of slots" in line for line in kept):
        return ModelError(
            "There were too few places for the ranks for too long.",
            found="train.hosts told of fewer than train.ranks at the start, or of fewer than train.min_ranks later",
            do="run the job again when there are enough, it goes on from the last checkpoint",
        )
    said = [line for line in kept if "rror" in line and not any(words in line for words in AFTERMATH)]
    said = said or [line for line in kept if "exit with status code" in line] or kept
    return RankError(
        "A training rank died.",
        found=f"{end}; {QUOTED.sub('...', said[0]) if said else 'it said nothing'}",
        do="run the job again, it goes on from the last checkpoint; if memory ran short (exit status -9 or 137), train with "
        "fewer ranks (train.ranks)",
    )


def _run_on_spark(plan: Plan, spark: SparkSession, watch: Watch | None) -> None:
    """One rank in each of as many task slots, started together as a barrier stage; all hosts must see the plan's folder.

    Horovod 0.28's own Spark launcher is older than Spark 4 and did not come up on it, so the tasks find each other here.
    """
    context = spark.sparkContext
    slots = context.defaultParallelism
    if slots < plan.train.ranks:
        raise ModelError(
            "Spark has too few task slots for the ranks.",
            found=f"{slots} slots, {plan.train.ranks} ranks",
            do="lower train.ranks, or give Spark more cores; all ranks must run at once",
        )
    ranks = context.parallelize(range(plan.train.ranks), plan.train.ranks).barrier()
    progress = plan.folder / "progress.log"
    progress.touch()
    errors: list[Exception] = []

    def work() -> None:
        context.setJobGroup(str(plan.folder), "the ranks of a training", interruptOnCancel=True)
        try:
            ranks.mapPartitions(functools.partial(_rank_in_slot, str(plan.folder))).collect()
        except Exception as error:  # Spark raises many kinds; the ranks have written down what matters.
            errors.append(error)

    stage = InheritableThread(target=work)
    stage.start()
    try:
        with progress.open(encoding="utf-8") as lines:
            while stage.is_alive():
                stage.join(0.5)
                show(lines, watch)
    finally:
        context.cancelJobGroup(str(plan.folder))  # harmless if the stage has ended
    if errors:
        kept = [
            line
            for log in sorted(plan.folder.glob("rank-*.log"))
            for line in log.read_text(encoding="utf-8").splitlines()[-LINES_KEPT:]
        ]
        raise failure(plan.folder, kept, "its task failed")


def _rank_in_slot(folder: str, _: Iterable[int]) -> Iterator[int]:
    """Run one rank from within a barrier task: agree on who is where, then start the worker as a process of its own."""
    from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
    from horovod.runner.gloo_run import create_slot_env_vars
    from horovod.runner.http.http_server import RendezvousServer

    task = BarrierTaskContext.get()
    hosts = task.allGather(socket.gethostname())
    mine = task.partitionId()
    places = get_host_assignments(
        parse_hosts(",".join(f"{host}:{hosts.count(host)}" for host in dict.fromkeys(hosts))), len(hosts)
    )
    # The ranks of a host are dealt to its tasks in order.
    place = [place for place in places if place.hostname == hosts[mine]][hosts[:mine].count(hosts[mine])]
    server = RendezvousServer()
    if mine == 0:
        port = server.start()
        server.init(places)
    here = len(set(hosts)) == 1
    address = task.allGather(
        f"{'127.0.0.1' if here else socket.gethostbyname(socket.gethostname())}:{port}" if mine == 0 else ""
    )[0]
    meeting = {
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": address.partition(":")[0],
        "HOROVOD_GLOO_RENDEZVOUS_PORT": address.partition(":")[2],
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        **({"HOROVOD_GLOO_IFACE": "lo"} if here else {}),
    }
    command = [sys.executable, "-m", "wares.model.worker", f"{folder}/plan.json"]
    environ = {**environment(), **create_slot_env_vars(place), **meeting}
    with (
        open(f"{folder}/rank-{place.rank}.log", "w", encoding="utf-8") as log,
        open(f"{folder}/progress.log", "a", encoding="utf-8") as progress,
    ):
        process = subprocess.Popen(
            command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        try:
            for line in process.stdout or []:
                stream = progress if PROGRESS in line else log
                stream.write(line)
                stream.flush()
            status = process.wait()
        finally:
            _end(process)
    if status:
        raise RuntimeError(f"rank {place.rank} ended with exit status {status}")
    task.barrier()
    if mine == 0:
        server.stop()
    yield status
