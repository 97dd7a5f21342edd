"""`--vary`: each condition finds the script that depends on it, and none blames another one."""

import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Check = Callable[..., tuple[int, dict[str, Any], str]]

# A training whose losses depend on `value`, whatever that is.
SCRIPT = """
import datetime, glob, hashlib, locale, os, pathlib, sys, time
value = {value}
import torch
from torch.utils.data import DataLoader, TensorDataset

class Rows(TensorDataset):
    def __getitem__(self, index):
        (row,) = super().__getitem__(index)
        return row + {noise}

torch.manual_seed(1)
number = int.from_bytes(hashlib.md5(repr(value).encode()).digest()[:4], "big") / 2**32
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
rows = Rows(torch.arange(48.0).view(12, 4) / 48)
generator = torch.Generator().manual_seed(2)
for batch in DataLoader(rows, batch_size=4, shuffle=True, generator=generator):
    optimizer.zero_grad()
    (model(batch).square().mean() * (1 + number)).backward()
    optimizer.step()
print("value:", value)
"""
DATA = "os.path.join(os.path.dirname(os.path.abspath(__file__)), 'data')"
MADE = "pathlib.Path(sys.argv[1], 'made')"
# Condition to what a script does that depends on it.
DEPENDING = {
    "hash-seed": "list({'red', 'green', 'blue', 'black', 'white'})",
    "directory-order": f"os.listdir({DATA})",
    "directory-order=shuffled": f"[p.name for p in pathlib.Path({DATA}).iterdir()]",
    "directory-order=sorted": f"[os.path.basename(p) for p in glob.glob({DATA} + '/*')]",
    "clock": "datetime.date.today().year",
    "clock=2030-01-02T03:04:05": "datetime.datetime.now().year",
    "clock=-700d": "time.strftime('%Y')",
    "working-directory": "os.path.exists('data')",
    "locale": "locale.setlocale(locale.LC_ALL, '')",
    "time-zone": "time.localtime(0).tm_hour",
    "umask": f"{MADE}.touch() or {MADE}.stat().st_mode",
    "home": "os.path.expanduser('~')",
    "cold-cache": "(pathlib.Path(os.environ['XDG_CACHE_HOME']) / 'rows').exists()",
    "threads": "os.environ['OMP_NUM_THREADS']",
    "env.MODE=fast": "os.environ.get('MODE')",
    "argument=--rate 2": "sys.argv[2:]",
}
QUICK = ("hash-seed", "directory-order", "clock", "working-directory")
ENVIRONMENT = {
    "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8", "TZ": "UTC", "MODE": "slow",
}  # fmt: skip


@pytest.fixture
def check(mltune: Any, tmp_path: Path) -> Check:
    """Write a script beside a folder of files, check it, and read the report."""
    (tmp_path / "data").mkdir()
    for name in ("b", "d", "a", "e", "c", "f", "h", "g"):
        (tmp_path / "data" / name).write_text(name)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "rows").write_text("stale")

    def run(
        *flags: str,
        script: str = SCRIPT,
        launcher: tuple[str, ...] = (sys.executable,),
        value: str = "0",
        noise: str = "0",
    ) -> Any:
        filled = script.replace("{value}", value).replace("{noise}", noise)
        (tmp_path / "train.py").write_text(filled)
        command = [*launcher, "train.py", "{run}", "--rate", "1"]
        environment = {**ENVIRONMENT, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        flags = ("--no-explain", *flags, "--", *command)  # the explanation has its own tests
        result = mltune("repro-check", *flags, cwd=tmp_path, env=environment)
        report = tmp_path / "repro_output" / "report.json"
        fields = json.loads(report.read_text()) if report.is_file() else {}
        return result.code, fields, result.stdout + result.stderr

    return run


def test_what_the_conditions_would_find_is_no_difference_without_them(check: Check) -> None:
    values = f"[{', '.join(DEPENDING.values())}]"
    code, report, output = check(value=values, noise="torch.rand(1)")
    assert code == 0, output
    assert report["variation"] == []


@pytest.mark.parametrize(
    "condition",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.long)
        for name in DEPENDING
    ],
)  # fmt: skip
def test_a_script_that_depends_on_a_condition_is_found(check: Check, condition: str) -> None:
    code, report, output = check("--vary", condition, value=DEPENDING[condition])
    assert code == 1, output
    difference = report["first_difference"]
    assert (difference["step"], difference["stage"]) == (1, "loss")
    (variation,) = report["variation"]
    assert variation.partition("=")[0] == condition.partition("=")[0]
    assert f"run 2 had: {variation}" in output


