"""`--record` and `--against`: who changed the result, the code, the environment, or nobody."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

SHORT = ("--set", "train.max_steps=3", "--set", "train.warmup_steps=0",
         "--set", "evaluate.every_steps=0")  # fmt: skip
# A sum over so many elements that several threads share it, in an order that they decide.
SCRIPT = """
import sys
import torch
torch.manual_seed({seed})
model = torch.nn.Sequential(torch.nn.Linear(64, 1024), torch.nn.Dropout({dropout}))
optimizer = torch.optim.SGD(model.parameters(), lr={rate})
rows = torch.rand(256, 64)
{after_seed}
for step in range(4):
    loss = model(rows).square().sum() / 1000
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""
PLAIN = {"seed": 1, "dropout": 0.0, "rate": 0.1, "after_seed": ""}

Check = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def check(mltune: Any, tmp_path: Path) -> Check:
    """Check the script, filled in: `check("--record", "g.json", rate=0.2, env=...)`."""

    def run(*flags: str, env: dict[str, str] | None = None, **places: Any) -> Any:
        script = tmp_path / "train.py"
        script.write_text(SCRIPT.format(**{**PLAIN, **places}))
        result = mltune(
            "repro-check", "--json", "--no-explain", *flags, "--", sys.executable, "train.py",
            cwd=tmp_path, env={"OMP_NUM_THREADS": "1", **(env or {})},
        )  # fmt: skip
        report = json.loads(result.stdout) if result.stdout.startswith("{") else {}
        return result.code, report, result.stdout + result.stderr

    return run


def write_recipe(folder: Path, rate: float) -> None:
    text = (
        "model:\n  name_or_path: mltune/tiny\n  device: cpu\n  dtype: float32\n"
        "data:\n  train: mltune/repro_dataset/train.jsonl\n  max_length: 192\n"
        f"train:\n  max_steps: 3\n  learning_rate: {rate}\n  micro_batch_size: 2\n"
    )
    (folder / "recipe.yaml").write_text(text)


def test_a_changed_learning_rate_is_the_codes_doing(mltune: Any, tmp_path: Path) -> None:
    """The whole way of a pull request: recorded, changed, caught, recorded anew."""
    write_recipe(tmp_path, 0.002)
    flags = ("--config", "recipe.yaml")
    recorded = mltune("repro-check", *flags, "--record", "golden.json", cwd=tmp_path)
    assert recorded.code == 0, recorded.stderr
    same = mltune("repro-check", *flags, "--against", "golden.json", "--runs", "1", cwd=tmp_path)
    assert same.code == 0, same.stdout
    assert same.stdout.startswith("reproduced: 1 run of recipe is equal to golden.json")
    forgotten = mltune("repro-check", "--against", "golden.json", cwd=tmp_path)
    assert forgotten.code == 2
    assert "is about the recipe recipe; name it with --config" in forgotten.stderr

    write_recipe(tmp_path, 0.003)
    page = tmp_path / "summary.md"
    changed = mltune(
        "repro-check", *flags, "--against", "golden.json", "--runs", "1", "--junit", "junit.xml",
        cwd=tmp_path, env={"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(page),
                           "GITHUB_WORKSPACE": str(tmp_path)},
    )  # fmt: skip
    assert changed.code == 1
    assert "the code changed the result: at step 1, hyperparameters" in changed.stdout
    assert "changed: recipe, train.learning_rate: 0.002 is now 0.003" in changed.stdout
    # It was not blamed before a second run of it had given the same.
    assert "run 2: finished, 3 steps" in changed.stdout
    assert "::error file=recipe.yaml,line=10,title=mltune%3A the code changed" in changed.stderr
    assert "**the code changed the result**" in page.read_text()
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    report = json.loads((tmp_path / "repro_output/report.json").read_text())
    assert report["verdict"] == "different"
    assert report["golden"]["first_difference"]["step"] == 1
    assert (tmp_path / "repro_output/report.xml").read_text() == (
        tmp_path / "junit.xml"
    ).read_text()

    command = report["golden"]["record_command"]
    assert f"to make this the golden: {command}" in changed.stdout
    program, *arguments = shlex.split(command)
    assert program == "mltune"
    assert mltune(*arguments, cwd=tmp_path).code == 0
    assert mltune("repro-check", *flags, "--against", "golden.json", cwd=tmp_path).code == 0


