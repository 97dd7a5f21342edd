"""`mltune build-image`: the pinned image, built, tried out and compared."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mltune_cli import __version__
from mltune_cli.commands.git_facts import current_commit
from mltune_cli.commands.stopping import second_signal_held
from mltune_cli.errors import ExitCode, NoVerdictError, UsageError
from mltune_cli.imaging.bases import BaseImage, base_image, require_room
from mltune_cli.imaging.building import BuildEars, BuiltImage, build_image
from mltune_cli.imaging.buildx import build_with_buildx, require_buildx
from mltune_cli.imaging.comparing import compare_with_host, comparison_code, host_run
from mltune_cli.imaging.engine import Engine, open_engine
from mltune_cli.imaging.gpu import GpuPath, gpu_path, host_driver, require_cuda
from mltune_cli.imaging.leftovers import sweep
from mltune_cli.imaging.plan import BuildOptions, ImagePlan, image_plan, memory_bytes
from mltune_cli.imaging.pushing import push_image
from mltune_cli.imaging.receipt import (
    EngineReceipt,
    ImageReceipt,
    StepReceipt,
    VerificationReceipt,
)
from mltune_cli.imaging.smoke import ARTIFACTS, Trial, TrialOutcome, installed_packages, try_image
from mltune_cli.imaging.verifying import verify_build
from mltune_cli.paths import working_folder
from mltune_cli.rendering.console import print_notice
from mltune_cli.rendering.imaging import (
    ImageView,
    print_plan,
    print_receipt,
    print_receipt_json,
)
from mltune_cli.reproduction.output_folder import output_folder


@dataclass(frozen=True)
class TrialOptions:
    """What is done with the image once it is built.

    Attributes:
        run: whether anything is run in it.
        command: program and arguments; empty for the image's own, which is the smoke check.
        against: a run of the host that the container's run is compared with.
        memory: limit, such as `8g`.
        has_network: whether the container may use the network.
        verify: build twice from nothing, and compare.
        push: give the image to the registry that its name tells.
    """

    run: bool = True
    command: Sequence[str] = ()
    against: Path | None = None
    memory: str | None = None
    has_network: bool = False
    verify: bool = False
    push: bool = False


def build_image_command(
    options: BuildOptions,
    trial: TrialOptions,
    *,
    output: Path,
    dry_run: bool,
    as_json: bool,
) -> ExitCode:
    """Build the image, run the smoke check in it, and write the receipt.

    Args:
        options: what is built.
        trial: what is done with it.
        output: folder for the receipt and what the container wrote; replaced if a build of ours
            wrote it.
        dry_run: print what would be built and run, and ask no engine.
        as_json: print the receipt as JSON instead of a tree.

    Raises:
        UsageError: a flag, the Dockerfile or a file cannot be used.
        NoVerdictError: the engine, the build or the container's start failed.
    """
    _require_sense(trial, output)
    memory = memory_bytes(trial.memory)
    host = None if trial.against is None else host_run(trial.against)
    with tempfile.TemporaryDirectory(prefix="mltune-") as scratch:
        plan = image_plan(options, working_folder(), current_commit(), Path(scratch))
        if dry_run:
            print_plan(plan, trial.command if trial.run else None)
            return ExitCode.OK
        view = ImageView()
        folder = output_folder(output, "build-image")
        with second_signal_held(), folder, open_engine() as engine, _shown(view):
            for line in sweep(engine.client, engine.facts.host):
                print_notice(line)
            maker = _Maker(engine, plan, view, Path(scratch))
            receipt = maker.build(trial.verify)
            if trial.run:
                limits = _Limits(memory, trial.has_network, options.seconds)
                receipt = maker.tried(receipt, trial.command, output / ARTIFACTS, limits, host)
            if trial.push and receipt.exit_code is ExitCode.OK:
                view.show_progress(f"pushing {receipt.tag}")
                receipt = _pushed(engine, receipt)
            receipt.write(output)
    (print_receipt_json if as_json else print_receipt)(receipt)
    return receipt.exit_code


def _require_sense(trial: TrialOptions, output: Path) -> None:
    if trial.against is not None and trial.against.resolve().is_relative_to(output.resolve()):
        raise UsageError(
            f"--against {trial.against}: lies in {output}, which is about to be replaced; copy it "
            "away, or choose another --output"
        )
    if trial.run:
        return
    for flag, is_given in (("--against", trial.against is not None), ("--", trial.command)):
        if is_given:
            raise UsageError(f"{flag}: needs a run in the image, and --no-run forbids it; drop one")


@contextlib.contextmanager
def _shown(view: ImageView) -> Iterator[None]:
    view.start()
    try:
        yield
    finally:
        view.stop()


@dataclass(frozen=True)
class _Limits:
    memory_bytes: int | None
    has_network: bool
    seconds: float | None


@dataclass(frozen=True)
class _Maker:
    """One image, from its plan to its receipt."""

    engine: Engine
    plan: ImagePlan
    view: ImageView
    scratch: Path

    def build(self, verify: bool) -> ImageReceipt:
        """Build, compare a second build if asked to, and begin the receipt."""
        plan, view = self.plan, self.view
        if plan.builder == "buildx":
            require_buildx()
        if plan.is_own:
            require_room(self.engine, plan.variant)
        base = self._base()
        ears = BuildEars(view.show_step, view.hear_output)
        build = build_with_buildx if plan.builder == "buildx" else build_image
        view.show_progress(f"building {plan.request.tag}")
        try:
            image = build(self.engine, plan.context, plan.request, ears)
        except BaseException:
            view.show_last_lines()
            raise
        verification = None
        if verify:
            view.show_progress("building twice from nothing, to compare")
            verification = verify_build(self.engine, plan, image, ears, self.scratch)
        return self._receipt(image, base, verification)

    def _base(self) -> BaseImage | None:
        if self.plan.base == "scratch":
            return None
        named, platform = self.plan.dockerfile.images, self.plan.request.platform
        found = {
            name: base_image(self.engine, name, platform, self.view.show_progress) for name in named
        }
        base = found.get(self.plan.base)
        driver = host_driver() if self.plan.variant == "gpu" and base is not None else None
        if driver is not None and base is not None:
            # Early, before a long build: the finished image is asked again before it runs.
            require_cuda(base.variables, driver, base.name)
        return base

    def _receipt(
        self, image: BuiltImage, base: BaseImage | None, verification: VerificationReceipt | None
    ) -> ImageReceipt:
        plan, facts = self.plan, self.engine.facts
        inspected = self.engine.client.inspect_image(image.image_id)
        listing = self.scratch / "listing"
        listing.mkdir()
        is_other = verification is not None and not verification.is_identical
        return ImageReceipt(
            mltune=__version__,
            tag=plan.request.tag,
            variant=plan.variant,
            image_id=image.image_id,
            repo_digests=[],
            size_bytes=int(inspected.get("Size") or 0),
            base=plan.base,
            base_id=None if base is None else base.image_id,
            base_digest=None if base is None else base.digest,
            context_digest=plan.context_digest,
            lock=plan.lock.name,
            lock_digest=plan.lock_digest,
            builder=plan.builder,
            engine=EngineReceipt(
                version=facts.version,
                api_version=facts.api_version,
                platform=facts.platform,
                storage_driver=facts.storage_driver,
            ),
            git=plan.git,
            build_seconds=image.seconds,
            steps=[
                StepReceipt(text=s.text, seconds=s.seconds or 0.0, is_cached=s.is_cached)
                for s in image.steps
            ],
            packages=installed_packages(self.engine, image.image_id, listing),
            verification=verification,
            exit_code=ExitCode.NEGATIVE if is_other else ExitCode.OK,
            reason="two builds from nothing gave different images" if is_other else None,
        )

    def tried(
        self,
        receipt: ImageReceipt,
        command: Sequence[str],
        artifacts: Path,
        limits: _Limits,
        host: Path | None,
    ) -> ImageReceipt:
        """Run the image and complete the receipt with what came of it."""
        artifacts.mkdir()
        try:
            trial = Trial(
                image=receipt.image_id,
                command=command,
                artifacts=artifacts,
                gpu_path=self._gpu_path(receipt.image_id),
                has_network=limits.has_network,
                memory_bytes=limits.memory_bytes,
                seconds=limits.seconds,
            )
            self.view.show_progress(f"running {' '.join(command) or 'the image'}")
            outcome = try_image(self.engine, trial, self.view.show_output)
        except NoVerdictError as error:  # the image is there all the same, and has its receipt
            return receipt.model_copy(
                update={"exit_code": ExitCode.NO_VERDICT, "reason": error.message}
            )
        found: dict[str, object] = {"run": outcome.receipt, "fingerprints": outcome.fingerprints}
        code, reason = outcome.exit_code, outcome.reason
        if host is not None and reason is None:
            found["comparison"], code, reason = _compared(host, outcome)
        if code is not ExitCode.OK and receipt.exit_code is not ExitCode.NO_VERDICT:
            found |= {"exit_code": code, "reason": reason or _negative(code)}
        return receipt.model_copy(update=found)

    def _gpu_path(self, image: str) -> GpuPath | None:
        if self.plan.variant != "gpu":
            return None
        driver = host_driver()
        if driver is not None:
            config = self.engine.client.inspect_image(image).get("Config") or {}
            require_cuda(config.get("Env") or (), driver, self.plan.request.tag)
        return gpu_path(self.engine.facts)


def _pushed(engine: Engine, receipt: ImageReceipt) -> ImageReceipt:
    """Push the image; where that fails, what was built and run keeps its receipt."""
    try:
        found: dict[str, object] = {"repo_digests": push_image(engine, receipt.tag)}
    except NoVerdictError as error:
        found = {"exit_code": ExitCode.NO_VERDICT, "reason": error.message}
    return receipt.model_copy(update=found)


def _compared(host: Path, outcome: TrialOutcome) -> tuple[object, ExitCode, str | None]:
    """Return the comparison, and the verdict that it and the trial come to together."""
    if outcome.run_folder is None:
        return None, ExitCode.NO_VERDICT, "the container left no training run to compare"
    comparison = compare_with_host(host, outcome.run_folder)
    code = comparison_code(comparison)
    if outcome.exit_code is not ExitCode.OK:
        return comparison, outcome.exit_code, outcome.reason
    reasons = {
        ExitCode.NEGATIVE: "the image changed the training: its bits are not the host's",
        ExitCode.NO_VERDICT: comparison.reason,
    }
    return comparison, code, reasons.get(code)


def _negative(code: ExitCode) -> str | None:
    return "the runs in the container differ" if code is ExitCode.NEGATIVE else None
