"""The token for the hub: whether there is one, and whether others can read it. Never shown."""

import re
import shlex
import stat
from collections.abc import Sequence

from mltune_cli.diagnosis.finding import Check, Finding, doubtful, in_order, known
from mltune_cli.diagnosis.hub import token_file, token_variable
from mltune_cli.diagnosis.subject import Subject, is_hub_name

_TOKEN = re.compile(r"[!-~]+")


def look(subject: Subject) -> Sequence[Finding]:
    """Look for a token; its value goes nowhere."""
    variable, path = token_variable(subject.variables), token_file(subject.variables)
    findings = []
    text = None
    try:
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace").strip()
            if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
                findings.append(
                    doubtful(
                        f"the token file {path} can be read by other users",
                        "whoever has the token can act on the hub in your name",
                        "let only its owner read it",
                        command=f"chmod 600 {shlex.quote(str(path))}",
                    )
                )
    except OSError as error:
        findings.append(
            doubtful(
                f"the token file {path} cannot be read: {error.strerror}",
                "the hub is asked without a token",
                "sign in again",
                command="hf auth login",
            )
        )
    value = subject.variables[variable].strip() if variable else text
    place = variable or str(path)
    if value and not _TOKEN.fullmatch(value):
        findings.append(
            doubtful(
                f"the token in {place} holds spaces or other characters that no token has",
                "every request to the hub fails",
                "set it anew: it was cut, or pasted with something around it",
                command=f"unset {variable}" if variable else "hf auth login",
            )
        )
    if findings:
        return findings
    if value:
        return [in_order(f"a token for the hub is set ({place})")]
    if is_hub_name(subject.recipe.model.name_or_path):
        return [
            known(
                "there is no token for the hub",
                "models that are private or gated are not given out without one",
                "sign in, where the model needs it",
                command="hf auth login",
            )
        ]
    return [in_order("no token for the hub, and none is needed")]


CHECK = Check("hub-token", "token for the hub", look)
