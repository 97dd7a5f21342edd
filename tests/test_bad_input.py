"""Bad input through the installed command: one sentence, exit code 2, and nothing touched.

Each training case runs with `--overwrite` into a folder that holds an earlier run, which must be
there afterwards, byte for byte: a run is replaced only by one that can start.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mltune_cli.bundled import bundled_model
from mltune_cli.digests import file_digest

GOOD_ROW = json.dumps({"question": "What is two and two?", "answer": "Four."})


def listing(folder: Path) -> dict[str, str]:
    """Every entry below a folder with what it holds."""
    return {
        str(path.relative_to(folder)): file_digest(path) if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


@dataclass(frozen=True)
class Case:
    """Something wrong.

    Attributes:
        name: shown by pytest.
        prepare: writes files into the case's folder, returns arguments of `train`.
        said: parts of the sentence, in their order; the first follows on `mltune: `. `HERE` is
            the case's folder.
        environment: further variables.
    """

    name: str
    prepare: Callable[[Path], list[str]]
    said: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()


def with_rows(content: str | bytes, name: str = "rows.jsonl") -> Callable[[Path], list[str]]:
    def prepare(folder: Path) -> list[str]:
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)
        return ["--train_file", name]

    return prepare


def with_arguments(*arguments: str) -> Callable[[Path], list[str]]:
    return lambda _: list(arguments)


def with_model(change: Callable[[Path], None]) -> Callable[[Path], list[str]]:
    """A copy of the tiny model with something wrong in it."""

    def prepare(folder: Path) -> list[str]:
        shutil.copytree(bundled_model("mltune/tiny"), folder / "model")
        change(folder / "model")
        return ["--model_name_or_path", "./model"]

    return prepare


def remove(*patterns: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        for pattern in patterns:
            paths = list(model.glob(pattern))
            assert paths
            for path in paths:
                path.unlink()

    return change


def truncate_weights(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])


def drop_a_tensor(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = model / "model.safetensors"
    tensors = load_file(path)
    del tensors[sorted(name for name in tensors if "mlp" in name)[0]]
    save_file(tensors, path, metadata={"format": "pt"})


def pickle_the_weights(model: Path) -> None:
    import torch
    from safetensors.torch import load_file

    path = model / "model.safetensors"
    torch.save(load_file(path), model / "pytorch_model.bin")
    path.unlink()


def no_positions(folder: Path) -> list[str]:
    """A model with ALiBi, which takes no position ids: packed documents would be one."""
    import torch
    from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(bundled_model("mltune/tiny"))
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=len(tokenizer), hidden_size=16, n_layer=1, n_head=2)
    BloomForCausalLM(config).save_pretrained(folder / "bloom")
    tokenizer.save_pretrained(folder / "bloom")
    arguments = ["--model_name_or_path", "./bloom", "--set", "model.attention=eager"]
    return [*arguments, "--set", "data.packing=true"]


def text_in(name: str, text: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / name).write_text(text)

    return change


MODEL = "--model_name_or_path: model.name_or_path: HERE/model: "
OFFLINE = (("HF_HUB_OFFLINE", "1"),)
TRAINING_CASES = [
    Case("data file missing", with_arguments("--train_file", "nowhere.jsonl"),
         ("--train_file: data.train: HERE/nowhere.jsonl: no such file",)),
    Case("data file empty", with_rows(""), ("HERE/rows.jsonl: ", "empty")),
    Case("invalid JSON", with_rows("\n".join([*[GOOD_ROW] * 6, '{"question": ', GOOD_ROW])),
         ("HERE/rows.jsonl:7: ", "JSON")),
    Case("no usable fields", with_rows(GOOD_ROW + '\n{"colour": "red"}\n'),
         ("HERE/rows.jsonl:2: no usable fields: has colour",)),
    Case("not UTF-8", with_rows(GOOD_ROW.encode() + b'\n{"text": "caf\xe9"}\n'),
         ("HERE/rows.jsonl:2: not UTF-8",)),
    Case("model folder missing", with_arguments("--model_name_or_path", "./nowhere"),
         ("--model_name_or_path: model.name_or_path: HERE/nowhere: no such folder",)),
    Case("hub model out of reach", with_arguments("--model_name_or_path", "no-such/model"),
         ("--model_name_or_path: model.name_or_path: no-such/model: ", "neither a folder here"),
         OFFLINE),
    Case("hub data out of reach", with_arguments("--train_file", "no-such/rows"),
         ("no-such/rows: ", "neither a file or folder here"), OFFLINE),
    Case("no config", with_model(remove("config.json")), (MODEL, "config.json")),
    Case("no tokenizer", with_model(remove("tokenizer*", "chat_template.jinja")),
         (MODEL, "has no tokenizer")),
    Case("no weights", with_model(remove("model.safetensors")),
         (MODEL, "model.safetensors")),
    Case("config is garbage", with_model(text_in("config.json", "}{ garbage")),
         (MODEL, "cannot be loaded")),
    Case("truncated weights", with_model(truncate_weights), (MODEL, "cannot be loaded")),
    Case("a tensor missing", with_model(drop_a_tensor),
         (MODEL, "holds no weights for", "start at random")),
    Case("pickled weights", with_model(pickle_the_weights), (MODEL, "safetensors")),
    Case("rows longer than the model", with_arguments("--set", "data.max_length=1000000"),
         ("--set data.max_length: 1000000 tokens are more than the model's ",)),
    Case("target modules that name nothing",
         with_arguments("--set", "adapter.target_modules=[no_such_projection]"),
         ("--set adapter.target_modules: ", "no_such_projection")),
    Case("warm-up above the steps of the epochs",
         with_arguments("--set", "train.max_steps=null", "--set", "train.epochs=0.01",
                        "--set", "train.warmup_steps=500"),
         ("--set train.warmup_steps: 500 warm-up steps are more than the ",
          "train.epochs=0.01 makes of 600 rows")),
    Case("packing without positions", no_positions,
         ("--set data.packing: ", "bloom", "takes no positions")),
    Case("CUDA that is not there", with_arguments("--set", "model.device=cuda"),
         ("--set model.device: cuda is asked for, but ",), (("CUDA_VISIBLE_DEVICES", ""),)),
]  # fmt: skip

RECIPE = "model: {name_or_path: mltune/tiny}\ndata: {train: mltune/repro_dataset/train.jsonl}\n"


def with_recipe(text: str | bytes) -> Callable[[Path], list[str]]:
    def prepare(folder: Path) -> list[str]:
        data = (RECIPE + text).encode() if isinstance(text, str) else text
        (folder / "mine.yaml").write_bytes(data)
        return ["--config", "mine.yaml"]

    return prepare


# Answered by the command itself, before a worker is started.
EARLY_CASES = [
    Case("recipe missing", with_arguments("--config", "none.yaml"),
         ("none.yaml: no such recipe file",)),
    Case("recipe empty", with_recipe(b""), ("mine.yaml: is empty",)),
    Case("recipe not UTF-8", with_recipe(b"model: caf\xe9\n"), ("mine.yaml: not UTF-8",)),
    Case("recipe not YAML", with_recipe("train: [\n"), ("mine.yaml:4: not valid YAML: ",)),
    Case("recipe that makes objects", with_recipe("train: !!python/object:os.system {}\n"),
         ("mine.yaml:3: not valid YAML: ", "python/object")),
    Case("key twice", with_recipe("train: {max_steps: 1}\ntrain: {max_steps: 2}\n"),
         ("mine.yaml:4: train: stands already on line 3",)),
    Case("unknown key", with_recipe("train:\n  learning_rat: 1\n"),
         ("mine.yaml:4: train.learning_rat: no such key; did you mean train.learning_rate?",)),
    Case("unknown key on the command line", with_arguments("--set", "lr=1"),
         ("--set lr: no such key; did you mean train.learning_rate?",)),
    Case("no steps", with_arguments("--max_steps", "0"),
         ("--max_steps: train.max_steps: must be at least 1, not 0",)),
    Case("negative learning rate", with_arguments("--set", "train.learning_rate=-0.1"),
         ("--set train.learning_rate: must be more than 0, not -0.1",)),
    Case("steps and epochs", with_arguments("--max_steps", "5", "--set", "train.epochs=1"),
         ("--set train.epochs: excludes train.max_steps",)),
    Case("logging flags that contradict",
         with_arguments("--logging_strategy", "no", "--logging_steps", "5"),
         ("--logging_steps: has no meaning with --logging_strategy no",)),
    Case("text for a number", with_arguments("--seed", "five"), ("Invalid value for '--seed'",)),
    Case("a flag that is none", with_arguments("--learning_rate", "1"), ("No such option",)),
]  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a case's command did, and the case's folder before and after."""

    folder: Path
    done: Any
    before: dict[str, str]
    after: dict[str, str]


