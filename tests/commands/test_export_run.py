"""`mltune export RUN`: the adapter, or the model, with its card; and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mltune_cli.recipe.schema import Recipe

ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "metadata.json"}
Change = Callable[[Path], object]


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


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run that a test may change, in the folder `tmp_path`."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def exported(mltune: Any, finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    done = mltune("export", finished_run, "out", cwd=folder)
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout == f"wrote the adapter of {finished_run} to out\n"
    return folder / "out"


def front_matter(card: str) -> dict[str, Any]:
    found = re.match(r"---\n(.*?\n)---\n", card, re.DOTALL)
    assert found is not None
    matter: dict[str, Any] = yaml.safe_load(found[1])
    return matter


def test_the_adapter_is_that_of_the_run(exported: Path, finished_run: Path) -> None:
    assert {path.name for path in exported.iterdir()} == ADAPTER | {"README.md"}
    for name in ADAPTER:
        assert (exported / name).read_bytes() == (finished_run / "adapter" / name).read_bytes()
        assert (exported / name).stat().st_mode & 0o444 == 0o444, "others may read it"


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_peft_loads_it(exported: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from mltune_cli.bundled import bundled_model

    base = AutoModelForCausalLM.from_pretrained(bundled_model("mltune/tiny"))
    config: Any = PeftModel.from_pretrained(base, exported).peft_config["default"]
    assert config.r == 8


def test_the_command_needs_no_torch(finished_run: Path, tmp_path: Path) -> None:
    program = (
        "import runpy, sys\n"
        "for name in ('torch', 'transformers', 'peft', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv[0] = 'mltune'\n"
        "runpy.run_module('mltune_cli', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", program, "export", str(finished_run), "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_card_tells_every_digest(exported: Path, finished_run: Path) -> None:
    card = (exported / "README.md").read_text()
    manifest = json.loads((finished_run / "manifest.json").read_text())
    wanted = [
        manifest["recipe_digest"],
        manifest["model"]["digest"],
        manifest["model"]["tokenizer_digest"],
        manifest["model"]["initial_adapter_digest"],
        manifest["train_data"]["digest"],
        manifest["validation_data"]["digest"],
        manifest["environment_class"],
        manifest["result"]["trained_digest"],
    ]
    for digest in wanted:
        assert f"`{digest}`" in card
    assert f"last loss: {manifest['result']['last_loss']!r} nats" in card
    assert "- steps: 3\n" in card
    assert f"- seed: {manifest['recipe']['reproducibility']['seed']}\n" in card
    assert f"- mltune: `{manifest['mltune']}`\n" in card
    for claim in manifest["claims"]:
        word = "claimed" if claim["holds"] else "not claimed"
        assert f"- {word}: {claim['name']}: " in card
    # Nothing is said of a base that no hub has.
    assert front_matter(card) == {
        "library_name": "peft", "pipeline_tag": "text-generation", "tags": ["mltune", "lora"],
    }  # fmt: skip


def test_the_recipe_in_the_card_is_the_one_of_the_digest(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    found = re.search(r"```yaml\n(.*?)\n```", card, re.DOTALL)
    assert found is not None
    recipe = Recipe.model_validate(yaml.safe_load(found[1]))
    assert f"- recipe: `{recipe.bits_digest()}`\n" in card
    assert recipe.output_dir is None


def test_two_exports_are_equal_wherever_they_are_made(
    mltune: Any, run: Path, exported: Path, tmp_path: Path
) -> None:
    """Another place, another run folder, an empty folder that is there: the same bytes."""
    (tmp_path / "empty").mkdir()
    # Where a run was made is no part of it.
    edit_json(run / "manifest.json", recipe__output_dir="/somewhere/else", git=None)
    assert mltune("export", run, ".", cwd=tmp_path / "empty", env={"TZ": "Asia/Tokyo"}).code == 0
    assert contents(tmp_path / "empty") == contents(exported)


def test_a_card_names_no_place(mltune: Any, run: Path, tmp_path: Path) -> None:
    """A base, rows and held-out rows from somebody's own folders are named by their last part."""
    edit_json(
        run / "manifest.json",
        recipe__model__name_or_path="/home/alice/secret project/my-base",
        recipe__data__train="/home/alice/rows.jsonl",
        recipe__data__validation="/home/alice/held-out.jsonl",
        train_data__name="/home/alice/rows.jsonl",
        validation_data__name="/home/alice/held-out.jsonl",
        model__name="my-base",
    )
    assert mltune("export", "run", "out", cwd=tmp_path).code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "alice" not in card
    assert "secret" not in card
    for name in ("my-base", "rows.jsonl", "held-out.jsonl"):
        assert f"`{name}`" in card
        assert f": {name}\n" in card, "in the recipe as well"
    assert "base_model" not in front_matter(card)
    assert "datasets" not in front_matter(card)