@pytest.mark.long
def test_kernels_are_found_by_the_instruction_set(check: Check) -> None:
    value = "__import__('torch').backends.cpu.get_cpu_capability()"
    code, _, output = check("--vary", "instruction-set", value=value)
    assert code == 1, output


def test_random_numbers_in_the_rows_are_found_by_loader_workers(check: Check) -> None:
    code, report, output = check("--vary", "loader-workers", noise="torch.rand(1)")
    assert code == 1, output
    assert (report["first_difference"]["step"], report["first_difference"]["stage"]) == (1, "batch")


def test_a_script_that_depends_on_none_is_not_blamed_by_any(check: Check) -> None:
    conditions = [
        "hash-seed=3", "directory-order", "clock", "working-directory", "locale", "time-zone",
        "umask", "home", "cold-cache", "threads", "env.MODE=fast", "argument=--rate 2",
        "loader-workers=1", "argument=--more", "kill-and-resume=2",
    ]  # fmt: skip
    flags = [part for condition in conditions for part in ("--vary", condition)]
    code, report, output = check(*flags, "--runs", "3")
    assert code == 0, output
    assert len(report["variation"]) == len(conditions)
    assert report["compared_steps"] == 3
    assert "runs 2 to 3 had: hash-seed=3, " in output


@pytest.mark.long
def test_libraries_go_on_working_with_another_clock(check: Check) -> None:
    value = textwrap.dedent(
        """
        0
        import asyncio, copy, logging, pickle, tempfile, threading
        now = datetime.datetime.now(datetime.timezone.utc)
        assert now.year == 2031 and type(now) is datetime.datetime
        assert pickle.loads(pickle.dumps(now)) == copy.deepcopy(now) == now
        assert pickle.loads(pickle.dumps(time.time)) is time.time
        assert isinstance(datetime.datetime.fromtimestamp(0), datetime.date)
        logging.basicConfig(format="%(asctime)s %(message)s")
        logging.warning("logged")
        started = time.monotonic()
        assert not threading.Event().wait(0.05)
        asyncio.run(asyncio.sleep(0.05))
        assert 0.1 <= time.monotonic() - started < 10
        for name in "bca":
            folder = pathlib.Path(tempfile.mkdtemp(), name)
            folder.mkdir()
        __import__("shutil").rmtree(folder.parent)
        import transformers, datasets, accelerate, peft
        from transformers import TrainingArguments
        TrainingArguments(sys.argv[1], use_cpu=True)
        rows = datasets.Dataset.from_dict({"a": list(range(8))}).map(lambda row: {"b": row["a"]})
        assert rows["b"][3] == 3
        """
    ).strip()
    value = value.replace("== 2031", "in (2031, datetime.date.today().year)")
    code, _, output = check(
        "--vary", "clock=2031-05-06T07:08:09+00:00", "--vary", "directory-order", value=value
    )
    assert code == 0, output
    assert "2031-05-06 " in output
    assert "logged" in output


