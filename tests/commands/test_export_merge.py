"""`mltune export RUN --merge`: a model that needs no peft and computes what the adapter did."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mltune_cli.bundled import bundled_model
from mltune_cli.errors import UsageError
from mltune_cli.exporting.finished_run import open_run
from mltune_cli.launching.events import EventPipe
from mltune_cli.launching.merge_process import MergeJob

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
FILES = {
    "README.md", "chat_template.jinja", "config.json", "generation_config.json",
    "model.safetensors", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip
TOKENS = torch.arange(60).reshape(2, 30) * 17 % 1000


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit_json(path: Path, **values: Any) -> None:
    """Replace values of a JSON file; `a__b=1` sets `{"a": {"b": 1}}`."""
    tree = json.loads(path.read_text())
    for name, value in values.items():
        *sections, key = name.split("__")
        place = tree
        for section in sections:
            place = place[section]
        place[key] = value
    path.write_text(json.dumps(tree))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=TOKENS).logits.float()
    return found


def base_model(**options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(bundled_model("mltune/tiny"), **options)


def require_equal_outputs(folder: Path, run: Path) -> None:
    """The merged model computes what peft computes, which is not what the base does."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    merged = logits(AutoModelForCausalLM.from_pretrained(folder))
    adapted = logits(PeftModel.from_pretrained(base_model(dtype="float32"), run / "adapter"))
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)
    assert (merged - logits(base_model(dtype="float32"))).abs().max() > 0.05


def merge_here(run: Path, output: Path) -> None:
    """Merge in this process, where torch is loaded already."""
    from mltune_cli.training.merging import merge

    opened = open_run(run, is_best=False)
    output.mkdir()
    facts = opened.manifest.model
    job = MergeJob(
        recipe=opened.recipe, revision=facts.revision, model_digest=facts.digest,
        tokenizer_digest=facts.tokenizer_digest, run=str(run), adapter=str(opened.trained),
        output=str(output), target="out",
    )  # fmt: skip
    descriptor = os.open(os.devnull, os.O_WRONLY)
    try:
        merge(job, EventPipe(descriptor))
    finally:
        os.close(descriptor)


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run that a test may change, in the folder `tmp_path`."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def merged(mltune: Any, finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged")
    done = mltune("export", finished_run, "out", "--merge", cwd=folder)
    assert done.code == 0, done.stderr
    assert done.stdout == f"wrote the merged model of {finished_run} to out\n"
    assert done.stderr == (
        f"loading the base model mltune/tiny\nmerging {finished_run}/adapter\nwriting out\n"
    )
    return folder / "out"


def test_a_merged_lora_computes_what_peft_does(merged: Path, finished_run: Path) -> None:
    assert {path.name for path in merged.iterdir()} == FILES
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in merged.iterdir())
    require_equal_outputs(merged, finished_run)


@pytest.mark.parametrize("method", ["rslora", "dora"])
def test_so_do_the_other_methods(
    mltune: Any, short: tuple[str, ...], tmp_path: Path, method: str
) -> None:
    arguments = (*short, "--set", f"adapter.method={method}", "--output-dir", "run")
    assert mltune("train", *arguments, cwd=tmp_path).code == 0
    merge_here(tmp_path / "run", tmp_path / "out")
    require_equal_outputs(tmp_path / "out", tmp_path / "run")


