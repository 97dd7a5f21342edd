"""TRL's own command, from the released package, unmodified."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mltune_cli.bundled import bundled_data


@pytest.mark.long
def test_trl_with_peft_draws_its_adapter_before_the_seed(
    check: Any, programs: str, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    lines = bundled_data("mltune/repro_dataset/train.jsonl").read_text("utf-8").splitlines()
    talks = [line for line in lines if "messages" in json.loads(line)][:12]
    (data / "train.jsonl").write_text("\n".join(talks) + "\n", encoding="utf-8")
    found = check(
        [
            shutil.which("trl", path=programs) or "trl", "sft", "--model_name_or_path", "{model}",
            "--dataset_name", str(data), "--use_peft", "--lora_target_modules", "all-linear",
            "--seed", "7", "--max_steps", "2", "--per_device_train_batch_size", "2", "--use_cpu",
            "--output_dir", "{run}", "--report_to", "none", "--save_strategy", "no",
        ]
    )  # fmt: skip
    assert found.code == 1, found.output
    difference = found.report["first_difference"]
    assert (difference["step"], difference["stage"]) == (0, "parameters")
    assert any("before the seed was set" in note for note in found.report["notes"]), found.output
    assert found.report["diagnosis"]["cause"] == "seed-after-initialisation", found.output