def test_changed_rows_are_named(mltune: Any, tmp_path: Path) -> None:
    rows = [{"text": f"row {n} of a few"} for n in range(16)]
    data = tmp_path / "rows.jsonl"
    flags = (*SHORT, "--set", "data.train=rows.jsonl", "--set", "data.validation=null")

    def write() -> None:
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    write()
    assert mltune("repro-check", *flags, "--record", "g.json", cwd=tmp_path).code == 0
    rows[3] = {"text": "another row"}
    write()
    found = mltune("repro-check", *flags, "--against", "g.json", "--json", cwd=tmp_path)
    assert found.code == 1, found.stderr
    kinds = [(c["kind"], c["name"]) for c in json.loads(found.stdout)["golden"]["changes"]]
    assert kinds == [("input", "training rows")]
    # The golden travels between machines: it names no place of this one.
    assert str(tmp_path) not in (tmp_path / "g.json").read_text()


def test_a_command_that_changed_is_found_at_its_step(check: Check) -> None:
    assert check("--record", "g.json")[0] == 0
    code, report, output = check("--against", "g.json")
    assert code == 0, output
    assert report["golden"]["verdict"] == "reproduced"
    code, report, output = check("--against", "g.json", rate=0.2)
    assert code == 1, output
    assert report["golden"]["verdict"] == "code_changed"
    assert report["golden"]["first_difference"]["step"] == 1
    assert report["golden"]["first_difference"]["stage"] == "hyperparameters"
    # One that takes fewer steps, each of them equal, is another training too.
    code, report, _ = check("--against", "g.json", after_seed="range = lambda n: [0, 1]")
    assert code == 1
    assert report["golden"]["first_difference"]["stage"] == "missing"
    assert report["golden"]["first_difference"]["step"] == 3


@pytest.mark.long
def test_another_thread_count_is_the_environments_doing(check: Check, tmp_path: Path) -> None:
    assert check("--record", "g.json")[0] == 0
    two = {"OMP_NUM_THREADS": "2"}
    code, report, output = check("--against", "g.json", env=two)
    assert code == 125, output
    assert report["golden"]["verdict"] == "environment_changed"
    changes = [(c["name"], c["was"], c["now"]) for c in report["golden"]["changes"]]
    assert changes == [("threads", "1", "2")]
    suite = ElementTree.parse(tmp_path / "repro_output/report.xml").getroot()[0]
    assert (suite.get("failures"), suite.get("errors")) == ("0", "1")

    code, report, _ = check("--against", "g.json", "--allow-new-environment", env=two)
    assert code == 0
    assert report["verdict"] == "reproducible"
    assert any("has no golden for this environment" in note for note in report["notes"])
    # One run alone is equal to nothing: it is repeated before it counts as reproducible.
    flags = ("--against", "g.json", "--allow-new-environment", "--runs", "1")
    code, report, _ = check(*flags, env=two)
    assert (code, len(report["runs"])) == (0, 2)
    code, report, _ = check(*flags, env=two, dropout=0.5, after_seed="torch.seed()")
    assert (code, report["golden"]["verdict"]) == (1, "not_deterministic")

    # Both classes in one file: each is held against its own.
    assert check("--record", "g.json", env=two)[0] == 0
    assert len(json.loads((tmp_path / "g.json").read_text())["entries"]) == 2
    for env in (None, two):
        again = check("--against", "g.json", "--runs", "1", env=env)
        assert again[1]["golden"]["verdict"] == "reproduced"
        assert check("--against", "g.json", env=env, rate=0.2)[0] == 1


