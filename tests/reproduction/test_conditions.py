"""Conditions: read, refused, and made for a command or a job."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mltune_cli.errors import UsageError
from mltune_cli.launching.command_process import HOOK_FOLDER
from mltune_cli.launching.job import TrainingJob
from mltune_cli.recipe.layers import load_recipe
from mltune_cli.reproduction.conditions.arguments import with_absolute_paths, with_arguments
from mltune_cli.reproduction.conditions.draft import Condition
from mltune_cli.reproduction.conditions.kinds import KINDS
from mltune_cli.reproduction.conditions.parsing import (
    listed_conditions,
    parse_condition,
    parse_conditions,
)
from mltune_cli.reproduction.conditions.prepared import prepared_command, prepared_job

COMMAND = ["python", "train.py", "--eval_steps", "5", "--rate=1e-3", "{run}"]


@pytest.fixture
def job() -> TrainingJob:
    loaded = load_recipe(None, {})
    return TrainingJob(
        recipe=loaded.recipe, origins=dict(loaded.origins), recipe_name="smoke", runs_folder="runs"
    )


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("hash-seed=007", "hash-seed", "7"),
        ("clock=2030-01-02", "clock", "2030-01-02T00:00:00+00:00"),
        ("clock=-3h30m", "clock", "-3h30m"),
        ("clock=frozen@2026-01-02T03:04:05", "clock", "frozen@2026-01-02T03:04:05+00:00"),
        ("time-zone=Asia/Tokyo", "time-zone", "Asia/Tokyo"),
        ("time-zone=GMT-14", "time-zone", "GMT-14"),
        ("umask=077", "umask", "0077"),
        ("env.A=b=c", "env.A", "b=c"),
        ("env.A=", "env.A", ""),
        ("train.learning_rate=1e-3", "train.learning_rate", "1e-3"),
        ("argument=--a 'b c'", "argument", "--a 'b c'"),
        ("cold-cache", "cold-cache", ""),
        ("seeds=0", "seeds", "0"),
        ("deterministic", "deterministic", ""),
        ("no-kernel-search", "no-kernel-search", ""),
    ],
)
def test_a_condition_is_read(text: str, name: str, value: str) -> None:
    assert parse_condition(text) == Condition(name, value)


@pytest.mark.parametrize(
    "text",
    [
        "hash-seed=-1", "hash-seed=4294967296", "hash-seed=", "hash-seed=٣", "directory-order=up",
        "time-zone=Nowhere/Land", "time-zone=", "time-zone=../etc/passwd", "time-zone=/etc/passwd",
        "clock=+", "clock=yesterday", "clock=+999999d", "clock=1960-01-01", "clock=frozen@",
        "clock=", "umask=888",
        "umask=0777", "umask=-1", "home=/no/such", "working-directory=", "threads=0",
        "loader-workers=-1", "kill-and-resume=0", "processes=two", "instruction-set=sse",
        "argument", "argument=", "argument=x", "argument=--a 'b", "env.=1", "env.A", "env.A B=1",
        "train.max_steps", "train.max_steps=", "train.max_steps=[", "output_dir=x", "", "=", "nope",
        "cold-cache=yes", "locale=", "locale=nope", "gpu=77",
    ],
)  # fmt: skip
def test_a_wrong_condition_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_condition(text)
    assert caught.value.message.startswith(f"--vary {text}: ")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("hashseed", "hash-seed"), ("PYTHONHASHSEED=1", "hash-seed"), ("timezone=UTC", "time-zone"),
        ("num_workers=2", "loader-workers"), ("TZ=UTC", "time-zone"), ("umsk", "umask"),
        ("learning_rate=1", "train.learning_rate"), ("train.max_step=1", "train.max_steps"),
    ],
)  # fmt: skip
def test_a_mistyped_condition_gets_a_suggestion(text: str, suggestion: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean {suggestion}\\?"):
        parse_condition(text)


def test_one_name_is_given_once() -> None:
    with pytest.raises(UsageError, match="given twice"):
        parse_conditions(["hash-seed=1", "hash-seed=2"])
    assert len(parse_conditions(["argument=--a 1", "argument=--b 2", "env.A=1", "env.B=1"])) == 4


def test_a_default_is_another_value_than_the_present_one() -> None:
    assert parse_condition("hash-seed", {"PYTHONHASHSEED": "1"}).value == "2"
    assert parse_condition("threads", {"OMP_NUM_THREADS": "2"}).value == "3"
    assert parse_condition("threads", {"OMP_NUM_THREADS": "1"}).value == "2"
    for present in ("C", "C.UTF-8", "tr_TR.utf8"):
        chosen = parse_condition("locale", {"LC_ALL": present}).value
        assert chosen.lower() not in (present.lower(), "")
        assert parse_condition(f"locale={chosen}").value == chosen


def test_every_listed_condition_can_be_had_with_its_default() -> None:
    listed = listed_conditions()
    assert len(listed) >= 19
    for line in listed:
        if line.name in KINDS and line.name not in ("gpu", "argument"):
            assert parse_condition(line.name).name == line.name


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("--eval_steps 2", "python train.py --eval_steps 2 --rate=1e-3 {run}"),
        ("--eval-steps 2", "python train.py --eval_steps 2 --rate=1e-3 {run}"),
        ("--eval_steps=2", "python train.py --eval_steps 2 --rate=1e-3 {run}"),
        ("--rate -1e-4", "python train.py --eval_steps 5 --rate=-1e-4 {run}"),
        ("--new 1 2", "python train.py --eval_steps 5 --rate=1e-3 {run} --new 1 2"),
        ("--eval_steps", "python train.py --eval_steps 5 --rate=1e-3 {run}"),
    ],
)
def test_an_argument_is_replaced_or_added(text: str, result: str) -> None:
    assert with_arguments(COMMAND, text) == result.split()


def test_files_are_found_from_another_working_directory(tmp_path: Path) -> None:
    for name in ("train.py", "-m", "package", "data"):
        (tmp_path / name).touch()
    here = str(tmp_path)
    command = ["./train.py", "data", "--data=data", "-m", "package", "other", "--out=new"]
    assert with_absolute_paths(command, tmp_path) == [
        f"{here}/train.py", f"{here}/data", f"--data={here}/data", "-m", "package", "other",
        "--out=new",
    ]  # fmt: skip
    assert with_absolute_paths(["data"], tmp_path) == ["data"], "a program comes from PATH"


def conditions(*texts: str) -> list[Condition]:
    return [parse_condition(text) for text in texts]


def test_a_command_gets_its_conditions(tmp_path: Path) -> None:
    made = prepared_command(
        COMMAND,
        {"HOME": "/home/a", "PYTHONHASHSEED": "1"},
        conditions("hash-seed=1", "time-zone=UTC", "home", "umask=0027", "working-directory",
                   "loader-workers=3", "kill-and-resume=4", "argument=--eval_steps 9",
                   "cold-cache"),
        tmp_path,
    )  # fmt: skip
    assert made.command[2:4] == ["--eval_steps", "9"]
    assert made.environment["TZ"] == "UTC"
    assert Path(made.environment["HOME"]).is_dir()
    assert made.environment["PYTHONUSERBASE"] == "/home/a/.local"
    assert Path(made.environment["HF_DATASETS_CACHE"]).parent == tmp_path / "cache"
    assert made.cwd == tmp_path / "working-directory"
    assert (made.umask, made.kill_at) == (0o027, 4)
    asked = json.loads(made.environment["MLTUNE_CONDITIONS"])
    assert asked == {"loader_workers": 3, "hold_at_step": 4}
    again = made.restarted()
    assert json.loads(again.environment["MLTUNE_CONDITIONS"]) == {"loader_workers": 3}
    assert again.kill_at is None
    assert [str(condition) for condition in made.unchanged] == ["hash-seed=1"]


def test_without_conditions_nothing_is_changed(tmp_path: Path, job: TrainingJob) -> None:
    made = prepared_command(COMMAND, {"A": "b"}, [], tmp_path / "fresh")
    assert (list(made.command), dict(made.environment)) == (COMMAND, {"A": "b"})
    assert (made.cwd, made.umask, made.kill_at) == (None, -1, None)
    prepared = prepared_job(job, {"A": "b"}, [], tmp_path / "fresh")
    assert (prepared.job, dict(prepared.settings)) == (job, {})
    assert not (tmp_path / "fresh").exists()


def test_downloaded_models_stay_where_they_are_with_cold_caches(tmp_path: Path) -> None:
    for environment, home in (
        ({"HOME": "/h"}, "/h/.cache/huggingface"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/huggingface"),
        ({"HF_HOME": "/models"}, "/models"),
    ):
        made = prepared_command(COMMAND, environment, conditions("cold-cache"), tmp_path)
        assert made.environment["HF_HOME"] == home


def test_a_job_gets_its_conditions(tmp_path: Path, job: TrainingJob) -> None:
    made = prepared_job(
        job,
        {"PYTHONPATH": "/mine"},
        conditions("threads=2", "processes=3", "evaluation=1", "loader-workers=2", "hash-seed=0",
                   "directory-order", "kill-and-resume=2", "env.OMP_X=1",
                   "train.learning_rate=1e-4", "instruction-set=default"),
        tmp_path,
    )  # fmt: skip
    recipe = made.job.recipe
    assert recipe.reproducibility.threads == 2
    assert recipe.data.loader_workers == 2
    assert recipe.evaluate.every_steps == 1
    assert recipe.checkpoint.every_steps == 1
    assert recipe.train.learning_rate == 1e-4
    assert made.job.processes.per_node == 3
    assert made.kill_at == 2
    assert made.settings["ATEN_CPU_CAPABILITY"] == "default"
    assert made.settings["OMP_X"] == "1"
    assert made.settings["PYTHONPATH"] == os.pathsep.join([str(HOOK_FOLDER), "/mine"])
    assert json.loads(made.settings["MLTUNE_CONDITIONS"]) == {"directory_order": "reversed"}
    assert [str(condition) for condition in made.unchanged] == ["hash-seed=0"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train.max_steps=0", "greater than or equal to 1"),
        ("train.epochs=2", "excludes train.max_steps"),
        ("argument=--a 1", "is for commands; a recipe has keys"),
        ("model.dtype=int3", "'auto', 'float32'"),
    ],
)
def test_a_job_refuses_what_its_recipe_cannot_have(
    tmp_path: Path, job: TrainingJob, text: str, said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        prepared_job(job, {}, conditions(text), tmp_path)
    assert caught.value.message.startswith(f"--vary {text}: ")
    assert said in caught.value.message


def test_a_late_kill_leaves_the_checkpoints_of_the_recipe(tmp_path: Path, job: TrainingJob) -> None:
    often = job.model_copy(update={"recipe": job.recipe.with_values({"checkpoint.every_steps": 3})})
    for step, every in (("2", 1), ("3", 3), ("5", 3)):
        made = prepared_job(often, {}, [Condition("kill-and-resume", step)], tmp_path)
        assert made.job.recipe.checkpoint.every_steps == every


# Inside the process ------------------------------------------------------------------------------


def python(code: str, folder: Path, *texts: str) -> str:
    made = prepared_command(
        [sys.executable, "-W", "error", "-c", code], os.environ, conditions(*texts), folder
    )
    environment = {**made.environment, "PYTHONPATH": str(HOOK_FOLDER)}
    done = subprocess.run(
        made.command, env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_listing_is_reversed_sorted_or_shuffled_everywhere(tmp_path: Path) -> None:
    names = [f"shard-{number}" for number in range(12)]
    for name in names:
        (tmp_path / name).touch()
    code = (
        "import os, glob, pathlib, json\n"
        "with os.scandir() as entries: scanned = [entry.name for entry in entries]\n"
        "print(json.dumps([os.listdir(), scanned, glob.glob('shard-*'), next(os.walk('.'))[2],"
        " [p.name for p in pathlib.Path().iterdir()], [os.fsdecode(n) for n in os.listdir(b'.')]]))"
    )
    plain = json.loads(python(code, tmp_path))[0]
    for order, expected in (("sorted", names), ("reversed", plain[::-1]), ("shuffled", None)):
        if order == "sorted":
            expected = sorted(names)
        listings = json.loads(python(code, tmp_path, f"directory-order={order}"))
        assert all(listing == listings[0] for listing in listings)
        assert listings[0] == expected or order == "shuffled"
        assert sorted(listings[0]) == sorted(names)
    assert listings[0] not in (plain, plain[::-1], sorted(names))
    assert json.loads(python(code, tmp_path, "directory-order=shuffled")) == listings


def test_a_frozen_clock_goes_on_by_a_millisecond_a_look(tmp_path: Path) -> None:
    code = (
        "import time, datetime as d\n"
        "print(d.datetime.now(d.timezone.utc).isoformat(), time.time_ns(), d.date.today().year)"
    )
    shown = python(code, tmp_path, "clock=frozen@2001-09-09T01:46:40")
    assert shown == "2001-09-09T01:46:40+00:00 1000000000001000000 2001"


def test_every_clock_of_the_day_is_shifted_and_no_other(tmp_path: Path) -> None:
    code = """
