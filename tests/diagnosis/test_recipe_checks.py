"""Recipe, model, data and hub: each with its fault, and without."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mltune_cli.bundled import bundled_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fault(told: Any, severity: str = "error") -> dict[str, Any]:
    """The only finding of that severity, with its reason and its remedy."""
    (finding,) = [one for one in told.findings() if one["severity"] == severity]
    assert finding["why"]
    assert finding["remedy"]
    assert told.code == (1 if severity == "error" else 0)
    return finding


def setting(finding: dict[str, Any]) -> str:
    """The value that a remedy sets."""
    return str(finding["command"].rpartition("--set ")[2])


# The recipe ---------------------------------------------------------------------------------------


def test_a_recipe_that_cannot_be_read_is_a_finding(clinic: Any) -> None:
    recipe = clinic.recipe("train: {learning_rat: 1e-4}")
    told = clinic.run("--json", "--config", recipe)
    assert told.code == 1
    (finding,) = told.findings("recipe")
    assert "recipe.yaml:" in finding["seen"]
    assert "did you mean train.learning_rate?" in finding["seen"]
    assert told.report["recipe_name"] == "recipe.yaml"
    for check in ("model", "data", "memory"):
        (other,) = told.findings(check)
        assert other["seen"] == "nothing to look at: the recipe cannot be read"


def test_a_recipe_that_can_be_used(clinic: Any) -> None:
    told = clinic.look("recipe", "--config", clinic.recipe())
    assert told.severity == "ok"
    assert "recipe: lora on mltune/tiny" in told.finding["seen"]


def test_a_recipe_file_that_is_not_there_is_a_mistake(clinic: Any) -> None:
    told = clinic.run("--config", "missing.yaml")
    assert (told.code, told.stdout) == (2, "")
    assert told.stderr.startswith("mltune: missing.yaml")


@pytest.mark.parametrize("value", ["train.max_step=3", "nonsense", "train.max_steps=many"])
def test_an_assignment_that_is_wrong_is_a_mistake(clinic: Any, value: str) -> None:
    told = clinic.run("--config", clinic.recipe(), "--set", value)
    assert (told.code, told.stdout) == (2, "")
    assert "--set" in told.stderr


def test_an_assignment_is_held_against_the_recipe_and_not_against_another(clinic: Any) -> None:
    """The smoke recipe has 20 steps, which is nothing to a recipe of a hundred."""
    recipe = clinic.recipe("train: {max_steps: 100}")
    arguments = ("--config", recipe, "--set", "train.warmup_steps=50")
    assert clinic.look("recipe", *arguments).severity == "ok"
    arguments = (*arguments[:-1], "train.warmup_steps=500")
    finding = fault(clinic.look("recipe", *arguments))
    assert "500 warm-up steps are more than train.max_steps (100)" in finding["seen"]
    told = clinic.run("--set", "train.warmup_steps=50")
    assert (told.code, told.stdout) == (2, ""), "of the bundled recipe it is a mistake"


def test_no_command_starts_a_training(clinic: Any) -> None:
    """What a remedy would set is tried by the doctor, and written into the recipe by hand."""
    text = """
        model: {trust_remote_code: true, base_precision: nf4}
        data: {max_length: 4096}
        reproducibility: {threads: 4000}
        output_dir: file/run
    """
    clinic.write("file", "")
    told = clinic.run("--json", "--config", clinic.recipe(text, device="cuda"))
    assert told.code == 1
    trials = [one for one in told.findings() if "--set " in (one["command"] or "")]
    assert len(trials) >= 6
    for one in trials:
        assert one["command"].startswith("mltune doctor --config ")
        key, _, value = setting(one).strip("'").partition("=")
        leaf = key.rpartition(".")[2]
        assert f"write `{leaf}: {value}`" in one["remedy"]
        assert one["remedy"].count(" in the recipe") == 1
    for one in told.findings():
        assert not (one["command"] or "").startswith("mltune train") or (
            one["command"].endswith("--dry-run")
        )


HIDING = """
import sys

class Hiding:
    def find_spec(name, path=None, target=None):
        if name == "trackio":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hiding)
