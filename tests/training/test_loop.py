"""A run is a function of its recipe: every method repeats, every bit-deciding value shows."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mltune_cli.manifest import read_manifest
from mltune_cli.run_folder import ADAPTER, MODEL
from mltune_cli.training import loop
from mltune_cli.training.evaluation import EvaluationResult, evaluate

pytestmark = [
    # Deprecated calls inside peft and transformers, on versions that we do not choose.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
RunTraining = Callable[..., Any]

VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"adapter__method": "rslora"},
    "dora": {"adapter__method": "dora", "adapter__dropout": 0.1},
    "full": {"adapter__method": "full", "train__learning_rate": 1e-4},
    "bfloat16": {"model__dtype": "bfloat16"},
    "full in bfloat16": {
        "adapter__method": "full", "model__dtype": "bfloat16", "train__learning_rate": 1e-4,
    },
    "packed": {"data__packing": True},
    "loss on all": {"data__loss_on": "all"},
    "activation checkpointing": {"train__activation_checkpointing": True, "adapter__dropout": 0.2},
    "eager attention": {"model__attention": "eager"},
    "named modules": {"adapter__target_modules": ["q_proj", "v_proj"]},
    "fast kernels": {
        "model__attention": "varlen", "train__loss_kernel": "chunked", "model__dtype": "bfloat16",
        "adapter__compute_dtype": "model", "adapter__dropout": 0.1,
    },
    "fast kernels, all parameters": {
        "model__attention": "varlen", "train__loss_kernel": "chunked", "model__dtype": "bfloat16",
        "adapter__method": "full", "data__packing": True, "train__learning_rate": 1e-4,
    },
    "no clipping": {"train__max_grad_norm": 0.0},
    "odd micro-batches": {"train__micro_batches_per_step": 5, "train__micro_batch_size": 1},
}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file that must repeat, by name."""
    names = ("training_log.jsonl", "witness.jsonl", "evaluation_log.jsonl", "last_loss.txt")
    files = [folder / name for name in names]
    files += [p for sub in (ADAPTER, MODEL) for p in (folder / sub).rglob("*")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.is_file()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_runs_are_equal_to_the_last_byte(run_training: RunTraining, variant: str) -> None:
    first = contents(run_training("a", **VARIANTS[variant]).folder)
    second = contents(run_training("b", **VARIANTS[variant]).folder)
    assert len(first) >= 6
    assert first == second


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        ({"reproducibility__seed": 21}, "parameters"),
        ({"train__learning_rate": 5e-3 * (1 + 1e-9)}, "hyperparameters"),
        # The adapter starts as zero, so the first loss cannot tell; its gradients can.
        ({"adapter__dropout": 0.06}, "gradients"),
        ({"train__weight_decay": 0.02}, "hyperparameters"),
        ({"train__micro_batch_size": 1}, "batch"),
    ],
)
def test_what_decides_bits_shows_at_its_stage(
    run_training: RunTraining, change: dict[str, Any], stage: str
) -> None:
    """The control of the test above: it fails where it has to, and says where."""
    records = [
        [json.loads(line) for line in run_training(name, **values).lines("witness.jsonl")]
        for name, values in (("a", {}), ("b", change))
    ]
    differing = [
        key
        for a, b in zip(*records, strict=True)
        for key in a
        if key != "step" and a[key] != b[key]
    ]
    assert differing[0] == stage


def test_evaluation_and_logging_leave_no_trace_in_the_adapter(run_training: RunTraining) -> None:
    quiet = contents(run_training("a", train__max_steps=4).folder)
    busy = contents(
        run_training("b", train__max_steps=4, evaluate__every_steps=1, log__every_steps=3).folder
    )
    for name in ("adapter/adapter_model.safetensors", "witness.jsonl", "last_loss.txt"):
        assert quiet[name] == busy[name]
    assert quiet["evaluation_log.jsonl"] == b""
    evaluated = [json.loads(line)["step"] for line in busy["evaluation_log.jsonl"].splitlines()]
    assert evaluated == [0, 1, 2, 3, 4]
    logged = [json.loads(line)["step"] for line in busy["training_log.jsonl"].splitlines()]
    assert logged == [3, 4], "every third step, and always the last"


