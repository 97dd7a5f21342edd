"""Caches, disks, shared memory, limits, Docker, git, clock: each with its fault, and without."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any, ClassVar

import pytest

from mltune_cli.diagnosis.checks import clock
from mltune_cli.diagnosis.checks.clock import judge
from mltune_cli.diagnosis.subject import Subject
from mltune_cli.imaging.engine import free_bytes, open_engine


def fault(told: Any, severity: str) -> dict[str, Any]:
    """The only finding of that severity, with its reason and its remedy."""
    (finding,) = [one for one in told.findings() if one["severity"] == severity]
    assert finding["why"]
    assert finding["remedy"]
    assert told.code == (1 if severity == "error" else 0)
    return finding


def fault_free(told: Any, severity: str) -> dict[str, Any]:
    """The only finding, which is no fault."""
    assert (told.code, told.severity) == (0, severity)
    return told.finding


# Caches -------------------------------------------------------------------------------------------


def test_a_cache_that_cannot_be_made(clinic: Any) -> None:
    told = clinic.look("caches")
    assert told.severity == "ok"
    assert not (clinic.home / ".cache").exists(), "nothing is made by looking"
    env = {"MLTUNE_CACHE": "/dev/null/cache"}
    finding = fault(clinic.look("caches", env=env), "error")
    assert "the cache of tokenised rows, /dev/null/cache, cannot be written" in finding["seen"]
    assert clinic.look("caches", env=env, before=finding["command"]).severity == "ok"


def test_a_hub_cache_on_a_full_disk(clinic: Any, disk_of: Any) -> None:
    disk = disk_of(64)
    env = {"HF_HOME": str(disk / "hub")}
    assert clinic.look("caches", env=env).severity == "ok"
    (disk / "filling").write_bytes(b"x" * 64 * 1024)
    finding = fault(clinic.look("caches", env=env), "warning")
    assert "No space left on device" in finding["seen"]
    told = clinic.look("caches", "--config", clinic.recipe(model="org/model"), env=env)
    assert fault(told, "error")["why"] == "the training will not start"
    assert clinic.look("caches", env=env, before=finding["command"]).severity == "ok"
    assert sorted(path.name for path in disk.iterdir()) == ["filling"], "nothing is left behind"


@pytest.mark.parametrize("below", ["", "/deeper/still"])
def test_a_cache_below_a_folder_of_somebody_else(
    clinic: Any, locked: Path, ordinary: list[str], below: str
) -> None:
    """It may not even be looked whether it is there; that stops training, and no check."""
    env = {"MLTUNE_CACHE": f"{locked}/cache{below}", "HF_HOME": f"{locked}/hub"}
    finding = fault(clinic.look("caches", env=env, wrapper=ordinary), "error")
    assert f"{locked}/cache{below}, cannot be written: Permission denied" in finding["seen"]


# Shared memory and open files ---------------------------------------------------------------------


def in_own_mounts() -> list[str]:
    """A wrapper in which mounts are seen by this command alone."""
    wrapper = ["unshare", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*wrapper, "true"]).returncode:
        pytest.skip("mounts of one's own need root")
    return wrapper


def test_shared_memory_that_is_small_or_full(clinic: Any) -> None:
    """A real, tiny /dev/shm, which only the doctor sees; its remedy makes it larger."""
    assert clinic.look("shared-memory").severity == "ok"
    wrapper = in_own_mounts()
    small = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    full = f"{small}; head -c 1m /dev/zero > /dev/shm/left || true"
    finding = fault(clinic.look("shared-memory", before=small, wrapper=wrapper), "warning")
    assert finding["seen"] == "/dev/shm has 1 MiB free"
    recipe = clinic.recipe("data: {loader_workers: 2}")
    told = clinic.look("shared-memory", "--config", recipe, before=full, wrapper=wrapper)
    worse = fault(told, "error")
    assert worse["seen"] == "/dev/shm has 0 MiB free"
    assert "2 loader workers" in worse["why"]
    for found, before in ((finding, small), (worse, full)):
        mending = f"{before}; {found['command']}"
        told = clinic.look("shared-memory", "--config", recipe, before=mending, wrapper=wrapper)
        assert told.severity == "ok"


def test_few_open_files(clinic: Any) -> None:
    assert clinic.look("open-files", before="ulimit -S -n 2048").severity == "ok"
    finding = fault(clinic.look("open-files", before="ulimit -S -n 256"), "warning")
    assert finding["seen"] == "256 files may be open at once"
    mending = f"ulimit -S -n 256; {finding['command']}"
    assert clinic.look("open-files", before=mending).severity == "ok"
    fault(clinic.look("open-files", before="ulimit -S -n 100"), "error")
    finding = fault(clinic.look("open-files", before="ulimit -n 512"), "warning")
    assert "the hard limit is 512" in finding["remedy"]
    assert finding["command"] is None, "nobody but root can mend that"


# Disk ---------------------------------------------------------------------------------------------


def test_too_little_disk_for_the_checkpoints(clinic: Any, disk_of: Any) -> None:
    """The whole tiny model with its optimizer, nine times over, does not fit on 50 MB."""
    disk = disk_of(50_000)
    text = f"""
        output_dir: {disk}/run
        adapter: {{method: full}}
        checkpoint: {{every_steps: 1, keep: 8}}
    """
    recipe = clinic.recipe(text)
    finding = fault(clinic.look("disk", "--config", recipe), "error")
    assert f"free in {disk}, and a run writes about" in finding["seen"]
    assert "keep fewer checkpoints" in finding["remedy"]
    fewer = ("--set", "checkpoint.every_steps=0")
    assert "error" not in clinic.look("disk", "--config", recipe, *fewer).severity
    assert clinic.look("disk", "--config", recipe, "--set", "output_dir=runs").severity == "ok"


def test_what_a_run_writes_is_what_was_said(clinic: Any, mltune: Any) -> None:
    """A run of the whole model with checkpoints, against the estimate of its size."""
    text = """
        output_dir: run
        adapter: {method: full}
        train: {max_steps: 4, micro_batch_size: 1, micro_batches_per_step: 1}
        checkpoint: {every_steps: 1, keep: 2}
    """
    recipe = clinic.recipe(text)
    seen = clinic.look("disk", "--config", recipe).finding["seen"]
    said = float(seen.rpartition("about ")[2].removesuffix(" MiB"))
    result = mltune("train", "--config", recipe, cwd=clinic.folder)
    assert result.code == 0, result.stderr
    files = [path for path in (clinic.folder / "run").rglob("*") if path.is_file()]
    written = sum(path.stat().st_size for path in files) / 2**20
    assert written <= said <= 32 + 1.8 * written, (said, written)


def test_an_output_folder_below_a_file(clinic: Any) -> None:
    clinic.write("file", "")
    recipe = clinic.recipe("output_dir: file/run")
    finding = fault(clinic.look("disk", "--config", recipe), "error")
    assert "file is a file" in finding["seen"]
    assert clinic.look("disk", "--config", clinic.recipe("output_dir: run")).severity == "ok"


def test_an_output_folder_of_somebody_else(clinic: Any, locked: Path, ordinary: list[str]) -> None:
    recipe = clinic.recipe(f"output_dir: {locked}/run")
    finding = fault(clinic.look("disk", "--config", recipe, wrapper=ordinary), "error")
    assert f"{locked}/run cannot be written: Permission denied" in finding["seen"]


def test_no_check_crashes_where_nothing_may_be_looked_at(
    clinic: Any, locked: Path, ordinary: list[str]
) -> None:
    """Every place that a check looks at lies in a folder of somebody else."""
    env = {
        name: f"{locked}/{name}"
        for name in ("MLTUNE_CACHE", "HF_HOME", "NCCL_CONF_FILE", "TORCHINDUCTOR_CACHE_DIR")
    }
    env |= {"HOME": f"{locked}/home", "TRITON_HOME": f"{locked}/triton", "DOCKER_HOST": ""}
    recipe = clinic.recipe(f"output_dir: {locked}/run", model=f"{locked}/model")
    told = clinic.run("--json", "--config", recipe, env=env, wrapper=ordinary)
    assert told.code == 1
    assert "crashed" not in told.stdout


# Docker -------------------------------------------------------------------------------------------


class Engine(BaseHTTPRequestHandler):
    """As much of an engine's API as tells of the engine."""

    info: ClassVar[dict[str, Any]] = {}

    def do_GET(self) -> None:
        answers = {
            "version": {"Version": "28.5.1", "ApiVersion": "1.51", "MinAPIVersion": "1.24",
                        "Os": "linux", "Arch": "amd64"},
            "info": self.info,
        }  # fmt: skip
        data = json.dumps(answers[self.path.rpartition("/")[2]]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(data)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def engine(clinic: Any) -> Iterator[dict[str, Any]]:
    """A socket that answers as an engine would; its facts can be changed."""
    path = f"{clinic.root}/engine.sock"
    info = {"Driver": "overlay2", "DockerRootDir": str(clinic.root), "MemTotal": 1}
    handler = type("Told", (Engine,), {"info": info})
    with ThreadingUnixStreamServer(path, handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {"info": info, "env": {"DOCKER_HOST": f"unix://{path}"}}
        server.shutdown()


def test_no_engine(clinic: Any, engine: Any) -> None:
    told = clinic.look("docker", env=engine["env"])
    assert (told.severity, told.finding["scope"]) == ("ok", "everything")
    assert "Docker 28.5.1, API 1.51, linux/amd64, overlay2" in told.finding["seen"]
    finding = fault(clinic.look("docker"), "warning")
    assert "no Docker engine listens at unix://" in finding["seen"]
    assert "install Docker, or start it" in finding["remedy"]
    assert finding["scope"] == "images"


def test_no_engine_that_anybody_named_is_only_said(clinic: Any) -> None:
    if Path("/var/run/docker.sock").exists():
        pytest.skip("this machine has an engine at the default socket")
    told = clinic.look("docker", before="unset DOCKER_HOST")
    assert (told.code, told.severity) == (0, "info")


@pytest.mark.parametrize(
    ("env", "seen", "command"),
    [
        ({"DOCKER_HOST": "http//nonsense"}, "is no engine's address", "unset DOCKER_HOST"),
        ({"DOCKER_HOST": "tcp://127.0.0.1:1"}, "no Docker engine answers", "unset DOCKER_HOST"),
        ({"DOCKER_HOST": "ssh://x@127.0.0.1"}, "ssh://", "unset DOCKER_HOST"),
        (
            {"DOCKER_HOST": "", "DOCKER_CONTEXT": "missing"},
            "there is no Docker context named",
            "unset DOCKER_CONTEXT",
        ),
        (
            {"DOCKER_HOST": "unix:///nowhere.sock"},
            "no Docker engine listens at unix:///nowhere.sock",
            "sudo systemctl start docker",
        ),
    ],
)
def test_an_engine_that_is_named_wrongly(
    clinic: Any, env: dict[str, str], seen: str, command: str
) -> None:
    finding = fault(clinic.look("docker", env=env), "warning")
    assert seen in finding["seen"]
    assert finding["command"] == command


def test_an_api_version_that_the_engine_does_not_speak(clinic: Any, engine: Any) -> None:
    env = engine["env"] | {"DOCKER_API_VERSION": "1.10"}
    finding = fault(clinic.look("docker", env=env), "warning")
    assert "API" in finding["seen"]
    assert finding["command"] == "unset DOCKER_API_VERSION"
    assert clinic.look("docker", env=env, before=finding["command"]).severity == "ok"


def test_an_engine_that_hangs_is_given_up(clinic: Any) -> None:
    path = f"{clinic.root}/mute.sock"
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(path)
        mute.listen(4)
        start = time.monotonic()
        told = clinic.look("docker", env={"DOCKER_HOST": f"unix://{path}"}, timeout=20)
        assert time.monotonic() - start < 8
    finding = fault(told, "warning")
    assert "did not end within 5 seconds" in finding["seen"]


def test_too_little_room_for_an_image(clinic: Any, engine: Any, disk_of: Any) -> None:
    assert clinic.look("docker-disk", env=engine["env"]).severity == "ok"
    engine["info"]["DockerRootDir"] = str(disk_of(128))
    finding = fault(clinic.look("docker-disk", env=engine["env"]), "warning")
    assert "the cpu image needs" in finding["seen"]
    assert finding["command"] == "docker system prune"


def test_gpus_in_containers(clinic: Any, engine: Any, nvidia_smi: Any) -> None:
    assert clinic.look("docker-gpu", env=engine["env"]).severity == "ok", "there is no GPU"
    nvidia_smi("NVIDIA H100")
    finding = fault(clinic.look("docker-gpu", env=engine["env"]), "warning")
    assert "Docker knows no way to give it to a container" in finding["seen"]
    assert "NVIDIA Container Toolkit" in finding["remedy"]
    engine["info"]["Runtimes"] = {"runc": {}, "nvidia": {}}
    told = clinic.look("docker-gpu", env=engine["env"])
    assert (told.severity, "NVIDIA's hook" in told.finding["seen"]) == ("ok", True)
    engine["info"]["Runtimes"] = {"runc": {}}
    engine["info"]["DiscoveredDevices"] = [{"Source": "cdi", "ID": "nvidia.com/gpu=all"}]
    told = clinic.look("docker-gpu", env=engine["env"])
    assert (told.severity, "by CDI (nvidia.com/gpu=all)" in told.finding["seen"]) == ("ok", True)
    assert "no Docker engine answers" in clinic.look("docker-gpu").finding["seen"]


@pytest.mark.docker
def test_a_real_engine(clinic: Any, nvidia_smi: Any) -> None:
    host = os.environ.get("MLTUNE_TEST_DOCKER_HOST")
    if not host:
        if os.environ.get("CI") == "true":
            pytest.fail("MLTUNE_TEST_DOCKER_HOST is not set, and CI is true")
        pytest.skip("no Docker engine: MLTUNE_TEST_DOCKER_HOST is not set (see .ci/docker-engine)")
    env = {"DOCKER_HOST": host}
    told = clinic.look("docker", env=env)
    assert told.severity == "ok", told.stdout
    with open_engine(env) as engine:
        root, free = engine.facts.root, free_bytes(engine.facts)
    disk = clinic.look("docker-disk", env=env)
    if free is None:
        assert "cannot be seen from here" in fault_free(disk, "info")["seen"]
    elif free < 4 << 30:
        assert "the cpu image needs" in fault(disk, "warning")["seen"]
    else:
        assert f"free in {root}" in fault_free(disk, "ok")["seen"]
    nvidia_smi("NVIDIA H100")
    hook = Path(host.removeprefix("unix://")).parent / "fakebin" / "nvidia-container-runtime-hook"
    if hook.is_file():
        told = clinic.look("docker-gpu", env=env, before=f"PATH={hook.parent}:$PATH")
        assert told.severity == "ok"
    fault(clinic.look("docker-gpu", env=env), "warning")


# Git ----------------------------------------------------------------------------------------------

IDENTITY = {
    "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@b",
}  # fmt: skip


def test_the_state_of_the_repository(clinic: Any) -> None:
    """From no repository to a clean one, by running each remedy in turn."""
    clinic.write("train.py", "print()\n")
    outside = fault(clinic.look("git"), "info")
    assert "in no git repository" in outside["seen"]
    clinic.shell(outside["command"])
    empty = fault(clinic.look("git"), "info")
    assert "has no commit yet" in empty["seen"]
    clinic.shell(empty["command"], IDENTITY)
    told = clinic.look("git")
    assert (told.severity, "nothing changed since" in told.finding["seen"]) == ("ok", True)
    clinic.write("train.py", "print(1)\n")
    dirty = fault(clinic.look("git"), "warning")
    assert "changes that are not committed: train.py" in dirty["seen"]
    clinic.shell(dirty["command"], IDENTITY)
    assert clinic.look("git").severity == "ok"


def test_git_is_missing(clinic: Any) -> None:
    env = {"PATH": f"{clinic.root}/bin:{clinic.command.parent}"}
    (clinic.root / "bin" / "bash").symlink_to("/bin/bash")
    finding = fault(clinic.look("git", env=env), "info")
    assert finding["seen"] == "git is not installed"


def test_a_repository_of_another_user(clinic: Any) -> None:
    if os.getuid() != 0:
        pytest.skip("giving a folder away needs root")
    clinic.shell("git init && git commit --allow-empty -m a", IDENTITY)
    os.chown(clinic.folder, 12345, 12345)
    os.chown(clinic.folder / ".git", 12345, 12345)
    finding = fault(clinic.look("git"), "warning")
    assert "belongs to another user" in finding["seen"]
    clinic.shell(finding["command"])
    assert clinic.look("git").severity == "ok"


# The clock ----------------------------------------------------------------------------------------


def test_a_clock_that_is_behind(clinic: Any) -> None:
    recipe = clinic.recipe()
    assert clinic.look("clock", "--config", recipe).severity in ("ok", "info")
    later = time.time() + 3 * 86400
    os.utime(recipe, (later, later))
    finding = fault(clinic.look("clock", "--config", recipe), "warning")
    assert "recipe.yaml was written 3 days later" in finding["seen"]
    assert "timedatectl" in finding["command"]


@pytest.mark.parametrize("dated_back", [0, 1, 315532800, 1420070400])
def test_files_that_are_dated_back_say_nothing_of_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dated_back: int
) -> None:
    """Nix and images that want equal bits give every file such a date."""
    own = tmp_path / "__init__.py"
    own.touch()
    os.utime(own, (dated_back, dated_back))
    monkeypatch.setattr(clock.mltune_cli, "__file__", str(own))
    findings = clock.look(Subject(None, None, None, tmp_path, {}))
    assert [one for one in findings if "years ahead" in one.seen] == []
    assert [one.severity for one in findings] in (["ok"], ["info"])


def test_the_clock_is_judged(tmp_path: Path) -> None:
    witness = tmp_path / "file"
    witness.touch()
    now = time.time()
    assert [one.severity for one in judge(now, [witness], True)] == ["ok"]
    assert [one.severity for one in judge(now, [witness], None)] == ["ok"]
    assert [one.severity for one in judge(now, [witness], False)] == ["info"]
    assert [one.severity for one in judge(now - 90, [witness], True)] == ["ok"]
    (behind,) = judge(now - 600, [witness], True)
    assert (behind.severity, "10 minutes later" in behind.seen) == ("warning", True)
    for when in (0, 1, 315532800, 1420070400):
        os.utime(witness, (when, when))
        assert [one.severity for one in judge(now, [witness], True)] == ["ok"], "a date made up"
    new = tmp_path / "new"
    new.touch()
    assert [one.severity for one in judge(now, [witness, new], True)] == ["ok"]
    witness.touch()
    (ahead,) = judge(now + 20 * 366 * 86400, [witness], True)
    assert (ahead.severity, "years ahead" in ahead.seen) == ("warning", True)
    (dead,) = judge(0.0, [witness], True)
    assert "1970-01-01" in dead.seen
