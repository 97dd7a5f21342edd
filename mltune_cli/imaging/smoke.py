"""The image's trial run: the smoke check, or a command of the user's, and what came out of it."""

import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mltune_cli.command_secrets import secrets_in, text_without, without_secrets
from mltune_cli.errors import ExitCode, NoVerdictError, UsageError
from mltune_cli.imaging.containers import ContainerEnd, RunRequest, failure_of, run_container
from mltune_cli.imaging.engine import Engine
from mltune_cli.imaging.gpu import GpuPath, device_request
from mltune_cli.imaging.receipt import FingerprintsReceipt, RunReceipt
from mltune_cli.manifest import MANIFEST_FILE, Manifest, read_manifest
from mltune_cli.reproduction.output_folder import REPORT_JSON
from mltune_cli.run_folder import ADAPTER, LAST_LOSS, MODEL, TRAINING_LOG

# Below the image's working directory: where a check writes if nobody says otherwise.
ARTIFACTS = "repro_output"
_CHECK = ("repro-check",)
# Each is there under one of its names: a recipe trains an adapter or the whole model.
_CHECK_ARTIFACTS = ((REPORT_JSON,), (TRAINING_LOG,), (LAST_LOSS,), (ADAPTER, MODEL))
_PROOF = ("python3", "-m", "mltune_cli.training.gpu_proof")
_PROOF_FILE = "gpu_proof.json"
_PACKAGES_COMMAND = ("python3", "-m", "pip", "list", "--format=json", "--disable-pip-version-check")
_SHORT_SECONDS = 300.0
_SCRATCH = "/mltune-scratch"
_SEARCH_DEPTH = 4
_SAID_LINES = 3