def test_a_base_and_rows_of_the_hub_are_linked(mltune: Any, run: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    edit_json(
        run / "manifest.json",
        recipe__model__name_or_path="org/base-1.5",
        recipe__data__train="org/rows",
        model__revision=commit,
    )
    assert mltune("export", "run", "out", cwd=tmp_path).code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    matter = front_matter(card)
    assert (matter["base_model"], matter["datasets"]) == ("org/base-1.5", ["org/rows"])
    assert f'from_pretrained("org/base-1.5", revision="{commit}")' in card
    assert f"  revision: {commit}\n" in card


HOSTILE = '<img src=x onerror=alert(1)> [a](http://evil.example) ``` @all | # $x$\n---\nrm: "-rf'


def test_hostile_names_are_shown_and_do_nothing(mltune: Any, run: Path, tmp_path: Path) -> None:
    """As a reader of Markdown sees it: no link, no picture, no HTML, no block of their own."""
    from markdown_it import MarkdownIt

    edit_json(
        run / "manifest.json",
        recipe_name=HOSTILE,
        recipe__model__name_or_path=f"/models/{HOSTILE}",
        recipe__data__train=f"/data/{HOSTILE}\u202e",
        train_data__name=f"/data/{HOSTILE}\u202e",
        claims=[{"name": HOSTILE, "holds": False, "reason": HOSTILE}],
        mltune=HOSTILE,
        environment_classes=[HOSTILE],
    )
    assert mltune("export", "run", "out", cwd=tmp_path).code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert set(front_matter(card)) == {"library_name", "pipeline_tag", "tags"}
    body = card.split("---\n", 2)[2]
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(body)
    inline = [child for token in tokens for child in token.children or ()]
    kinds = {token.type for token in [*tokens, *inline]}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "hr", "table_open"}
    headings = [t.content for t, before in zip(tokens[1:], tokens, strict=False)
                if before.type == "heading_open"]  # fmt: skip
    assert len(headings) == 6
    assert [token.info for token in tokens if token.type == "fence"] == ["python", "yaml", "bash"]
    recipe = next(token.content for token in tokens if token.info == "yaml")
    assert yaml.safe_load(recipe)["model"]["name_or_path"] == HOSTILE.rpartition("/")[2]
    assert "\u202e" not in card
    assert "http://" not in body.replace(recipe, "")
    assert "@all" not in body.replace(recipe, "")


def damage(name: str, how: Callable[[bytes], bytes]) -> Change:
    def change(run: Path) -> None:
        path = run / "adapter" / name
        path.write_bytes(how(path.read_bytes()))

    return change