def test_a_golden_of_other_digests_blames_nobody(check: Check, tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    assert check("--record", "g.json")[0] == 0
    golden = json.loads(path.read_text())
    del golden["entries"][0]["digests"]
    path.write_text(json.dumps(golden))
    code, report, output = check("--against", "g.json", "--runs", "1")
    assert code == 125, output
    assert report["golden"]["verdict"] == "environment_changed"
    assert "was recorded when digests were computed in another way" in output
    (change,) = report["golden"]["changes"]
    assert (change["was"], change["now"]) == ("digests of kind 1", "digests of kind 2")
    # Recorded anew, it takes the old one's place.
    assert check("--record", "g.json")[0] == 0
    assert [e["digests"] for e in json.loads(path.read_text())["entries"]] == [2]


@pytest.mark.long
def test_another_thread_count_is_the_environments_doing_for_a_recipe_too(
    mltune: Any, tmp_path: Path
) -> None:
    write_recipe(tmp_path, 0.002)
    flags = ("--config", "recipe.yaml", "--json")
    two = ("--set", "reproducibility.threads=2")
    assert mltune("repro-check", *flags, "--record", "g.json", cwd=tmp_path).code == 0

    def check(*more: str) -> tuple[int, dict[str, Any]]:
        result = mltune("repro-check", *flags, *two, *more, cwd=tmp_path)
        return result.code, json.loads(result.stdout)

    # A change of the code besides: that it gives other bits here is not held against it.
    other = ("--set", "train.learning_rate=0.003")
    code, report = check(*other, "--against", "g.json")
    assert (code, report["verdict"]) == (125, "no_verdict")
    assert report["golden"]["verdict"] == "environment_changed"
    changes = [(c["kind"], c["name"], c["was"], c["now"]) for c in report["golden"]["changes"]]
    assert changes == [("environment", "settings.threads", "1", "2")]
    # Recorded here as well, it is told apart: this environment's entry is not equal.
    code, report = check("--record", "g.json")
    assert (code, report["recorded"]) == (0, "g.json")
    assert len(json.loads((tmp_path / "g.json").read_text())["entries"]) == 2
    code, report = check(*other, "--against", "g.json")
    assert (code, report["golden"]["verdict"]) == (1, "code_changed")


@pytest.mark.long
def test_unseeded_dropout_is_nobodys_change(check: Check, tmp_path: Path) -> None:
    assert check("--record", "g.json", dropout=0.5)[0] == 0
    golden = (tmp_path / "g.json").read_bytes()
    fault = {"dropout": 0.5, "after_seed": "torch.seed()"}
    for runs in ("2", "1"):
        code, report, output = check("--against", "g.json", "--runs", runs, **fault)
        assert code == 1, output
        assert report["golden"]["verdict"] == "not_deterministic"
        assert report["first_difference"]["step"] == 1
    # Nor is such a thing ever recorded.
    assert check("--record", "g.json", **fault)[0] == 1
    assert (tmp_path / "g.json").read_bytes() == golden


def test_a_run_alone_is_trained_again(mltune: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"row number {n}"}) + "\n" for n in range(16)))
    flags = (*SHORT, "--set", "reproducibility.seed=7", "--set", "data.train=rows.jsonl",
             "--set", "data.validation=null")  # fmt: skip
    assert mltune("train", *flags, "--output-dir", "first", cwd=tmp_path).code == 0
    other = tmp_path / "elsewhere"
    other.mkdir()
    again = mltune("repro-check", "--against", tmp_path / "first", cwd=other)
    assert again.code == 0, again.stdout + again.stderr
    assert "over 3 steps" in again.stdout
    # With a recipe, that one is trained, and held against the run.
    changed = mltune("repro-check", *flags, "--set", "reproducibility.seed=8", "--against", "first",
                     cwd=tmp_path)  # fmt: skip
    assert changed.code == 1
    assert "recipe, reproducibility.seed: 7 is now 8" in changed.stdout
    assert "--record golden.json" in changed.stdout
    rows.unlink()
    gone = mltune("repro-check", "--against", tmp_path / "first", cwd=other)
    assert gone.code == 2
    assert "rows.jsonl" in gone.stderr
    assert "Traceback" not in gone.stderr


