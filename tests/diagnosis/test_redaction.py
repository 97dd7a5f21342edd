"""No secret in any output, whatever it is shaped like and wherever it stands."""

from __future__ import annotations

import json
import os
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltune_cli.commands.doctor import OutputKind, _shown
from mltune_cli.diagnosis.finding import broken, doubtful, in_order, known
from mltune_cli.diagnosis.machine import machine_report
from mltune_cli.diagnosis.redaction import Redaction, anonymous, is_secret_name
from mltune_cli.diagnosis.registry import CHECKS
from mltune_cli.diagnosis.report import CheckReport, DoctorReport
from mltune_cli.diagnosis.subject import Subject

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
        "MYSQL_PWD",
        "AUTHORIZATION",
        "OAUTH_HEADER",
    ):
        assert is_secret_name(name)
    for name in (
        "TOKENIZERS_PARALLELISM", "KEYBOARD", "OMP_NUM_THREADS", "MONKEY_BARS", "GIT_AUTHOR_NAME",
        "XAUTHORITY", "OLDPWD", "PWD",
    ):  # fmt: skip
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
    from mltune_cli.diagnosis.redaction import _COMMON_WORDS, _PLAIN_VALUE

    shown = Redaction({"MY_TOKEN": secret}).text(before + secret + after)
    is_word = secret.strip().lower() in _COMMON_WORDS
    if not (is_word or _PLAIN_VALUE.fullmatch(secret.strip()) or secret.strip() in "***"):
        assert secret.strip() not in shown.replace("***", "\0")


# Every word that a report is made of, and what a check may say.
SCHEMA_WORDS = sorted(
    set(re.findall(r"[\w./-]+", json.dumps(DoctorReport.model_json_schema())))
    | {check.name for check in CHECKS}
    | {check.title for check in CHECKS}
    | {"True", "null", "{}", '"', "\\", "0", "1", ":", ",", "***"}
)
SUBJECT = Subject(None, None, "planted", Path("/nowhere"), {})


def a_report() -> DoctorReport:
    """A report of every check, with a finding of each severity."""
    findings = [
        in_order("healthy"),
        known("python is memory", command="python -m pip"),
        doubtful("findings", "why", "remedy", scope="scripts"),
        broken("error", "errors", "command", scope="images"),
    ]
    checks = [
        CheckReport(name=c.name, title=c.title, severity="error", findings=findings, seconds=0.1)
        for c in CHECKS
    ]
    return DoctorReport(
        verdict="errors", exit_code=1, recipe_name="smoke", machine=machine_report(SUBJECT, None),
        checks=checks, seconds=0.5,
    )  # fmt: skip


@given(
    st.sampled_from(["DB_PASSWORD", "MY_SECRET", "API_KEY"]),
    st.sampled_from(SCHEMA_WORDS)
    | st.lists(st.sampled_from(SCHEMA_WORDS), max_size=3).map("".join),
    st.sampled_from(["tree", "json", "report"]),
)
@settings(deadline=None, max_examples=200)
def test_a_secret_that_is_a_word_of_the_report_changes_none_of_its_facts(
    name: str, secret: str, output: OutputKind
) -> None:
    report = a_report()
    shown = _shown(report, output, replace(SUBJECT, variables={name: secret, "USER": secret}))
    again = DoctorReport.model_validate_json(shown.model_dump_json())
    assert again == shown

    def facts(one: DoctorReport) -> object:
        return one.verdict, one.exit_code, [
            (c.name, c.title, c.severity, [(f.severity, f.scope) for f in c.findings])
            for c in one.checks
        ]  # fmt: skip

    assert facts(shown) == facts(report)
    assert list(shown.machine.packages) == list(report.machine.packages)


@pytest.mark.parametrize(
    "secret",
    [
        {"DB_PASSWORD": "python"}, {"MY_SECRET": "healthy"}, {"API_KEY": "findings"},
        {"GIT_AUTHOR_NAME": "memory"}, {"HF_TOKEN": "hash-seed"},
    ],
)  # fmt: skip
def test_an_everyday_word_as_a_secret_is_no_fault(clinic: Any, secret: dict[str, str]) -> None:
    """It stands in everybody's report: only to leave it there gives nothing away."""
    plain = clinic.look("hash-seed").finding
    told = clinic.look("hash-seed", env=secret)
    assert (told.code, told.finding) == (0, plain)
    assert clinic.run("--report", "--only", "hash-seed", env=secret).code == 0


def test_a_short_secret_is_not_shown_as_its_variables_own_value() -> None:
    variables = {"MKL_SECRET": "abc", "TORCH_TOKEN": "memory", "PIN_PASSWORD": "12345678"}
    text = "MKL_SECRET=abc, TORCH_TOKEN=memory, PIN_PASSWORD=12345678; abc of 12345678 in memory"
    words = frozenset({"memory"})
    assert Redaction(variables, words=words).text(text) == (
        "MKL_SECRET=***, TORCH_TOKEN=***, PIN_PASSWORD=***; abc of 12345678 in memory"
    )


def test_a_short_secret_that_a_check_quotes(clinic: Any) -> None:
    told = clinic.look("cpu-kernels", env={"MKL_SECRET": "q7z"})
    assert "MKL_SECRET=***" in told.finding["seen"]
    assert "q7z" not in told.stdout


@pytest.mark.parametrize("output", [[], ["--json"], ["--report"]])
def test_what_is_no_text_in_a_variable_is_spelled_out(clinic: Any, output: list[str]) -> None:
    """Escape sequences would reach the terminal, and bytes that are not UTF-8 no JSON."""
    value = os.fsdecode(b"a\x1b[31mb\x9bc\n\xffd")
    told = clinic.run(*output, "--only", "cpu-kernels", env={"MKL_CBWR": value, "TZ": value})
    assert (told.code, told.stderr) == (0, "")
    text = told.stdout.replace("\\\\", "\\").replace("\\[", "[")
    assert r"MKL_CBWR=a\x1b[31mb" in text.replace(r"\_", "_")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", told.stdout)


def test_a_mistake_is_told_without_control_characters(clinic: Any) -> None:
    told = clinic.run("--only", "\x1b[31mred")
    assert (told.code, told.stdout) == (2, "")
    assert r"\x1b[31mred" in told.stderr
    assert "\x1b" not in told.stderr


def test_a_name_inside_a_word_stays() -> None:
    variables = {"USER": "ci", "HOME": "/home/ci", "HOSTNAME": "gpu"}
    text = anonymous("precision of ci on gpu at /home/ci/x and /home/cinema, gpus", variables)
    assert text.startswith("precision of USER on HOST at ~/x and /home/cinema, gpus") or (
        os.uname().nodename in ("gpu", "ci")
    )
