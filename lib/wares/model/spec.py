"""The feature spec: what the model sees, each feature once, read from one YAML file."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from wares.settings import Declared, read_yaml, validate

Part = Literal["user", "product", "pair", "type", "affinity"]
"""Which feature table a feature comes from: of the user, the product, the user and the product, the user and the type, and
of how well the product goes with what the user bought."""

PARTS: tuple[Part, ...] = ("user", "product", "pair", "type", "affinity")

Name = Annotated[str, Field(pattern=r"^[a-z][a-z_0-9]*$")]
"""Of a feature: it names layers of the network."""


class _Stored(Declared):
    """A feature that stands in a column of a feature table."""

    name: Name
    origin: str = Field(alias="from", pattern=r"^(user|product|pair|type|affinity)\.[a-z_0-9]+$")
    side: Literal["wide", "deep", "both"]

    @property
    def part(self) -> Part:
        return self.origin.partition(".")[0]  # type: ignore[return-value]

    @property
    def source_column(self) -> str:
        """The column in the part's feature table."""
        return self.origin.partition(".")[2]

    @property
    def column(self) -> str:
        """The column where those of all parts stand side by side."""
        return "product_id" if self.origin == "product.product_id" else self.origin.replace(".", "_", 1)

    @property
    def is_wide(self) -> bool:
        return self.side != "deep"

    @property
    def is_deep(self) -> bool:
        return self.side != "wide"


class Categorical(_Stored):
    """One of many values: the most frequent ones have a number, all others share one."""

    kind: Literal["categorical"]
    vocabulary: int = Field(ge=1)
    min_count: int = Field(1, ge=1)
    embedding: int = Field(ge=1)


class Numeric(_Stored):
    """A number, standardised; null becomes the mean."""

    kind: Literal["numeric"]
    scale: Literal["log", "plain"] = "plain"

    @property
    def length(self) -> int:
        return 1


class Vector(_Stored):
    """An array of numbers, of fixed length, each place standardised for itself."""

    kind: Literal["vector"]
    scale: Literal["log", "plain"] = "plain"
    length: int = Field(ge=1)


class Sequence(_Stored):
    """An array of values that are numbered and embedded like another, categorical feature; the embeddings are averaged."""

    kind: Literal["sequence"]
    side: Literal["deep"]
    like: str
    length: int = Field(ge=1)


class Cross(Declared):
    """Each value that the user has with what is offered: one weight for each bucket that the two are hashed into."""

    name: Name
    kind: Literal["cross"]
    side: Literal["wide"]
    of: tuple[str, str]
    buckets: int = Field(ge=2, le=2**27, description="More would not fit beside the other weights: four bytes each, three times.")


Feature = Annotated[Categorical | Numeric | Vector | Sequence | Cross, Field(discriminator="kind")]


class Network(Declared):
    """The deep side's shape."""

    hidden: tuple[PositiveInt, PositiveInt]
    match: int = Field(0, ge=0)


class Spec(Declared):
    """All features and the shape of the network."""

    network: Network
    features: tuple[Feature, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> Spec:
        names = [feature.name for feature in self.features]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"features named twice: {', '.join(twice)}")
        for feature in self.features:
            if isinstance(feature, Sequence) and not isinstance(self.by_name.get(feature.like), Categorical):
                raise ValueError(f"{feature.name} is like '{feature.like}', which is no categorical feature")
            if isinstance(feature, (Categorical, Sequence)) and feature.part not in ("user", "product"):
                raise ValueError(f"{feature.name} is {feature.kind}, but only user and product columns may be")
            if isinstance(feature, Sequence) and feature.part != "user":
                raise ValueError(f"{feature.name} is a sequence of the {feature.part}; only users have sequences")
            if isinstance(feature, Cross):
                has, offered = (self.by_name.get(name) for name in feature.of)
                if not (isinstance(has, (Sequence, Categorical)) and has.part == "user"):
                    raise ValueError(f"{feature.name} crosses '{feature.of[0]}', which is no sequence or category of the user")
                if not (isinstance(offered, Categorical) and offered.part == "product"):
                    raise ValueError(f"{feature.name} crosses with '{feature.of[1]}', which is no category of the product")
        return self

    @cached_property
    def by_name(self) -> dict[str, Categorical | Numeric | Vector | Sequence | Cross]:
        return {feature.name: feature for feature in self.features}

    @property
    def stored(self) -> list[Categorical | Numeric | Vector | Sequence]:
        """The features that stand in a column."""
        return [feature for feature in self.features if not isinstance(feature, Cross)]

    @property
    def crosses(self) -> list[Cross]:
        return [feature for feature in self.features if isinstance(feature, Cross)]

    def ids(self, part: Part) -> list[Categorical | Sequence]:
        """The part's features that are encoded as numbers of a vocabulary."""
        return [feature for feature in self.stored if feature.part == part and isinstance(feature, (Categorical, Sequence))]

    def numbers(self, part: Part) -> list[Numeric | Vector]:
        """The part's features that are numbers."""
        return [feature for feature in self.stored if feature.part == part and isinstance(feature, (Numeric, Vector))]

    def vocabulary_of(self, feature: Categorical | Sequence) -> str:
        """The name of the feature whose vocabulary encodes `feature`."""
        return feature.like if isinstance(feature, Sequence) else feature.name


def load_spec(path: str | Path) -> Spec:
    """Read the feature spec.

    Raises:
        SettingsError: A key is unknown, a value does not fit, or a feature names another that does not exist.
    """
    return validate(Spec, read_yaml(path), str(path))