def test_a_checked_command_is_run_again_from_its_output(
    check: Check, mltune: Any, tmp_path: Path
) -> None:
    one = {"OMP_NUM_THREADS": "1"}
    assert check()[0] == 0
    (tmp_path / "repro_output").rename(tmp_path / "earlier")
    again = mltune("repro-check", "--against", "earlier", cwd=tmp_path, env=one)
    assert again.code == 0, again.stdout + again.stderr
    assert "reproduced: " in again.stdout
    (tmp_path / "train.py").write_text(SCRIPT.format(**{**PLAIN, "seed": 2}))
    changed = mltune("repro-check", "--against", "earlier", "--no-explain", cwd=tmp_path, env=one)
    assert changed.code == 1, changed.stdout
    assert "the code changed the result: at step 0, parameters" in changed.stdout


def damaged(text: str) -> str:
    return text.replace('"step": 1', '"step": -1', 1)


@pytest.mark.parametrize(
    ("flags", "content", "expected"),
    [
        (("--against", "g.json"), None, "g.json: no such golden; --record g.json makes it"),
        (("--against", "g.json"), "", "g.json: is no golden of mltune"),
        (("--against", "g.json"), '{"entries": 3}', "is no golden of mltune"),
        (("--against", "g.json"), "\x00\xff garbage", "g.json: cannot be read: "),
        (("--record", "g.json"), "notes of mine", "g.json: is no golden of mltune"),
        (("--record", "."), None, "is a folder"),
        (("--record", "no/g.json"), None, "--record no/g.json: there is no folder "),
        (("--junit", "no/j.xml"), None, "--junit no/j.xml: there is no folder "),
        (("--record", "/proc/g.json"), None, "cannot be written"),
        (("--against", "."), None, "is neither a golden file nor a run"),
        (("--record", "a", "--against", "b"), None, "exclude each other"),
        (("--runs", "1"), None, "--runs 1: there is nothing to compare with"),
        (("--allow-new-environment",), None, "has no meaning without --against"),
        (("--runs", "1", "--against", "g", "--vary", "umask"), None, "--vary is about the runs"),
    ],
)
def test_wrong_goldens_are_refused_before_anything_runs(
    flags: tuple[str, ...], content: str | None, expected: str, mltune: Any, tmp_path: Path
) -> None:
    path = tmp_path / "g.json"
    if content is not None:
        path.write_text(content, encoding="latin-1")
    before = path.read_bytes() if content is not None else None
    result = mltune("repro-check", *flags, cwd=tmp_path)
    assert result.code == 2, result.stderr
    assert expected in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert (path.read_bytes() if path.exists() else None) == before
    assert not (tmp_path / "repro_output").exists()


def test_a_damaged_record_and_another_kind_are_refused(
    check: Check, mltune: Any, tmp_path: Path
) -> None:
    assert check("--record", "g.json")[0] == 0
    for flag in ("--against", "--record"):
        wrong = mltune("repro-check", flag, "g.json", cwd=tmp_path)
        assert wrong.code == 2
        assert "command" in wrong.stderr
    whole = (tmp_path / "g.json").read_text()
    (tmp_path / "g.json").write_text(damaged(whole))
    code, _, output = check("--against", "g.json")
    assert code == 2
    assert "g.json: is damaged: a record's step is -1" in output
    (tmp_path / "g.json").write_text(whole[: len(whole) // 2])
    assert check("--record", "g.json")[0] == 2
    assert (tmp_path / "g.json").read_text() == whole[: len(whole) // 2]


def test_a_run_that_fails_gives_no_verdict_and_records_nothing(
    check: Check, tmp_path: Path
) -> None:
    code, report, _ = check("--record", "g.json", after_seed="sys.exit(3)")
    assert code == 125
    assert report["verdict"] == "no_verdict"
    assert not (tmp_path / "g.json").exists()
    suite = ElementTree.parse(tmp_path / "repro_output/report.xml").getroot()[0]
    assert (suite.get("failures"), suite.get("errors")) == ("0", "1")
