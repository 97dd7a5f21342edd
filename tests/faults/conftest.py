"""Checks of foreign scripts by the installed command, and the report that came of them."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mltune_cli.bundled import TINY_MODEL, bundled_data, bundled_model


@dataclass(frozen=True)
class Checked:
    """What `repro-check` answered."""

    code: int
    report: dict[str, Any]
    output: str


Check = Callable[..., Checked]


@pytest.fixture
def check(mltune: Any, tmp_path: Path) -> Check:
    """Check a command: `check(["python", "train.py"], vary=["threads=2"])`.

    `{model}` and `{data}` in it are the bundled ones, `{made}` is a folder for more.
    """

    def run(
        command: Sequence[str],
        *,
        vary: Sequence[str] = (),
        flags: Sequence[str] = (),
        env: dict[str, str] | None = None,
        timeout: float = 600,
    ) -> Checked:
        places = {
            "{model}": str(bundled_model(TINY_MODEL)),
            "{data}": str(bundled_data("mltune/repro_dataset/train.jsonl")),
            "{made}": str(tmp_path / "made"),
        }

        def filled(text: str) -> str:
            for name, value in places.items():
                text = text.replace(name, value)
            return text

        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        result = mltune(
            "repro-check", "--json", "--output", tmp_path / "out", "--timeout", str(timeout),
            *(part for one in vary for part in ("--vary", filled(one))), *flags, "--",
            *map(filled, command),
            cwd=work, timeout=timeout + 60,
            env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")} | (env or {}),
        )  # fmt: skip
        report = json.loads(result.stdout) if result.stdout.startswith("{") else {}
        return Checked(result.code, report, result.stdout + result.stderr[-4000:])

    return run


@pytest.fixture(scope="session")
def programs() -> str:
    """The folder of this environment's programs."""
    return os.path.dirname(sys.executable)  # noqa: PTH120 - not resolved: a link leads elsewhere