def run_case(case: Case, folder: Path, mltune: Any, earlier: Path) -> Outcome:
    folder.mkdir()
    arguments = case.prepare(folder)
    shutil.copytree(earlier, folder / "out")
    before = listing(folder)
    done = mltune(
        "train", "--overwrite", "--output-dir", "out", *arguments,
        cwd=folder, env=dict(case.environment),
    )  # fmt: skip
    return Outcome(folder, done, before, listing(folder))


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, mltune: Any, finished_run: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Future[Outcome]]]:  # fmt: skip
    """The selected cases, run two at a time: most of each is the import of torch."""
    base = tmp_path_factory.mktemp("bad")
    cases = [
        case
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path
        if hasattr(item, "callspec") and (case := item.callspec.params.get("case"))
    ]
    with ThreadPoolExecutor(max_workers=2) as pool:
        futures = {
            case.name: pool.submit(run_case, case, base / str(n), mltune, finished_run)
            for n, case in enumerate(cases)
        }
        yield futures
        for future in futures.values():
            future.cancel()


@pytest.mark.parametrize("case", EARLY_CASES + TRAINING_CASES, ids=lambda case: case.name)
def test_it_is_refused_in_one_sentence_and_nothing_is_touched(
    case: Case, outcomes: dict[str, Future[Outcome]]
) -> None:
    outcome = outcomes[case.name].result()
    done = outcome.done
    assert done.code == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    rest = done.stderr
    for number, part in enumerate((f"mltune: {case.said[0]}", *case.said[1:])):
        part = part.replace("HERE", str(outcome.folder))
        assert rest.startswith(part) if number == 0 else part in rest, done.stderr
        rest = rest.partition(part)[2]
    assert outcome.after == outcome.before


