"""No false alarm: training that repeats is called reproducible, whatever it is made of."""

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.clean
SCRIPTS = Path(__file__).parent / "scripts"

# Arguments of `clean_loop.py`; the marked ones belong to the short set.
LOOPS = (
    "* --dropout 0.2 --accumulate 2 --workers 2 --shuffle --clip 1",
    "* --autocast --activation-checkpointing --dropout 0.2 --attention",
    "* --compile aot_eager --dropout 0.1",
    "--compile inductor --dropout 0.1",
    "--compile inductor --autocast",
    "--dropout 0.5",
    "--accumulate 3 --schedule",
    "--workers 2",
    "--workers 2 --shuffle --dropout 0.3",
    "--autocast",
    "--bfloat16",
    "--bfloat16 --optimizer SGD --setting lr=0.01 --setting momentum=0.9",
    "--activation-checkpointing --dropout 0.4",
    "--activation-checkpointing --autocast --accumulate 2",
    "--convolution --dropout 0.1",
    "--convolution --bfloat16",
    "--recurrent",
    "--recurrent --clip 0.5",
    "--attention",
    "--attention --dropout 0.3 --shuffle",
    "--two-optimizers --schedule",
    "--two-optimizers --clip 1 --accumulate 2",
    "* --optimizer LBFGS --closure",
    "--optimizer SGD --setting lr=0.1 --closure",
    "--setting fused=true",
    "--setting foreach=true",
    "--setting amsgrad=true --schedule",
    "--optimizer SGD --setting lr=0.1 --setting momentum=0.9 --setting nesterov=true",
    "--optimizer SGD --setting lr=0.1 --setting fused=true",
    "--optimizer Adam --setting fused=true --clip 1",
    "--optimizer Adagrad",
    "--optimizer Adadelta",
    "--optimizer Adamax",
    "--optimizer NAdam",
    "--optimizer RAdam",
    "--optimizer RMSprop --setting centered=true",
    "--optimizer Rprop",
    "--optimizer ASGD",
    "--threads 2 --attention --dropout 0.1",
)
_TRAINER = (
    "clean_trainer.py {model} --output_dir {run} --max_steps 3 --per_device_train_batch_size 2 "
    "--seed 5 --use_cpu --report_to none "
)
_TRL = (
    "clean_trl.py {model} {data} --output_dir {run} --max_steps 2 --per_device_train_batch_size 2 "
    "--seed 5 --use_cpu --report_to none --save_strategy no "
)
SCRIPTED = (
    "* " + _TRAINER + "--eval_strategy steps --eval_steps 1",
    _TRAINER + "--gradient_accumulation_steps 2 --bf16",
    _TRAINER + "--dataloader_num_workers 2 --save_strategy no --optim adafactor",
    "* " + _TRL,
    _TRL + "--gradient_accumulation_steps 2 --packing false",
    "* clean_lightning.py",
    "clean_folds.py",
    "clean_lightning.py --precision bf16-mixed --accumulate 2 --clip 1 --workers 2",
)
_ACCELERATE = (
    "{bin}/accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
    "--dynamo_backend no --main_process_port 0 "
)
LAUNCHED = (
    "* {bin}/torchrun --nproc-per-node 2 clean_ddp.py",
    _ACCELERATE + "clean_accelerate.py",
)
# Values of mltune's own recipe.
RECIPES = (
    ("data.loader_workers=2", "adapter.dropout=0.2", "train.activation_checkpointing=true"),
    ("model.dtype=bfloat16", "adapter.method=dora"),
)


def _all() -> list[str]:
    loops = [
        f"{'* ' if line.startswith('*') else ''}clean_loop.py {line.removeprefix('* ')}"
        for line in LOOPS
    ]
    scripts = [*loops, *SCRIPTED]
    started = [
        ("* " if line.startswith("*") else "") + "{bin}/python " + line.removeprefix("* ")
        for line in scripts
    ]
    return [*started, *LAUNCHED]


def _cases() -> list[Any]:
    return [
        pytest.param(
            line.removeprefix("* "),
            id=" ".join(word for word in line.split() if "{" not in word).removeprefix("* "),
            marks=[] if line.startswith("*") else [pytest.mark.long],
        )
        for line in _all()
    ]


@pytest.mark.parametrize("line", _cases())
def test_a_clean_script_is_reproducible(line: str, check: Any, programs: str) -> None:
    command = [
        str(SCRIPTS / word) if word.startswith("clean_") else word.replace("{bin}", programs)
        for word in line.split()
    ]
    found = check(command)
    assert found.code == 0, found.output
    assert found.report["compared_steps"] >= 2
    assert found.report["first_difference"] is None


@pytest.mark.long
@pytest.mark.parametrize("values", RECIPES, ids=" ".join)
def test_a_recipe_is_reproducible(
    values: tuple[str, ...], mltune: Any, short: tuple[str, ...], tmp_path: Path
) -> None:
    settings = [part for value in values for part in ("--set", value)]
    result = mltune("repro-check", *short, *settings, cwd=tmp_path)
    assert result.code == 0, result.stdout + result.stderr


def test_there_are_fifty_pairs_and_eight_of_them_are_in_the_short_set() -> None:
    lines = _all()
    assert len(set(lines)) == len(lines)
    assert len(lines) + len(RECIPES) >= 50
    assert sum(line.startswith("*") for line in lines) == 8
