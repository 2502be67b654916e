"""Checkpoints: all that a training needs to go on after its processes were killed, in one file that is whole or not there."""

from __future__ import annotations

import io
import json
import os
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from pyarrow import fs

from wares.model.plan import PROGRESS
from wares.model.reader import place
from wares.settings import Settings


class Variable(Protocol):
    """What a checkpoint needs of a Keras variable."""

    path: str
    shape: tuple[int, ...]

    def numpy(self) -> np.ndarray: ...

    def assign(self, value: np.ndarray) -> Any: ...


@dataclass
class Progress:
    """How far a training has come.

    Args:
        steps: How many steps have been taken, of all stages. It also tells which batches come next.
        epochs: What was measured after each epoch.
        measured: The weights that have not seen the validation days, by name, once they are there.
        of: How many steps an epoch of the first stage has, and how many the second stage has in all.
    """

    steps: int = 0
    epochs: list[dict[str, float]] = field(default_factory=list)
    measured: Mapping[str, np.ndarray] = field(default_factory=dict)
    of: tuple[int, int] = (0, 0)

    def share_out_anew(self, of: tuple[int, int], epochs: int) -> None:
        """Stand at the same part of a training that now has other numbers of steps; whole epochs stay whole."""
        within = min(self.steps, epochs * self.of[0])
        self.steps = within * of[0] // max(self.of[0], 1) + (self.steps - within) * of[1] // max(self.of[1], 1)
        self.of = of


class Checkpoints:
    """Writes and reads the checkpoint of one training. Only one rank needs to: all have the same weights.

    Args:
        file: Path or URI of the checkpoint; None for a training, or a rank, that keeps none.
        minutes: How much time passes between two that `write_if_due` writes.
        state: The variables that training moves: weights and what the optimisers remember.
        rows: How many rows there are: of each rank, or, where ranks come and go, of all. With the names and shapes of `state`
            it must be what it was, or the checkpoint is of another training.
    """

    def __init__(self, file: str | None, minutes: float, state: Sequence[Variable], rows: Sequence[list[int]]) -> None:
        self._file, self._seconds, self._state = file, minutes * 60, state
        self._layout = json.dumps({"rows": rows, "state": [[variable.path, list(variable.shape)] for variable in state]})
        self._written = time.monotonic()

    def restore(self) -> Progress:
        """Put the state back as the checkpoint has it; where there is none that fits, nothing changes and all is to be done."""
        filesystem, path = place(self._file) if self._file else (None, "")
        if filesystem is None or filesystem.get_file_info(path).type == fs.FileType.NotFound:
            return Progress()
        try:
            with filesystem.open_input_file(path) as file, np.load(io.BytesIO(file.read())) as stored:
                arrays = dict(stored)
            told = json.loads(str(arrays.pop("told")))
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
            told = {}
        if told.get("layout") != self._layout:
            print(f"{PROGRESS}starting anew: the checkpoint that is there is damaged or of other rows or weights", flush=True)
            return Progress()
        for number, variable in enumerate(self._state):
            variable.assign(arrays.pop(str(number)))
        return Progress(told["steps"], told["epochs"], arrays, tuple(told["of"]))

    def write(self, progress: Progress) -> None:
        """Write a checkpoint; the one before stays until this one is whole. If it cannot be written, training goes on."""
        if self._file is None:
            return
        told = json.dumps({"layout": self._layout, "steps": progress.steps, "of": progress.of, "epochs": progress.epochs})
        state = {str(number): variable.numpy() for number, variable in enumerate(self._state)}
        content = io.BytesIO()
        np.savez(content, told=told, **state, **progress.measured)
        filesystem, path = place(self._file)
        beside = f"{path}.{os.getpid()}"
        try:
            filesystem.create_dir(os.path.dirname(path), recursive=True)
            with filesystem.open_output_stream(beside) as file:
                file.write(content.getbuffer())
            filesystem.move(beside, path)
        except OSError as error:
            print(f"{PROGRESS}no checkpoint could be written: {error.strerror or type(error).__name__}", flush=True)
        self._written = time.monotonic()

    def write_if_due(self, progress: Progress) -> None:
        """Write a checkpoint if the last one was written long enough ago."""
        if time.monotonic() - self._written >= self._seconds:
            self.write(progress)


def checkpoint_file(settings: Settings, source: str, fingerprint: str) -> str:
    """Where the training with this fingerprint keeps its checkpoint: in the lake, which all ranks' machines see."""
    return f"{_folder(settings, source)}/{fingerprint}.npz"


def remove_checkpoints(settings: Settings, source: str) -> None:
    """Remove the checkpoints of a source, also those of trainings with other settings or rows that were never ended."""
    filesystem, path = place(_folder(settings, source))
    if filesystem.get_file_info(path).type != fs.FileType.NotFound:
        filesystem.delete_dir(path)


def _folder(settings: Settings, source: str) -> str:
    root = settings.lake.root.rstrip("/")
    return f"{root if ':/' in root else os.path.abspath(root)}/checkpoints/{source}"
