"""What the ranks of a training run are told, as a file, so that they need nothing of the process that starts them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from wares.errors import ModelError
from wares.model.spec import Spec
from wares.settings import Train

PROGRESS = "[wares] "
"""How a rank's lines for the terminal begin; all else that it prints is kept for the case that it dies."""

MEASURED, LAST = "measured.npz", "weights.npz"
"""The weights that have not seen the validation days, by which models are compared, and those that have, which score users."""

EPOCHS = "epochs.json"
"""What was measured after each epoch so far."""


@dataclass(frozen=True)
class Plan:
    """What a rank is told.

    Args:
        files: Of each table that ranks read (see reader.py) the Parquet files of its pinned version.
        source: The source to train on.
        spec: The feature spec.
        train: The settings.
        folder: Where `encoding.json` lies, and where rank 0 leaves `model.keras`, `weights.npz`, `measured.npz`, `epochs.json`.
        checkpoint: Path or URI of the file from which training goes on if it was killed; None for training that keeps none.
        only_measured: End before the second stage, which learns the validation days too.
    """

    files: dict[str, list[str]]
    source: str
    spec: Spec
    train: Train
    folder: Path
    checkpoint: str | None = None
    only_measured: bool = False

    def save(self) -> Path:
        path = self.folder / "plan.json"
        plan = {
            "files": self.files,
            "source": self.source,
            "spec": self.spec.model_dump(mode="json", by_alias=True),
            "train": self.train.model_dump(),
            "checkpoint": self.checkpoint,
            "only_measured": self.only_measured,
        }
        path.write_text(json.dumps(plan), encoding="utf-8")
        return path

    @staticmethod
    def load(path: Path) -> Plan:
        plan = json.loads(path.read_text(encoding="utf-8"))
        spec, train = Spec.model_validate(plan["spec"]), Train.model_validate(plan["train"])
        return Plan(plan["files"], plan["source"], spec, train, path.parent, plan["checkpoint"], plan["only_measured"])

    def epochs(self) -> list[dict[str, float]]:
        """What the training has measured so far, an epoch each: the part of the first stage that it ended, loss,
        validation_loss, samples_per_second, seconds."""
        file = self.folder / EPOCHS
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []


def refusal(folder: Path) -> ModelError | None:
    """What a rank of the plan in this folder said when it refused to go on; None if none has."""
    for file in sorted(folder.glob("error-*.json")):
        return ModelError(**json.loads(file.read_text(encoding="utf-8")))
    return None
