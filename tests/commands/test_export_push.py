"""`mltune export --push`: the hub's own client against a small server on this machine."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

TOKEN = "hf_" + "abcdefgh" * 3
REPO = "me/thing"
COMMIT = "c" * 40


@dataclass
class Hub:
    """A hub that takes every upload, unless told to answer otherwise.

    Attributes:
        refusals: the end of a request's path to the status that it is answered with.
        is_private: whether the repository is.
        requests: every request: path, token, body.
    """

    url: str = ""
    refusals: dict[str, int] = field(default_factory=dict)
    is_private: bool = True
    requests: list[tuple[str, str | None, bytes]] = field(default_factory=list)

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        for end, status in self.refusals.items():
            if path.endswith(end):
                return status, {"error": "no <b>way</b>\nsecond line", "url": f"{self.url}/{REPO}"}
        if path == "/api/repos/create":
            return 200, {"url": f"{self.url}/{REPO}"}
        if path == f"/api/models/{REPO}":
            return 200, {"id": REPO, "private": self.is_private, "siblings": [], "tags": []}
        if path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            return 200, {"files": [{"path": name, **modes} for name in names]}
        if path.endswith("/commit/main"):
            return 200, {"commitOid": COMMIT, "commitUrl": f"{self.url}/{REPO}/commit/{COMMIT}"}
        return 200, {}

    def created(self) -> dict[str, Any]:
        (body,) = [body for path, _, body in self.requests if path == "/api/repos/create"]
        asked: dict[str, Any] = json.loads(body)
        return asked

    def uploaded(self) -> dict[str, bytes]:
        lines = [
            json.loads(line)
            for path, _, body in self.requests
            if path.endswith("/commit/main")
            for line in body.splitlines()
        ]
        files = [line["value"] for line in lines if line["key"] == "file"]
        return {file["path"]: base64.b64decode(file["content"]) for file in files}


@pytest.fixture
def hub() -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(b"")

        def do_POST(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._reply(body)

        def _reply(self, body: bytes) -> None:
            path = self.path.partition("?")[0]
            state.requests.append((path, self.headers.get("Authorization"), body))
            status, value = state.answer(path, body)
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


Push = Callable[..., Any]


@pytest.fixture
def push(mltune: Any, finished_run: Path, hub: Hub, tmp_path: Path) -> Push:
    """Export the run's adapter to `out` and push it: `push("--public", HF_TOKEN="")`."""

    def run(*flags: str, repo: str = REPO, **env: str) -> Any:
        settings = {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", **env,
        }  # fmt: skip
        arguments = ("export", finished_run, "out", "--push", repo, *flags)
        done = mltune(*arguments, cwd=tmp_path, env=settings)
        assert TOKEN not in done.stdout + done.stderr
        return done

    return run


def test_the_folder_is_uploaded_and_private(
    push: Push, hub: Hub, finished_run: Path, tmp_path: Path
) -> None:
    done = push()
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout == (
        f"wrote the adapter of {finished_run} to out\nuploaded out to {REPO} (private)\n"
    )
    assert hub.created() == {"name": "thing", "organization": "me", "visibility": "private"}
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.uploaded() == written
    assert len(written) == 4
    tokens = {token for path, token, _ in hub.requests if REPO in path or "create" in path}
    assert tokens == {f"Bearer {TOKEN}"}


def test_public_is_asked_for(push: Push, hub: Hub) -> None:
    hub.is_private = False
    done = push("--public")
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.endswith(f"uploaded out to {REPO} (public)\n")
    assert hub.created()["visibility"] == "public"
    assert len(hub.uploaded()) == 4


def test_a_repository_that_is_public_already_gets_nothing_unasked(
    push: Push, hub: Hub, tmp_path: Path
) -> None:
    hub.refusals = {"/create": 409}  # it exists
    hub.is_private = False
    done = push()
    assert done.code == 2
    assert done.stderr == (
        f"mltune: --push {REPO}: is public already; pass --public to upload there, or choose "
        "another name; out stays as written\n"
    )
    assert hub.uploaded() == {}
    assert (tmp_path / "out" / "README.md").is_file()


@pytest.mark.parametrize(
    ("refusals", "code", "sentence"),
    [
        (
            {"/create": 401, "/thing": 401},
            2,
            "the hub does not take the token; make a new one, and",
        ),
        (
            {"/create": 403, "/thing": 403},
            2,
            "the token may not write there; use one with the right",
        ),
        ({"/commit/main": 403}, 2, "the token may not write there; use one with the right"),
        ({"/create": 400}, 2, "the hub answered with status 400: no <b>way</b>"),
        ({"/create": 500}, 125, "the hub answered with status 500: no <b>way</b>"),
    ],
)
def test_a_hub_that_refuses_is_explained_and_the_folder_stays(
    push: Push, hub: Hub, tmp_path: Path, refusals: dict[str, int], code: int, sentence: str
) -> None:
    hub.refusals = refusals
    done = push()
    assert done.code == code
    assert done.stderr.startswith(f"mltune: --push {REPO}: {sentence}")
    assert done.stderr.endswith("; out stays as written\n")
    assert done.stderr.count("\n") == 1
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_a_hub_that_is_out_of_reach_gives_no_verdict(push: Push, tmp_path: Path) -> None:
    done = push(HF_ENDPOINT="http://127.0.0.1:9")
    assert done.code == 125
    assert done.stderr.startswith(f"mltune: --push {REPO}: no upload to the hub: ")
    assert done.stderr.endswith("Connection refused; out stays as written\n")
    assert len(list((tmp_path / "out").iterdir())) == 4


@pytest.mark.parametrize(
    ("repo", "env", "sentence"),
    [
        ("a/b/c", {}, "--push a/b/c: is no name of a model on the hub; write it as owner/name"),
        ("../x", {}, "--push ../x: is no name of a model on the hub; write it as owner/name"),
        ("", {}, "--push : is no name of a model on the hub; write it as owner/name"),
        (REPO, {"HF_TOKEN": ""}, "--push: there is no token for the hub; set HF_TOKEN or"),
        (REPO, {"HF_TOKEN": f"{TOKEN}\nX-Other: 1"}, "--push: the token for the hub holds spaces"),
        (REPO, {"HF_HUB_OFFLINE": "1"}, "--push: HF_HUB_OFFLINE is set in the environment"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_anything_is_written(
    push: Push, hub: Hub, tmp_path: Path, repo: str, env: dict[str, str], sentence: str
) -> None:
    done = push(repo=repo, **env)
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"mltune: {sentence}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert hub.requests == []


def test_nothing_goes_to_the_hub_unasked(
    mltune: Any, finished_run: Path, hub: Hub, tmp_path: Path
) -> None:
    env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
    assert mltune("export", finished_run, "out", cwd=tmp_path, env=env).code == 0
    assert hub.requests == []
