"""What Spark, Delta and the file system say when a table cannot be read or written, told as one error of Wares."""

from __future__ import annotations

import errno
import getpass
import re
from collections.abc import Callable, Iterator
from functools import wraps
from traceback import extract_tb
from typing import Concatenate, ParamSpec, TypeVar

from py4j.java_gateway import JavaObject, is_instance_of
from py4j.protocol import Py4JError
from pyspark import SparkContext
from pyspark.errors import PySparkException, PythonException

from wares.errors import QualityError, StorageError, WaresError

FULL = re.compile(r"No space left on device|File too large|Disk quota exceeded")
FULL_NUMBERS = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
FORBIDDEN = re.compile(
    "Operation not permitted|Permission denied|AccessDenied|AccessControlException|Mkdirs failed|DELTA_CANNOT_CREATE_LOG_PATH"
)
MISSING = re.compile(
    r"FileNotFoundException|FILE_NOT_EXIST|VERSIONS_NOT_CONTIGUOUS|TRUNCATED_TRANSACTION_LOG|LOG_FILE_NOT_FOUND|STATE_RECOVER_ERROR"
)
FILE = re.compile(r"[^\s'\"\[\]]+\.(?:parquet|json|crc)\b")
PYTHON = "org.apache.spark.api.python.PythonException"
DATA_EXCEPTION = "22"
"""Begins the SQLSTATE of an expression that cannot be computed for some row."""

Self, Result, More = TypeVar("Self"), TypeVar("Result"), ParamSpec("More")


def told_plainly(
    method: Callable[Concatenate[Self, str, More], Result],
) -> Callable[Concatenate[Self, str, More], Result]:
    """Let a method whose first argument names a table say in an error of Wares what Spark and Delta say in theirs."""

    @wraps(method)
    def told(self: Self, name: str, *args: More.args, **kwargs: More.kwargs) -> Result:
        try:
            return method(self, name, *args, **kwargs)
        except (PySparkException, Py4JError) as error:
            raise plain(error, name) or error from None

    return told


def plain(error: Exception, name: str) -> WaresError | None:
    """The error to show in the place of one that was not expected; None if there is nothing better to say.

    Of the messages only names of files are taken, and the text of an expression: they may hold values of rows.

    Args:
        error: What was raised.
        name: The table that was written.
    """
    causes = list(_causes(error))
    said = "\n".join(cause.toString() for cause in causes)
    for cause in causes:
        if _is(cause, "org.apache.spark.SparkThrowable") and (cause.getSqlState() or "").startswith(DATA_EXCEPTION):
            texts = [context.fragment() for context in cause.getQueryContext() if context.contextType().toString() == "SQL"]
            return QualityError(
                f"An expression of {name} throws for some row; nothing was written.",
                found=cause.getCondition() + (f" in: {texts[0]}" if texts else ", in build"),
                do="use its try_ form, such as try_divide or try_cast, in the checks and in build",
            )
    if FULL.search(said) or (isinstance(error, OSError) and error.errno in FULL_NUMBERS):
        return StorageError(
            f"The disk is full: {name} could not be written.",
            found=found[0] if (found := FULL.search(said)) else str(error.strerror),
            do="make room, also where Spark keeps its temporary files, and run the job again; nothing half-written is visible",
        )
    if forbidden := FORBIDDEN.search(said):
        return StorageError(
            f"The lake may not be written: {name} is as it was.",
            found=f"{forbidden[0]}, for {getpass.getuser()}",
            do="let the user that runs the job write below lake.root, and run the job again",
        )
    if MISSING.search(said):
        return StorageError(
            f"Files of a table are missing: {name} could not be refreshed.",
            found=found[0] if (found := FILE.search(said)) else MISSING.search(said)[0],
            do="put them back; or move that table away and run all jobs again, which makes it anew",
        )
    if isinstance(error, PythonException) or PYTHON in said:
        return QualityError(
            f"A Python function of {name} throws for some row; nothing was written.",
            found=_raised(str(error) if isinstance(error, PythonException) else said),
            do="let it return null for what it cannot compute, and run the job with --debug to see where it threw",
        )
    return None


def told_by(error: Exception, file: str) -> str:
    """What an error says that came of a table file, and which line of the file it came from."""
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == file]
    return f"{type(error).__name__}{f' in line {lines[-1]}' if lines else ''}: {first_line(error)}"


def first_line(error: Exception) -> str:
    """What an error says, less the plan and the stack trace that Spark puts below."""
    return (str(error).strip() or "no words").splitlines()[0]


def _raised(told: str) -> str:
    """The type of the exception whose Python stack trace was told last."""
    after = told.rpartition('\n  File "')[2].splitlines()[1:]
    return next((line.partition(":")[0] for line in after if line[:1].isalpha()), "an exception")


def _causes(error: Exception) -> Iterator[JavaObject]:
    """The Java exceptions behind an error, each after the one that it caused."""
    cause = getattr(error, "java_exception", None) or getattr(error, "_origin", None)
    while cause is not None:
        yield cause
        cause = cause.getCause()


def _is(java: JavaObject, name: str) -> bool:
    return is_instance_of(SparkContext._gateway, java, name)
