"""A tree of sentences, for a terminal, a page or a log alike."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.tree import Tree


@dataclass
class Branch:
    """A sentence and what belongs to it.

    Attributes:
        text: what is said.
        lead: said before it, with a colon between; it carries the style.
        style: as Rich calls it, such as `bold green`.
    """

    text: str
    lead: str = ""
    style: str = ""
    children: list["Branch"] = field(default_factory=list)

    def add(self, text: str, *, lead: str = "", style: str = "") -> "Branch":
        """Add a branch, and return it."""
        child = Branch(text, lead, style)
        self.children.append(child)
        return child

    @property
    def sentence(self) -> str:
        """The whole line, without style."""
        return f"{self.lead}: {self.text}" if self.lead else self.text

    def lines(self, depth: int = 0) -> Iterator[str]:
        """Yield the tree as plain lines, indented by two for each level."""
        yield "  " * depth + self.sentence
        for child in self.children:
            yield from child.lines(depth + 1)


def rich_tree(branch: Branch) -> "Tree":
    """Return the branch as a tree that Rich can print; nothing in it is taken for markup."""
    from rich.markup import escape
    from rich.tree import Tree

    def styled(part: Branch) -> str:
        lead = f"[{part.style}]{escape(part.lead)}[/]: " if part.lead and part.style else ""
        plain = f"{escape(part.lead)}: " if part.lead and not part.style else ""
        return f"{lead}{plain}{escape(part.text)}"

    def grow(tree: "Tree", parts: list[Branch]) -> None:
        for part in parts:
            grow(tree.add(styled(part)), part.children)

    tree = Tree(styled(branch), highlight=False)
    grow(tree, branch.children)
    return tree
