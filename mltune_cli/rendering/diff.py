"""`mltune diff` in a terminal, and as JSON."""

import json
from typing import TYPE_CHECKING

from mltune_cli.rendering.console import print_line, stdout
from mltune_cli.reproduction.diff_tree import DiffNode, RunDiff

if TYPE_CHECKING:
    from rich.tree import Tree

_SHOWN_CHILDREN = 20


def print_diff(diff: RunDiff) -> None:
    """Print two runs' differences as a tree; equal parts are counted, not shown."""
    from rich.markup import escape
    from rich.tree import Tree

    titles = {
        "same": "[bold green]same[/]: every step and every trained tensor is equal bit for bit",
        "different": "[bold red]different[/]",
        "no_verdict": f"[bold yellow]no verdict[/]: {escape(diff.reason or '')}",
    }
    tree = Tree(titles[diff.verdict])
    tree.add(f"a: {escape(diff.a)}")
    tree.add(f"b: {escape(diff.b)}")
    for node in diff.nodes:
        _add(tree, node)
    stdout().print(tree)


def _add(tree: "Tree", node: DiffNode) -> None:
    from rich.markup import escape

    sides = {"only_in_a": " (only in a)", "only_in_b": " (only in b)", "different": ""}
    text = escape(node.name) + sides[node.status]
    if node.detail:
        text += f": {escape(node.detail)}"
    if node.a is not None or node.b is not None:
        values = " | ".join(escape(value) for value in (node.a, node.b) if value is not None)
        text += f": {values}" if not node.detail else f" ({values})"
    branch = tree.add(text)
    for child in node.children[:_SHOWN_CHILDREN]:
        _add(branch, child)
    if len(node.children) > _SHOWN_CHILDREN:
        branch.add(f"and {len(node.children) - _SHOWN_CHILDREN} more; --json shows all")


def print_diff_json(diff: RunDiff) -> None:
    """Print the whole tree as one JSON object."""
    print_line(json.dumps(diff.to_json(), indent=2))
