"""Builds that fail, each for one reason, on a real engine: one sentence, the remedy, the code."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mltune_cli.errors import ExitCode

Build = Callable[..., Any]
BUILDERS = ("sdk", "buildx")


@pytest.fixture
def build(mltune: Any, tmp_path: Path) -> Build:
    """Build a Dockerfile's lines with an engine; return how the command ended."""

    def run(engine: Any, *lines: str, flags: tuple[str, ...] = ("--no-run",), **env: str) -> Any:
        (tmp_path / "Dockerfile").write_text("".join(f"{line}\n" for line in lines))
        variables = {**engine.variables, **env}
        return mltune("build-image", *flags, cwd=tmp_path, env=variables)

    return run


@pytest.fixture(params=BUILDERS)
def builder(request: Any, newer_engine: Any, newer_tiny_base: str) -> tuple[Any, str, list[str]]:
    """Both builders of one engine, with a base."""
    return newer_engine, newer_tiny_base, ["--builder", request.param, "--no-run"]


def test_a_failing_step_is_shown_with_its_last_lines(builder: Any, build: Build) -> None:
    engine, base, flags = builder
    result = build(
        engine, f"FROM {base}", "RUN echo kept; echo told >&2; exit 3", flags=tuple(flags)
    )
    assert result.code == ExitCode.NO_VERDICT
    assert "[build] kept" in result.stderr
    assert "[build] told" in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("mltune: the build step `echo kept; echo told >&2; exit 3` ended with 3")
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("FROM {base}", "RUNN true"), "Dockerfile:2: "),
        (("RUN true",), "Dockerfile:1: "),
        (("FROM {base}", "", "COPY no-such-file /"), "Dockerfile:3: "),
        (("FROM {base}", "COPY ../outside /"), "Dockerfile:2: "),
        (("FROM {base}", 'CMD ["a"', "HEALTHCHECK --interval=x CMD true"), "Dockerfile"),
        (("FROM {base}", "EXPOSE nonsense"), "Dockerfile: EXPOSE nonsense"),
    ],
)
def test_a_wrong_dockerfile_is_a_usage_error(
    builder: Any, build: Build, lines: tuple[str, ...], said: str
) -> None:
    engine, base, flags = builder
    result = build(engine, *(line.format(base=base) for line in lines), flags=tuple(flags))
    assert result.code == ExitCode.USAGE, result.stderr
    assert said in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_what_only_buildkit_knows_is_refused_before_the_build(
    engine: Any, tiny_base: str, build: Build
) -> None:
    result = build(engine, f"FROM {tiny_base}", "RUN --mount=type=cache,target=/x true")
    assert result.code == ExitCode.USAGE
    assert "Dockerfile:2: " in result.stderr
    assert "--builder buildx" in result.stderr


def test_a_base_that_nobody_has_is_explained(engine: Any, build: Build) -> None:
    name = "registry.invalid/nobody/nothing:1"
    result = build(engine, f"FROM {name}")
    assert result.code == ExitCode.NO_VERDICT
    last = result.stderr.splitlines()[-1]
    assert f"mltune: {name}: is not in the engine and cannot be pulled" in last
    assert "--base" in last


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--tag", "UPPER:x"), "--tag UPPER:x: is no valid name"),
        (("--tag", "a:b:c"), "--tag a:b:c"),
        (("--base", "not a name"), "not a name"),
        (("--build-arg", "NOVALUE"), "--build-arg NOVALUE: must be NAME=VALUE"),
        (("--build-arg", "OTHER=1"), "has no ARG OTHER; it has BASE"),
        (("--build-arg", "API_TOKEN=abc"), "API_TOKEN"),
        (("--build-arg", "BASE=https://me:pw@host/x"), "BASE"),
        (("--builder", "kaniko"), "--builder kaniko: must be sdk or buildx"),
        (("--memory", "lots"), "--memory lots: must be a size"),
        (("--memory", "1k"), "no less than 6m"),
        (("--timeout", "0"), "--timeout: must be more than 0"),
        (("--no-run", "--against", "x"), "--against: needs a run"),
        (("--no-run", "--", "true"), "--: needs a run"),
        (("--",), "--: a command must follow"),
        (("--against", "no-such-run"), "no-such-run: no such run folder"),
        (("--against", "image_output/repro_output"), "which is about to be replaced"),
        (("--wheelhouse", "nowhere"), "nowhere"),
        (("--ca-bundle", "Dockerfile"), "Dockerfile"),
        (("--file", "Dockerfile.no"), "Dockerfile.no: there is no such Dockerfile"),
        (("--platform", "linux/s390x"), "linux/s390x"),
    ],
)
def test_a_wrong_flag_is_one_sentence(
    engine: Any, tiny_base: str, build: Build, tmp_path: Path, flags: tuple[str, ...], said: str
) -> None:
    result = build(engine, "ARG BASE=" + tiny_base, "FROM $BASE", "COPY build/ /b", flags=flags)
    assert result.code in (ExitCode.USAGE, ExitCode.NO_VERDICT), result.stderr
    assert result.code == (ExitCode.NO_VERDICT if "--platform" in flags else ExitCode.USAGE)
    assert said in result.stderr, result.stderr
    assert "pw" not in result.stderr
    assert "abc" not in result.stderr
    assert "Traceback" not in result.stderr


