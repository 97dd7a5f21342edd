"""The engines, base images and false GPUs of these tests are what their fixtures say."""

import contextlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import docker
import pytest
from docker.errors import APIError
from docker.types import DeviceRequest

# See `conftest.py`, which cannot be imported from here.
Engine = Any
ANY_GPU = {"count": -1, "capabilities": [["gpu"]]}


@contextlib.contextmanager
def container_of(
    engine: Engine, image: str, command: str, *, gpu: dict[str, Any] | None = None, **options: Any
) -> Iterator[str]:
    """Create a container without network for a shell command, and remove it."""
    requests = [DeviceRequest(**gpu)] if gpu else []
    limits = engine.client.create_host_config(network_mode="none", device_requests=requests)
    words = ["sh", "-c", command]
    made = engine.client.create_container(image, words, host_config=limits, **options)
    try:
        yield made["Id"]
    finally:
        engine.client.remove_container(made["Id"], force=True, v=True)


def output_of(
    engine: Engine, image: str, command: str, *, gpu: dict[str, Any] | None = None
) -> str:
    """Run a shell command in a container, require that it succeeds, and return what it printed."""
    with container_of(engine, image, command, gpu=gpu) as container:
        engine.client.start(container)
        code = engine.client.wait(container, timeout=100)["StatusCode"]
        printed = str(engine.client.logs(container).decode())
    assert code == 0, printed
    return printed


def test_the_tiny_base_runs_a_shell(engine: Engine, tiny_base: str) -> None:
    printed = output_of(engine, tiny_base, "id -u; ls -ld /tmp; ls /bin/sh /usr/bin/env")
    assert printed.startswith("0\ndrwxrwxrwt")
    assert printed.endswith("/bin/sh\n/usr/bin/env\n")


def test_the_python_base_makes_an_environment(engine: Engine, python_base: str) -> None:
    modules = "bz2, ctypes, hashlib, lzma, sqlite3, ssl, uuid, zlib"
    version = "{}.{}.{}".format(*sys.version_info[:3])
    printed = output_of(
        engine,
        python_base,
        f"python3 -c 'import {modules}, sys; print(sys.version.split()[0], sys.prefix)'"
        " && python3 -m venv /opt/x && /opt/x/bin/pip --version",
    )
    assert printed.startswith(f"{version} /usr/local\npip "), printed
    assert "from /opt/x/lib/" in printed


def test_an_engine_gets_a_base_once(
    engine: Engine, tiny_base: str, host_base: ModuleType, tmp_path: Path
) -> None:
    before = engine.client.inspect_image(tiny_base)["Id"]
    host_base.write_busybox_base(tmp_path / "same.tar")
    assert host_base.import_base(engine.client, tiny_base, tmp_path / "same.tar") == before


def test_the_same_machine_writes_the_same_base(host_base: ModuleType, tmp_path: Path) -> None:
    for name in ("one.tar", "two.tar"):
        host_base.write_python_base(tmp_path / name)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as archive:
        members = archive.getmembers()
        configuration = archive.extractfile("etc/pip.conf")
        assert configuration is not None
        told = configuration.read().decode()
    assert len(members) > 1000
    assert {(member.mtime, member.uid, member.gid) for member in members} == {(0, 0, 0)}
    assert told == "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n", "and no index"


def test_a_gpu_is_given_where_the_hook_succeeds(
    engine: Engine, tiny_base: str, false_nvidia_hook: Callable[[int, str], None]
) -> None:
    false_nvidia_hook(0, "")
    assert output_of(engine, tiny_base, "echo $NVIDIA_VISIBLE_DEVICES", gpu=ANY_GPU) == "all\n"


