"""Faults injected for real: `make faults`, or with another seed and number `make faults FAULTS="--seed 7 --runs 200"`.

A shop delivers files; a run takes them into bronze, silver and gold, and now and then does the upkeep. At random moments of
each run faults strike, two or so: the driver is killed, or the worker that does Spark's work is; or for a while no file can
grow beyond some bytes, as on a full disk, or nothing in the lake may be made or deleted. A run that failed is started again,
and disturbed again; after each fifth one it is left alone and must succeed. In the end every table, with the rows that it left
out, must hold what a lake holds that was made of the same files in one undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from deliveries import declare, deliver
from helpers import forbid

HERE = Path(__file__).resolve().parent
KINDS = ("driver killed", "worker killed", "disk full", "no permission")
LONGEST = 900.0
"""Seconds after which a run counts as hanging; on a slow and busy machine an honest one has taken 200."""
JAVA = {"JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1"}
"""A JVM that is soon killed is not worth the second compiler, which takes nearly half of the CPU seconds of a first run."""
RECOVERED = 5
"""After so many disturbed runs one is left undisturbed; between them, a run that failed is disturbed again as it is made good."""
TRIES = 3
"""How often a run may begin anew before it counts as one that does not recover: what a fault left may end the first."""


class Victim:
    """The process that takes in what was delivered; it is started again if it was killed."""

    def __init__(self, root: Path, source: str) -> None:
        self._command = [sys.executable, str(HERE / "victim.py"), str(root), source]
        self._process: subprocess.Popen[str] | None = None

    def tell(self, words: str) -> None:
        """Tell it what to do."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
                env=os.environ | JAVA,
            )
            if self._answer() != "ready":
                raise SystemExit("a run could not be started")
        print(words, file=self._process.stdin, flush=True)

    def answer(self) -> str:
        """What became of it: `done`, `failed: why`, or `killed`."""
        return self._answer() or "killed"

    def _answer(self) -> str:
        late = threading.Timer(LONGEST, self.kill)
        late.start()
        try:
            return next((line.strip() for line in self._process.stdout if line.startswith(("ready", "done", "failed"))), "")
        finally:
            late.cancel()

    def kill(self) -> None:
        """Kill the driver, its JVM and all that they started, at once."""
        if self._process and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def limit_files(self, size: int) -> None:
        """Let no file of the JVM grow beyond so many bytes; RLIM_INFINITY lifts that."""
        for pid in self._java():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def kill_worker(self) -> None:
        """Kill the process that does Spark's work; Spark starts another."""
        for pid in self._java(b"CoarseGrainedExecutorBackend"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _java(self, runs: bytes = b"") -> list[int]:
        """The Java processes below this one, or those of them that run a class."""
        found = []
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                with suppress(OSError):
                    command, group = (process / "cmdline").read_bytes(), os.getpgid(int(process.name))
                    if group == self._process.pid and b"java" in command.split(b"\0")[0] and runs in command:
                        found.append(int(process.name))
        return found


def strike(victim: Victim, lake: Path, over: threading.Event, chance: random.Random, usual: float) -> list[str]:
    """Inject faults at random moments of a run that usually takes so many seconds, until it is over; returns their kinds."""
    struck = []
    while not over.wait(chance.uniform(0, usual)):
        kind = chance.choice(KINDS)
        struck.append(kind)
        if kind == "driver killed":
            victim.kill()
            break
        if kind == "worker killed":
            victim.kill_worker()
        elif kind == "disk full":
            victim.limit_files(chance.choice([0, 200, 2_000]))
            time.sleep(chance.uniform(0.2, 3))
            victim.limit_files(resource.RLIM_INFINITY)
        else:
            forbid(lake, True)
            time.sleep(chance.uniform(0.2, 3))
            forbid(lake, False)
    return struck


def recover(victim: Victim, after: str) -> None:
    """Let the run succeed, undisturbed; a try that fails is followed by one in a new process, as a scheduler would start it.
    What a full disk broke in Spark itself, such as the part of the driver that says where shuffled rows are, no later try
    within that process could mend.

    Raises:
        SystemExit: It does not.
    """
    for _ in range(TRIES):
        victim.tell("run")
        if (said := victim.answer()) == "done":
            return
        victim.kill()
    raise SystemExit(f"{after}: it does not recover: {said}")


def main() -> int:
    """Run all faults; returns 1 if the tables differ in the end."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--runs", type=int, default=100, help="how many runs are disturbed (default: 100)")
    options.add_argument("--minutes", type=float, default=float("inf"), help="begin no other run after so many (default: no end)")
    chosen = options.parse_args()
    enough, until = threading.Event(), time.monotonic() + 60 * chosen.minutes
    signal.signal(signal.SIGINT, lambda *_: enough.set())
    # Two of them, so that what is delivered does not hang on how many faults fit into a run.
    delivery, chance = random.Random(chosen.seed), random.Random(chosen.seed)
    faults, ends = Counter(), Counter()
    with tempfile.TemporaryDirectory(prefix="wares-faults-") as name, ThreadPoolExecutor(1) as aside:
        folder = Path(name)
        lake, source = folder / "disturbed" / "lake", declare(folder)
        victim, usual = Victim(lake.parent, source), {"run": 30.0, "maintain": 30.0}
        for forbidden in (True, False):  # fails here if this file system has no such flag
            forbid(folder, forbidden)
        delivered, end = 0, "done"
        for number in range(1, chosen.runs + 1):
            if enough.is_set() or time.monotonic() > until:
                break
            if end == "done":
                deliver(folder, delivered, delivery)
                delivered += 1
            # Upkeep needs a lake that is up to date, else its faults would often strike what comes before it.
            words = "maintain" if end == "done" and number % RECOVERED == 0 else "run"
            if words == "maintain":
                recover(victim, f"before run {number}, seed {chosen.seed}")
            victim.tell(words)
            started, over = time.monotonic(), threading.Event()
            striking = aside.submit(strike, victim, lake, over, chance, usual[words])
            end = victim.answer()
            over.set()
            struck = striking.result()
            if end == "done":
                usual[words] = 0.7 * usual[words] + 0.3 * (time.monotonic() - started)
            faults.update(struck)
            ends[end.partition(":")[0]] += 1
            print(f"  {number} of {chosen.runs}: {words}, {', '.join(struck) or 'not struck'}, {end}", flush=True)
            if end.startswith("failed") and not struck:
                victim.kill()  # as in `recover`
            if number % RECOVERED == 0:
                recover(victim, f"run {number}, seed {chosen.seed}")
                end = "done"
        undisturbed = Victim(folder / "undisturbed", source)
        shown = []
        for each, lake in ((undisturbed, "undisturbed"), (victim, "disturbed")):
            for words in ("run", f"show {folder / lake}.txt"):
                each.tell(words)
                if (said := each.answer()) != "done":
                    raise SystemExit(f"{lake}: {said}")
            each.kill()
            shown.append(json.loads((folder / f"{lake}.txt").read_text(encoding="utf-8")))
        different = sorted(name for name in shown[0] if shown[0][name] != shown[1][name])
        rows = sum(map(len, shown[0].values()))
    print(f"{faults.total()} faults, seed {chosen.seed}: {_counted(faults)}; {ends.total()} runs: {_counted(ends)}")
    verdict = f"DIFFERENT in {', '.join(different)}" if different else "equal to the row"
    print(f"{len(shown[0])} tables, {rows:,} rows: {verdict}")
    return int(bool(different))


def _counted(things: Counter[str]) -> str:
    return ", ".join(f"{count} {thing}" for thing, count in sorted(things.items()))


if __name__ == "__main__":
    sys.exit(main())
