"""`--push` to a real registry of the test's own, and to ones that are not there or refuse."""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from docker.errors import ImageNotFound

from mltune_cli.errors import ExitCode

SHUT = "auth: {htpasswd: {realm: mine, path: htpasswd}}"
New = Callable[[Any], Any]
MANIFESTS = (
    "application/vnd.docker.distribution.manifest.v2+json, "
    "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
)


@pytest.fixture(scope="session")
def registry_program() -> Path:
    """The registry of Debian's package, unpacked into the cache of the tests."""
    installed = shutil.which("docker-registry")
    if installed is not None:
        return Path(installed)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mltune-tests"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / "docker-registry"
    with (cache / "registry.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as new:
                unpack(Path(new))
                Path(new, "root").rename(folder)
    return folder / "usr" / "bin" / "docker-registry"


def unpack(folder: Path) -> None:
    (folder / "packages").mkdir()
    for words in (
        ["apt-get", "download", "docker-registry"],
        ["sh", "-c", "dpkg-deb -x *.deb ../root"],
    ):
        try:
            done = subprocess.run(
                words, cwd=folder / "packages", capture_output=True, text=True, timeout=120
            )
            problem = done.stderr if done.returncode else None
        except OSError as error:
            problem = str(error)
        if problem is not None:
            reason = f"no registry: the package docker-registry cannot be had: {problem[-300:]}"
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


@pytest.fixture
def registry(
    request: Any, registry_program: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a registry; engines speak with this machine's own without TLS."""
    folder, port = tmp_path_factory.mktemp("registry"), free_port()
    (folder / "config.yml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n{request.param}\n"
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [registry_program, "serve", "config.yml"], cwd=folder, stdout=log, stderr=log
        )
    try:
        wait_for(port, process, folder / "log")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=5):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
    pytest.fail(f"the registry does not answer: {log.read_text()[-1000:]}")


def digest_in(registry: str, name: str, tag: str) -> str:
    request = urllib.request.Request(
        f"http://{registry}/v2/{name}/manifests/{tag}", headers={"Accept": MANIFESTS}, method="HEAD"
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return str(answer.headers["Docker-Content-Digest"])


@pytest.fixture(params=["engine", "newer_engine"])
def any_engine(request: Any, import_base: Any) -> tuple[Any, str]:
    engine = request.getfixturevalue(request.param)
    return engine, import_base(engine, "busybox")


@pytest.mark.docker
@pytest.mark.parametrize("registry", [""], indirect=True)
def test_what_is_pushed_has_the_digest_of_the_registry(
    any_engine: tuple[Any, str], registry: str, case: New
) -> None:
    engine, base = any_engine
    one = case(engine).script(base, "true")
    tag = f"{registry}/deep/{one.name}:mine"
    try:
        done = one.build("--tag", tag, "--push", "--json")
        assert done.returncode == ExitCode.OK, (done.stdout, done.stderr)
        wanted = [f"{registry}/deep/{one.name}@{digest_in(registry, f'deep/{one.name}', 'mine')}"]
        assert one.receipt["repo_digests"] == wanted
        assert json.loads(done.stdout) == one.receipt
        # A second name of the same image is not pushed with it, and does not count.
        other = f"{registry}/other/{one.name}:mine"
        assert one.build("--tag", other, "--push").returncode == ExitCode.OK
        assert [d.split("@")[0] for d in one.receipt["repo_digests"]] == [other[: -len(":mine")]]
    finally:
        for name in (tag, f"{registry}/other/{one.name}:mine"):
            engine.client.remove_image(name, force=True)


@pytest.mark.docker
@pytest.mark.parametrize("registry", [SHUT], indirect=True)
def test_a_registry_that_wants_a_login_says_so(
    any_engine: tuple[Any, str], registry: str, case: New
) -> None:
    check_refused(any_engine, case, f"{registry}/mine", "docker login")


@pytest.mark.docker
def test_a_registry_that_is_not_there_is_named(any_engine: tuple[Any, str], case: New) -> None:
    check_refused(any_engine, case, f"127.0.0.1:{free_port()}/mine", "is not reached")


def check_refused(any_engine: tuple[Any, str], case: New, name: str, said: str) -> None:
    """What was built and run keeps its receipt and its artifacts."""
    engine, base = any_engine
    one = case(engine).script(base, "echo kept >/repro_output/kept")
    try:
        done = one.build("--tag", f"{name}:1", "--push")
        assert done.returncode == ExitCode.NO_VERDICT, (done.stdout, done.stderr)
        assert one.receipt["reason"].startswith("--push: ")
        assert said in one.receipt["reason"]
        assert one.receipt["exit_code"] == ExitCode.NO_VERDICT
        assert one.receipt["repo_digests"] == []
        assert (one.artifacts / "kept").exists()
    finally:
        with contextlib.suppress(ImageNotFound):  # the build may have failed
            engine.client.remove_image(f"{name}:1", force=True)


def test_what_failed_its_run_is_not_pushed(engine: Any, tiny_base: str, case: New) -> None:
    one = case(engine).script(tiny_base, "exit 3")
    done = one.build("--push")
    assert done.returncode == ExitCode.NO_VERDICT
    assert one.receipt["reason"].startswith("the container's command ended with 3")
    assert "pushing" not in done.stderr
