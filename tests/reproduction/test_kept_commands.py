"""A golden's command: paths of the machine are shortened, and secrets are hidden."""

from pathlib import Path

import pytest

from mltune_cli.reproduction.kept_commands import kept_command, kept_subject


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["/opt/venv/bin/python", "/home/me/p/src/t.py"], "python src/t.py"),
        (["python", "t.py", "--data=/data/rows.jsonl"], "python t.py --data=rows.jsonl"),
        (["python", "t.py", "--data", "/home/me/p/rows"], "python t.py --data rows"),
        (["python", "t.py", "/home/me/my rows/a b.txt"], "python t.py 'a b.txt'"),
        (["sh", "-c", "cd /home/me/p/x && python /y/t.py"], "sh -c 'cd x && python t.py'"),
        (["env", "P=/home/me/p/lib:/usr/lib", "t.py"], "env P=lib:lib t.py"),
        (["t.py", "https://host/a/b", "s3://bucket/x"], "t.py https://host/a/b s3://bucket/x"),
        (["t.py", "../other/t.py", "1/2", "/"], "t.py ../other/t.py 1/2 /"),
        (["t.py", "--hf_token=abc", "{run}/files"], "t.py '--hf_token=***' '{run}/files'"),
        (["/home/me/p", "/home/me/pp/x"], ". x"),
    ],
)
def test_paths_of_the_machine_are_shortened(words: list[str], kept: str) -> None:
    assert kept_command(words, Path("/home/me/p")) == kept
    # What was kept once is kept the same way again, wherever that is.
    assert kept_subject(kept) == kept


def test_a_folder_that_is_known_by_a_link_is_the_folder(tmp_path: Path) -> None:
    (tmp_path / "real" / "src").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    folder = (tmp_path / "real").resolve()
    assert kept_command([f"{tmp_path}/link/src/t.py"], folder) == "src/t.py"


def test_a_command_that_is_no_command_stays() -> None:
    assert kept_subject("it's") == "it's"
