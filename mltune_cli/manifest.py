"""`manifest.json`: what a run was made from, what it ran on, and what it may claim."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mltune_cli.digests import json_digest
from mltune_cli.errors import UsageError

MANIFEST_FILE = "manifest.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EnvironmentFacts(_Frozen):
    """What may change bits besides recipe, model and data."""

    python: str
    platform: str
    packages: dict[str, str]
    torch_build: str
    cuda: str | None
    processor: str
    instruction_set: str
    gpu: str | None
    driver: str | None
    settings: dict[str, str | int | bool]
    variables: dict[str, str]

    def deciding(self) -> dict[str, Any]:
        """Return what two environments must share for equal bits."""
        return {
            "torch": self.torch_build,
            "packages": self.packages,
            "instruction_set": self.instruction_set,
            "processor": self.processor,
            "gpu": self.gpu,
            "driver": self.driver,
            "settings": self.settings,
        }

    def environment_class(self) -> str:
        """Return the digest of what two environments must share for equal bits."""
        return json_digest(self.deciding())


class ModelFacts(_Frozen):
    """The base model, identified by content."""

    name: str
    revision: str | None
    digest: str
    tokenizer_digest: str
    parameters: int
    trained_parameters: int
    initial_adapter_digest: str


class DataFacts(_Frozen):
    """A data set, identified by content, and what tokenising it found."""

    name: str
    digest: str
    rows_by_format: dict[str, int]
    rows: int
    cut_rows: int
    rows_without_targets: int
    tokens: int
    target_tokens: int


class Claim(_Frozen):
    """A property that this run's bits have, or that is refused, with the reason."""

    name: str
    holds: bool
    reason: str


class RunResult(_Frozen):
    """How a run ended."""

    status: Literal["running", "finished", "failed", "interrupted"]
    steps: int
    last_loss: float | None = None
    trained_digest: str | None = None


class GitFacts(_Frozen):
    """The commit of the folder that the command was started in."""

    commit: str
    dirty: bool


class Manifest(_Frozen):
    """A run's manifest.

    Attributes:
        environment: of the last steps; `environment_classes` are those of all steps, more than
            one where a run was gone on with elsewhere.
        processes: that took the last steps; `process_counts` are those of all steps, more than one
            where processes were lost or joined, none where an earlier mltune did not write it.
    """

    schema_name: Literal["mltune.manifest/1"] = "mltune.manifest/1"
    mltune: str
    recipe_name: str
    recipe: dict[str, Any]
    origins: dict[str, str]
    recipe_digest: str
    model: ModelFacts
    train_data: DataFacts
    validation_data: DataFacts | None
    environment: EnvironmentFacts
    environment_class: str
    environment_classes: list[str]
    processes: int
    process_counts: list[int] = Field(default_factory=list)
    git: GitFacts | None
    image_digest: str | None
    claims: list[Claim]
    result: RunResult

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into a run folder, whole or not at all."""
        target = folder / MANIFEST_FILE
        draft = target.with_suffix(".json.part")
        draft.write_text(json.dumps(self.model_dump(), indent=2) + "\n", encoding="utf-8")
        draft.replace(target)


def read_manifest(folder: Path) -> Manifest:
    """Read a run folder's manifest.

    Raises:
        UsageError: the folder is not a run, or its manifest is damaged.
    """
    path = folder / MANIFEST_FILE
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{folder}: is not a run: it holds no {MANIFEST_FILE}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    except ValidationError as error:
        details = error.errors()[0]
        where = ".".join(map(str, details["loc"])) or "the file"
        raise UsageError(f"{path}: is damaged: {where}: {details['msg']}") from None
