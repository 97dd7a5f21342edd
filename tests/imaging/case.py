"""One Dockerfile of a test's own: built, run and interrupted under names that nobody else has."""

import json
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema


@dataclass
class Case:
    """A folder with a Dockerfile, and the image that is made of it in an engine."""

    engine: Any
    folder: Path
    command: Path
    schema: Mapping[str, Any]
    name: str = field(default_factory=lambda: secrets.token_hex(5))
    started: list["subprocess.Popen[str]"] = field(default_factory=list)

    @property
    def tag(self) -> str:
        """The image's name."""
        return f"mltune-test/{self.name}:1"

    @property
    def label(self) -> str:
        """The label that what is left of it carries."""
        return f"mltune.case={self.name}"

    @property
    def output(self) -> Path:
        """Where the receipt and the artifacts go."""
        return self.folder / "image_output"

    @property
    def artifacts(self) -> Path:
        """What the container wrote."""
        return self.output / "repro_output"

    @property
    def variables(self) -> dict[str, str]:
        """The environment of its commands; what they leave in TMPDIR is theirs."""
        temporary = self.folder / "temporary"
        temporary.mkdir(exist_ok=True)
        return {**os.environ, **self.engine.variables, "COLUMNS": "200", "TMPDIR": str(temporary)}

    def write(self, base: str, *lines: str, **files: str) -> "Case":
        """Write the Dockerfile, and executable files that it may copy."""
        text = (f"FROM {base}", f"LABEL {self.label}", *lines)
        (self.folder / "Dockerfile").write_text("".join(f"{line}\n" for line in text))
        for name, content in files.items():
            (self.folder / name).write_text(content)
            (self.folder / name).chmod(0o755)
        return self

    def script(self, base: str, *lines: str) -> "Case":
        """Write an image whose command is a shell script."""
        text = "".join(f"{line}\n" for line in ("#!/bin/sh", *lines))
        return self.write(base, "COPY go /go", 'CMD ["/go"]', go=text)

    def build(self, *flags: str, **env: str) -> "subprocess.CompletedProcess[str]":
        """Run `mltune build-image` to its end."""
        words = [self.command, "build-image", "--tag", self.tag, *flags]
        done = subprocess.run(
            words, cwd=self.folder, env={**self.variables, **env}, capture_output=True,
            encoding="utf-8", timeout=120,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        assert "internal error" not in done.stderr, done.stderr
        return done

    def start(self, *flags: str, **env: str) -> "subprocess.Popen[str]":
        """Start `mltune build-image`; what it prints goes to the file `said`."""
        words = [self.command, "build-image", "--tag", self.tag, *flags]
        with (self.folder / "said").open("w") as said:
            process = subprocess.Popen(
                words, cwd=self.folder, env={**self.variables, **env}, stdout=said, stderr=said,
                text=True, start_new_session=True,
            )  # fmt: skip
        self.started.append(process)
        return process

    @property
    def said(self) -> str:
        """What a started command has printed up to now."""
        return (self.folder / "said").read_text(errors="replace")

    @property
    def receipt(self) -> dict[str, Any]:
        """The receipt, checked against its schema."""
        receipt: dict[str, Any] = json.loads((self.output / "image.json").read_text())
        jsonschema.validate(receipt, self.schema)
        return receipt

    def containers(self) -> list[dict[str, Any]]:
        """Return its containers, running or not."""
        filters = {"label": self.label}
        found: list[dict[str, Any]] = self.engine.client.containers(all=True, filters=filters)
        return found

    def processes(self) -> list[int]:
        """Return its commands' processes: they share a TMPDIR."""
        wanted, found = f"TMPDIR={self.folder}/temporary".encode(), []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                variables = (place / "environ").read_bytes().split(b"\0")
                state = (place / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue  # it has ended
            if wanted in variables and state != "Z":
                found.append(int(place.name))
        return found

    def wait_for(self, holds: Callable[[], object], seconds: float = 40) -> None:
        """Wait until something holds, while the command goes on."""
        end = time.monotonic() + seconds
        while not holds():
            assert self.started[-1].poll() is None, self.said
            assert time.monotonic() < end, self.said
            time.sleep(0.02)

    def left(self, look: Callable[..., list[str]], seconds: float = 5) -> list[Any]:
        """Return what is left of it once everybody has had the time to end."""
        end = time.monotonic() + seconds
        while True:
            found = [*look(self.engine, self.label), *self.processes()]
            if not found or time.monotonic() > end:
                return found
            time.sleep(0.1)
