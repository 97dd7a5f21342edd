"""Where this mltune was installed from, so that somebody else's CI can install the same.

Source: PEP 610, the file `direct_url.json` that an installer leaves.
"""

import json
import re
from importlib import metadata
from typing import Any

_PROJECT = "mltune"
# What stands in a workflow between quotes, and goes to a shell and to pip.
_ADDRESS = re.compile(r"https://[A-Za-z0-9][A-Za-z0-9.:-]*/[A-Za-z0-9._~/+-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


def pinned_source() -> str | None:
    """Return what pip takes to install this mltune anywhere: an address of git with its commit.

    None where it is not known: installed from a folder, a wheel or an index. The bare name is no
    answer, for nobody says that what an index has under it is this project.
    """
    try:
        text = metadata.distribution(_PROJECT).read_text("direct_url.json")
        return source_of(json.loads(text)) if text else None
    except (metadata.PackageNotFoundError, ValueError, OSError):
        return None


def source_of(direct_url: Any) -> str | None:
    """Return what pip takes, from the content of a `direct_url.json`; None where it does not say.

    Only https: a file is of this machine, and other ways need a key that no runner has.
    """
    if not isinstance(direct_url, dict) or not isinstance(direct_url.get("vcs_info"), dict):
        return None
    version = direct_url["vcs_info"]
    # A password in an address stays here.
    address = re.sub(r"(?<=://)[^/]*@", "", str(direct_url.get("url")))
    commit = str(version.get("commit_id"))
    is_whole = version.get("vcs") == "git" and "subdirectory" not in direct_url
    if not (is_whole and _ADDRESS.fullmatch(address) and _COMMIT.fullmatch(commit)):
        return None
    return f"git+{address}@{commit}"