def test_a_build_that_takes_too_long_is_stopped(
    builder: Any, build: Build, left_of_ours: Any
) -> None:
    engine, base, flags = builder
    result = build(
        engine, f"FROM {base}", "LABEL mltune.case=slow", "RUN sleep 97",
        flags=(*flags, "--timeout", "3"),
    )  # fmt: skip
    assert result.code == ExitCode.NO_VERDICT
    assert "building the image took longer than --timeout 3" in result.stderr
    assert left_of_ours(engine, "mltune.case=slow") == []


def test_a_step_that_is_killed_for_memory_says_so(builder: Any, build: Build) -> None:
    engine, base, flags = builder
    result = build(engine, f"FROM {base}", "RUN sh -c 'kill -9 $$' || exit $?", flags=tuple(flags))
    assert result.code == ExitCode.NO_VERDICT
    assert "memory" in result.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def full_engine(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An engine of its own whose disk has 64 MiB."""
    if os.getuid() != 0 or os.environ.get("MLTUNE_TEST_DOCKER_HOST") is None:
        pytest.skip("needs root and an engine of its own (.ci/docker-engine)")
    folder, disk = tmp_path_factory.mktemp("small"), tmp_path_factory.mktemp("disk") / "image"
    script = str(project / ".ci" / "docker-engine")
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    for command in (["mkfs.ext4", "-q", disk], ["mount", "-o", "loop", disk, folder]):
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no small file system can be mounted here")
    state = folder / "engine"
    try:
        subprocess.run([sys.executable, script, "start", "--state", state], check=True, timeout=300)
        lines = (state / "env").read_text().splitlines()
        yield dict(line.split("=", 1) for line in lines)
    finally:
        subprocess.run([sys.executable, script, "stop", "--state", state], check=False, timeout=60)
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


@pytest.mark.docker
@pytest.mark.parametrize(
    "line",
    ["RUN dd if=/dev/zero of=/zeros bs=1M count=80", "COPY zeros /zeros"],
    ids=["RUN", "COPY"],
)
def test_a_full_disk_is_explained(
    full_engine: dict[str, str], host_base: Any, mltune: Any, tmp_path: Path, line: str
) -> None:
    import docker

    archive = tmp_path / "base.tar"
    host_base.write_busybox_base(archive)
    client = docker.APIClient(base_url=full_engine["DOCKER_HOST"], version="auto")
    host_base.import_base(client, "mltune-test/busybox:host", archive)
    client.close()
    (tmp_path / "zeros").write_bytes(bytes(80_000_000))
    (tmp_path / "Dockerfile").write_text(f"FROM mltune-test/busybox:host\n{line}\n")
    result = mltune("build-image", "--no-run", cwd=tmp_path, env=full_engine)
    assert result.code == ExitCode.NO_VERDICT, result.stderr
    last = result.stderr.splitlines()[-1]
    assert "the engine's disk is full" in last, result.stderr
    assert "docker system prune" in last


@pytest.mark.docker
def test_too_little_room_is_said_before_the_build(
    full_engine: dict[str, str], mltune: Any, tmp_path: Path
) -> None:
    """mltune's own image is known to need more."""
    result = mltune(
        "build-image", "--base", "mltune-test/busybox:host", cwd=tmp_path, env=full_engine
    )
    assert result.code == ExitCode.NO_VERDICT
    assert "GiB free" in result.stderr
    assert "step 1" not in result.stderr