@dataclass(frozen=True)
class Trial:
    """What is tried in an image.

    Attributes:
        image: id of the image.
        command: program and arguments; empty for the image's own, which is the smoke check in
            mltune's image.
        artifacts: folder of this machine; what the command writes to `repro_output/` is there.
        gpu_path: how a GPU is asked for; None to run without one.
        has_network: whether it may use the network.
        memory_bytes: limit; None for none.
        seconds: limit; None for none.
    """

    image: str
    command: Sequence[str]
    artifacts: Path
    gpu_path: GpuPath | None
    has_network: bool
    memory_bytes: int | None
    seconds: float | None


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial ended.

    Attributes:
        exit_code: 0, 1 for runs that differ, 125 for no verdict.
        reason: why there is no verdict.
        run_folder: the training run that it left; None where it left none.
    """

    receipt: RunReceipt
    exit_code: ExitCode
    reason: str | None
    run_folder: Path | None
    fingerprints: FingerprintsReceipt | None


def try_image(engine: Engine, trial: Trial, on_output: Callable[[str], None]) -> TrialOutcome:
    """Run an image's own command, or another, and gather what it left.

    Args:
        engine: that runs it.
        trial: what is run.
        on_output: told each line that it prints.

    Raises:
        NoVerdictError: the container cannot be started, or has no GPU that computes.
    """
    config = engine.client.inspect_image(trial.image).get("Config") or {}
    command = tuple(trial.command) or tuple(config.get("Cmd") or ())
    entrypoint = tuple(config.get("Entrypoint") or ())
    if not command and not entrypoint:
        raise NoVerdictError(
            "the image has no command of its own; add a CMD to the Dockerfile, or pass -- COMMAND"
        )
    request = RunRequest(
        image=trial.image,
        command=command,
        artifacts=trial.artifacts,
        artifacts_at=str(PurePosixPath(config.get("WorkingDir") or "/") / ARTIFACTS),
        variables={"MLTUNE_IMAGE_DIGEST": trial.image},
        has_network=trial.has_network,
        memory_bytes=trial.memory_bytes,
        seconds=trial.seconds,
        device_requests=[] if trial.gpu_path is None else [device_request(trial.gpu_path)],
    )
    gpu = None if trial.gpu_path is None else _proven_gpu(engine, request)
    end = run_container(engine, request, on_output)
    run_folder = _run_folder(trial.artifacts)
    manifest = None if run_folder is None else _manifest(run_folder)
    # Any other entry point is taken for one that hands over to its arguments, as CUDA images' does.
    words = entrypoint + command if _is_mltune(entrypoint) else command
    reason = _what_failed(trial, words, end, manifest)
    negative = reason is None and end.exit_code == ExitCode.NEGATIVE
    receipt = RunReceipt(
        command=without_secrets(request.command),
        exit_code=end.exit_code,
        seconds=end.seconds,
        is_out_of_memory=end.is_out_of_memory,
        is_timed_out=end.is_timed_out,
        gpu=gpu,
        gpu_path=trial.gpu_path,
        artifacts=_artifacts(trial.artifacts),
    )
    code = ExitCode.NO_VERDICT if reason else ExitCode.NEGATIVE if negative else ExitCode.OK
    return TrialOutcome(receipt, code, reason, run_folder, _fingerprints(manifest))


def _proven_gpu(engine: Engine, request: RunRequest) -> str:
    """Return the name of the GPU that computed in a container like the one to be run.

    An entry point of the image's own would take the proof for its arguments.
    """
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mltune-") as scratch:
        proof = replace(
            request, entrypoint=_PROOF[:1], command=(*_PROOF[1:], f"{_SCRATCH}/{_PROOF_FILE}"),
            artifacts=Path(scratch), artifacts_at=_SCRATCH, seconds=_SHORT_SECONDS,
        )  # fmt: skip
        end = run_container(engine, proof, lines.append)
        try:
            found = json.loads(Path(scratch, _PROOF_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            said = lines[-1] if lines else f"it ended with {end.exit_code}"
            found = {"error": f"the proof could not be made: {said}"}
    if "gpu" in found:
        return str(found["gpu"])
    raise NoVerdictError(
        f"the container was given a GPU and does not compute on it: {found.get('error')}; check "
        "`nvidia-smi` on this machine and the CUDA build of torch in the image"
    )


def _what_failed(
    trial: Trial, words: tuple[str, ...], end: ContainerEnd, manifest: Manifest | None
) -> str | None:
    """Say why the trial has no verdict; None where it has one.

    Args:
        trial: what was tried.
        words: the program that ran and its arguments.
        end: of the container.
        manifest: of the training run that it left.
    """
    failure = failure_of(end, trial.seconds, trial.memory_bytes)
    if failure is not None:
        return failure
    is_ours = _is_mltune(words)
    if end.exit_code != 0 and not (is_ours and end.exit_code == ExitCode.NEGATIVE):
        said = text_without(secrets_in(words), " | ".join(end.last_lines[-_SAID_LINES:]))
        return f"the container's command ended with {end.exit_code}: {said}".rstrip(": ")
    if trial.gpu_path is not None and manifest is not None and manifest.environment.gpu is None:
        return "the training in the container ran on the CPU although it was given a GPU"
    is_check = is_ours and words[1:2] == _CHECK
    if is_check and not any(re.match(r"--output(=|$)", word) for word in words):
        missing = [
            names[0]
            for names in _CHECK_ARTIFACTS
            if not any((trial.artifacts / name).exists() for name in names)
        ]
        if missing:
            return f"the container ended without leaving {', '.join(missing)}"
    return None


def _is_mltune(words: Sequence[str]) -> bool:
    return bool(words) and PurePosixPath(words[0]).name == "mltune"


def _run_folder(artifacts: Path) -> Path | None:
    """Find the training run that a trial left: a check's first, else the first of all.

    A link out of the folder is none: the host's own run behind it would be compared with itself.
    """
    patterns = ("/".join(["*"] * depth + [MANIFEST_FILE]) for depth in range(_SEARCH_DEPTH))
    every = (path for pattern in patterns for path in sorted(artifacts.glob(pattern)))
    own = [path.parent for path in every if path.resolve().is_relative_to(artifacts.resolve())]
    first = artifacts / "run-1"
    return first if first in own else next(iter(own), None)


def _manifest(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except (UsageError, NoVerdictError):
        return None  # cut short, or a file of another program; the trial's end says what failed


def _fingerprints(manifest: Manifest | None) -> FingerprintsReceipt | None:
    if manifest is None:
        return None
    return FingerprintsReceipt(
        environment_class=manifest.environment_class,
        recipe_digest=manifest.recipe_digest,
        trained_digest=manifest.result.trained_digest,
        last_loss=manifest.result.last_loss,
    )


def _artifacts(folder: Path) -> list[str]:
    """Return the names of the files in a folder; bytes that are no text are replaced in them."""
    found = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return sorted(
        os.fsencode(path.relative_to(folder)).decode(errors="replace")
        for path in found
        if stat.S_ISREG(path.lstat().st_mode)
    )


def installed_packages(engine: Engine, image: str, scratch: Path) -> dict[str, str]:
    """Return what pip lists in an image, name to version; nothing where it has no pip.

    Args:
        engine: that holds the image.
        image: its id.
        scratch: an empty folder.
    """
    lines: list[str] = []
    request = RunRequest(
        image, _PACKAGES_COMMAND[1:], scratch, _SCRATCH, {},
        seconds=_SHORT_SECONDS, entrypoint=_PACKAGES_COMMAND[:1],
    )  # fmt: skip
    try:
        run_container(engine, request, lines.append)
        listed = json.loads(next((line for line in lines if line.startswith("[")), "[]"))
    except (NoVerdictError, ValueError):
        return {}
    return {str(package["name"]): str(package["version"]) for package in listed}