"""


def test_a_tracker_that_is_not_installed(clinic: Any, package: Any) -> None:
    recipe = clinic.recipe("log: {trackers: [trackio]}")
    env = package("trackio", "0.40", files={"trackio/__init__.py": "", "sitecustomize.py": HIDING})
    finding = fault(clinic.look("recipe", "--config", recipe, env=env))
    assert "log.trackers names trackio, which is not installed" in finding["seen"]
    assert finding["command"].endswith("pip install trackio")
    (clinic.root / "site" / "sitecustomize.py").unlink()
    assert clinic.look("recipe", "--config", recipe, env=env).severity == "ok"


def test_code_that_comes_with_a_model(clinic: Any) -> None:
    recipe = clinic.recipe("model: {trust_remote_code: true}")
    finding = fault(clinic.look("recipe", "--config", recipe), "warning")
    assert "model.trust_remote_code is on" in finding["seen"]
    mended = clinic.look("recipe", "--config", recipe, "--set", setting(finding))
    assert mended.severity == "ok"


def test_an_output_folder_that_holds_something_else(clinic: Any) -> None:
    clinic.write("out/thesis.tex", "mine")
    recipe = clinic.recipe("output_dir: out")
    finding = fault(clinic.look("recipe", "--config", recipe))
    assert "out: holds thesis.tex, which is no run of mltune" in finding["seen"]
    (clinic.folder / "out" / "thesis.tex").unlink()
    assert clinic.look("recipe", "--config", recipe).severity == "ok"


# The model ----------------------------------------------------------------------------------------


@pytest.fixture
def model(clinic: Any) -> Path:
    """A copy of the bundled model."""
    folder = clinic.folder / "model"
    shutil.copytree(bundled_model("mltune/tiny"), folder)
    return folder


def test_a_whole_model(clinic: Any, model: Path) -> None:
    assert clinic.look("model").severity == "ok"
    told = clinic.look("model", "--config", clinic.recipe(model=str(model)))
    assert (told.severity, told.finding["seen"]) == ("ok", f"{model} (a folder)")


def cut_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.bin")


def lose_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))


def lose_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def spoil_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "seen", "remedy"),
    [
        (cut_weights, "lacks model.safetensors", "as safetensors"),
        (lose_a_shard, "lacks model-00002-of-00002.safetensors", "as safetensors"),
        (lose_tokenizer, "has no tokenizer", "tokenizer.json"),
        (spoil_config, "config.json cannot be read", "get it anew"),
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json", "hub id"),
        (
            lambda folder: (folder / "adapter_config.json").write_text("{}"),
            "holds an adapter, not a model",
            "base model",
        ),
        (shutil.rmtree, "there is no such folder", "a folder that is there"),
    ],
)
def test_a_model_that_is_not_whole(
    clinic: Any, model: Path, spoil: Callable[[Path], Any], seen: str, remedy: str
) -> None:
    recipe = clinic.recipe(model=str(model))
    assert clinic.look("model", "--config", recipe).severity == "ok"
    spoil(model)
    finding = fault(clinic.look("model", "--config", recipe))
    assert seen in finding["seen"]
    assert remedy in finding["remedy"]


def test_rows_longer_than_the_model_has_positions(clinic: Any) -> None:
    recipe = clinic.recipe("data: {max_length: 4096}")
    finding = fault(clinic.look("model", "--config", recipe))
    assert "data.max_length is 4096, and the model has 1024 positions" in finding["seen"]
    mended = clinic.look("model", "--config", recipe, "--set", setting(finding))
    assert mended.severity == "ok"


# The hub ------------------------------------------------------------------------------------------


@pytest.fixture
def hub() -> Iterator[dict[str, Any]]:
    """A hub that answers by what is put into `answers`: path to (status, headers, body)."""
    told: dict[str, Any] = {"answers": {}, "asked": [], "tokens": []}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith(("/api/models/", "/api/datasets/")):
                told["asked"].append(path)
                told["tokens"].append(self.headers.get("Authorization"))
            missing = (404, {"X-Error-Code": "RepoNotFound"}, {"error": "Repository not found"})
            status, headers, body = told["answers"].get(path, missing)
            data = json.dumps(body).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        told["env"] = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
        yield told
        server.shutdown()


MODEL = (200, {}, {"id": "org/model", "sha": COMMIT})
DATASET = (200, {}, {"id": "org/rows", "sha": COMMIT})


def test_a_model_that_is_not_pinned(clinic: Any, hub: Any) -> None:
    path = "/api/models/org/model"
    hub["answers"] |= {path: MODEL, f"{path}/revision/{COMMIT}": MODEL}
    recipe = clinic.recipe(model="org/model")
    finding = fault(clinic.look("model", "--config", recipe, env=hub["env"]), "warning")
    assert "org/model is not pinned" in finding["seen"]
    assert COMMIT[:12] in finding["seen"]
    assert setting(finding) == f"model.revision={COMMIT}"
    told = clinic.look("model", "--config", recipe, "--set", setting(finding), env=hub["env"])
    assert told.severity == "ok"
    assert hub["asked"] == [path, f"{path}/revision/{COMMIT}"]


@pytest.mark.parametrize(
    ("answer", "seen", "command"),
    [
        (
            (404, {"X-Error-Code": "RepoNotFound"}, {}),
            "neither a folder here nor a model",
            "hf auth",
        ),
        (
            (401, {"X-Error-Code": "RepoNotFound"}, {}),
            "neither a folder here nor a model",
            "hf auth",
        ),
        ((403, {"X-Error-Code": "GatedRepo"}, {}), "is gated on the hub", "hf auth login"),
        ((404, {"X-Error-Code": "RevisionNotFound"}, {}), "has no revision v9", None),
        ((403, {}, {"error": "Forbidden"}), "does not take the token", "hf auth login"),
    ],
)
def test_a_model_that_the_hub_does_not_give_out(
    clinic: Any, hub: Any, answer: Any, seen: str, command: str | None
) -> None:
    hub["answers"]["/api/models/org/model/revision/v9"] = answer
    recipe = clinic.recipe("model: {revision: v9}", model="org/model")
    finding = fault(clinic.look("model", "--config", recipe, env=hub["env"]))
    assert seen in finding["seen"]
    assert (command or "") in (finding["command"] or "")


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def cache(clinic: Any, kind: str, name: str, revision: str = "main") -> Path:
    """Put a repository into the hub's cache, as its client does."""
    folder = clinic.home / ".cache/huggingface/hub" / f"{kind}s--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    if kind == "model":
        shutil.copytree(bundled_model("mltune/tiny"), snapshot)
    else:
        snapshot.mkdir(parents=True)
    return snapshot


