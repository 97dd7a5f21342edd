"""No secret in any output, whatever it is shaped like and wherever it stands."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mltune_cli.diagnosis.redaction import Redaction, anonymous, is_secret_name

HF = "hf_" + "QwErTyUi" * 4
SECRETS = {
    "HF_TOKEN": HF,
    "WANDB_API_KEY": "1234567890abcdef1234567890abcdef12345678",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "MY_DB_PASSWORD": "correct horse battery staple",
    "GITHUB_TOKEN": "ghp_" + "a1B2" * 9,
    "PIP_INDEX_URL": "https://reader:s3cr3tpip@index.example/simple",
    "NVIDIA_CREDENTIALS": "nvapi-something-long",
    "TORCH_AUTH": "torch-auth-value",
    "CUDA_COOKIE": "cuda-cookie-value",
}
WORDS = [
    HF, SECRETS["WANDB_API_KEY"], SECRETS["AWS_SECRET_ACCESS_KEY"], SECRETS["MY_DB_PASSWORD"],
    SECRETS["GITHUB_TOKEN"], "s3cr3tpip", "nvapi-something-long", "torch-auth-value",
    "cuda-cookie-value", "g1ts3cr3t", "d0ck3rs3cr3t", "p1pc0nfs3cr3t", "0ther-t0ken-in-a-file",
    "url-s3cr3t",
]  # fmt: skip


@pytest.fixture
def leaky(clinic: Any) -> dict[str, str]:
    """Secrets in the environment and in the files where git, pip, Docker and the hub keep them."""
    home = clinic.home
    (home / ".gitconfig").write_text(
        '[url "https://me:g1ts3cr3t@git.example/"]\n  insteadOf = https://git.example/\n'
    )
    (home / ".pip").mkdir()
    (home / ".pip" / "pip.conf").write_text(
        "[global]\nindex-url = https://u:p1pc0nfs3cr3t@index.example/simple\n"
    )
    (home / ".docker").mkdir()
    auths = {"auths": {"registry.example": {"auth": "d0ck3rs3cr3t"}}}
    (home / ".docker" / "config.json").write_text(json.dumps(auths))
    (home / ".cache/huggingface").mkdir(parents=True)
    (home / ".cache/huggingface/token").write_text("0ther-t0ken-in-a-file")
    clinic.shell("git init && git remote add origin https://me:g1ts3cr3t@git.example/a.git")
    # And in places that a finding quotes.
    return SECRETS | {
        "DOCKER_HOST": "tcp://me:url-s3cr3t@127.0.0.1:1",
        "MKL_CBWR": HF,
        "ATEN_CPU_CAPABILITY": SECRETS["MY_DB_PASSWORD"],
        "LD_PRELOAD": "",
        "NCCL_ALGO": "https://u:url-s3cr3t@x",
        "NCCL_PROTO": SECRETS["WANDB_API_KEY"],
        "HF_HOME": str(home / ".cache/huggingface"),
        "TRITON_CACHE_DIR": f"/tmp/{SECRETS['GITHUB_TOKEN']}",
    }


@pytest.mark.parametrize("output", [[], ["--json"], ["--report"]])
def test_no_secret_is_in_any_output(clinic: Any, leaky: Any, output: list[str]) -> None:
    clinic.write("rows.jsonl", json.dumps({"messages": [{"role": HF, "content": ""}]}) + "\n")
    recipe = clinic.recipe(f"data: {{train: rows.jsonl}}\nadapter: {{target_modules: [{HF}]}}")
    told = clinic.run(*output, "--config", recipe, env=leaky)
    assert told.code == 1, told.stdout + told.stderr
    assert "***" in told.stdout
    text = told.stdout + told.stderr
    assert [word for word in WORDS if word in text] == []


def test_the_check_itself_would_have_shown_them(clinic: Any, leaky: Any) -> None:
    """The places above are quoted where they hold no secret: the test above can fail."""
    harmless = leaky | {"MKL_CBWR": "AVX2", "NCCL_ALGO": "Ring", "NCCL_PROTO": "LL128"}
    told = clinic.run("--json", env=harmless)
    for word in ("AVX2", "Ring", "LL128"):
        assert word in told.stdout


def test_a_bug_report_names_nobody(clinic: Any) -> None:
    host = socket.gethostname()
    env = {
        "USER": "jdoe17", "LOGNAME": "jdoe17", "HOSTNAME": "box42.corp.example",
        "PYTHONPATH": f"{clinic.home}/lib:/data/jdoe17/lib",
        "LD_LIBRARY_PATH": f"/mnt/box42/lib:/mnt/{host}/lib",
        "TORCH_HOME": str(clinic.home / "torch"),
    }  # fmt: skip
    recipe = clinic.recipe(model=str(clinic.home / "models" / "mine"))
    told = clinic.run("--report", "--config", recipe, env=env)
    assert told.code == 1
    for word in ("jdoe17", str(clinic.home), "box42"):
        assert word not in told.stdout
    if len(host) > 1 and host != "localhost":
        assert f"/{host}/" not in told.stdout
    for word in ("~/lib", "/data/USER/lib", "/mnt/HOST/lib", "~/models/mine", "### mltune"):
        assert word in told.stdout
    assert "| torch | 2." in told.stdout


def test_names_of_secrets() -> None:
    for name in (
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "DB_PASSWORD",
        "API_KEY",
        "SSH_AUTH",
        "X_KEY",
    ):
        assert is_secret_name(name)
    for name in ("TOKENIZERS_PARALLELISM", "KEYBOARD", "OMP_NUM_THREADS", "MONKEY_BARS"):
        assert not is_secret_name(name)


@pytest.mark.parametrize(
    "text",
    [
        f"token {HF} end", "ghp_" + "a" * 36, "github_pat_" + "b" * 30, "glpat-" + "c" * 20,
        "pypi-" + "d" * 40, "sk-" + "e" * 40, "AKIA" + "F" * 16, "xoxb-1234567890-abcdef",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "https://user:pass@host/x", "https://onlytoken@host",
        "Authorization: Bearer abcdefgh12345678", "Authorization: Basic dXNlcjpwYXNz",
        "https://host/x?token=abc123&y=1", "password=hunter22",
    ],
)  # fmt: skip
def test_shapes_of_secrets(text: str) -> None:
    shown = Redaction({}).text(text)
    assert "***" in shown
    for piece in ("pass@", "onlytoken", "abcdefgh1234", "dXNlcjpw", "abc123", "hunter22", "QwErTy"):
        assert piece not in shown


def test_what_is_no_secret_stays() -> None:
    plain = "torch 2.13.0 at https://example.org/a, /home/me/hf_cache, sk-learn, 3 of 4 rows"
    variables = {"USE_AUTH": "true", "TOKEN_COUNT": "2048", "KEY_FILE_AUTH": "/etc/key"}
    assert Redaction(variables).text(plain + " true 2048 /etc/key") == plain + " true 2048 /etc/key"


@given(st.text(min_size=6).filter(lambda text: len(text.strip()) >= 6), st.text(), st.text())
def test_the_value_of_a_secret_never_gets_through(secret: str, before: str, after: str) -> None:
    from mltune_cli.diagnosis.redaction import _PLAIN_VALUE

    shown = Redaction({"MY_TOKEN": secret}).text(before + secret + after)
    if _PLAIN_VALUE.fullmatch(secret.strip()) is None and secret.strip() not in "***":
        assert secret.strip() not in shown.replace("***", "\0")


def test_a_name_inside_a_word_stays() -> None:
    variables = {"USER": "ci", "HOME": "/home/ci", "HOSTNAME": "gpu"}
    text = anonymous("precision of ci on gpu at /home/ci/x and /home/cinema, gpus", variables)
    assert text.startswith("precision of USER on HOST at ~/x and /home/cinema, gpus") or (
        os.uname().nodename in ("gpu", "ci")
    )
