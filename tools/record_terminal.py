"""Records what the commands print, as SVG for the README.

Usage: python tools/record_terminal.py [FOLDER | --check]

Each command is run as a user would, in a fresh folder, with colours on; what it prints is drawn by
Rich. Machine names are no part of it, but figures are: the pictures show one machine at one time.
`--check` runs nothing but helps: it compares no figures, and finds a picture that is missing, is
none, shows another command or another verdict, or a command that is no longer there.
"""

from __future__ import annotations

import html
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

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
        verdict: what the picture must show of it, whatever the machine.
        script: a file of the tests' fault scripts that lies beside it as `train.py`.
        left_out: lines that are not shown, as a pattern.
    """

    name: str
    arguments: tuple[str, ...]
    exit_codes: tuple[int, ...]
    verdict: str
    script: str | None = None
    left_out: str | None = None

    @property
    def typed(self) -> str:
        """The first line of the picture."""
        return f"$ mltune {' '.join(self.arguments)}"


RECORDINGS = (
    Recording("doctor", ("doctor",), (0,), "healthy"),
    Recording("train", ("train",), (0,), "done: last loss"),
    Recording(
        "repro-check-pass", ("repro-check",), (0,),
        "reproducible: 2 runs of smoke are equal bit for bit", left_out=r"^2 runs, step ",
    ),
    Recording(
        "repro-check-fail", ("repro-check", "--", "python", "train.py"), (1,), "cause: hash-seed",
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
            shutil.copyfile(_script(recording.script), Path(place) / "train.py")
        printed = _printed(recording, Path(place))
    console = Console(record=True, width=_WIDTH, file=io.StringIO())
    console.print(Text(recording.typed, style="bold"))
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


def words_of(svg: str) -> str:
    """Return the lines that a picture shows, its blanks as spaces."""
    pieces = re.findall(r"<text[^>]*>.*?</text>", svg)
    return "\n".join(
        html.unescape(re.sub("<[^>]+>", "", piece)).replace("\xa0", " ") for piece in pieces
    )


def faults_of(recording: Recording, folder: Path) -> list[str]:
    """Say what is wrong with a recording and its picture; figures are not looked at."""
    path = folder / f"{recording.name}.svg"
    faults = [] if _is_there(recording) else [f"{recording.typed}: there is no such command"]
    try:
        svg = path.read_text(encoding="utf-8")
        tag = ElementTree.fromstring(svg).tag  # noqa: S314 - our own file
    except (OSError, ElementTree.ParseError) as error:
        return [*faults, f"{path.name}: is no picture: {error}"]
    if tag != "{http://www.w3.org/2000/svg}svg":
        faults.append(f"{path.name}: is no picture: its element is {tag}")
    # Colours cut a line into pieces, each a text of its own.
    shown = "".join(words_of(svg).split())
    faults += [
        f"{path.name}: does not show {text!r}"
        for text in (recording.typed, recording.verdict)
        if "".join(text.split()) not in shown
    ]
    return faults


def _is_there(recording: Recording) -> bool:
    """Tell whether the command and each of its flags are in its help."""
    verb, *rest = recording.arguments
    own = rest[: rest.index("--")] if "--" in rest else rest
    helped = subprocess.run(
        [Path(sys.executable).parent / "mltune", verb, "--help"], capture_output=True, text=True
    )
    flags = [word.partition("=")[0] for word in own if word.startswith("-")]
    known = set(re.findall(r"(?<!\S)--?[a-z][\w-]*", helped.stdout))
    has_script = recording.script is None or _script(recording.script).is_file()
    return helped.returncode == 0 and set(flags) <= known and has_script


def _script(name: str) -> Path:
    return _PROJECT / "tests" / "faults" / "scripts" / name


def check(folder: Path) -> list[str]:
    """Say what is wrong with the pictures of a folder, and with the README that shows them."""
    faults = [fault for recording in RECORDINGS for fault in faults_of(recording, folder)]
    wanted = {recording.name for recording in RECORDINGS}
    strange = sorted({path.stem for path in folder.glob("*.svg")} - wanted)
    faults += [f"{name}.svg: nothing draws it" for name in strange]
    readme = (_PROJECT / "README.md").read_text(encoding="utf-8")
    embedded = re.findall(r"!\[[^\]]+\]\(docs/recordings/([\w-]+)\.svg\)", readme)
    return faults + [
        f"README.md: does not show {name}.svg" for name in sorted(wanted - set(embedded))
    ]


def main() -> None:
    """Record all commands, or check the pictures."""
    kept = _PROJECT / "docs" / "recordings"
    if sys.argv[1:] == ["--check"]:
        faults = check(kept)
        sys.exit("\n".join(faults) if faults else 0)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else kept
    folder.mkdir(parents=True, exist_ok=True)
    for recording in RECORDINGS:
        print(record(recording, folder))


if __name__ == "__main__":
    main()
