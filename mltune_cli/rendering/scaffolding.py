"""`mltune init` in a terminal: what was written as a tree, and what to type next."""

from collections.abc import Sequence
from pathlib import Path

from mltune_cli.rendering.branch import Branch, rich_tree
from mltune_cli.rendering.console import print_line, stdout
from mltune_cli.scaffolding.writing import WrittenFile


def print_project(folder: Path, files: Sequence[WrittenFile], next_commands: Sequence[str]) -> None:
    """Print the files below their folder, and the commands that come next."""
    tree = Branch(str(folder), style="bold")
    folders: dict[str, Branch] = {"": tree}
    for file in files:
        place, _, name = file.path.rpartition("/")
        branch = _folder_branch(folders, place)
        said = f"{name}  ({_said(file)})"
        branch.add(said)
    stdout().print(rich_tree(tree))
    print_line("next:")
    for command in next_commands:
        print_line(f"  {command}")


def _folder_branch(folders: dict[str, Branch], place: str) -> Branch:
    if place not in folders:
        above, _, name = place.rpartition("/")
        folders[place] = _folder_branch(folders, above).add(f"{name}/")
    return folders[place]


def _said(file: WrittenFile) -> str:
    if file.fate == "written":
        return file.why
    if file.kept is not None:
        return f"{file.why}; replaced, yours is {file.kept} now"
    return f"{file.why}; {file.fate}"
