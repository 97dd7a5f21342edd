"""Where a workflow gets mltune from: a pinned commit that is known, or nothing."""

from typing import Any

import pytest

from mltune_cli.scaffolding.installation import source_of
from mltune_cli.scaffolding.project_files import WORKFLOW, project_files

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GIT = {"vcs": "git", "commit_id": COMMIT, "requested_revision": "main"}


def direct_url(url: str, **more: Any) -> dict[str, Any]:
    return {"url": url, "vcs_info": GIT, **more}


@pytest.mark.parametrize(
    ("known", "source"),
    [
        (direct_url("https://host.example/me/mltune.git"),
         f"git+https://host.example/me/mltune.git@{COMMIT}"),
        (direct_url("https://me:secret@host.example/me/mltune"),
         f"git+https://host.example/me/mltune@{COMMIT}"),
    ],
)  # fmt: skip
def test_a_commit_that_is_known_is_the_source(known: Any, source: str) -> None:
    assert source_of(known) == source


@pytest.mark.parametrize(
    "known",
    [
        {"url": "file:///home/me/mltune", "dir_info": {}},
        {"url": "https://host.example/mltune-0.1.0-py3-none-any.whl", "archive_info": {}},
        direct_url("file:///home/me/mltune"), direct_url("ssh://git@host.example/me/mltune"),
        direct_url("http://host.example/me/mltune"),
        direct_url("https://host.example/me/mltune", subdirectory="x"),
        direct_url("https://host.example/me' }}; touch planted #"),
        direct_url("https://host.example/me/mltune\n"),
        direct_url("https://host.example/me/mltune", vcs_info=GIT | {"commit_id": "main"}),
        direct_url("https://host.example/me/mltune", vcs_info=GIT | {"vcs": "hg"}),
        direct_url("https://host.example/me/mltune", vcs_info={}),
        {}, {"url": None, "vcs_info": GIT}, [], None, "text",
    ],
)  # fmt: skip
def test_what_names_no_commit_that_others_can_have_is_none(known: Any) -> None:
    assert source_of(known) is None


@pytest.mark.parametrize("source", [None, f"git+https://host.example/me/mltune@{COMMIT}"])
def test_no_workflow_installs_a_bare_name(source: str | None) -> None:
    files = project_files("project", gpu=False, ci="github", mltune=source)
    (flow,) = (file.content.decode() for file in files if file.path == WORKFLOW)
    assert "mltune==" not in flow
    default = f"vars.MLTUNE || '{source}'" if source else "vars.MLTUNE"
    assert f"  MLTUNE: ${{{{ {default} }}}}\n" in flow
    assert ("needed: where mltune is installed from" in flow) is (source is None)
