"""A golden's command: paths of the machine are shortened, and secrets are hidden."""

import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltune_cli.reproduction.kept_commands import kept_command, kept_subject


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["/opt/venv/bin/python", "/home/me/p/src/t.py"], "python src/t.py"),
        (["python", "t.py", "--data=/data/rows.jsonl"], "python t.py --data=rows.jsonl"),
        (["python", "t.py", "--data", "/home/me/p/rows"], "python t.py --data rows"),
        (["python", "t.py", "/home/me/my rows/a b.txt"], "python t.py 'a b.txt'"),
        (["bash", "-lc", "/home/me/run.sh --x /y/z"], "bash -lc 'run.sh --x z'"),
        (["sh", "-c", "cd /home/me/p/x && python /y/t.py"], "sh -c 'cd x && python t.py'"),
        (["env", "P=/home/me/p/lib:/usr/lib", "t.py"], "env P=lib:lib t.py"),
        (["t.py", "https://host/a/b", "s3://bucket/x"], "t.py https://host/a/b s3://bucket/x"),
        (["t.py", "../other/t.py", "1/2", "/"], "t.py ../other/t.py 1/2 /"),
        (["t.py", "--hf_token=abc", "{run}/files"], "t.py '--hf_token=***' '{run}/files'"),
        (["/home/me/p", "/home/me/pp/x"], ". x"),
        (["data.files=[/home/me/x.jsonl,/home/me/p/y]"], "'data.files=[x.jsonl,y]'"),
        (["data={train:/home/me/x,test:/y}", "[/home/me/p]"], "'data={train:x,test:y}' '[.]'"),
        (["{/home/me/x,/y}", '{"a": "/home/me/x"}'], """'{x,y}' '{"a": "x"}'"""),
        (["sh", "-c", "a|/home/me/b&&/home/me/c;`/home/me/d`"], "sh -c 'a|b&&c;`d`'"),
        (["--data=file:///home/me/x", "FILE:///home/me/x"], "--data=file:x FILE:x"),
        (["file://host/home/me/p/src/x", "git+file:///home/me/r@v1"], "file:src/x git+file:r@v1"),
        (["sqlite:////home/me/runs.db", "//home/me/x", "a=//home/me/p/x"], "sqlite:runs.db x a=x"),
        (["-I/home/me/inc", "-L/home/me/p/lib", "-I/"], "-Iinc -Llib -I/"),
        (
            ["sh", "-c", "gcc '-I/home/me/inc' -L//home/me/lib"],
            """sh -c 'gcc '"'"'-Iinc'"'"' -Llib'""",
        ),
        (["/data/{run}/rows", "a:/data/{run}/[x]/rows"], "rows a:rows"),
        (
            ["https://host/a/b", "x=[s3://bucket/x,gs://b/x/y]"],
            "https://host/a/b 'x=[s3://bucket/x,gs://b/x/y]'",
        ),
        (
            ["http://[::1]:80/a/b", "host=tcp://10.0.0.1:80/a"],
            "'http://[::1]:80/a/b' host=tcp://10.0.0.1:80/a",
        ),
        (
            ["2026/01/02", "[1/2,3/4]", "split=train[:1/2]", "{a/b}", "-a/b"],
            "2026/01/02 '[1/2,3/4]' 'split=train[:1/2]' '{a/b}' -a/b",
        ),
        (["python", "-c", "7 //2; 7 / 2; a -b/c"], "python -c '7 //2; 7 / 2; a -b/c'"),
        (
            ["[a]/b", "${HOME}/x", "$HOME/x", "$(pwd)/x", "~/x", "**/x", "org/model"],
            "'[a]/b' '${HOME}/x' '$HOME/x' '$(pwd)/x' '~/x' '**/x' org/model",
        ),
    ],
)
def test_paths_of_the_machine_are_shortened(words: list[str], kept: str) -> None:
    assert kept_command(words, Path("/home/me/p")) == kept
    # What was kept once is kept the same way again, wherever that is.
    assert kept_subject(kept) == kept


_NAME = st.text("abcxyz019_", min_size=1, max_size=6)
_AROUND = (
    "{}", "--data={}", "--data:{}", "[{}]", "x=[{},{}]", "({})", "{{a: {}}}", '{{"a":"{}"}}',
    "'{}'", "a|{}", "a && {}", "a;{}", "<{}", "2>{}", "`{}`", "$({} {})", "file://{}", "file://h{}",
    "x=file://{},{}", "-I{}", "gcc -I{} -L{}", "@{}", "{}:{}", "cd {} && python {}",
)  # fmt: skip
_OTHERS = (
    "https://host/{}/{}",
    "s3://{}/{}",
    "x=[https://{}/{}/z]",
    "{}/{}",
    "a {}/{}",
    "../{}/{}",
)


@settings(max_examples=300, deadline=None)
@given(
    shape=st.sampled_from(_AROUND),
    places=st.lists(st.lists(_NAME, min_size=1, max_size=3), min_size=2, max_size=2),
)
def test_no_home_folder_is_kept_whatever_is_around_it(shape: str, places: list[list[str]]) -> None:
    folder = Path("/home/SOMEBODY/p")
    word = shape.format(*("/home/SOMEBODY/" + "/".join(names) for names in places))
    kept = kept_command(["t.py", word], folder)
    assert "SOMEBODY" not in kept
    assert "/home" not in kept
    # The names themselves are still told.
    for names in places[: shape.count("{}")]:
        assert names[-1] in kept or names == ["p"]
    assert kept_command(shlex.split(kept), folder) == kept


@settings(max_examples=100, deadline=None)
@given(shape=st.sampled_from(_OTHERS), names=st.lists(_NAME, min_size=2, max_size=2))
def test_what_is_no_path_of_the_machine_stays(shape: str, names: list[str]) -> None:
    word = shape.format(*names)
    assert kept_command([word], Path("/home/me/p")) == shlex.join([word])


def test_a_folder_that_is_known_by_a_link_is_the_folder(tmp_path: Path) -> None:
    (tmp_path / "real" / "src").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    folder = (tmp_path / "real").resolve()
    assert kept_command([f"{tmp_path}/link/src/t.py"], folder) == "src/t.py"


def test_a_command_that_is_no_command_stays() -> None:
    assert kept_subject("it's") == "it's"