@pytest.mark.parametrize(
    "complaint",
    [
        None,  # nothing planted: the hook with which the engine was started
        "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.4, 'please'",
    ],
)
def test_a_gpu_is_refused_in_the_words_of_the_hook(
    engine: Engine,
    tiny_base: str,
    false_nvidia_hook: Callable[[int, str], None],
    complaint: str | None,
) -> None:
    if complaint is not None:
        false_nvidia_hook(1, complaint)
    expected = complaint or "load library failed: libnvidia-ml.so.1: cannot open shared object file"
    with (
        container_of(engine, tiny_base, "true", gpu=ANY_GPU) as container,
        pytest.raises(APIError, match=re.escape(expected)),
    ):
        engine.client.start(container)


def test_a_declared_cdi_device_is_given_and_gone_afterwards(
    newer_engine: Engine, newer_tiny_base: str, false_cdi_device: Callable[..., list[str]]
) -> None:
    gpu = {"driver": "cdi", "device_ids": ["nvidia.com/gpu=all"]}
    with (
        container_of(newer_engine, newer_tiny_base, "true", gpu=gpu) as container,
        pytest.raises(APIError, match="unresolvable CDI devices"),
    ):
        newer_engine.client.start(container)
    assert false_cdi_device("all", "0", env={"PLANTED": "1"}) == [
        "nvidia.com/gpu=all",
        "nvidia.com/gpu=0",
    ]
    assert output_of(newer_engine, newer_tiny_base, "echo $PLANTED", gpu=gpu) == "1\n"


