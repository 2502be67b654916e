"""Settings: typed, frozen, read from one YAML file; an unknown key is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from wares.errors import SettingsError

PROJECT = Path(__file__).resolve().parents[2]
"""The checkout (or the unpacked archive) that holds `conf/` and `lib/`."""


Model = TypeVar("Model", bound=BaseModel)


class Declared(BaseModel):
    """What a YAML file declares: it does not change, and a key that nobody knows is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Lake(Declared):
    """Where the tables live."""

    root: str = Field("lake", description="Folder or URI that holds the layers; relative to the working directory.")
    catalog: str | None = Field(None, description="Unity or Hive catalogue: tables are then catalog.layer.name.")
    retention_days: int = Field(30, ge=7, description="How long Delta keeps old files and log entries.")
    secret: SecretStr | None = Field(
        None, description="Where the key for pseudonyms is: env:NAME or file:PATH. Shown nowhere, in case it is the key itself."
    )

    @field_validator("secret")
    @classmethod
    def _is_place(cls, secret: SecretStr | None) -> SecretStr | None:
        kind, _, place = secret.get_secret_value().partition(":") if secret else ("env", "", "NONE")
        if kind not in ("env", "file") or not place:
            raise ValueError("must name a place, env:NAME or file:PATH, and not be the key itself")
        return secret


class Spark(Declared):
    """How the session is started where the platform has not started one."""

    master: str = "local[2]"
    driver_memory: str = "4g"
    shuffle_partitions: int = Field(4, ge=1)
    conf: dict[str, str] = Field(default_factory=dict, description="More Spark settings, passed on as they are.")


class Train(Declared):
    """The training run."""

    launcher: Literal["local", "horovodrun", "spark"] = "horovodrun"
    ranks: int = Field(2, ge=1, description="Horovod processes; `local` always runs one.")
    hosts: str | None = Field(
        None, description="A script that prints HOST:RANKS lines, asked each second: ranks then join and leave a training."
    )
    min_ranks: int = Field(1, ge=1, description="With `hosts`: with fewer ranks the training waits for more.")
    min_steps: int = Field(
        1000, ge=1, description="Batches that all ranks together take at least, however few rows there are, in each stage."
    )
    epochs: int = Field(1, ge=1, description="At least; more where they would be too few steps.")
    batch_size: int = Field(
        1024, ge=1, description="Rows in each rank's batch, at most; fewer where there would be too few steps."
    )
    learning_rate: float = Field(8e-3, gt=0, description="Of the deep side's AdamW.")
    ftrl_learning_rate: float = Field(0.003, gt=0, description="Of the wide side's FTRL.")
    precision: Literal["float32", "mixed_bfloat16"] = Field(
        "float32", description="What is computed in; weights, the wide side and the loss are always float32."
    )
    xla: bool = Field(False, description="Compile the loss and its gradients by XLA.")
    nccl: bool = Field(False, description="Average gradients from GPU to GPU, one for each rank; Horovod must be built for it.")
    seed: int = 7
    checkpoint_minutes: float = Field(1, ge=0, description="How often a long epoch leaves a checkpoint; each epoch's end does.")

    @model_validator(mode="after")
    def _can_be_elastic(self) -> Train:
        if self.hosts and self.launcher != "horovodrun":
            raise ValueError("only the launcher horovodrun can ask hosts for ranks")
        if self.hosts and self.min_ranks > self.ranks:
            raise ValueError("min_ranks is above ranks, with which training begins")
        return self


class Score(Declared):
    """The batch scoring run."""

    top_k: int = Field(10, ge=1)
    exclude_seen: bool = Field(False, description="Leave out what the user has bought before.")
    candidates: Literal["all", "history"] = Field(
        "all", description="Rank the whole catalogue, or only what was bought before, its neighbours, and what is popular."
    )


class Mlflow(Declared):
    """Where runs and models are kept."""

    tracking_uri: str | None = Field(None, description="An SQLite file beside the lake where none is given.")
    experiment: str = "wares"


class Settings(Declared):
    """Everything that a job may be told."""

    sources: tuple[str, ...] = Field(("completejourney",), description="Names in conf/sources, or paths of YAML files.")
    features: str = Field("conf/wide_deep.yaml", description="The feature spec.")
    lake: Lake = Lake()
    spark: Spark = Spark()
    train: Train = Train()
    score: Score = Score()
    mlflow: Mlflow = Mlflow()


def load_settings(path: str | Path = "conf/local.yaml", overrides: list[str] | None = None) -> Settings:
    """Read settings from a YAML file and apply `KEY=VALUE` overrides such as `train.epochs=5`.

    Raises:
        SettingsError: The file is missing or no YAML, or a key or a value is not one that Wares knows.
    """
    data = read_yaml(path)
    for override in overrides or []:
        key, equals, value = override.partition("=")
        if not equals:
            raise SettingsError(
                "An override has no value.",
                found=f"--set {override}",
                do="write --set KEY=VALUE, such as --set lake.root=/data/lake",
            )
        place = data
        *parents, last = key.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise SettingsError(
                    "An override names a key inside a value.",
                    found=f"--set {override}",
                    do=f"'{parent}' holds a value, not a group of settings",
                )
        place[last] = yaml.safe_load(value)
    return validate(Settings, data, f"{path} with --set" if overrides else str(path))


def find_file(path: str | Path) -> Path:
    """A file given relative to the working directory or, failing that, to the project."""
    given = Path(path)
    return given if given.is_absolute() or given.exists() else PROJECT / given


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        SettingsError: The file is missing, is no YAML, or holds no mapping.
    """
    file = find_file(path)
    try:
        data = yaml.load(file.read_text(encoding="utf-8"), _Loader) or {}
    except OSError as error:
        raise SettingsError(
            f"The file {path} cannot be read.",
            found=error.strerror or str(error),
            do="check the path; it is looked up from the working directory, then from the project",
        ) from None
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"The file {path} is not in UTF-8.",
            found=f"the byte at {error.start} is {error.object[error.start]:#x}",
            do="save it as UTF-8",
        ) from None
    except yaml.YAMLError as error:
        raise SettingsError(
            f"The file {path} is not valid YAML.", found=" ".join(str(error).split()), do="mend the line that is named"
        ) from None
    if not isinstance(data, dict):
        raise SettingsError(f"The file {path} holds no settings.", found=f"a {type(data).__name__}", do="write KEY: VALUE lines")
    return data


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once: of two, the first would vanish without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key '{key.value}' stands twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def validate(model: type[Model], data: dict[str, Any], path: str) -> Model:
    """Check `data` against a pydantic model.

    Raises:
        SettingsError: One line for each key or value that does not fit, and the keys that would.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            silent = problem["type"] in ("missing", "extra_forbidden") or key.endswith("secret")
            silent |= isinstance(problem["input"], (dict, list))  # a whole group of keys would bury what is wrong with it
            found = "" if silent else f" (found {problem['input']!r})"
            said = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"].removeprefix("Value error, ")
            lines.append(": ".join(filter(None, (key, f"{said}{found}"))))
        raise SettingsError(
            f"{path} does not fit.",
            found="; ".join(lines),
            do="see the settings in README.md" if model is Settings else "compare it with the files of its kind in conf/",
        ) from None