def test_a_hub_that_does_not_answer(clinic: Any) -> None:
    """Without the model in the cache nothing can start; with it, it is used and was not pinned."""
    env = {"HF_ENDPOINT": f"http://127.0.0.1:{closed_port()}"}
    recipe = clinic.recipe(model="org/model")
    finding = fault(clinic.look("model", "--config", recipe, env=env))
    assert "org/model is not in the cache, and the hub does not answer" in finding["seen"]
    assert finding["command"] == "hf download org/model"
    snapshot = cache(clinic, "model", "org/model")
    finding = fault(clinic.look("model", "--config", recipe, env=env), "warning")
    assert "not pinned" in finding["seen"]
    told = clinic.look("model", "--config", recipe, "--set", setting(finding), env=env)
    assert told.severity == "ok"
    (snapshot / "model.safetensors").unlink()
    told = clinic.look("model", "--config", recipe, "--set", setting(finding), env=env)
    assert "lacks model.safetensors" in fault(told)["seen"], "a download that was cut off"


def test_a_hub_that_is_silent_does_not_hold_up_the_doctor(clinic: Any) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(8)
        env = {"HF_ENDPOINT": f"http://127.0.0.1:{mute.getsockname()[1]}"}
        told = clinic.look(
            "model", "--config", clinic.recipe(model="org/model"), env=env, timeout=15
        )
    assert told.report["seconds"] < 6.5
    assert told.finding["severity"] in ("error", "warning")


