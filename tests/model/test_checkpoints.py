"""What a checkpoint gives back, and when it is not taken."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from wares.model.checkpoints import Checkpoints, Progress, checkpoint_file, remove_checkpoints
from wares.settings import Settings

ROWS = [[7, 6], [3, 3]]


def variables(*values: float) -> list[keras.Variable]:
    return [keras.Variable(np.full((2, 3), value, np.float32), name=f"v{place}") for place, value in enumerate(values)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A checkpoint after 5 steps, in a folder that was not there before."""
    file = tmp_path / "checkpoints" / "shop" / "abc.npz"
    progress = Progress(5, [{"loss": 0.5}], {"deep/kernel": np.array([1.5, 2.5])}, (4, 2))
    Checkpoints(str(file), 1, variables(3, 4), ROWS).write(progress)
    return file


def test_all_comes_back(file: Path) -> None:
    state = variables(0, 0)
    found = Checkpoints(str(file), 1, state, ROWS).restore()
    assert (found.steps, found.epochs, found.of) == (5, [{"loss": 0.5}], (4, 2))
    assert {name: weights.tolist() for name, weights in found.measured.items()} == {"deep/kernel": [1.5, 2.5]}
    assert [variable.numpy().mean() for variable in state] == [3, 4]
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("done", "of", "then"),
    [
        (0, (5, 2), 0),
        (25, (5, 2), 12),  # half of the third epoch
        (29, (5, 2), 14),  # a part of an epoch stays one
        (30, (5, 2), 15),
        (30, (23, 9), 69),
        (32, (5, 2), 16),  # half of the second stage
        (34, (5, 2), 17),
        (32, (5, 0), 15),
    ],
)
def test_other_ranks_go_on_at_the_same_part(done: int, of: tuple[int, int], then: int) -> None:
    progress = Progress(done, of=(10, 4))
    progress.share_out_anew(of, 3)
    assert (progress.steps, progress.of) == (then, of)


def test_a_training_that_is_new_begins_with_the_first_step() -> None:
    progress = Progress()
    progress.share_out_anew((5, 2), 3)
    assert progress == Progress(of=(5, 2))


@pytest.mark.parametrize("change", ["rows", "weights", "damaged", "empty"])
def test_what_does_not_fit_is_not_taken(file: Path, change: str, capsys: pytest.CaptureFixture[str]) -> None:
    if change in ("damaged", "empty"):
        file.write_bytes(file.read_bytes()[: 100 if change == "damaged" else 0])
    state = variables(1, 2, 3) if change == "weights" else variables(1, 2)
    found = Checkpoints(str(file), 1, state, [[7, 7], [3, 3]] if change == "rows" else ROWS).restore()
    assert (found, [variable.numpy().mean() for variable in state][:2]) == (Progress(), [1, 2])
    assert "starting anew" in capsys.readouterr().out


def test_it_is_written_when_it_is_due(file: Path) -> None:
    for minutes, steps in ((60, 5), (0, 6)):
        checkpoints = Checkpoints(str(file), minutes, variables(3, 4), ROWS)
        checkpoints.write_if_due(Progress(6))
        assert checkpoints.restore().steps == steps


def test_training_goes_on_without_what_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").touch()
    Checkpoints(str(tmp_path / "full" / "abc.npz"), 1, variables(3), ROWS).write(Progress(5))
    assert "no checkpoint could be written" in capsys.readouterr().out


def test_all_checkpoints_of_a_source_are_removed(tmp_path: Path) -> None:
    settings = Settings.model_validate({"lake": {"root": str(tmp_path / "lake")}})
    remove_checkpoints(settings, "shop")  # there is none yet
    files = {
        name: Path(checkpoint_file(settings, source, name)) for source, name in (("shop", "a"), ("shop", "b"), ("other", "c"))
    }
    for path in files.values():
        Checkpoints(str(path), 1, variables(3), ROWS).write(Progress(5))
    remove_checkpoints(settings, "shop")
    assert {name: path.exists() for name, path in files.items()} == {"a": False, "b": False, "c": True}