import time, datetime as d, logging, pickle
years = {d.datetime.now().year, d.datetime.today().year, d.date.today().year, time.gmtime().tm_year,
    time.localtime().tm_year, int(time.strftime("%Y")), int(time.ctime()[-4:]),
    int(time.asctime()[-4:]), time.gmtime(time.time()).tm_year,
    time.gmtime(time.time_ns() // 10**9).tm_year,
    time.gmtime(time.clock_gettime(time.CLOCK_REALTIME)).tm_year,
    int(logging.Formatter("%(asctime)s").format(logging.makeLogRecord({}))[:4])}
class Other(d.datetime):
    pass
assert type(Other.now()) is Other
assert type(d.datetime.now()) is d.datetime
assert pickle.loads(pickle.dumps(time.time)) is time.time
assert time.gmtime(0).tm_year == 1970 and time.strftime("%Y", time.gmtime(0)) == "1970"
assert time.clock_gettime(time.CLOCK_MONOTONIC) < time.time() / 2
assert d.datetime.now(d.timezone(d.timedelta(hours=3))).utcoffset().seconds == 3 * 3600
print(years)
"""
    assert python(code, tmp_path, "clock=2033-06-15T12:00:00") == "{2033}"


@pytest.mark.parametrize(
    "draw",
    [
        "random.random()",
        "numpy.random.rand()",
        "torch.rand(1)",
        "random.Random().random()",
        "random.seed() or random.random()",
        "numpy.random.default_rng().random()",
        "numpy.random.Generator(numpy.random.PCG64()).random()",
        "numpy.random.RandomState().rand()",
        "torch.seed()",
        "torch.random.seed() and torch.rand(1)",
        "(own := torch.Generator()).seed() and torch.rand(1, generator=own)",
    ],
)
def test_seeds_reach_every_generator(draw: str, tmp_path: Path) -> None:
    code = f"import random, numpy, torch; print({draw})"
    first = python(code, tmp_path, "seeds=3")
    assert first == python(code, tmp_path, "seeds=3")
    assert first != python(code, tmp_path, "seeds=4")


def test_torch_is_told_even_where_somebody_only_looked_for_it(tmp_path: Path) -> None:
    code = (
        "import importlib.util\nimportlib.util.find_spec('torch')\nimport torch\n"
        "print(torch.are_deterministic_algorithms_enabled())"
    )
    assert python(code, tmp_path, "deterministic") == "True"
    assert python(code, tmp_path) == "False"


def test_a_search_for_kernels_stays_off_whatever_the_script_says(tmp_path: Path) -> None:
    code = (
        "import torch\nfrom torch.backends import cudnn\ncudnn.benchmark = True\n"
        "with cudnn.flags(enabled=True, benchmark=True):\n"
        "    print(cudnn.benchmark, torch._C._get_cudnn_benchmark())"
    )
    assert python(code, tmp_path, "no-kernel-search") == "False False"
    assert python(code, tmp_path) == "True True"


def test_loaders_get_workers_with_settings_that_fit(tmp_path: Path) -> None:
    code = """
from torch.utils.data import DataLoader
rows = list(range(8))
many = {"num_workers": 1, "prefetch_factor": 4, "persistent_workers": True, "timeout": 9}
for loader in (DataLoader(rows, 2), DataLoader(rows, 2, False, None, None, 2),
               DataLoader(rows, **many)):
    print(loader.num_workers, loader.prefetch_factor, loader.persistent_workers, end="; ")
"""
    none = python(code, tmp_path, "loader-workers=0")
    assert none == "0 None False; 0 None False; 0 None False;"
    two = python(code, tmp_path, "loader-workers=2")
    assert two == "2 2 False; 2 2 False; 2 4 True;"


def test_a_condition_that_cannot_be_made_ends_the_process(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(HOOK_FOLDER), "MLTUNE_CONDITIONS": "{"}
    done = subprocess.run(
        [sys.executable, "-c", "print(1)"], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "a condition cannot be made" in done.stderr
