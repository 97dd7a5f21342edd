"""A check inside GitHub Actions: the page of the step, and marks on the lines of a pull request.

Source: GitHub's documentation of workflow commands for Actions.
"""

import html
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mltune_cli.rendering.branch import Branch
from mltune_cli.rendering.console import print_notice
from mltune_cli.rendering.verdicts import report_tree
from mltune_cli.reproduction.report import ReproductionReport

_SUMMARY = "GITHUB_STEP_SUMMARY"
_WORKSPACE = "GITHUB_WORKSPACE"
_ORIGIN = re.compile(r"(?P<file>.+):(?P<line>[0-9]+)")
_FRAME = re.compile(r"(?P<file>.+):(?P<line>[0-9]+) in .+")
_MARKS = {"reproducible": "✅", "different": "❌", "no_verdict": "⚠️"}


def show_in_actions(
    report: ReproductionReport, origins: Mapping[str, str], environment: Mapping[str, str]
) -> None:
    """Write the step's summary and print annotations, where GitHub Actions runs this process.

    Args:
        report: what was found.
        origins: where each key of the recipe was set, such as `recipe.yaml:12`; empty for commands.
        environment: of this process.
    """
    if environment.get("GITHUB_ACTIONS") != "true":
        return
    for line in annotations(report, origins, environment.get(_WORKSPACE)):
        # Not on stdout, which holds the report, perhaps as JSON; the runner reads both.
        print_notice(line)
    if environment.get(_SUMMARY):
        try:
            with Path(environment[_SUMMARY]).open("a", encoding="utf-8") as stream:
                stream.write(summary(report))
        except OSError as error:
            print_notice(f"note: {_SUMMARY} cannot be written: {error.strerror}")


def summary(report: ReproductionReport) -> str:
    """Return the report as Markdown; nothing in it is taken for markup."""
    tree = report_tree(report)
    lines = [f"### {_MARKS[report.verdict]} {_marked(tree)}", ""]
    for child in tree.children:
        lines += _listed(child, 0)
    return "\n".join([*lines, "", ""])


def _listed(branch: Branch, depth: int) -> Iterator[str]:
    yield f"{'  ' * depth}- {_marked(branch)}"
    for child in branch.children:
        yield from _listed(child, depth + 1)


def _marked(branch: Branch) -> str:
    lead = f"**{_escaped(branch.lead)}**: " if branch.lead else ""
    return lead + _escaped(branch.text)


def _escaped(text: str) -> str:
    # An at sign would call somebody, a number sign link an issue, a dollar sign begin a formula.
    plain = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]#!|~$@])", r"\\\1", plain)


def annotations(
    report: ReproductionReport, origins: Mapping[str, str], workspace: str | None
) -> Iterator[str]:
    """Yield workflow commands that mark where a result comes from; none where all is well.

    Args:
        report: what was found.
        origins: as in `show_in_actions`.
        workspace: the folder of the checkout, to which files are named relative.
    """
    if report.verdict == "reproducible":
        return
    level = "error" if report.verdict == "different" else "warning"
    tree = report_tree(report)
    lines = list(tree.lines())
    title = f"mltune: {tree.lead}"
    places = _changed_places(report, origins) or [_best_place(report, origins)]
    for about, place in places:
        said = [about, *lines] if about else lines
        yield _command(level, title, said, place, workspace)


_Place = tuple[str, str] | None


def _changed_places(
    report: ReproductionReport, origins: Mapping[str, str]
) -> list[tuple[str, _Place]]:
    """Return the lines of the recipe whose keys are not what they were for the golden."""
    changes = report.golden.changes if report.golden is not None else []
    found: list[tuple[str, _Place]] = []
    for change in changes:
        place = _placed(_ORIGIN, origins.get(change.name, ""))
        if change.kind == "recipe" and place is not None:
            found.append((change.sentence, place))
    return found


def _best_place(report: ReproductionReport, origins: Mapping[str, str]) -> tuple[str, _Place]:
    """Return the line of the operation, in somebody's own code; or the recipe's first line."""
    where = report.localisation
    if where is not None and where.frame is not None:
        return "", _placed(_FRAME, where.frame)
    places = (_placed(_ORIGIN, origin) for origin in origins.values())
    file = next((place[0] for place in places if place is not None), None)
    return "", None if file is None else (file, "1")


def _placed(pattern: re.Pattern[str], text: str) -> _Place:
    match = pattern.fullmatch(text)
    # What travels in the wheel is no file of the checkout.
    if match is None or "(bundled)" in match["file"]:
        return None
    return match["file"], match["line"]


def _command(
    level: str, title: str, lines: Iterable[str], place: _Place, workspace: str | None
) -> str:
    properties = {"title": title}
    if place is not None:
        file, line = place
        base = workspace or "."
        properties = {"file": os.path.relpath(file, base), "line": line, **properties}
    listed = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{level} {listed}::{_data(chr(10).join(lines))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
