"""What is sent to the builder: the list, its digest, its archive, and what never goes in."""

import io
import os
import re
import tarfile
import threading
import time
import tracemalloc
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import certifi
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mltune_cli.errors import NoVerdictError, UsageError
from mltune_cli.imaging.archive import BuildContext
from mltune_cli.imaging.context import gather_context, refuse_secrets
from mltune_cli.imaging.ignore_rules import parse_rules

HASH = "--hash=sha256:" + "0" * 64
LOCK = f"one==1.0 {HASH}\ntwo==2.0 {HASH}\nthree==3.0 {HASH}\nfour==4.0 {HASH}\n"
WHEEL = "build/mltune-9-py3-none-any.whl"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A project, and beside it what mltune brings into the context."""
    project = tmp_path / "project"
    for name in ("recipe.yaml", "data/train.jsonl", "data/deep/val.jsonl", "README.md"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(name)
    (tmp_path / "mltune-9-py3-none-any.whl").write_bytes(b"wheel")
    (tmp_path / "requirements.txt").write_text(LOCK)
    wheelhouse = tmp_path / "wheelhouse"
    wheelhouse.mkdir()
    for name in ("one-1.0", "two-2.0", "three-3.0", "four-4.0", "five-5.0", "one-1.1"):
        (wheelhouse / f"{name}-py3-none-any.whl").write_bytes(name.encode())
    return tmp_path


def gather(
    place: Path, dockerfile: str | Path, *, with_wheels: bool = False, ca_bundle: Path | None = None
) -> BuildContext:
    return gather_context(
        dockerfile,
        project=place / "project",
        variant="cpu",
        wheel=place / "mltune-9-py3-none-any.whl",
        lock=place / "requirements.txt",
        wheelhouse=place / "wheelhouse" if with_wheels else None,
        ca_bundle=ca_bundle,
    )


def sent(place: Path, *sources: str) -> list[str]:
    """What a COPY of these sources sends besides the Dockerfile."""
    context = gather(place, f"FROM a\nCOPY {' '.join(sources)} /there/\n")
    return [name for name in context.files if name != context.dockerfile]


def refusal(place: Path, dockerfile: str | Path, **given: object) -> str:
    with pytest.raises(UsageError) as caught:
        gather(place, dockerfile, **given)  # type: ignore[arg-type]
    assert "\n" not in caught.value.message
    return caught.value.message


def test_the_list_is_what_is_copied_and_no_more(place: Path) -> None:
    text = (
        "FROM a\nCOPY build/packages/ /p/\nCOPY build/mltune-*.whl /w/\nCOPY data recipe.yaml /d/\n"
    )
    bundle = place / "ca.crt"
    bundle.write_bytes(Path(certifi.where()).read_bytes() + "# Tanúsítvány\n".encode())
    context = gather(place, text, with_wheels=True, ca_bundle=bundle)
    assert list(context.files) == [
        "Dockerfile",
        WHEEL,
        "build/packages/ca-bundle.crt",
        "build/packages/requirements.txt",
        *(f"build/packages/wheelhouse/{name}-py3-none-any.whl"
          for name in ("four-4.0", "one-1.0", "three-3.0", "two-2.0")),
        "data/deep/val.jsonl",
        "data/train.jsonl",
        "recipe.yaml",
    ]  # fmt: skip
    assert context.files["Dockerfile"] == text.encode()
    assert context.dockerfile == "Dockerfile"
    assert context.total_bytes == sum(
        len(c) if isinstance(c, bytes) else c.stat().st_size for c in context.files.values()
    )


def test_nothing_is_sent_that_is_not_copied(place: Path) -> None:
    context = gather(place, "FROM a\nCOPY --from=a /x /y\n", with_wheels=True)
    assert list(context.files) == ["Dockerfile"]


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["."], ["README.md", "build", "data/deep/val.jsonl", "data/train.jsonl", "recipe.yaml"]),
        (["/"], ["README.md", "build", "data/deep/val.jsonl", "data/train.jsonl", "recipe.yaml"]),
        (["*"], ["README.md", "build", "data/deep/val.jsonl", "data/train.jsonl", "recipe.yaml"]),
        (["*.md", "*.yaml"], ["README.md", "recipe.yaml"]),
        (["data/*.jsonl"], ["data/train.jsonl"]),
        (["data/*"], ["data/deep/val.jsonl", "data/train.jsonl"]),
        (["*/*/*.jsonl"], ["data/deep/val.jsonl"]),
        (["**/*.jsonl"], ["data/train.jsonl"]),  # COPY has no **
        (["./data/../recipe.yaml"], ["recipe.yaml"]),
        (["/data/deep/"], ["data/deep/val.jsonl"]),
        (["[a-r]ecipe.yam?"], ["recipe.yaml"]),
    ],
)
def test_sources(place: Path, sources: list[str], names: list[str]) -> None:
    found = [name for name in sent(place, *sources) if not name.startswith("build/")]
    has_brought = any(name.startswith("build/") for name in sent(place, *sources))
    assert sorted(found + ["build"] * has_brought) == sorted(names)


def test_a_missing_source_is_named_with_its_line(place: Path) -> None:
    text = "FROM a\n\nCOPY recipe.yaml \\\n  nothing.txt /\n"
    assert refusal(place, text) == (
        f"Dockerfile:3: COPY nothing.txt: there is no such file in {place / 'project'}"
    )
    file = place / "project" / "docker" / "Mine"
    file.parent.mkdir()
    file.write_text("FROM a\nADD *.bin /\n")
    assert refusal(place, file).startswith(f"{file}:2: ADD *.bin: there is no such file")
    (place / "project" / "empty").mkdir()
    assert "COPY empty: holds nothing to send" in refusal(place, "FROM a\nCOPY empty /\n")


@pytest.mark.parametrize("source", ["..", "../requirements.txt", "data/../../requirements.txt"])
def test_a_source_outside_of_the_project(place: Path, source: str) -> None:
    assert f"D:2: COPY {source}: lies outside" in refusal(
        place, f"FROM a\nCOPY {source} /\n"
    ).replace("Dockerfile", "D")


def test_secrets_and_results_are_not_swept_in(place: Path) -> None:
    project = place / "project"
    for name in (".git/config", ".env", "data/.env.local", "data/id_rsa", "data/server.pem",
                 ".ssh/known", "runs/a/log", "repro_output/log", "data/__pycache__/a.pyc",
                 ".dockerignore"):  # fmt: skip
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("")
    expected = ["README.md", "data/deep/val.jsonl", "data/train.jsonl", "recipe.yaml"]
    for source in (".", "*"):
        assert [n for n in sent(place, source) if not n.startswith("build/")] == expected
    assert sent(place, "data/*") == ["data/deep/val.jsonl", "data/train.jsonl"]
    assert sent(place, "runs/a", "data/server.pem") == ["data/server.pem", "runs/a/log"]


@pytest.mark.parametrize("source", [".git", ".env", "data/id_rsa", "./.ssh/known", "data/.env.x"])
def test_a_secret_that_is_named_is_refused(place: Path, source: str) -> None:
    path = place / "project" / source
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    assert "holds secrets" in refusal(place, f"FROM a\nCOPY {source} /\n")


def test_a_private_key_is_refused_under_any_name(place: Path) -> None:
    key = "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n"
    (place / "project" / "mine.pem").write_text(key)
    assert "is a private key" in refusal(place, "FROM a\nCOPY mine.pem /\n")
    (place / "ca.crt").write_text(key)
    assert "private key" in refusal(place, "FROM a\n", ca_bundle=place / "ca.crt")


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"-----BEGIN CERTIFICATE-----\nxx\n", b"\xff\0"]
)
def test_a_ca_bundle_that_is_none(place: Path, content: bytes) -> None:
    (place / "ca.crt").write_bytes(content)
    assert "holds no certificate" in refusal(place, "FROM a\n", ca_bundle=place / "ca.crt")
    assert "cannot be read" in refusal(place, "FROM a\n", ca_bundle=place)


def test_a_wheelhouse_that_lacks_wheels(place: Path) -> None:
    for path in (place / "wheelhouse").glob("*"):
        path.unlink()
    message = refusal(place, "FROM a\n", with_wheels=True)
    assert "lacks four==4.0, one==1.0, three==3.0 and 1 more; fill it with pip download " in message
    assert f"--requirement {place / 'requirements.txt'}" in message


def test_what_an_earlier_build_left_does_not_come_in_between(place: Path) -> None:
    for name in ("packages/wheelhouse/old.whl", "mltune-1-py3-none-any.whl", "mine.txt"):
        path = place / "project" / "build" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert sent(place, "build") == ["build/mine.txt", WHEEL, "build/packages/requirements.txt"]
    assert sent(place, "build/mltune-*.whl") == [WHEEL]


def test_the_dockerfile_keeps_its_place(place: Path) -> None:
    project = place / "project"
    (project / "Dockerfile").write_text("FROM other\n")
    context = gather(place, "FROM a\nCOPY . /\n")
    assert context.files["Dockerfile"] == project / "Dockerfile"
    assert context.files[context.dockerfile] == b"FROM a\nCOPY . /\n"
    assert gather(place, project / "Dockerfile").dockerfile == "Dockerfile"
    (project / "docker").mkdir()
    (project / "docker" / "Mine").write_text("FROM a\n")
    assert gather(place, project / "docker" / "Mine").dockerfile == "docker/Mine"
    (place / "Far").write_text("FROM a\n")
    assert gather(place, place / "Far").dockerfile == "Dockerfile"


def test_symbolic_links(place: Path) -> None:
    project = place / "project"
    (project / "inside").symlink_to("data/train.jsonl")
    (project / "folder").symlink_to(project / "data", target_is_directory=True)
    assert sent(place, "inside") == ["inside"]
    assert sent(place, "folder") == ["folder/deep/val.jsonl", "folder/train.jsonl"]
    (project / "data" / "out").symlink_to(place / "requirements.txt")
    message = refusal(place, "FROM a\nCOPY data /\n")
    assert "Dockerfile:2: COPY data: data/out is a symbolic link that leads out of" in message
    (project / "data" / "out").unlink()
    (project / "data" / "out").symlink_to("nowhere")
    assert "leads out of" in refusal(place, "FROM a\nCOPY data/out /\n")
    (project / ".dockerignore").write_text("data/out\n")
    assert sent(place, "data") == ["data/deep/val.jsonl", "data/train.jsonl"]
    (project / "data" / "deep" / "up").symlink_to("..", target_is_directory=True)
    assert "a folder around it" in refusal(place, "FROM a\nCOPY data /\n")


def test_what_is_no_file_is_not_sent(place: Path) -> None:
    os.mkfifo(place / "project" / "data" / "pipe")
    assert sent(place, "data") == ["data/deep/val.jsonl", "data/train.jsonl"]


def test_the_ignore_file_decides(place: Path) -> None:
    ignore = place / "project" / ".dockerignore"
    ignore.write_text("# all but one\n*\n!data\ndata/deep\n")
    assert [n for n in sent(place, ".") if not n.startswith("build/")] == ["data/train.jsonl"]
    assert "COPY recipe.yaml: is left out by .dockerignore" in refusal(
        place, "FROM a\nCOPY recipe.yaml /\n"
    )
    assert sent(place, "build/mltune-*.whl") == [WHEEL]  # what is brought is not the project's
    ignore.write_text("data\n")
    assert "is left out by .dockerignore" in refusal(place, "FROM a\nCOPY data /\n")
    ignore.write_text("a\n!\n")
    assert f"{ignore}:2: the exception names nothing" in refusal(place, "FROM a\n")
    ignore.write_text("[a\n")
    assert f"{ignore}:1: [a is no pattern" in refusal(place, "FROM a\n")
    ignore.write_bytes(b"\xff")
    assert "is not UTF-8" in refusal(place, "FROM a\n")


@pytest.mark.parametrize(
    ("rules", "ignored", "kept"),
    [
        ("*.md", ["a.md"], ["d/a.md", "a.mdx"]),
        ("**/*.md", ["a.md", "d/a.md", "d/e/a.md"], ["a.txt"]),
        ("d", ["d", "d/a", "d/e/f"], ["e/d", "dd"]),
        ("/d/", ["d/a"], ["e/d"]),
        ("./d/../e", ["e/a"], ["d/a"]),
        ("d/**", ["d/a", "d/e/f"], ["e"]),
        ("**/d", ["d", "x/d/a", "x/y/d"], ["dd", "xd"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["a/xb", "ab"]),
        ("a?c", ["abc"], ["a/c", "ac"]),
        ("[a-c]x", ["ax", "cx"], ["dx"]),
        ("[^a]x", ["bx"], ["ax", "/x"]),
        (r"\*", ["*"], ["a"]),
        ("a.b", ["a.b"], ["axb"]),
        ("*\n!a", ["b", "b/a"], ["a", "a/b"]),
        ("*\n!d/a\n", ["d/b", "e"], ["d/a"]),
        ("!a\na", ["a"], ["b"]),
        ("d\n!d/e\nd/e/f", ["d/a", "d/e/f", "d/e/f/g"], ["d/e", "d/e/g"]),
        ("#a\n\n  b  ", ["b"], ["#a", "a"]),
        ("*\n!**/keep", ["a", "d/a"], ["keep", "d/keep", "d/keep/a"]),
    ],
)
def test_the_rules_are_dockers(rules: str, ignored: list[str], kept: list[str]) -> None:
    read = parse_rules(rules)
    assert [name for name in ignored if not read.ignores(name)] == []
    assert [name for name in kept if read.ignores(name)] == []


PARTS = st.sampled_from(["a", "b", "ab", ".x", "a.b", "[", "*", "\\"])
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)


@given(PATHS, PATHS)
def test_a_plain_rule_ignores_itself_and_what_is_below(rule: str, other: str) -> None:
    escaped = re.sub(r"([\\*?\[\]])", r"\\\1", rule)
    rules = parse_rules(escaped)
    assert rules.ignores(rule)
    assert rules.ignores(f"{rule}/{other}")
    assert rules.ignores(other) == (f"{other}/".startswith(f"{rule}/"))
    assert not parse_rules(f"{escaped}\n!{escaped}").ignores(rule)
    assert not parse_rules(f"*\n!{escaped}").ignores(f"{rule}/{other}")


NAMES = st.text(st.sampled_from("abcxyz/é"), min_size=1).filter(
    lambda name: not name.startswith("/") and not name.endswith("/") and "//" not in name
)


@given(st.dictionaries(NAMES, st.binary(max_size=2000), min_size=1, max_size=6), st.randoms())
def test_the_digest_and_the_archive_do_not_know_the_order(
    files: dict[str, bytes], order: object
) -> None:
    names = list(files)
    order.shuffle(names)  # type: ignore[attr-defined]
    first, second = BuildContext(files), BuildContext({name: files[name] for name in names})
    assert first.digest() == second.digest()
    assert archive_of(first) == archive_of(second)


@given(st.binary(min_size=1, max_size=3000), st.data())
def test_any_other_byte_name_or_right_is_another_digest(
    content: bytes, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[place] ^= data.draw(st.integers(1, 255))
    digests = {
        BuildContext({"a": content}).digest(),
        BuildContext({"a": bytes(changed)}).digest(),
        BuildContext({"b": content}).digest(),
        BuildContext({"a": content, "b": b""}).digest(),
        BuildContext({"a": content[:-1]}).digest(),
    }
    assert len(digests) == 5


def test_times_and_owners_do_not_count_but_a_right_to_execute_does(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    path.chmod(0o600)
    context = BuildContext({"folder/file": path})
    digest, archive = context.digest(), archive_of(context)
    assert digest == BuildContext({"folder/file": b"content"}).digest()
    os.utime(path, (1, 1))
    path.chmod(0o666)
    assert (context.digest(), archive_of(context)) == (digest, archive)
    path.chmod(0o700)
    assert context.digest() != digest
    assert archive_of(context) != archive


def archive_of(context: BuildContext) -> bytes:
    stream = io.BytesIO()
    context.write_tar(stream)
    return stream.getvalue()


def test_the_archive_is_an_ordinary_one(tmp_path: Path) -> None:
    long = "a" * 90 + "/" + "b" * 90 + "/é"
    (tmp_path / "run.sh").write_bytes(b"x" * 5000)
    (tmp_path / "run.sh").chmod(0o755)
    context = BuildContext({long: b"1", "z/run.sh": tmp_path / "run.sh", "z/empty": b""})
    with tarfile.open(fileobj=io.BytesIO(archive_of(context))) as archive:
        members = archive.getmembers()
        assert [(m.name, m.mode, m.size) for m in members if m.isfile()] == [
            (long, 0o644, 1),
            ("z/empty", 0o644, 0),
            ("z/run.sh", 0o755, 5000),
        ]
        assert {m.name for m in members if m.isdir()} == {"a" * 90, long[:-2], "z"}
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
        assert {m.mode for m in members if m.isdir()} == {0o755}
        assert archive.extractfile("z/run.sh").read() == b"x" * 5000  # type: ignore[union-attr]


@given(st.dictionaries(NAMES, st.binary(max_size=3000), max_size=4), st.integers(1, 5000))
def test_the_stream_is_the_archive_in_pieces(files: dict[str, bytes], size: int) -> None:
    context = BuildContext(files)
    whole = archive_of(context)
    stream, pieces = context.open_tar(), []
    assert stream
    assert len(stream) == context.tar_bytes == len(whole)
    while piece := stream.read(size):
        assert len(piece) <= size
        pieces.append(piece)
    assert b"".join(pieces) == whole
    assert b"".join(context.open_tar()) == context.open_tar().read() == whole


def test_requests_sends_the_stream_with_its_length() -> None:
    """As the Docker SDK sends it: not chunked, and whole."""
    import requests

    seen: dict[str, object] = {}

    class Engine(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            seen["body"], seen["length"] = self.rfile.read(length), length
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    context = BuildContext({"a": b"1" * 100_000, "b/c": b"2"})
    with HTTPServer(("127.0.0.1", 0), Engine) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        session = requests.Session()
        session.trust_env = False  # a proxy does not know this port
        with session:
            session.post(
                f"http://127.0.0.1:{server.server_port}", data=context.open_tar(), timeout=9
            )
        thread.join()
    assert seen == {"body": archive_of(context), "length": context.tar_bytes}


def test_a_large_context_is_fast_and_held_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "large.whl"
    with path.open("wb") as stream:
        stream.truncate(400 << 20)
    context = BuildContext({f"wheelhouse/{path.name}": path})
    started = time.perf_counter()
    context.digest()
    tracemalloc.start()
    try:
        with Path(os.devnull).open("wb") as nowhere:
            context.write_tar(nowhere)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # 0.3 s on two idle cores; the bound is for a machine that does other things too.
    assert time.perf_counter() - started < 5
    assert peak_bytes < 16 << 20


def test_a_file_that_changes_or_goes_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"123", b"12345"):
        path.write_bytes(b"1234")
        stream = BuildContext({"file": path}).open_tar()
        stream.read(512)
        path.write_bytes(content)
        with pytest.raises(NoVerdictError, match="changed while it was sent"):
            stream.read()
        stream.close()
    path.unlink()
    for use in (BuildContext.digest, BuildContext.open_tar, archive_of):
        with pytest.raises(UsageError, match="file: cannot be read: No such file"):
            use(BuildContext({"file": path}))
    with pytest.raises(UsageError, match="cannot be read"):
        _ = BuildContext({"file": path}).total_bytes


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", "x"), ("token", "x"), ("PASSWORD", "x"), ("DB_PASSWD", "x"),
        ("MY_SECRET", "x"),
        ("API_KEY", "x"), ("APIKEY", "x"), ("KEY", "x"), ("KEY_ID", "x"), ("SSH_KEYS", "x"),
        ("PIP_INDEX_URL", "https://user:word@host/simple"), ("X", "http://token@host/simple"),
        ("HTTP_PROXY", "socks5://u:p@h:1"), ("Y", "a https://u:p@h b"),
    ],
)  # fmt: skip
def test_a_secret_is_no_build_argument(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"--build-arg {name}: .*--wheelhouse") as caught:
        refuse_secrets({"BASE": "a", name: value})
    assert value not in caught.value.message


def test_ordinary_build_arguments_pass() -> None:
    refuse_secrets({
        "BASE": "registry:5000/python@sha256:ab", "PIP_INDEX_URL": "https://host:1/a@b",
        "HF_TOKEN": "", "KEYBOARD": "us", "REPOSITORY": "ssh://git@host/x",
    })  # fmt: skip
