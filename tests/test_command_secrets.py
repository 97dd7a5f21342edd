"""Secrets of a command line: each form is hidden, and what is none stays as it is."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mltune_cli.command_secrets import (
    HIDDEN,
    is_secret_flag,
    secrets_in,
    text_without,
    without_secrets,
)

SECRET = "s3cr3t/Value+1="  # of no shape that is known
FORMS = (
    "t.py --hf_token={}", "t.py --hf-token {} --lr 1", "t.py -token {}", "API_KEY={} t.py",
    "t.py hub.token={}", "t.py +trainer.wandb_api_key={}", "t.py --hfToken {}",
    "t.py --AWS_SECRET_ACCESS_KEY {}", "t.py --db.password={}", "t.py --openai_key {}",
    "t.py --use_auth_token {}", "sh -c 'HF_TOKEN={} python t.py'",
    "sh -c 'python t.py --password {} --lr 1'", "sh -c 'python t.py --password=\"{}\" --lr 1'",
    "t.py --config '{{\"token\": \"{}\", \"lr\": 1}}'", "t.py 'https://host/x?token={}&y=1'",
    "t.py --header 'Authorization: Bearer {}'", "'argument=--hf_token {}'",
    "\"argument=--hf_token='{}\"", "env.HF_TOKEN={}",
)  # fmt: skip
SHAPED = (
    "hf_" + "aB3" * 9, "ghp_" + "a1B2" * 9, "github_pat_" + "b" * 30, "sk-" + "e" * 40,
    "glpat-" + "c" * 20, "pypi-" + "d" * 40, "AKIA" + "F" * 16, "xoxb-1234567890-abcdef",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
)  # fmt: skip
HARMLESS = (
    "python train.py 0.1 --max_tokens 512 --max-new-tokens=99 --eos_token '</s>' --pad_token=x",
    "torchrun --nproc-per-node 2 train.py --tokenizer gpt2 --tokenizer_name=mine --token_count 3",
    "t.py --auth --lr 3", "t.py --use_auth_token true", "t.py --token_file /etc/token",
    "t.py --author me --text_key content --sort_key=loss --monkey business --keyboard us",
    "python -c 'import torch; print(1)' --output {run}/files --data hf_cache/sk-learn",
    "t.py --url https://host/path?x=1", "t.py --hf_token ***",
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_named_secret_is_hidden_and_nothing_else(form: str) -> None:
    words = shlex.split(form.format(SECRET))
    hidden = without_secrets(words)
    assert SECRET not in " ".join(hidden)
    assert HIDDEN in " ".join(hidden)
    assert len(hidden) == len(words)
    if not form.startswith("sh -c 'HF_TOKEN"):  # there nobody can tell where the value ends
        assert hidden == shlex.split(form.format(HIDDEN))
        assert secrets_in(words) == [SECRET]
    # What was written once is written the same way again.
    assert without_secrets(hidden) == hidden


@pytest.mark.parametrize("secret", SHAPED)
def test_a_secret_is_known_by_its_shape(secret: str) -> None:
    assert without_secrets(["t.py", secret, f"--x={secret}", f"a {secret} b"]) == [
        "t.py", HIDDEN, f"--x={HIDDEN}", f"a {HIDDEN} b",
    ]  # fmt: skip
    assert text_without([], f"error: {secret} is wrong") == f"error: {HIDDEN} is wrong"


@pytest.mark.parametrize("command", HARMLESS)
def test_what_is_no_secret_stays(command: str) -> None:
    words = shlex.split(command)
    assert without_secrets(words) == words
    assert secrets_in(words) == []


def test_a_password_in_an_address_is_hidden() -> None:
    shown = without_secrets(["git+https://me:s3cr3t@host/x", "postgres://s3cr3t@host"])
    assert shown == ["git+https://***@host/x", "postgres://***@host"]


def test_a_word_with_spaces_is_hidden_whole() -> None:
    phrase = "correct horse battery"
    assert without_secrets(["--password", phrase]) == ["--password", HIDDEN]
    assert without_secrets([f"DB_PASSWORD={phrase}"]) == [f"DB_PASSWORD={HIDDEN}"]
    assert secrets_in(["--password", phrase, "--token", phrase[:12]]) == [phrase, phrase[:12]]


def test_short_secrets_are_hidden_but_not_looked_for_elsewhere() -> None:
    assert without_secrets(["--token", "a1"]) == ["--token", HIDDEN]
    assert secrets_in(["--token", "a1"]) == []


def test_names() -> None:
    for name in ("--hf_token", "HF_TOKEN", "apiKey", "--db-password", "SSH_AUTH", "X_KEY"):
        assert is_secret_flag(name), name
    for name in ("--tokenizer", "--tokens", "KEYBOARD", "--access_key_id", "--key", "--author"):
        assert not is_secret_flag(name), name


@given(st.lists(st.text()), st.text(min_size=1).filter(lambda t: not t.startswith("-")))
def test_any_command_can_be_hidden(words: list[str], secret: str) -> None:
    hidden = without_secrets([*words, "--other", "x", "--hf_token", secret])
    assert len(hidden) == len(words) + 4
    is_plain = without_secrets(["--hf_token", secret])[1] == secret
    assert hidden[-1] == (secret if is_plain else HIDDEN)