def test_the_newer_engine_builds_with_buildx(
    newer_engine: Engine, newer_tiny_base: str, tmp_path: Path
) -> None:
    """The same bytes twice, as an archive."""
    (tmp_path / "Dockerfile").write_text(f"FROM {newer_tiny_base}\nRUN echo built >/built\n")
    archives = [tmp_path / "one.tar", tmp_path / "two.tar"]
    for archive in archives:
        output = f"type=oci,dest={archive},rewrite-timestamp=true"
        command = ["docker", "buildx", "build", "--no-cache", "--provenance=false"]
        environment = {**os.environ, **newer_engine.variables, "SOURCE_DATE_EPOCH": "1"}
        done = subprocess.run(
            [*command, "--output", output, str(tmp_path)],
            env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert archives[0].read_bytes() == archives[1].read_bytes()


def test_what_is_left_is_listed(
    engine: Engine, tiny_base: str, left_of_ours: Callable[..., list[str]]
) -> None:
    mine, other = {"mltune.engine-test": "left"}, {"other.engine-test": "left"}
    with (
        container_of(engine, tiny_base, "true", labels=mine) as container,
        container_of(engine, tiny_base, "true", labels=other) as foreign,
    ):
        image = engine.client.commit(container, changes="LABEL mltune.engine-test=left")["Id"]
        try:
            expected = {f"container {container}", f"image {image}"}
            assert set(left_of_ours(engine, "mltune.engine-test=left")) == expected
            assert expected <= set(left_of_ours(engine))
            assert f"container {foreign}" not in left_of_ours(engine)
        finally:
            engine.client.remove_image(image)
    assert left_of_ours(engine, "mltune.engine-test=left") == []


@pytest.mark.parametrize(("ci", "code", "outcome"), [("", 0, "1 skipped"), ("true", 1, "1 error")])
def test_a_missing_engine_is_told(project: Path, ci: str, code: int, outcome: str) -> None:
    """It is skipped, but not where the absence of a test would be taken for its success."""
    here = f"{__file__}::test_the_tiny_base_runs_a_shell"
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    environment |= {"MLTUNE_TEST_DOCKER_HOST": "", "CI": ci}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", here]
    done = subprocess.run(command, env=environment, cwd=project, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    assert outcome in done.stdout
    assert "MLTUNE_TEST_DOCKER_HOST is not set" in done.stdout


@pytest.mark.long
def test_the_wheelhouse_is_enough_without_an_index(wheelhouse: Path, project: Path) -> None:
    assert list(wheelhouse.glob("torch-2.*+cpu-*.whl"))
    command = [sys.executable, "-m", "pip", "install", "--isolated", "--dry-run", "--quiet"]
    command += ["--ignore-installed", "--no-index", "--find-links", str(wheelhouse)]
    command += ["--require-hashes", "-r", str(project / "requirements.txt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


EngineProgram = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def engine_program(project: Path) -> EngineProgram:
    """Run `.ci/docker-engine` for a state folder: `engine_program("start", folder)`."""
    program = project / ".ci" / "docker-engine"

    def run(command: str, state: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
        words = [sys.executable, str(program), command, "--state", str(state), *flags]
        return subprocess.run(words, capture_output=True, text=True, timeout=300)

    return run


def test_a_folder_of_somebody_else_is_left_alone(
    engine_program: EngineProgram, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for command in ("start", "stop"):
        done = engine_program(command, tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert "no engine made it" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.fixture
def state() -> Iterator[Path]:
    """A short path: sockets below it have some 100 characters."""
    with tempfile.TemporaryDirectory(prefix="mltune-", ignore_cleanup_errors=True) as folder:
        yield Path(folder).resolve() / "engine"


def traces_of(state: Path) -> list[str]:
    """What an engine of this folder has in the lists of processes, mounts, links and rules."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if f" {state}/" in words and int(folder.name) != os.getpid():
                found.append(words)
            elif f"{state}/" in (folder / "mountinfo").read_text(errors="replace"):
                found.append(f"mounts of {words}")
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return found + [line for line in mounts if f" {state}/" in line]


def network_of_this_machine() -> tuple[set[str], str, str]:
    """Its links, its packet filter, and whether it forwards."""
    links = {path.name for path in Path("/sys/class/net").iterdir()}
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    rules = "\n".join(sorted(re.sub(r" \[.*\]|#.*", "", rules).splitlines()))
    return links, rules, Path("/proc/sys/net/ipv4/ip_forward").read_text()


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="an engine is started by root")
@pytest.mark.parametrize("killed", [False, True])
def test_an_engine_comes_and_leaves_no_trace(
    engine_program: EngineProgram,
    engine: Engine,
    host_base: ModuleType,
    state: Path,
    tmp_path: Path,
    killed: bool,
) -> None:
    """With a container that runs; `killed`: its daemons are dead, so that nobody tidies up."""
    before = network_of_this_machine()
    host = f"unix://{state}/docker.sock"
    try:
        for _ in range(2):
            done = engine_program("start", state)
            assert (done.returncode, done.stdout) == (0, f"DOCKER_HOST={host}\n"), done.stderr
        assert engine_program("status", state).returncode == 0
        client = docker.APIClient(base_url=host)
        with contextlib.closing(client):
            host_base.write_busybox_base(tmp_path / "base.tar")
            host_base.import_base(client, "base:1", tmp_path / "base.tar")
            container = client.create_container("base:1", ["sleep", "1000"])["Id"]
            client.start(container)
        assert list(Path("/sys/fs/cgroup").glob(f"**/docker/{container}"))
        if killed:
            for name in ("docker.pid", "exec/containerd/containerd.pid"):
                os.kill(int((state / name).read_text()), 9)
        assert traces_of(state)
        assert network_of_this_machine() != before
    finally:
        stopped = [engine_program("stop", state) for _ in range(2)]
    assert [(done.returncode, done.stdout, done.stderr) for done in stopped] == [(0, "", "")] * 2
    assert traces_of(state) == []
    assert not list(Path("/sys/fs/cgroup").glob(f"**/docker/{container}"))
    assert not state.exists()
    assert network_of_this_machine() == before
    assert engine_program("status", state).returncode == 3


@pytest.mark.long
def test_a_build_reaches_the_package_index(engine: Engine, python_base: str) -> None:
    """Through the bridge of the engine, as a user's build does."""
    made = engine.client.create_container(
        python_base,
        ["sh", "-c", "python3 -m venv /x && /x/bin/pip download --no-deps --dest /w six"],
    )
    try:
        engine.client.start(made["Id"])
        code = engine.client.wait(made["Id"], timeout=100)["StatusCode"]
        assert code == 0, engine.client.logs(made["Id"]).decode()
    finally:
        engine.client.remove_container(made["Id"], force=True, v=True)