def test_seconds_are_those_of_the_steps_alone(
    run_training: RunTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of what lies between them: an evaluation, a checkpoint, waiting for the disk."""

    def slow(*arguments: Any) -> EvaluationResult:
        time.sleep(2)
        return evaluate(*arguments)

    monkeypatch.setattr(loop, "evaluate", slow)
    run = run_training("a", evaluate__every_steps=1, train__max_steps=2)
    lines = [json.loads(line) for line in run.lines("timings.jsonl")]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(0 < line["seconds"] < 1.5 for line in lines)
    tokens = [line["tokens_per_second"] * line["seconds"] for line in lines]
    assert all(abs(count - round(count)) < 0.01 * count and count > 100 for count in tokens)


def test_nothing_of_clock_host_or_path_in_what_must_repeat(run_training: RunTraining) -> None:
    folder = run_training("somewhere-unmistakable", evaluate__every_steps=1).folder
    for name, data in contents(folder).items():
        assert b"somewhere-unmistakable" not in data, name
        assert str(Path.cwd()).encode() not in data, name
        assert str(Path.home()).encode() not in data or str(Path.home()) == "/", name


def test_the_manifest_says_what_the_run_was_made_from(run_training: RunTraining) -> None:
    folder = run_training("a", data__packing=True).folder
    manifest = read_manifest(folder)
    assert manifest.result.status == "finished"
    assert manifest.result.steps == 3
    last = json.loads((folder / "witness.jsonl").read_text().splitlines()[-1])
    assert manifest.result.trained_digest == last["parameters"]
    assert manifest.recipe["model"]["dtype"] == "float32"
    assert manifest.train_data.rows == 600
    assert sum(manifest.train_data.rows_by_format.values()) == 600
    assert len(manifest.train_data.rows_by_format) == 6
    assert manifest.environment.settings["threads"] == 1
    assert manifest.environment.packages["torch"]
    assert {claim.name: claim.holds for claim in manifest.claims} == {
        "repeatable": True,
        "any number of processes": True,
    }
    metadata = json.loads((folder / "adapter" / "metadata.json").read_text())
    assert metadata["model_name_or_path"] == "mltune/tiny"
    assert metadata["max_steps"] == 3
    assert metadata["batch_size"] == 8
    assert metadata["seed"] == 20
    assert len(metadata["saved_keys"]) == 56


def test_the_last_step_of_each_epoch_is_logged(run_training: RunTraining, tmp_path: Path) -> None:
    """7 rows, 2 a step: epochs end within steps 4, 7, 11 and 14, which no fixed cadence meets."""
    rows = tmp_path / "seven.jsonl"
    rows.write_text("".join(f'{{"text": "row number {n}"}}\n' for n in range(7)))
    log = run_training(
        "a", data__train=str(rows), train__max_steps=15, train__micro_batch_size=1,
        train__micro_batches_per_step=2, log__every_steps="epoch",
    ).lines("training_log.jsonl")  # fmt: skip
    assert [json.loads(line)["step"] for line in log] == [4, 7, 11, 14, 15]


def test_epochs_set_the_number_of_steps(run_training: RunTraining) -> None:
    folder = run_training(
        "a",
        train__max_steps=None,
        train__epochs=0.02,
        log__every_steps="epoch",
        data__max_length=64,
    ).folder
    manifest = read_manifest(folder)
    assert manifest.recipe["train"]["max_steps"] == 2, "12 of 600 rows, 8 rows a step"
    assert manifest.recipe["train"]["epochs"] is None
    assert manifest.train_data.cut_rows > 0
