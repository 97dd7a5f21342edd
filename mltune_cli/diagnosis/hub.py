"""The hub as the client would see it: its cache, its switches, its answers."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mltune_cli.paths import is_folder

COMMIT = re.compile(r"[0-9a-f]{40}")
OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_TRUE = ("1", "ON", "YES", "TRUE")
_ANSWER_SECONDS = 3.5

RepositoryKind = Literal["model", "dataset"]


def hub_home(variables: Mapping[str, str]) -> Path:
    """Return the folder that the hub's client keeps its things in."""
    if home := variables.get("HF_HOME"):
        return _expanded(home)
    base = variables.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(base) / "huggingface"


def hub_cache(variables: Mapping[str, str]) -> Path:
    """Return the folder that models and data sets are downloaded into."""
    named = variables.get("HF_HUB_CACHE") or variables.get("HUGGINGFACE_HUB_CACHE")
    return _expanded(named) if named else hub_home(variables) / "hub"


def token_file(variables: Mapping[str, str]) -> Path:
    """Return the file that `hf auth login` writes the token into."""
    named = variables.get("HF_TOKEN_PATH")
    return _expanded(named) if named else hub_home(variables) / "token"


def token_variable(variables: Mapping[str, str]) -> str | None:
    """Return the name of the variable that holds a token; None where there is none."""
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    return next((name for name in names if variables.get(name, "").strip()), None)


def _expanded(path: str) -> Path:
    return Path(os.path.expandvars(path)).expanduser()


def offline_switches(variables: Mapping[str, str]) -> list[str]:
    """Return the switches that keep the hub's client off the network."""
    return [name for name in OFFLINE_SWITCHES if variables.get(name, "").upper() in _TRUE]


def cached_snapshot(
    variables: Mapping[str, str], kind: RepositoryKind, name: str, revision: str | None
) -> Path | None:
    """Return the folder of a repository's files in the cache; None where it was not downloaded.

    Args:
        variables: tell where the cache is.
        kind: of repository.
        name: its id.
        revision: branch, tag or commit; None is `main`.
    """
    folder = hub_cache(variables) / f"{kind}s--{name.replace('/', '--')}"
    wanted = revision or "main"
    if COMMIT.fullmatch(wanted) is None:
        try:
            wanted = (folder / "refs" / wanted).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
    snapshot = folder / "snapshots" / wanted
    return snapshot if is_folder(snapshot) else None


@dataclass(frozen=True)
class HubAnswer:
    """What the hub says of a repository.

    Attributes:
        commit: that the revision stands for.
        problem: why there is none: `missing`, `revision`, `gated`, `token`, `unreachable`.
        detail: what was said.
    """

    commit: str | None = None
    problem: Literal["missing", "revision", "gated", "token", "unreachable"] | None = None
    detail: str = ""


def ask_hub(kind: RepositoryKind, name: str, revision: str | None) -> HubAnswer:
    """Ask the hub which commit a revision stands for; a request of a few seconds at most.

    Args:
        kind: of repository.
        name: its id.
        revision: branch, tag or commit; None is the default branch.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    api: Any = HfApi()
    try:
        info = api.repo_info(name, repo_type=kind, revision=revision, timeout=_ANSWER_SECONDS)
        return HubAnswer(commit=str(info.sha))
    except GatedRepoError as error:
        return HubAnswer(problem="gated", detail=_line(error))
    except (RepositoryNotFoundError, HFValidationError) as error:
        return HubAnswer(problem="missing", detail=_line(error))
    except RevisionNotFoundError as error:
        return HubAnswer(problem="revision", detail=_line(error))
    except HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        is_token = status in (401, 403)
        return HubAnswer(problem="token" if is_token else "unreachable", detail=_line(error))
    except Exception as error:  # noqa: BLE001 - the client lets the errors of its HTTP library through
        return HubAnswer(problem="unreachable", detail=_line(error) or type(error).__name__)


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else ""
