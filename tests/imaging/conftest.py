"""Real Docker engines, what they build from, and the GPUs that they are made to believe in.

`.ci/docker-engine start` starts an engine; these variables name the ones to use:

* `MLTUNE_TEST_DOCKER_HOST`: any engine; for the false NVIDIA hook, started with `--nvidia-hook`.
* `MLTUNE_TEST_NEWER_DOCKER_HOST`: one with CDI and buildx (Docker 28.2 or newer), started with
  `--containerd-store`, which exporting an image to a file needs.

Where one is missing its tests are skipped, and fail where `CI` is `true`.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import docker
import pytest
from docker.errors import DockerException
from requests.exceptions import RequestException

HERE = Path(__file__).parent
LABELS = "mltune."
HOOK = "nvidia-container-runtime-hook"
ENGINE_FIXTURES = {"engine", "newer_engine"}


@dataclass(frozen=True)
class Engine:
    """An engine that answers; `state` is the folder of `.ci/docker-engine`, where that made it."""

    host: str
    client: docker.APIClient
    version: str
    state: Path | None

    @property
    def variables(self) -> dict[str, str]:
        """The environment in which a Docker command line reaches it, with its plugins."""
        if self.state is None:
            return {"DOCKER_HOST": self.host}
        lines = (self.state / "env").read_text(encoding="utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines)


Hook = Callable[[int, str], None]
Devices = Callable[..., list[str]]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs an engine, so that `-m "not docker"` leaves it out."""
    for item in items:
        if ENGINE_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.docker)


def missing(reason: str) -> NoReturn:
    """Skip, but where everything must be there, fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and CI is true")
    pytest.skip(reason)


def engine_named_by(variable: str) -> Iterator[Engine]:
    host = os.environ.get(variable)
    if not host:
        missing(f"no Docker engine: {variable} is not set (see .ci/docker-engine)")
    folder = Path(host.removeprefix("unix://")).parent
    client = None
    try:
        client = docker.APIClient(base_url=host, version="auto", timeout=120)
        version = str(client.version()["Version"])
        state = folder if (folder / "fakebin").is_dir() else None
        yield Engine(host, client, version, state)
    except DockerException as error:
        if client is None:
            pytest.fail(f"{variable} names an engine that does not answer: {error}")
        raise
    finally:
        if client is not None:
            client.close()


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The engine of these tests."""
    yield from engine_named_by("MLTUNE_TEST_DOCKER_HOST")


@pytest.fixture(scope="session")
def newer_engine() -> Iterator[Engine]:
    """An engine with CDI and buildx."""
    yield from engine_named_by("MLTUNE_TEST_NEWER_DOCKER_HOST")


