"""The documentation is true where a machine can tell."""

import re
import subprocess
from pathlib import Path

import pytest

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "repro_dataset/*.md")
    for path in Path(__file__).parent.parent.glob(pattern)
)


def test_there_are_pages() -> None:
    assert len(PAGES) >= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_has_the_two_commands_and_ci_runs_the_second(project: Path) -> None:
    readme = (project / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"```bash\n(.*?)\n```", readme, re.DOTALL)
    assert commands[0] == "python3 -m pip install torch==2.13.0 . && mltune repro-check"
    assert commands[1] == "python3 -m pip install nox && python3 -m nox"
    ci = (project / ".ci" / "run").read_text(encoding="utf-8")
    pattern = re.search(r"grep -m1 -o '(.*?)' README.md", ci)
    assert pattern is not None
    found = re.findall(pattern[1], readme)
    assert found[0] == commands[1]


def test_the_tree_in_the_readme_exists(project: Path) -> None:
    readme = (project / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"```text\n(mltune_cli/.*?)```", readme, re.DOTALL)
    assert tree is not None
    inside, outside = tree[1].split("repro_dataset/", maxsplit=1)
    names = [f"mltune_cli/{name}" for name in re.findall(r"^  (\S+)", inside, re.MULTILINE)]
    names += ["repro_dataset/", *re.findall(r"(?:^|\s)(\w+/)", outside)]
    assert len(names) >= 14
    for name in names:
        assert (project / name).exists(), name


def test_nothing_tells_of_the_machine_it_was_written_on(project: Path) -> None:
    """No registry's address and no absolute path of a home or work folder in tracked files."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=project, capture_output=True, text=True, check=False
    )
    names = listed.stdout.split() or [str(page.relative_to(project)) for page in PAGES]
    assert len(names) >= 10
    forbidden = re.compile(
        "|".join(
            ("py" + "pi.org", "python" + "hosted", "npm" + "js.org", "/wo" + "rk/", "/ro" + "ot/")
        )
    )
    for name in names:
        path = project / name
        if path.suffix in (".safetensors", ".json", ".jsonl") or not path.is_file():
            continue
        match = forbidden.search(path.read_text(encoding="utf-8"))
        assert match is None, f"{name}: {match[0] if match else ''}"