@pytest.mark.long
def test_conditions_reach_every_rank_and_every_child(check: Check) -> None:
    torchrun = (str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2")
    code = "import time; print(time.gmtime().tm_year)"
    child = f"subprocess.check_output([sys.executable, '-c', '{code}'])"
    value = f"0\nimport subprocess\nvalue = {child}"
    code, report, output = check("--vary", "clock=-800d", launcher=torchrun, value=value)
    assert code == 1, output
    assert report["first_difference"]["process"].startswith("rank-")


# Kill and resume ---------------------------------------------------------------------------------

RESUMING = """
import os, sys
import torch
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(1)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
path = os.path.join(sys.argv[1], "state-" + os.environ.get("RANK", "0"))
rows = TensorDataset(torch.arange(96.0).view(24, 4) / 96)
done = 0
if os.path.exists(path):
    state = torch.load(path)
    model.load_state_dict(state["model"])
    done = state["step"]
    print("resumed after", done)
    OPTIMIZER
    GENERATOR
loader = DataLoader(rows, batch_size=4, shuffle=True, generator=ORDER)
for step, (batch,) in enumerate(loader, start=1):
    if step <= done:
        continue
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step,
             "generator": torch.get_rng_state()}
    torch.save(state, path + ".part")
    os.replace(path + ".part", path)
"""
WHOLE = {
    "OPTIMIZER": "optimizer.load_state_dict(state['optimizer'])",
    "GENERATOR": "torch.set_rng_state(state['generator'])",
    "ORDER": "torch.Generator().manual_seed(5)",
}


def resuming(**places: str) -> str:
    script = RESUMING
    for name, text in {**WHOLE, **places}.items():
        script = script.replace(name, text)
    return script


def test_a_script_that_resumes_well_is_reproducible(check: Check, tmp_path: Path) -> None:
    code, report, output = check("--vary", "kill-and-resume=3", script=resuming())
    assert code == 0, output
    assert report["compared_steps"] == 6
    assert "[run 2] resumed after 2" in output
    assert output.count("resumed after") == 1
    witness = tmp_path / "repro_output" / "run-2" / "witness"
    last = [
        (witness / name).read_text().splitlines()[-1] for name in ("main.jsonl", "main.2.jsonl")
    ]
    assert [json.loads(line)["step"] for line in last] == [3, 4]


def test_a_step_that_calls_its_parents_step_is_one_step_for_the_kill_too(check: Check) -> None:
    made = "optimizer = torch.optim.AdamW("
    script = resuming().replace(
        made,
        "class Own(torch.optim.AdamW):\n"
        "    def step(self, closure=None):\n"
        "        return super().step(closure)\n\n"
        "torch.optim.AdamW([torch.zeros(1)])\n" + made.replace("torch.optim.AdamW", "Own"),
    )
    assert "optimizer = Own(" in script
    code, report, output = check("--vary", "kill-and-resume=3", script=script)
    assert (code, report.get("compared_steps")) == (0, 6), output


@pytest.mark.parametrize(
    ("places", "step", "stage"),
    [
        pytest.param({"GENERATOR": "pass"}, 3, "rng", id="generator not restored"),
        pytest.param({"OPTIMIZER": "pass"}, 3, "optimizer", id="optimizer not restored"),
        pytest.param(
            {"GENERATOR": "torch.set_rng_state(state['generator']); done = 0"}, 3, "batch",
            id="rows from the start", marks=pytest.mark.long,
        ),
        pytest.param(
            {"GENERATOR": "model[0].weight.data *= 1.0001"}, 3, "resume", id="weights damaged",
            marks=pytest.mark.long,
        ),
    ],
)  # fmt: skip
def test_a_resume_that_forgets_something_is_found(
    check: Check, places: dict[str, str], step: int, stage: str
) -> None:
    code, report, output = check("--vary", "kill-and-resume=3", script=resuming(**places))
    assert code == 1, output
    difference = report["first_difference"]
    assert (difference["step"], difference["stage"]) == (step, stage), difference


@pytest.mark.long
def test_each_rank_of_a_launcher_is_killed_and_resumed(check: Check) -> None:
    torchrun = (str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2")
    code, report, output = check("--vary", "kill-and-resume", script=resuming(), launcher=torchrun)
    assert (code, report["compared_steps"]) == (0, 6), output
    forgetful = resuming(GENERATOR="if os.environ['RANK'] == '0': " + WHOLE["GENERATOR"])
    # The one that forgets comes later to the step at which both are to be killed.
    late = "if os.environ['RANK'] == '1': __import__('time').sleep(5)\n"
    forgetful = forgetful.replace("done = 0\n", f"done = 0\n{late}", 1)
    assert late in forgetful
    code, report, output = check("--vary", "kill-and-resume", script=forgetful, launcher=torchrun)
    assert code == 1, output
    assert report["first_difference"]["process"] == "rank-1"


def test_a_rank_that_crashes_before_it_is_killed_is_told(check: Check) -> None:
    """The other one waits for its end; a second start, in which nothing crashes, hides nothing."""
    torchrun = (str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2")
    crash = (
        "crashed = os.path.join(sys.argv[1], 'crashed')\n"
        "if 'run-2' in crashed and os.environ['RANK'] == '1' and not os.path.exists(crashed):\n"
        "    open(crashed, 'w').close()\n"
        "    __import__('time').sleep(5)\n"
        "    raise SystemExit('planted crash')\n"
    )
    script = resuming().replace("done = 0\n", f"done = 0\n{crash}", 1)
    assert crash in script
    code, report, output = check("--vary", "kill-and-resume", script=script, launcher=torchrun)
    assert code == 125, output
    assert report["reason"].startswith("run 2 failed")
    assert "planted crash" in output


def test_a_run_that_ends_before_it_is_killed_gives_no_verdict(check: Check) -> None:
    code, report, output = check("--vary", "kill-and-resume=9")
    assert code == 125, output
    assert "ended before step 9" in report["reason"]


# Usage -------------------------------------------------------------------------------------------


def test_the_list_names_every_condition(mltune: Any, tmp_path: Path) -> None:
    result = mltune("repro-check", "--vary", "list", cwd=tmp_path)
    assert (result.code, result.stderr) == (0, "")
    names = [line.split()[0] for line in result.stdout.splitlines()[1:]]
    assert {condition.partition("=")[0] for condition in DEPENDING} - {"env.MODE"} <= {*names}
    assert "seeds" not in names
    assert len(names) >= 19
    assert not (tmp_path / "repro_output").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--vary", "hash-seed=abc"), "--vary hash-seed=abc: must be a whole number"),
        (("--vary", "hash-sed"), "did you mean hash-seed?"),
        (("--vary", "locale=xx_YY"), "--vary locale=xx_YY: is not installed"),
        (("--vary", "train.max_steps=20"), "is what the first run has already"),
        (("--vary", "argument=--x 1"), "is for commands; a recipe has keys"),
        (("--vary", "hash-seed=1", "--vary", "hash-seed=2"), "is given twice"),
        (("--vary", "kill-and-resume=21"), "the run has 20 steps"),
        (("--vary", "processes=2", "--", "true"), "is for recipes; a command says it itself"),
        (("--vary", "train.max_steps=2", "--", "true"), "a command has arguments"),
        (("--vary", "kill-and-resume", "--parallel", "--", "true"), "--parallel: "),
    ],
)
def test_a_wrong_condition_gets_one_sentence(
    mltune: Any, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    result = mltune("repro-check", *arguments, cwd=tmp_path)
    assert result.code == 2, result.stdout
    assert said in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("mltune: ")]
    assert len(errors) == 1
    assert not (tmp_path / "repro_output").exists()


# Plain runs of commands --------------------------------------------------------------------------


def test_files_that_the_first_run_left_are_told_of(check: Check) -> None:
    leaving = "pathlib.Path('left.txt').write_text('rows')"
    code, report, output = check(value=leaving)
    assert code == 0, output
    assert report["notes"] == ["run 1 left files that run 2 may have read: left.txt"]
    assert "left.txt" in output
    code, report, output = check(value="pathlib.Path(sys.argv[1], 'own').write_text('rows')")
    assert report["notes"] == [], output


def test_a_stale_cache_in_the_working_directory_is_found(check: Check) -> None:
    stale = "os.path.exists('rows.cache') or pathlib.Path('rows.cache').touch()"
    code, report, output = check(value=stale)
    assert code == 1, output
    assert report["notes"] == ["run 1 left files that run 2 may have read: rows.cache"]


def test_a_time_limit_ends_runs_that_go_side_by_side(check: Check, tmp_path: Path) -> None:
    code, report, output = check("--parallel", "--timeout", "6", value="time.sleep(600)")
    assert code == 125, output
    assert "--timeout 6" in report["reason"]
    assert not [path for path in Path("/proc").glob("[0-9]*") if _names(path, tmp_path)]


def _names(process: Path, folder: Path) -> bool:
    try:
        return str(folder).encode() in (process / "cmdline").read_bytes()
    except OSError:
        return False