def test_transformers_alone_loads_it(merged: Path) -> None:
    """With peft out of reach, in a process of its own."""
    program = (
        "import sys; sys.modules['peft'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig\n"
        "model, tokenizer = (kind.from_pretrained(sys.argv[1]) "
        "for kind in (AutoModelForCausalLM, AutoTokenizer))\n"
        "assert GenerationConfig.from_pretrained(sys.argv[1]).eos_token_id == 1\n"
        "text = tokenizer('Q', return_tensors='pt')\n"
        "assert model.generate(**text, max_new_tokens=3).shape[1] > 1\n"
    )
    command = [sys.executable, "-c", program, str(merged)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_tokenizer_is_the_base_s_and_nothing_tells_of_this_machine(
    merged: Path, finished_run: Path
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (merged / name).read_bytes() == (bundled_model("mltune/tiny") / name).read_bytes()
    for path in merged.iterdir():
        for place in (merged, finished_run, bundled_model("mltune/tiny")):
            assert str(place).encode() not in path.read_bytes()


def test_a_second_merge_has_the_same_bytes(
    mltune: Any, run: Path, merged: Path, tmp_path: Path
) -> None:
    """From another folder into one that is there, under other inherited settings."""
    place = tmp_path / "place"
    place.mkdir()
    env = {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    done = mltune("export", "../run", ".", "--merge", cwd=place, env=env)
    assert done.code == 0, done.stderr
    assert contents(place) == contents(merged)


@pytest.mark.parametrize(("precision", "words"), [("nf4", "4 bits (NF4)"), ("fp8", "8 bits (FP8)")])
def test_a_run_of_few_bits_is_merged_into_the_whole_base(
    run: Path, tmp_path: Path, mltune: Any, precision: str, words: str
) -> None:
    """And its card says so. The base keeps the dtype that it computed in."""
    edit_json(
        run / "manifest.json",
        recipe__model__base_precision=precision,
        recipe__model__device="cuda",
        recipe__model__dtype="bfloat16",
    )
    done = mltune("export", "run", "out", "--merge", cwd=tmp_path)
    assert done.code == 0, done.stderr
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"The base was held in {words} while the adapter was trained." in card
    assert "The adapter is merged into the unquantised base" in card
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.fixture
def own_base(run: Path, tmp_path: Path) -> Path:
    """The base as a folder of its own, which the run in `run` was trained on."""
    base = Path(shutil.copytree(bundled_model("mltune/tiny"), tmp_path / "base"))
    edit_json(run / "manifest.json", recipe__model__name_or_path=str(base))
    return base


def test_a_base_that_changed_is_refused(
    mltune: Any, run: Path, own_base: Path, tmp_path: Path
) -> None:
    weights = own_base / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    done = mltune("export", "run", "new/out", "--merge", cwd=tmp_path)
    assert (done.code, done.stdout) == (2, "")
    says = done.stderr.splitlines()[-1]
    assert says.startswith(f"mltune: {own_base}: its weights or configuration changed since run")
    assert says.endswith("; put the old model back, or train again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "run"]


def test_a_base_that_does_not_serve_is_refused(run: Path, own_base: Path, tmp_path: Path) -> None:
    template = own_base / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    with pytest.raises(UsageError, match=r"its tokenizer changed since .* put the old model back"):
        merge_here(run, tmp_path / "a")
    (own_base / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match=r"run/manifest.json: model.name_or_path: .*base: cannot"):
        merge_here(run, tmp_path / "b")
    shutil.rmtree(own_base)
    with pytest.raises(UsageError, match=r"run/manifest.json: .*base: no such folder"):
        merge_here(run, tmp_path / "c")
    edit_json(run / "manifest.json", recipe__model__name_or_path="mltune/tiny")
    edit_json(run / "adapter" / "adapter_config.json", r=4)
    with pytest.raises(UsageError, match=r"run/adapter: cannot be put on its base model: "):
        merge_here(run, tmp_path / "d")
    edit_json(run / "adapter" / "adapter_config.json", r=8, target_modules=["q_proj"])
    with pytest.raises(UsageError, match=r"run/adapter: does not fit its base model: "):
        merge_here(run, tmp_path / "e")


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
def test_weights_with_two_uses_are_not_merged(
    mltune: Any, short: tuple[str, ...], tmp_path: Path
) -> None:
    """The tiny model's output layer is its embedding: merging there would change both."""
    arguments = (*short, "--set", "adapter.target_modules=[lm_head]", "--output-dir", "run")
    assert mltune("train", *arguments, cwd=tmp_path).code == 0
    with pytest.raises(UsageError, match=r"--merge: the adapter of .*run is on lm_head, whose"):
        merge_here(tmp_path / "run", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(mltune: Any, finished_run: Path, disk_of: Any) -> None:
    disk = disk_of(1024)
    done = mltune("export", finished_run, "new/out", "--merge", cwd=disk)
    assert done.code == 125
    says = done.stderr.splitlines()[-1]
    assert says == "mltune: new/out: cannot be written: No space left on device"
    assert list(disk.iterdir()) == []


def test_ctrl_c_ends_the_merge_and_leaves_nothing_behind(
    mltune_command: Path, finished_run: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [mltune_command, "export", finished_run, "out", "--merge"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline() == "loading the base model mltune/tiny\n"
    (child,) = children_of(process.pid)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "mltune: interrupted"
    assert list(tmp_path.iterdir()) == []
    assert not Path(f"/proc/{child}").exists()


def children_of(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
