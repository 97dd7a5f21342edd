"""Records what the commands print, as SVG for the README.

Usage: python tools/record_terminal.py [FOLDER]

Each command is run as a user would, in a fresh folder, with colours on; what it prints is drawn by
Rich. Machine names are no part of it, but figures are: the pictures show one machine at one time.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

_PROJECT = Path(__file__).resolve().parent.parent
_WIDTH = 110
# Rich's own page loads a font from a content delivery network; a picture had better not.
_FONT_FACES = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


@dataclass(frozen=True)
class Recording:
    """One command.

    Attributes:
        name: of the picture.
        arguments: of `mltune`.
        exit_codes: with which it may end.
        script: a file of the tests' fault scripts that lies beside it as `train.py`.
        left_out: lines that are not shown, as a pattern.
    """

    name: str
    arguments: tuple[str, ...]
    exit_codes: tuple[int, ...]
    script: str | None = None
    left_out: str | None = None


RECORDINGS = (
    Recording("doctor", ("doctor",), (0,)),
    Recording("train", ("train",), (0,)),
    Recording("repro-check-pass", ("repro-check",), (0,), left_out=r"^2 runs, step "),
    Recording(
        "repro-check-fail", ("repro-check", "--", "python", "train.py"), (1,),
        script="plain_set_order.py",
    ),
)  # fmt: skip


def record(recording: Recording, folder: Path) -> Path:
    """Run a command and draw what it prints.

    Raises:
        SystemExit: it ended with a code that was not expected.
    """
    with tempfile.TemporaryDirectory() as place:
        if recording.script is not None:
            script = _PROJECT / "tests" / "faults" / "scripts" / recording.script
            shutil.copyfile(script, Path(place) / "train.py")
        printed = _printed(recording, Path(place))
    typed = f"$ mltune {' '.join(recording.arguments)}"
    console = Console(record=True, width=_WIDTH, file=io.StringIO())
    console.print(Text(typed, style="bold"))
    console.print(Text.from_ansi(printed.rstrip()))
    svg = console.export_svg(title="mltune", unique_id=f"mltune-{recording.name}")
    path = folder / f"{recording.name}.svg"
    path.write_text(_FONT_FACES.sub("", svg), encoding="utf-8")
    return path


def _printed(recording: Recording, place: Path) -> str:
    program = Path(sys.executable).parent
    # Pipes keep the progress line away, and FORCE_COLOR the colours.
    environment = {
        **os.environ,
        "FORCE_COLOR": "1",
        "PATH": f"{program}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        # What else lies in this machine's temporary folder is nobody's business.
        "TMPDIR": str(place),
    }
    environment.pop("NO_COLOR", None)
    ended = subprocess.run(
        [program / "mltune", *recording.arguments],
        cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if ended.returncode not in recording.exit_codes:
        raise SystemExit(f"{recording.name}: ended with {ended.returncode}:\n{ended.stdout}")
    shown = ended.stdout.replace(os.path.realpath(place), "~/project").replace(
        str(place), "~/project"
    )
    if recording.left_out is None:
        return shown
    pattern = re.compile(recording.left_out)
    plain = (Text.from_ansi(line).plain for line in shown.splitlines())
    lines = zip(shown.splitlines(), plain, strict=True)
    return "\n".join(line for line, text in lines if not pattern.search(text))


def main() -> None:
    """Record all commands."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else _PROJECT / "docs" / "recordings"
    folder.mkdir(parents=True, exist_ok=True)
    for recording in RECORDINGS:
        print(record(recording, folder))


if __name__ == "__main__":
    main()
