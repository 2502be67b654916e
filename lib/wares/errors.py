"""The errors that Wares raises on purpose: each says what is wrong, what was found, and what to do."""


class WaresError(Exception):
    """A mistake that a person can mend; jobs print it without a stack trace and exit with 1.

    Args:
        wrong: What is wrong, in one sentence.
        found: What was found, with names and numbers (never a value above INTERNAL).
        do: What to do about it.
    """

    def __init__(self, wrong: str, *, found: str = "", do: str = "") -> None:
        self.wrong, self.found, self.do = wrong, found, do
        super().__init__("\n".join(line for line in (wrong, found and f"  found: {found}", do and f"  do:    {do}") if line))


class SeveralErrors(WaresError):
    """What went wrong with several tables, each by itself."""

    def __init__(self, errors: list[WaresError]) -> None:
        super().__init__("\n".join(map(str, errors)))
        self.errors = errors


class SettingsError(WaresError):
    """A setting, a source file or the pipeline file says something that Wares cannot follow."""


class SourceError(WaresError):
    """A raw file is not what its source's YAML declares."""


class ShapeError(WaresError):
    """A table's columns, types or keys are not what its file declares."""


class FlowError(WaresError):
    """A value would flow into a column that more people may read than the column it came from."""


class LineageError(WaresError):
    """The plan has a part whose origin cannot be told, so the write is refused."""


class CutError(WaresError):
    """A table cannot follow its inputs by the keys that its file declares."""


class QualityError(WaresError):
    """More rows were rejected than the table allows."""


class ConflictError(WaresError):
    """Another run wrote the same table at the same time."""


class StorageError(WaresError):
    """The files of a table cannot be read or written."""


class ModelError(WaresError):
    """The model, its features or its data do not fit together."""


class RankError(ModelError):
    """A training rank died; trying again goes on from the last checkpoint."""