def test_enough_cases_are_seen() -> None:
    names = [case.name for case in EARLY_CASES + TRAINING_CASES]
    assert len(names) == len(set(names)) >= 33


def refused(mltune: Any, folder: Path, *arguments: str) -> str:
    before = listing(folder)
    done = mltune(*arguments, cwd=folder)
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.startswith("mltune: ")
    assert done.stderr.count("\n") == 1
    assert listing(folder) == before
    return str(done.stderr.removeprefix("mltune: ").rstrip("\n"))


@pytest.fixture
def folders(tmp_path: Path, finished_run: Path) -> Path:
    """A working directory with a run, a folder of somebody's, both in one, and a file."""
    shutil.copytree(finished_run, tmp_path / "run")
    shutil.copytree(finished_run, tmp_path / "mixed")
    for name in ("foreign", "mixed"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "thesis.tex").write_text("mine")
    (tmp_path / "file").write_text("mine")
    return tmp_path


@pytest.mark.parametrize(
    ("target", "flags", "said"),
    [
        ("run", (), "holds another run; pass --"),
        ("foreign", (), "holds thesis.tex, which is no run of mltune"),
        ("foreign", ("--overwrite",), "holds thesis.tex, which is no run of mltune"),
        ("mixed", ("--overwrite",), "holds a run and also thesis.tex"),
        ("file", ("--overwrite",), "is a file, and a run needs a folder"),
        ("file/below", (), "cannot be written: Not a directory"),
        ("x" * 300, (), "cannot be read: File name too long"),
    ],
)
def test_an_output_folder_of_somebody_else_is_refused(
    mltune: Any, folders: Path, target: str, flags: tuple[str, ...], said: str
) -> None:
    """Before a worker is started: the answer comes at once."""
    sentence = refused(mltune, folders, "train", "--output-dir", target, *flags)
    assert sentence.startswith(f"{folders / target}: {said}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("repro-check", "--output", "foreign"), "foreign: holds files that repro-check did not"),
        (("repro-check", "--output", "run"), "run: holds files that repro-check did not write"),
        (("repro-check", "--output", "file"), "file: is a file; choose another --output"),
        (("repro-check", "--output", "file/below"), "file/below: cannot be written: "),
        (("repro-check", "--runs", "0"), "Invalid value for '--runs'"),
        (("repro-check", "--config", "none.yaml"), "none.yaml: no such recipe file"),
        (("diff", "run", "foreign"), "foreign: "),
        (("diff", "run", "nowhere"), "nowhere: "),
        (("diff", "file", "run"), "file: "),
        (("export", "mltune/tiny", "foreign"), "foreign: exists already"),
        (("export", "mltune/huge", "new"), "mltune/huge: no such bundled model"),
    ],
)
def test_other_commands_refuse_in_one_sentence(
    mltune: Any, folders: Path, arguments: tuple[str, ...], said: str
) -> None:
    assert said in refused(mltune, folders, *arguments)


def test_a_check_of_a_recipe_that_cannot_run_is_a_mistake_not_a_verdict(
    mltune: Any, tmp_path: Path
) -> None:
    """Neither 1 nor 125: the recipe is wrong, so `git bisect run` must stop, not go on."""
    done = mltune("repro-check", "--set", "data.train=nowhere.jsonl", cwd=tmp_path)
    assert done.code == 2
    assert done.stderr.splitlines()[-1] == (
        f"mltune: --set data.train: {tmp_path}/nowhere.jsonl: no such file"
    )
    assert "Traceback" not in done.stderr


def test_overwrite_replaces_a_run_when_all_is_well(
    mltune: Any, short: tuple[str, ...], finished_run: Path, tmp_path: Path
) -> None:
    """Whole: nothing of the earlier run is left among the new one's files."""
    shutil.copytree(finished_run, tmp_path / "out")
    (tmp_path / "out" / "checkpoints").mkdir()
    before = listing(tmp_path / "out")
    arguments = ("train", *short, "--seed", "4", "--output-dir", "out")
    assert mltune(*arguments, cwd=tmp_path).code == 2
    assert listing(tmp_path / "out") == before
    done = mltune(*arguments, "--overwrite", cwd=tmp_path)
    assert done.code == 0, done.stderr
    after = listing(tmp_path / "out")
    assert after["training_log.jsonl"] != before["training_log.jsonl"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["recipe"]["reproducibility"]["seed"] == 4
    assert not os.path.exists(tmp_path / "out" / "checkpoints" / "step-000001")  # noqa: PTH110