@contextlib.contextmanager
def alone(engine: Engine, what: str) -> Iterator[None]:
    """Hold a lock that other processes with the same engine wait for."""
    key = hashlib.sha256(engine.host.encode()).hexdigest()[:16]
    folder = engine.state or Path(tempfile.gettempdir()) / f"mltune-engine-{key}"
    folder.mkdir(exist_ok=True)
    with (folder / f"{what}.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def load(name: str) -> ModuleType:
    """Import a module that stands beside this file: the checkout is not on the path."""
    spec = importlib.util.spec_from_file_location(f"mltune_imaging_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def host_base() -> ModuleType:
    """The module `host_base.py`."""
    return load("host_base")


ImportBase = Callable[[Engine, str], str]


@pytest.fixture(scope="session")
def import_base(host_base: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> ImportBase:
    """Give an engine the base `busybox` or `python`; return its name there.

    Called as `import_base(newer_engine, "python")`; the first process does it for all.
    """
    writers = {"busybox": host_base.write_busybox_base, "python": host_base.write_python_base}

    def give(engine: Engine, kind: str) -> str:
        tag = f"mltune-test/{kind}:host"
        archive = tmp_path_factory.mktemp("base") / f"{kind}.tar"
        try:
            writers[kind](archive)
            with alone(engine, "bases"):
                host_base.import_base(engine.client, tag, archive)
        except host_base.MissingPartError as error:
            missing(f"no base image: {error}")
        finally:
            archive.unlink(missing_ok=True)
        return tag

    return give


@pytest.fixture(scope="session")
def tiny_base(engine: Engine, import_base: ImportBase) -> str:
    """The name of an image with a shell alone."""
    return import_base(engine, "busybox")


@pytest.fixture(scope="session")
def python_base(engine: Engine, import_base: ImportBase) -> str:
    """The name of an image with the Python that runs the tests, and venv, but no pip."""
    return import_base(engine, "python")


@pytest.fixture(scope="session")
def newer_tiny_base(newer_engine: Engine, import_base: ImportBase) -> str:
    """`tiny_base`, in the newer engine."""
    return import_base(newer_engine, "busybox")


@pytest.fixture(scope="session")
def newer_python_base(newer_engine: Engine, import_base: ImportBase) -> str:
    """`python_base`, in the newer engine."""
    return import_base(newer_engine, "python")


def replace_file(path: Path, text: str, mode: int) -> None:
    """Put a file in its place at once: the engine may be reading the old one."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.chmod(mode)
    new.replace(path)


@pytest.fixture
def false_nvidia_hook(engine: Engine) -> Iterator[Hook]:
    """Say how starts with a GPU end: `false_nvidia_hook(1, "nvidia-container-cli: ...")`.

    Until it is called they fail as on a machine whose driver is missing. Every test that asks the
    engine for a GPU takes this fixture, called or not: one of them runs at a time.
    """
    hook = engine.state / "fakebin" / HOOK if engine.state else None
    if hook is None or not hook.exists():
        missing(f"{engine.host} was not started by .ci/docker-engine with --nvidia-hook")

    def plant(exit_code: int, stderr_text: str) -> None:
        lines = ["#!/bin/sh", f"printf '%s\\n' {shlex.quote(stderr_text)} >&2", f"exit {exit_code}"]
        replace_file(hook, "\n".join(lines) + "\n", 0o755)

    with alone(engine, "nvidia-hook"):
        before = hook.read_text(encoding="utf-8")
        try:
            yield plant
        finally:
            replace_file(hook, before, 0o755)


def wait_for_devices(engine: Engine, names: Sequence[str], listed: bool) -> None:
    """Wait until the engine knows of all these devices, or of none of them."""
    if "DiscoveredDevices" not in engine.client.info():
        time.sleep(1)  # older than API 1.50: it does not tell
        return
    end = time.monotonic() + 20
    while time.monotonic() < end:
        known = {device["ID"] for device in engine.client.info()["DiscoveredDevices"] or ()}
        if set(names) <= known if listed else not set(names) & known:
            return
        time.sleep(0.1)
    pytest.fail(f"the engine does not see the change of {names}: it knows {sorted(known)}")


@pytest.fixture
def false_cdi_device(newer_engine: Engine) -> Iterator[Devices]:
    """Declare devices: `false_cdi_device("all", "0")` makes `nvidia.com/gpu=all` and `...=0`.

    `kind` is another kind than `nvidia.com/gpu`; `env` is what a container with one of them finds
    in its environment. Every test that asks the newer engine for a GPU, or whether it has one,
    takes this fixture, called or not: one of them runs at a time.
    """
    if newer_engine.state is None:
        missing(f"{newer_engine.host} was not started by .ci/docker-engine")
    folder, declared = newer_engine.state / "cdi", dict[Path, list[str]]()

    def declare(
        *names: str, kind: str = "nvidia.com/gpu", env: Mapping[str, str] | None = None
    ) -> list[str]:
        variables = {"NVIDIA_VISIBLE_DEVICES": "void"} if env is None else env
        edits = {"env": [f"{name}={value}" for name, value in variables.items()]}
        devices = [{"name": name, "containerEdits": edits} for name in names]
        spec = {"cdiVersion": "0.6.0", "kind": kind, "devices": devices, "containerEdits": {}}
        path = folder / f"{kind.replace('/', '-')}.json"
        replace_file(path, json.dumps(spec), 0o644)
        declared[path] = [f"{kind}={name}" for name in names]
        wait_for_devices(newer_engine, declared[path], listed=True)
        return declared[path]

    with alone(newer_engine, "cdi"):
        try:
            yield declare
        finally:
            for path in declared:
                path.unlink(missing_ok=True)
            gone = [name for names in declared.values() for name in names]
            wait_for_devices(newer_engine, gone, listed=False)


@pytest.fixture(scope="session")
def wheelhouse(project: Path) -> Path:
    """A folder with every wheel of `requirements.txt` for this Python, kept between sessions."""
    lock = project / "requirements.txt"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    version = f"cp{sys.version_info.major}{sys.version_info.minor}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mltune-tests"
    folder = cache / f"wheelhouse-{version}-{digest}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "wheelhouse.lock").open("w", encoding="utf-8") as waiting:
        fcntl.flock(waiting, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        with tempfile.TemporaryDirectory(dir=cache) as new:
            words = ("--require-hashes", "--no-deps", "--only-binary", ":all:", "-r", lock)
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", f"{new}/all"]
            done = subprocess.run([*pip, *words], capture_output=True, text=True)
            if done.returncode:
                missing(f"the wheels of {lock.name} cannot be had: {done.stderr[-2000:]}")
            Path(new, "all").rename(folder)
    return folder


@pytest.fixture
def case(
    mltune_command: Path, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Engine], Any]]:
    """Make a `case.Case` with an engine: `case(engine)`; its image and processes go afterwards."""
    schema = json.loads((project / "docs" / "schemas" / "image.schema.json").read_text())
    made = []

    def make(engine: Engine) -> Any:
        made.append(
            load("case").Case(engine, tmp_path_factory.mktemp("case"), mltune_command, schema)
        )
        return made[-1]

    yield make
    for one in made:
        for pid in one.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in one.started:
            process.wait(30)
        if not answers(one.engine):
            continue
        with contextlib.suppress(DockerException, RequestException):
            for container in one.containers():
                one.engine.client.remove_container(container["Id"], force=True, v=True)
            one.engine.client.remove_image(one.tag, force=True)


def answers(engine: Engine) -> bool:
    """Tell whether somebody listens; the SDK leaves its socket open where nobody does."""
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.connect(engine.host.removeprefix("unix://"))
        return True
    return False


@contextlib.contextmanager
def started_engine(project: Path, state: Path, *words: str) -> Iterator[Engine]:
    """Start an engine for one purpose, such as being killed."""
    script = [sys.executable, project / ".ci" / "docker-engine"]
    place = ("--state", state)
    done = subprocess.run([*script, "start", *place, *words], capture_output=True, text=True)
    if done.returncode:
        missing(f"no engine of our own can be started: {done.stderr[-1000:]}")
    client = docker.APIClient(base_url=f"unix://{state}/docker.sock", version="auto", timeout=120)
    try:
        yield Engine(f"unix://{state}/docker.sock", client, str(client.version()["Version"]), state)
    finally:
        client.close()
        subprocess.run([*script, "stop", *place], check=True, capture_output=True, timeout=120)


@pytest.fixture
def mortal_engine(
    project: Path, engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """An engine that a test may kill."""
    with started_engine(project, tmp_path_factory.mktemp("mortal")) as mortal:
        yield mortal


Left = Callable[..., list[str]]


@pytest.fixture(scope="session")
def left_of_ours() -> Left:
    """List an engine's containers, and images without a name, that carry a label of mltune's.

    `left_of_ours(engine, "mltune.run=abc")` lists those with that label and value alone: other
    tests may be at work with the same engine.
    """

    def look(engine: Engine, label: str = "") -> list[str]:
        found = [
            ("container", container["Id"], container["Labels"])
            for container in engine.client.containers(all=True)
        ] + [
            ("image", image["Id"], image["Labels"])
            for image in engine.client.images(filters={"dangling": True})
        ]
        return [
            f"{kind} {identity}"
            for kind, identity, labels in found
            if any(
                f"{name}={value}" == label if label else name.startswith(LABELS)
                for name, value in (labels or {}).items()
            )
        ]

    return look