def test_offline_switches(clinic: Any) -> None:
    recipe = clinic.recipe(model="org/model")
    assert clinic.look("hub-offline", "--config", recipe).severity == "ok"
    env = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    finding = fault(clinic.look("hub-offline", "--config", recipe, env=env))
    assert (
        "HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE switched the hub off, and org/model"
        in finding["seen"]
    )
    mended = clinic.look("hub-offline", "--config", recipe, env=env, before=finding["command"])
    assert mended.severity == "ok"
    told = clinic.look("model", "--config", recipe, env=env)
    assert "was not asked for" in told.finding["seen"]
    cache(clinic, "model", "org/model")
    assert clinic.look("hub-offline", "--config", recipe, env=env).severity == "ok"
    assert clinic.look("hub-offline", env=env).severity == "ok", "nothing is needed from the hub"


def test_a_data_set_of_the_hub(clinic: Any, hub: Any) -> None:
    recipe = clinic.recipe("data: {train: 'org/rows:train'}")
    finding = fault(clinic.look("data", "--config", recipe, env=hub["env"]))
    assert "org/rows is neither a folder here nor a dataset" in finding["seen"]
    hub["answers"] |= {
        "/api/datasets/org/rows": DATASET,
        f"/api/datasets/org/rows/revision/{COMMIT}": DATASET,
    }
    finding = fault(clinic.look("data", "--config", recipe, env=hub["env"]), "warning")
    assert "org/rows is not pinned: data.revision" in finding["seen"]
    told = clinic.look("data", "--config", recipe, "--set", setting(finding), env=hub["env"])
    assert told.severity == "ok"
    env = {"HF_DATASETS_OFFLINE": "1"}
    finding = fault(clinic.look("hub-offline", "--config", recipe, env=env))
    assert "org/rows is not in the cache" in finding["seen"]
    cache(clinic, "dataset", "org/rows")
    assert clinic.look("hub-offline", "--config", recipe, env=env).severity == "ok"


# The token ----------------------------------------------------------------------------------------

TOKEN = "hf_" + "AbCdEfGh" * 4


def test_a_token_is_seen_and_not_shown(clinic: Any, hub: Any) -> None:
    recipe = clinic.recipe(model="org/model")
    finding = clinic.look("hub-token", "--config", recipe).finding
    assert (finding["severity"], finding["command"]) == ("info", "hf auth login")
    told = clinic.look("hub-token", "--config", recipe, env={"HF_TOKEN": TOKEN})
    assert told.severity == "ok"
    assert "(HF_TOKEN)" in told.finding["seen"]
    assert TOKEN not in told.stdout
    hub["answers"]["/api/models/org/model"] = MODEL
    clinic.look("model", "--config", recipe, env=hub["env"] | {"HF_TOKEN": TOKEN})
    assert hub["tokens"] == [f"Bearer {TOKEN}"], "it was used, where it belongs"


def test_a_token_file_that_others_can_read(clinic: Any) -> None:
    path = clinic.home / ".cache/huggingface/token"
    path.parent.mkdir(parents=True)
    path.write_text(TOKEN)
    path.chmod(0o644)
    told = clinic.look("hub-token")
    finding = fault(told, "warning")
    assert "can be read by other users" in finding["seen"]
    assert TOKEN not in told.stdout
    clinic.shell(finding["command"])
    assert path.stat().st_mode & 0o777 == 0o600
    told = clinic.look("hub-token")
    assert told.severity == "ok"
    assert TOKEN not in told.stdout


def test_a_token_that_was_pasted_with_something(clinic: Any) -> None:
    env = {"HF_TOKEN": f"{TOKEN} # mine"}
    told = clinic.look("hub-token", env=env)
    finding = fault(told, "warning")
    assert "holds spaces" in finding["seen"]
    assert TOKEN not in told.stdout
    assert clinic.look("hub-token", env=env, before=finding["command"]).severity == "ok"


# The data -----------------------------------------------------------------------------------------


def test_valid_rows(clinic: Any) -> None:
    told = clinic.look("data")
    assert told.severity == "ok"
    train, validation = told.findings()
    assert "data.train: 600 valid rows in one file" in train["seen"]
    assert "data.validation" in validation["seen"]