def flip_last(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


WEIGHTS = "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (damage(WEIGHTS, lambda data: data[:-7]), f"run/adapter/{WEIGHTS}: is not a whole"),
        (damage(WEIGHTS, lambda data: data + b"\0"), f"run/adapter/{WEIGHTS}: is not a whole"),
        (damage(WEIGHTS, lambda _: b""), f"run/adapter/{WEIGHTS}: is not a whole"),
        (damage(WEIGHTS, lambda _: b"\x01" + b"\0" * 7 + b"5"), f"run/adapter/{WEIGHTS}: is not"),
        (damage(WEIGHTS, flip_last), "run/adapter: its tensors are not those that the run trained"),
        (damage("metadata.json", lambda _: b"[]"), "metadata.json: is no JSON object"),
        (damage("metadata.json", lambda _: b"{"), "metadata.json: cannot be read"),
        (damage("adapter_config.json", lambda _: b"\xff"), "adapter_config.json: cannot be read"),
        (lambda run: (run / "adapter" / WEIGHTS).unlink(), f"{WEIGHTS}: is missing"),
        (lambda run: shutil.rmtree(run / "adapter"), "adapter_config.json: is missing"),
        (
            lambda run: edit_json(run / "adapter" / "metadata.json", saved_keys=["a"]),
            f"{WEIGHTS}: does not hold the tensors that metadata.json lists",
        ),
        (
            lambda run: edit_json(run / "adapter" / "metadata.json", recipe_digest="sha256:0"),
            "metadata.json: is of another run: its recipe_digest is not the manifest's",
        ),
        (
            lambda run: edit_json(run / "manifest.json", result__status="interrupted"),
            "run: its manifest says interrupted, and only a finished run can be exported",
        ),
        (
            lambda run: edit_json(run / "manifest.json", recipe__adapter__method="ia3"),
            "manifest.json: its recipe is not one of this version of mltune: adapter.method: ",
        ),
        (lambda run: (run / "manifest.json").unlink(), "run: is not a run: it holds no manifest"),
        (lambda run: (run / "manifest.json").write_text("{"), "manifest.json: is damaged"),
    ],
)  # fmt: skip
def test_what_is_no_whole_finished_run_is_refused(
    mltune: Any, run: Path, tmp_path: Path, change: Change, sentence: str
) -> None:
    change(run)
    done = mltune("export", "run", "new/out", cwd=tmp_path)
    assert (done.code, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_what_is_asked_for_must_be_there(mltune: Any, run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "check" / "run-1").mkdir(parents=True)
    cases = [
        (["nowhere", "new"], "nowhere: is neither the folder of a run nor a bundled model"),
        (["file", "new"], "file: is neither the folder of a run nor a bundled model"),
        (["check", "new"], "check: holds the runs of a check; name one, check/run-1"),
        (["run", "check"], "check: exists already; choose an empty folder"),
        (["run", "run/adapter/out"], "run/adapter/out: lies in the run's own folder; choose a"),
        (["run", "new", "--best"], "--best: run has no best/, which a run keeps when it measures"),
    ]
    for arguments, sentence in cases:
        done = mltune("export", *arguments, cwd=tmp_path)
        assert (done.code, done.stdout) == (2, "")
        assert done.stderr.startswith(f"mltune: {sentence}")
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()
    assert not (run / "adapter" / "out").exists()


def test_the_best_one_is_taken_and_found_in_the_witness(
    mltune: Any, run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run / "adapter", run / "best")
    shutil.rmtree(run / "adapter")
    (run / "evaluation_log.jsonl").write_text('{"step":3,"loss":1.25,"target_tokens":9}\n')
    done = mltune("export", "run", "out", "--best", cwd=tmp_path)
    assert (done.code, done.stderr) == (0, "")
    assert contents(tmp_path / "out").keys() == ADAPTER | {"README.md"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Taken after step 3 of 3, where the held-out loss was lowest." in card
    assert "- held-out loss: 1.25 nats\n" in card

    edit_json(run / "best" / "metadata.json", step=2)
    done = mltune("export", "run", "other", "--best", cwd=tmp_path)
    assert done.code == 2
    assert "run/best: its tensors are not those that the run had at the step" in done.stderr


def test_a_full_fine_tuning_run_gives_a_model(
    mltune: Any, short: tuple[str, ...], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    arguments = (*short, "--set", "adapter.method=full", "--output-dir", "run")
    assert mltune("train", *arguments, cwd=tmp_path).code == 0
    done = mltune("export", "run", "out", cwd=tmp_path)
    assert (done.code, done.stdout) == (0, "wrote the model of run to out\n")
    written = contents(tmp_path / "out")
    card = written.pop("README.md").decode()
    assert written == contents(tmp_path / "run" / "model")
    assert front_matter(card)["library_name"] == "transformers"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").num_parameters() > 100_000

    done = mltune("export", "run", "merged", "--merge", cwd=tmp_path)
    assert done.code == 2
    assert done.stderr == (
        "mltune: --merge: run trained the whole model, so there is no adapter to merge; "
        "drop --merge\n"
    )
    weights = tmp_path / "run" / "model" / "model.safetensors"
    weights.write_bytes(flip_last(weights.read_bytes()))
    done = mltune("export", "run", "damaged", cwd=tmp_path)
    assert done.code == 2
    assert "run/model: its tensors are not those that the run trained" in done.stderr


def test_a_full_disk_leaves_nothing_behind(mltune: Any, finished_run: Path, disk_of: Any) -> None:
    disk = disk_of(128)
    for target in ("new/and/deeper", "."):
        done = mltune("export", finished_run, target, cwd=disk)
        assert done.code == 125
        assert done.stderr == f"mltune: {target}: cannot be written: No space left on device\n"
        assert list(disk.iterdir()) == []
