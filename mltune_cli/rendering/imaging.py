"""`build-image` in a terminal: steps with their times, then what was built as a tree."""

from typing import TYPE_CHECKING

from mltune_cli.command_secrets import without_secrets
from mltune_cli.imaging.building import BuildStep
from mltune_cli.imaging.receipt import ImageReceipt
from mltune_cli.rendering.console import print_line, print_notice, stderr, stdout
from mltune_cli.rendering.progress_line import ProgressLine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mltune_cli.imaging.plan import ImagePlan

_WIDTH = 100
_SHOWN_LINES = 20
_SHOWN_DIFFERENCES = 8


class ImageView(ProgressLine):
    """Shows how a build and a run go on, on stderr."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[str] = []

    def show_step(self, step: BuildStep) -> None:
        """Show a step of the build: as progress while it runs, as a line when it is done."""
        text = f"step {step.number}/{step.total} {_shortened(step.text)}"
        if step.seconds is None:
            self._lines.clear()
            if self.is_live:
                self.show_progress(text)
            return
        took = "cached" if step.is_cached else f"{step.seconds:.1f} s"
        stderr().print(f"{text} ({took})", markup=False)

    def hear_output(self, line: str) -> None:
        """Keep a line that a step printed, in case the step fails."""
        self._lines.append(line)
        del self._lines[:-_SHOWN_LINES]

    def show_last_lines(self) -> None:
        """Show what the failing step printed last."""
        for line in self._lines:
            stderr().print(f"[build] {line}", markup=False)

    def show_output(self, line: str) -> None:
        """Show a line that the container printed, as it is."""
        if not self.is_live:
            print_notice(f"[container] {line}")  # rich spreads tabs, and takes a while
        else:
            stderr().print(f"[container] {line}", markup=False)


def _shortened(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."


def print_receipt_json(receipt: ImageReceipt) -> None:
    """Print the receipt as one JSON object."""
    print_line(receipt.model_dump_json(indent=2))


def print_receipt(receipt: ImageReceipt) -> None:
    """Print what was built, run and compared, as a tree."""
    from rich.markup import escape
    from rich.tree import Tree

    state = {0: "[bold green]built[/]", 1: "[bold red]built[/]"}.get(
        int(receipt.exit_code), "[bold yellow]no verdict[/]"
    )
    reason = f": {receipt.reason}" if receipt.reason else ""
    tree = Tree(f"{state} {escape(receipt.tag)}{escape(reason)}", highlight=False)
    cached = sum(step.is_cached for step in receipt.steps)
    steps = f"{len(receipt.steps)} steps, {cached} cached" if receipt.steps else "no steps"
    size = receipt.size_bytes / 1e6
    tree.add(
        f"image {_digits(receipt.image_id)}: {receipt.variant}, {size:,.0f} MB, {steps}, "
        f"{receipt.build_seconds:.1f} s"
    )
    tree.add(escape(f"base: {receipt.base}" + _pinned(receipt.base_digest)))
    if receipt.packages:
        tree.add(escape(f"packages: {len(receipt.packages)}, pinned by {receipt.lock}"))
    for line in _run_lines(receipt):
        tree.add(escape(line))
    for title, verdict, differences in _judgements(receipt):
        branch = tree.add(escape(f"{title}: {verdict}"))
        for line in differences[:_SHOWN_DIFFERENCES]:
            branch.add(escape(line))
        if len(differences) > _SHOWN_DIFFERENCES:
            branch.add(f"and {len(differences) - _SHOWN_DIFFERENCES} more; --json shows all")
    if receipt.repo_digests:
        tree.add(escape(f"pushed: {receipt.repo_digests[0]}"))
    stdout().print(tree)


def _digits(image_id: str) -> str:
    return image_id.partition(":")[2][:12]


def _pinned(digest: str | None) -> str:
    return f" ({digest})" if digest else " (no digest: it came from no registry)"


def _run_lines(receipt: ImageReceipt) -> "Sequence[str]":
    run = receipt.run
    if run is None:
        return []
    lines = [f"ran {' '.join(run.command)}: exit code {run.exit_code}, {run.seconds:.1f} s"]
    if run.gpu is not None:
        lines.append(f"computed on {run.gpu}, asked for by {run.gpu_path}")
    if receipt.fingerprints is not None:
        prints = receipt.fingerprints
        loss = "" if prints.last_loss is None else f", last loss {prints.last_loss:.6f}"
        lines.append(f"trained parameters {prints.trained_digest}{loss}")
    return lines


def _judgements(receipt: ImageReceipt) -> "Sequence[tuple[str, str, Sequence[str]]]":
    found: list[tuple[str, str, Sequence[str]]] = []
    if receipt.comparison is not None:
        verdicts = {
            "same": "equal bit for bit",
            "different": "different, in the same environment class",
            "environment_changed": "the environment changed",
            "no_verdict": "no verdict",
        }
        c = receipt.comparison
        verdict = verdicts[c.verdict] + (f" ({c.reason})" if c.reason else "")
        found.append((f"against {c.against}", verdict, c.differences))
    if receipt.verification is not None:
        v = receipt.verification
        what = "images" if v.method == "image_digest" else "contents of the images"
        verdict = f"{what} are {'equal' if v.is_identical else 'different'} ({v.digests[0]})"
        found.append(("two builds from nothing", verdict, v.differences))
    return found


def print_plan(plan: "ImagePlan", run_command: "Sequence[str] | None") -> None:
    """Print what would be built and run, and touch nothing."""
    request = plan.request
    print_line(f"# {plan.dockerfile.name}: {plan.variant} image {request.tag}")
    print_line(f"# base {plan.base}, builder {plan.builder}, context {plan.context_digest}")
    for name, value in request.build_args.items():
        print_line(f"# --build-arg {name}={value}")
    for name, value in request.labels.items():
        print_line(f"# --label {name}={value}")
    for name, size in plan.context.sizes():
        print_line(f"# {size:>12,} {name}")
    words = None if run_command is None else without_secrets(run_command)
    what = "nothing" if words is None else " ".join(words) or "the image's own command"
    print_line(f"# then runs: {what}")
    print_line(plan.dockerfile.text.rstrip("\n"))