BAD_ROWS = [
    (
        "rows.jsonl",
        '{"text": "a"}\n{"text": "b"}\n{"text": 3}\n',
        "rows.jsonl:3: text must be text",
    ),
    ("rows.jsonl", '{"text": "a"}\n{"text": "b"\n', "rows.jsonl:2: invalid JSON"),
    ("rows.jsonl", '{"prompt": "a", "completion": ""}\n', "rows.jsonl:1: completion is empty"),
    ("rows.jsonl", '{"foo": "a"}\n', "rows.jsonl:1: no usable fields: has foo"),
    ("rows.jsonl", "", "rows.jsonl: is empty"),
    ("rows.csv", "prompt,completion\na,b\nc\n", "rows.csv:3: the header names 2 cells"),
    ("rows.json", '[{"text": "a"}, 7]', "rows.json:1 (row 2): a row must be a JSON object"),
    ("rows.parquet", "no parquet", "rows.parquet: not a readable Parquet file"),
    ("rows.txt", "a\n", "rows.txt: .txt is not one of"),
]


@pytest.mark.parametrize(("name", "text", "seen"), BAD_ROWS)
def test_a_bad_row_is_named_by_its_line(clinic: Any, name: str, text: str, seen: str) -> None:
    path = clinic.write(name, text)
    told = clinic.look("data", "--config", clinic.recipe(f"data: {{train: {name}}}"))
    finding = fault(told)
    assert seen in finding["seen"]
    assert finding["seen"].startswith("data.train: ")
    assert "docs/data.md" in finding["remedy"]
    good = clinic.write("good.jsonl", '{"text": "a"}\n')
    assert path.exists()
    told = clinic.look("data", "--config", clinic.recipe(f"data: {{train: {good.name}}}"))
    assert told.severity == "ok"


def test_arrow_is_not_imported_for_lines_of_json() -> None:
    """It takes as long as the rest of the process that reads rows."""
    program = (
        "import io, json, sys\n"
        "names = {'data.train': 'mltune/repro_dataset/train.jsonl'}\n"
        "job = {'names': names, 'format': 'auto', 'seconds': 9}\n"
        "sys.stdin = io.StringIO(json.dumps(job))\n"
        "from mltune_cli.diagnosis.row_probe import main\n"
        "main()\n"
        "sys.exit('pyarrow' in sys.modules or 'numpy' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["data.train"]["rows"] == 600


def test_parquet_and_a_folder_of_shards(clinic: Any) -> None:
    shards = clinic.folder / "shards"
    shards.mkdir()
    pq.write_table(pa.table({"text": ["a", "b"]}), shards / "one.parquet")
    clinic.write("shards/two.jsonl", '{"text": "c"}\n')
    recipe = clinic.recipe("data: {train: shards}")
    told = clinic.look("data", "--config", recipe)
    assert "3 valid rows in 2 files (3 text)" in told.finding["seen"]
    pq.write_table(pa.table({"text": ["a", None]}), shards / "one.parquet")
    assert "one.parquet row 2" in fault(clinic.look("data", "--config", recipe))["seen"]


def test_a_file_that_is_not_there(clinic: Any) -> None:
    told = clinic.look("data", "--config", clinic.recipe("data: {train: rows.jsonl}"))
    assert "rows.jsonl: no such file" in fault(told)["seen"]


def test_validation_rows_are_read_as_well(clinic: Any) -> None:
    clinic.write("val.jsonl", "7\n")
    told = clinic.look("data", "--config", clinic.recipe("data: {validation: val.jsonl}"))
    assert fault(told)["seen"].startswith("data.validation: ")


def test_more_rows_than_can_be_read_in_the_time(clinic: Any) -> None:
    """What was read is said; the last row, which is bad, was not."""
    path = clinic.folder / "rows.jsonl"
    row = json.dumps({"text": "x" * 200}) + "\n"
    path.write_text(row * 2_000_000 + "7\n")
    told = clinic.look("data", "--config", clinic.recipe("data: {train: rows.jsonl}"), timeout=30)
    assert (told.code, told.severity) == (0, "info")
    assert "rows of one file are valid; the rest was not read" in told.finding["seen"]
    assert told.report["seconds"] < 6
    path.unlink()
