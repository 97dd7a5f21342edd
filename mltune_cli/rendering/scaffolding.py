"""`init` in a terminal: the tree of what it wrote, and the next command."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from mltune_cli.rendering.branch import Branch, rich_tree
from mltune_cli.rendering.console import print_line, stdout
from mltune_cli.scaffolding.writing import WrittenFile, WrittenProject


def print_project(project: WrittenProject, next_command: Sequence[str]) -> None:
    """Print what was done with each file, and the command that comes next.

    Args:
        project: as it was written.
        next_command: program and arguments, to be started in the project's folder.
    """
    changed = sum(file.action != "unchanged" for file in project.files)
    lead, style = ("written", "bold green") if changed else ("unchanged", "bold")
    tree = Branch(f"{project.folder} ({changed} of {len(project.files)} files)", lead, style)
    folders: dict[str, Branch] = {"": tree}
    for file in project.files:
        _folder(folders, file.path.rpartition("/")[0]).add(_sentence(file))
    stdout().print(rich_tree(tree))
    here = project.folder.resolve() == Path.cwd()
    name = str(project.folder)
    # A name that begins with a hyphen would be taken for an option.
    place = f"./{name}" if name.startswith("-") else name
    way = "" if here else f"cd {shlex.quote(place)} && "
    print_line(f"next: {way}{shlex.join(next_command)}")


def _folder(folders: dict[str, Branch], path: str) -> Branch:
    """Return the branch of a folder, which is made with those above it."""
    if path not in folders:
        above, _, name = path.rpartition("/")
        folders[path] = _folder(folders, above).add(f"{name}/")
    return folders[path]


def _sentence(file: WrittenFile) -> str:
    lines = "1 line" if file.added_lines == 1 else f"{file.added_lines} lines"
    what = {
        "written": "",
        "unchanged": ", unchanged",
        "added to": f", added to: {lines}",
        "replaced": f", replaced; the old one is {file.backup}",
    }[file.action]
    return f"{file.path.rpartition('/')[2]}: {file.reason}{what}"
