"""`image.json`: what was built, where, from what, and what came of running it."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from mltune_cli.errors import ExitCode
from mltune_cli.manifest import GitFacts

RECEIPT_FILE = "image.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineReceipt(_Frozen):
    """The engine that built."""

    version: str
    api_version: str
    platform: str
    storage_driver: str


class StepReceipt(_Frozen):
    """One step of the build, and how long it took; 0 or next to it where it was cached."""

    text: str
    seconds: float
    is_cached: bool


class RunReceipt(_Frozen):
    """The container that was run.

    Attributes:
        gpu: name of the GPU that computed in it; None without one.
        gpu_path: how the engine was asked for it.
    """

    command: list[str]
    exit_code: int
    seconds: float
    is_out_of_memory: bool
    is_timed_out: bool
    gpu: str | None
    gpu_path: Literal["cdi", "nvidia"] | None
    artifacts: list[str]


class FingerprintsReceipt(_Frozen):
    """What the run in the container came to: digests that other runs can be held against."""

    environment_class: str
    recipe_digest: str
    trained_digest: str | None
    last_loss: float | None


class ComparisonReceipt(_Frozen):
    """The container's run beside a run of the host.

    Attributes:
        verdict: `environment_changed` where the bits differ and so do the environment classes.
        differences: what differs, at most a few lines.
    """

    against: str
    verdict: Literal["same", "different", "environment_changed", "no_verdict"]
    reason: str | None
    differences: list[str]


class VerificationReceipt(_Frozen):
    """Two builds from nothing, compared.

    Attributes:
        method: `image_digest` compares the whole images' digests; `contents` compares packages and
            files, for the classic builder stamps its images with the time.
    """

    method: Literal["image_digest", "contents"]
    is_identical: bool
    digests: tuple[str, str]
    differences: list[str]


class ImageReceipt(_Frozen):
    """What `build-image` did.

    Attributes:
        image_id: of the image's configuration, `sha256:...`.
        repo_digests: under which registries know it; empty until it was pushed.
        base: the base as it was named; `base_id` is the image it was, `base_digest` its digest in
            a registry, if it came from one.
        context_digest: of every file that was sent to the builder.
        lock: the lock file's name; `lock_digest` of its bytes.
        packages: what is installed in the image, name to version.
        reason: why there is no verdict.
    """

    schema_name: Literal["mltune.image/1"] = "mltune.image/1"
    mltune: str
    tag: str
    variant: Literal["cpu", "gpu"]
    image_id: str
    repo_digests: list[str]
    size_bytes: int
    base: str
    base_id: str | None
    base_digest: str | None
    context_digest: str
    lock: str
    lock_digest: str
    builder: Literal["sdk", "buildx"]
    engine: EngineReceipt
    git: GitFacts | None
    build_seconds: float
    steps: list[StepReceipt]
    packages: dict[str, str]
    run: RunReceipt | None = None
    fingerprints: FingerprintsReceipt | None = None
    comparison: ComparisonReceipt | None = None
    verification: VerificationReceipt | None = None
    reason: str | None = None
    exit_code: ExitCode = ExitCode.OK

    def write(self, folder: Path) -> Path:
        """Write `image.json` into a folder, whole or not at all; return its path."""
        target = folder / RECEIPT_FILE
        draft = target.with_suffix(".json.part")
        draft.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        draft.replace(target)
        return target
