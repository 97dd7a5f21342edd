"""The run in the container beside a run of the host: has the image changed the bits?"""

from pathlib import Path

from mltune_cli.errors import ExitCode
from mltune_cli.imaging.receipt import ComparisonReceipt
from mltune_cli.manifest import read_manifest
from mltune_cli.reproduction.diff_tree import DiffNode
from mltune_cli.reproduction.run_diff import diff_runs, require_runs

_SHOWN = 12


def host_run(folder: Path) -> Path:
    """Return the run folder that `--against` names: a run, or the first run of a check.

    Raises:
        UsageError: it is neither.
    """
    run = folder / "run-1" if (folder / "run-1").is_dir() else folder
    require_runs(run)
    read_manifest(run)
    return run


def compare_with_host(host: Path, container: Path) -> ComparisonReceipt:
    """Hold the container's run against the host's, bit for bit.

    Bits that differ between two environment classes are no fault of the image: no claim is made
    across classes.

    Args:
        host: run folder.
        container: run folder that was brought out of the container.

    Raises:
        NoVerdictError: a file of a run is damaged.
    """
    result = diff_runs(host, container)
    classes = {read_manifest(folder).environment_class for folder in (host, container)}
    differences = [line for node in result.nodes for line in _lines(node)]
    if result.verdict == "different" and len(classes) > 1:
        return ComparisonReceipt(
            against=str(host),
            verdict="environment_changed",
            reason="host and container are not of one environment class",
            differences=differences[:_SHOWN],
        )
    return ComparisonReceipt(
        against=str(host),
        verdict=result.verdict,
        reason=result.reason,
        differences=differences[:_SHOWN],
    )


def comparison_code(comparison: ComparisonReceipt) -> ExitCode:
    """Return the exit code that a comparison stands for."""
    codes = {"same": ExitCode.OK, "different": ExitCode.NEGATIVE}
    return codes.get(comparison.verdict, ExitCode.NO_VERDICT)


def _lines(node: DiffNode, above: str = "") -> list[str]:
    """Return one line for each leaf of a tree of differences."""
    name = f"{above}{node.name}"
    if node.children:
        return [line for child in node.children for line in _lines(child, f"{name}: ")]
    values = " | ".join(value for value in (node.a, node.b) if value is not None)
    told = ", ".join(part for part in (node.detail, values) if part)
    return [f"{name}: {told}" if told else name]
