"""An engine that is absent, dead, forbidden, of another time; and one that answers."""

import contextlib
import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mltune_cli.errors import ExitCode

EMPTY = "FROM scratch\n"


@pytest.fixture
def refused(mltune: Any, tmp_path: Path) -> Any:
    """Build where an engine cannot be used; check how that ends, and return the sentence."""

    def run(code: int = ExitCode.NO_VERDICT, **variables: str) -> str:
        (tmp_path / "Dockerfile").write_text(EMPTY)
        result = mltune("build-image", cwd=tmp_path, env=variables)
        assert result.code == code, result.stderr
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1, result.stderr
        assert not (tmp_path / "image_output").exists()
        return str(result.stderr)

    return run


def test_no_engine_is_said_with_the_remedy(refused: Any, tmp_path: Path) -> None:
    said = refused(DOCKER_HOST=f"unix://{tmp_path}/no.sock")
    assert f"no Docker engine listens at unix://{tmp_path}/no.sock" in said
    assert "systemctl start docker" in said
    assert "DOCKER_HOST" in said


def test_a_stale_socket_is_told_from_a_missing_one(refused: Any, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "stale.sock"))
    said = refused(DOCKER_HOST=f"unix://{tmp_path}/stale.sock")
    assert "no Docker engine answers on it" in said
    assert "restart" in said


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become somebody without rights")
def test_a_socket_without_permission_names_the_group(mltune_command: Path, tmp_path: Path) -> None:
    """In a process of another user: root may open everything."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "mine.sock"))
        (tmp_path / "mine.sock").chmod(0o600)
        listener.listen()
        # Everything is imported before the rights are gone, and with them Python's own files.
        code = textwrap.dedent(f"""
            import os
            from mltune_cli.imaging.engine import open_engine

            def say(host):
                try:
                    with open_engine({{"DOCKER_HOST": host}}): pass
                except Exception as error:
                    print(int(error.exit_code), error)

            say("unix://{tmp_path}/none.sock")
            os.setgid(12345)
            os.setuid(12345)
            say("unix://{tmp_path}/mine.sock")
        """)
        for folder in (tmp_path, *tmp_path.parents):
            if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
                folder.chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        )
    said = done.stdout.splitlines()[1]
    assert said.startswith("125 no permission to use the Docker engine"), done
    assert "usermod -aG docker" in said


@pytest.mark.parametrize("host", ["foo://x", "tcp://", "/var/run/docker.sock", "tcp://a:b"])
def test_a_bad_docker_host_is_a_usage_error(refused: Any, host: str) -> None:
    said = refused(ExitCode.USAGE, DOCKER_HOST=host)
    assert f"DOCKER_HOST: '{host}' is no engine's address" in said
    assert "unix:///var/run/docker.sock" in said


def test_a_machine_that_does_not_answer_is_named(refused: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    assert f"tcp://127.0.0.1:{port}" in refused(DOCKER_HOST=f"tcp://127.0.0.1:{port}")


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Callable[[bytes], str]]:
    """Give a socket on which somebody listens who answers everything with the same bytes."""
    path = tmp_path / "stranger.sock"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(30)

        def give(answer: bytes) -> str:
            def serve() -> None:
                with contextlib.suppress(OSError):
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(answer)

            thread = threading.Thread(target=serve)
            thread.start()
            stack.callback(thread.join)
            return f"unix://{path}"

        yield give


def http(status: str, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


@pytest.mark.parametrize(
    "answer", [http("200 OK", b"hi"), b"", b"SSH-2.0-OpenSSH\r\n", http("200 OK", b"{}")]
)
def test_somebody_else_on_the_socket_is_no_engine(
    refused: Any, answering: Callable[[bytes], str], answer: bytes
) -> None:
    assert "ngine" in refused(DOCKER_HOST=answering(answer))


def test_an_api_version_that_is_too_new(refused: Any, engine: Any) -> None:
    said = refused(DOCKER_HOST=engine.host, DOCKER_API_VERSION="1.99")
    assert f"up to {engine.client.api_version}, and 1.99 was asked for" in said
    assert "unset DOCKER_API_VERSION" in said


def test_an_api_version_that_is_too_old(
    refused: Any, engine: Any, answering: Callable[[bytes], str]
) -> None:
    """The words are those of engine 29, the first that refuses a version which the SDK speaks."""
    assert "older than 1.24" in refused(DOCKER_HOST=engine.host, DOCKER_API_VERSION="1.12")
    message = (
        b'{"message":"client version 1.30 is too old. Minimum supported API version is 1.44, '
        b'please upgrade your client to a newer version"}'
    )
    host = answering(http("400 Bad Request", message))
    said = refused(DOCKER_HOST=host, DOCKER_API_VERSION="1.30")
    assert "from 1.44 on, and 1.30 was asked for" in said


def test_an_unknown_context_is_a_usage_error(refused: Any) -> None:
    said = refused(ExitCode.USAGE, DOCKER_CONTEXT="nowhere", DOCKER_HOST="")
    assert "nowhere" in said
