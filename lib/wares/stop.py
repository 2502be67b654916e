"""Stopping: what a signal does to a job, and how the Spark jobs that it has running are cancelled, and no others."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from types import FrameType
from uuid import uuid4

from pyspark import SparkContext

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that stop a job: Ctrl-C, what a scheduler or `kill` sends, and a terminal that is closed."""

STOPPING = "stopping ..."
STOPPED = "stopped; nothing half-written is visible, and the job can be run again at any time"
"""What is said as soon as a signal has come, and when the job has ended by it."""

EVERY = 0.3
"""Seconds between two tries to stop."""

_WORK = f"wares-{uuid4().hex}"
"""The tag of the Spark jobs of this process, which may share a Spark application with others."""

_stopping = threading.Event()


def mark_work(context: SparkContext) -> None:
    """Let the Spark jobs that this thread starts from now on be cancelled by `cancel_work`."""
    context.addJobTag(_WORK)


def unmark_work(context: SparkContext) -> None:
    """Let the Spark jobs that this thread starts from now on come to their end."""
    context.removeJobTag(_WORK)


def cancel_work(context: SparkContext) -> None:
    """Cancel the marked Spark jobs of this process that are running."""
    context.cancelJobsWithTag(_WORK)


def is_stopping() -> bool:
    """Whether a signal has come."""
    return _stopping.is_set()


class Stop:
    """Answers signals: says so at once, cancels Spark's work, and raises KeyboardInterrupt in the main thread once.

    Not in the middle of a call of the JVM: its answer would be taken for that of the next call, with which the job cleans up.
    Such a call ends soon, because the Spark job that it waits for is cancelled; until then it is tried again.

    Args:
        quiet: Whether somebody else says that the job is stopping.
        debug: Whether what libraries log of calls that are given up is shown.

    Attributes:
        number: The signal that came; None if none has.
    """

    def __init__(self, quiet: bool, debug: bool) -> None:
        self.number: int | None = None
        self._quiet, self._debug, self._raised = quiet, debug, False

    def listen(self) -> None:
        """Answer the signals from now on, if this is the main thread, which alone gets them."""
        if threading.current_thread() is threading.main_thread():
            _stopping.clear()
            for number in SIGNALS:
                signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number = number
            _stopping.set()
            if not self._debug:
                logging.disable()
            if not self._quiet:
                print(STOPPING, file=sys.stderr, flush=True)
            threading.Thread(target=self._press, daemon=True).start()
        if not self._raised and not _calls_the_jvm(frame):
            self._raised = True
            raise KeyboardInterrupt

    def _press(self) -> None:
        """Cancel Spark's work as long as the process lives: what was between two Spark jobs starts the next one."""
        while _stopping.is_set():
            context = SparkContext._active_spark_context
            if context is not None:
                try:
                    cancel_work(context)
                except Exception:  # the session has ended meanwhile
                    return
            if not self._raised:
                os.kill(os.getpid(), self.number or signal.SIGINT)
            time.sleep(EVERY)


def _calls_the_jvm(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("py4j."):
            return True
        frame = frame.f_back
    return False
