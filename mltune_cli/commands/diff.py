"""`mltune diff`: two finished runs, compared."""

from pathlib import Path

from mltune_cli.errors import ExitCode
from mltune_cli.rendering.diff import print_diff, print_diff_json
from mltune_cli.reproduction.run_diff import diff_runs, require_runs


def diff(a: Path, b: Path, *, as_json: bool) -> ExitCode:
    """Compare two run folders and print the differences.

    Raises:
        UsageError: a path is not a run.
        NoVerdictError: a run's files are damaged.
    """
    require_runs(a, b)
    result = diff_runs(a, b)
    (print_diff_json if as_json else print_diff)(result)
    return result.exit_code
