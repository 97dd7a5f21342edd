"""Layering: defaults < YAML < flags < --set, and the origin of every value."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mltune_cli.errors import RecipeValueError, UsageError
from mltune_cli.recipe.layers import (
    DEFAULT_ORIGIN,
    Entry,
    LoadedRecipe,
    known_keys,
    load_recipe,
    nearest_key,
    place_error,
)
from mltune_cli.recipe.original_flags import entries_from_flags
from mltune_cli.recipe.schema import Recipe

MINIMAL = "model:\n  name_or_path: mltune/tiny\ndata:\n  train: mltune/repro_dataset/train.jsonl\n"


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, text: str, *assignments: str) -> LoadedRecipe:
    return load_recipe(write(folder, MINIMAL + text), {}, assignments)


def refusal(folder: Path, text: str, *assignments: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(folder, text, *assignments)
    message = caught.value.message
    assert "\n" not in message
    return message.replace(f"{folder}/", "")


def loaded_or_sentence(config: Path | None, *assignments: str) -> LoadedRecipe | str:
    """Any other exception than ours goes through, and is the failure that is looked for."""
    try:
        return load_recipe(config, {}, assignments)
    except UsageError as error:
        return error.message


def test_each_layer_wins_over_the_one_below_and_leaves_its_origin(tmp_path: Path) -> None:
    path = write(tmp_path, f"{MINIMAL}train:\n  max_steps: 5\n  warmup_steps: 1\n")
    key, other = "train.max_steps", "train.warmup_steps"
    layers = [
        load_recipe(path, {}),
        load_recipe(path, {key: Entry(6, "--max_steps")}),
        load_recipe(path, {key: Entry(6, "--max_steps")}, [f"{key}=7"]),
        load_recipe(path, {key: Entry(6, "--max_steps")}, [f"{key}=7", f"{key}=8"]),
    ]
    assert [loaded.recipe.train.max_steps for loaded in layers] == [5, 6, 7, 8]
    assert [loaded.origins[key] for loaded in layers] == [
        f"{path}:6", "--max_steps", f"--set {key}", f"--set {key}",
    ]  # fmt: skip
    assert {loaded.origins[other] for loaded in layers} == {f"{path}:7"}
    assert layers[0].origins["train.learning_rate"] == DEFAULT_ORIGIN
    assert layers[0].name == "recipe"


def test_every_key_of_the_schema_has_an_origin(tmp_path: Path) -> None:
    loaded = load(tmp_path, "")
    assert len(known_keys()) >= 38
    assert set(loaded.origins) == set(known_keys())


def test_without_a_file_the_bundled_smoke_recipe_is_read() -> None:
    loaded = load_recipe(None, {})
    assert loaded.name == "smoke"
    assert loaded.recipe.model.name_or_path == "mltune/tiny"
    assert loaded.origins["train.max_steps"].startswith("smoke.yaml (bundled):")


def test_own_data_without_a_recipe_drops_the_bundled_held_out_rows() -> None:
    """Rows of the bundled set say nothing about another one, unless they are named."""
    entry = {"data.train": Entry("rows.jsonl", "--train_file")}
    dropped = load_recipe(None, entry).recipe
    assert (dropped.data.validation, dropped.evaluate.every_steps) == (None, 0)
    kept = load_recipe(None, entry | {"data.validation": Entry("v.jsonl", "--validation_file")})
    assert (kept.recipe.data.validation or "").endswith("/v.jsonl")
    assert kept.recipe.evaluate.every_steps == 20


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("train.learning_rte", "train.learning_rate"),
        ("train.max_step", "train.max_steps"),
        ("trian.max_steps", "train.max_steps"),
        ("adapter.rnak", "adapter.rank"),
        ("model.name", "model.name_or_path"),
        ("data.max_len", "data.max_length"),
        ("train.learning-rate", "train.learning_rate"),
        ("train.lr", "train.learning_rate"),
        ("lr", "train.learning_rate"),
        ("lora_r", "adapter.rank"),
        ("adapter.r", "adapter.rank"),
        ("lora_alpha", "adapter.alpha"),
        ("batch_size", "train.micro_batch_size"),
        ("train.per_device_train_batch_size", "train.micro_batch_size"),
        ("gradient_accumulation_steps", "train.micro_batches_per_step"),
        ("train.num_train_epochs", "train.epochs"),
        ("max_seq_length", "data.max_length"),
        ("cutoff_len", "data.max_length"),
        ("seed", "reproducibility.seed"),
        ("max_steps", "train.max_steps"),
        ("output", "output_dir"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(
    tmp_path: Path, wrong: str, right: str
) -> None:
    """Typos and other tools' names lead to ours, from a file and from --set alike."""
    assert right in known_keys()
    message = f"no such key; did you mean {right}?"
    assert refusal(tmp_path, "", f"{wrong}=1") == f"--set {wrong}: {message}"
    section, _, leaf = wrong.rpartition(".")
    if section in ("", "trian"):
        text = f"{section}:\n  {leaf}: 1\n" if section else f"{leaf}: 1\n"
        line = 6 if section else 5
        assert refusal(tmp_path, text) == f"recipe.yaml:{line}: {wrong}: {message}"


def test_a_key_like_no_other_is_answered_with_the_sections(tmp_path: Path) -> None:
    assert nearest_key("xyzzy") is None
    assert refusal(tmp_path, "xyzzy: 1\n") == (
        "recipe.yaml:5: xyzzy: no such key; sections are adapter, checkpoint, data, evaluate, log, "
        "model, reproducibility, train"
    )


def test_a_key_like_no_other_of_its_section_is_answered_with_the_section(tmp_path: Path) -> None:
    assert refusal(tmp_path, "", "reproducibility.xyzzy=1") == (
        "--set reproducibility.xyzzy: no such key; reproducibility has seed, threads"
    )


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("train.max_steps=0", "must be at least 1, not 0"),
        ("train.max_steps=-3", "must be at least 1, not -3"),
        ("train.max_steps=20.5", "must be a whole number, not 20.5"),
        ("train.max_steps=20.0", "must be a whole number, not 20.0"),
        ("train.max_steps='20'", "must be a whole number, not '20'"),
        ("train.max_steps=true", "must be a whole number, not True"),
        ("train.max_steps=[]", "must be a whole number, not []"),
        ("train.learning_rate=-1e-4", "must be more than 0, not -0.0001"),
        ("train.learning_rate=0", "must be more than 0, not 0"),
        ("train.learning_rate=fast", "must be a number, not 'fast'"),
        ("train.learning_rate=.inf", "must be a finite number, not inf"),
        ("train.learning_rate=.nan", "must be a finite number, not nan"),
        ("train.schedule=step", "must be one of 'constant', 'linear' or 'cosine', not 'step'"),
        ("adapter.dropout=1", "must be less than 1, not 1"),
        ("adapter.target_modules=q_proj", "must be 'all-linear' or a list, not 'q_proj'"),
        ("adapter.target_modules=[1]", "its items must be text, not 1"),
        ("adapter.target_modules=[]", "is empty; name modules or all-linear"),
        ("data.packing=1", "must be 'auto' or true or false, not 1"),
        ("evaluate.keep_best=1", "must be true or false, not 1"),
        ("data.train=[a, b]", "must be text, not ['a', 'b']"),
        ("data.train={a: b}", "must be text, not {'a': 'b'}"),
        ("data.train=null", "is missing; name a file, a folder or a hub id"),
        ("model.name_or_path=", "is missing; name a hub id or a folder"),
        ("data.max_length=1", "must be at least 2, not 1"),
        ("data.chat_template_date=2026", "must be text, not 2026"),
        ("data.chat_template_date=2026-1-1", "must be a date like 2026-01-01, not '2026-1-1'"),
        ("log.every_steps=often", "must be a whole number or 'epoch', not 'often'"),
        ("reproducibility.seed=9223372036854775808",
         "must be less than 9223372036854775808, not 9223372036854775808"),
        ("train.max_steps=9223372036854775808",
         "must be less than 9223372036854775808, not 9223372036854775808"),
        ("reproducibility.threads=0", "must be at least 1, not 0"),
        ("train=5", "is a section; give it keys"),
        ("train=", "is an empty section; give it keys or remove it"),
        ("output_dir=5", "must be text, not 5"),
        ('data.train="a\\0b"', "holds characters that are not UTF-8 text"),
        ('data.train="\\ud800"', "holds characters that are not UTF-8 text"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_what_it_must_be(
    tmp_path: Path, assignment: str, sentence: str
) -> None:
    """Strict types: nothing is coerced, and the sentence names key, bound and value."""
    key = assignment.partition("=")[0]
    assert refusal(tmp_path, "", assignment) == f"--set {key}: {sentence}"


def test_a_wrong_value_in_a_file_is_refused_with_its_line(tmp_path: Path) -> None:
    text = "train:\n  learning_rate: fast\n"
    assert refusal(tmp_path, text) == (
        "recipe.yaml:6: train.learning_rate: must be a number, not 'fast'"
    )


@pytest.mark.parametrize(
    ("text", "number"), [("2e-4", 2e-4), ("2E-4", 2e-4), ("1e3", 1e3), ("-1", None), ("5", 5.0)]
)
def test_numbers_are_read_as_people_write_them(
    tmp_path: Path, text: str, number: float | None
) -> None:
    """`2e-4` is a number, though YAML 1.1 calls it text; a whole number serves as a float."""
    if number is None:
        assert "must be more than 0" in refusal(tmp_path, f"train:\n  learning_rate: {text}\n")
        return
    loaded = load(tmp_path, f"train:\n  learning_rate: {text}\n")
    assert loaded.recipe.train.learning_rate == number
    assert load(tmp_path, "", f"train.learning_rate={text}").recipe == loaded.recipe


def test_a_date_without_quotes_is_text(tmp_path: Path) -> None:
    loaded = load(tmp_path, "  chat_template_date: 2027-02-03\n")
    assert loaded.recipe.data.chat_template_date == "2027-02-03"


@pytest.mark.parametrize(
    ("text", "assignments", "sentence"),
    [
        ("train:\n  epochs: 2\n  max_steps: 5\n", (),
         ("recipe.yaml:6: train.epochs: excludes train.max_steps; keep one and set the other to "
          "null")),
        ("", ("train.max_steps=5", "train.epochs=2"),
         "--set train.epochs: excludes train.max_steps; keep one and set the other to null"),
        ("train:\n  max_steps: 5\n  warmup_steps: 6\n", (),
         "recipe.yaml:7: train.warmup_steps: 6 warm-up steps are more than train.max_steps (5)"),
        ("evaluate:\n  every_steps: 5\n", (),
         ("recipe.yaml:6: evaluate.every_steps: needs data.validation, which is missing; set it, "
          "or 0 here")),
    ],
)  # fmt: skip
def test_values_that_exclude_each_other_are_refused(
    tmp_path: Path, text: str, assignments: tuple[str, ...], sentence: str
) -> None:
    assert refusal(tmp_path, text, *assignments) == sentence


@pytest.mark.parametrize(("key", "other"), [("max_steps", "epochs"), ("epochs", "max_steps")])
def test_saying_how_long_by_one_takes_back_what_a_lower_layer_said_by_the_other(
    tmp_path: Path, key: str, other: str
) -> None:
    loaded = load(tmp_path, f"train:\n  {other}: 2\n", f"train.{key}=5")
    assert getattr(loaded.recipe.train, key) == 5
    assert getattr(loaded.recipe.train, other) is None
    assert loaded.origins[f"train.{other}"] == f"--set train.{key}"


def test_another_model_is_not_tied_to_the_smoke_recipes_device() -> None:
    """The bundled recipe names the CPU for its own model alone."""
    own = load_recipe(None, {"model.name_or_path": Entry("./other", "--model_name_or_path")})
    assert (own.recipe.model.device, own.recipe.model.dtype) == ("auto", "auto")
    bundled = load_recipe(None, {"model.name_or_path": Entry("mltune/tiny", "--x")})
    assert (bundled.recipe.model.device, bundled.recipe.model.dtype) == ("cpu", "float32")


def test_a_warm_up_as_long_as_the_run_is_allowed(tmp_path: Path) -> None:
    assert load(tmp_path, "train:\n  max_steps: 5\n  warmup_steps: 5\n").recipe.train.max_steps == 5


@pytest.mark.parametrize("text", ["train.max_steps", "=5", "", " =5"])
def test_an_assignment_needs_a_key_and_an_equals_sign(tmp_path: Path, text: str) -> None:
    assert refusal(tmp_path, "", text) == f"--set {text}: write it as --set section.key=value"


@pytest.mark.parametrize(
    "value", ["[", "'", "*a", "{", "!!int five", "!!python/object/apply:os.system [id]", "\x00"]
)
def test_an_assignment_that_is_no_yaml_is_refused(tmp_path: Path, value: str) -> None:
    message = refusal(tmp_path, "", f"train.max_steps={value}")
    assert message.startswith(f"--set train.max_steps={value}: ")
    assert message.endswith("is not a YAML value; quote it")


def test_only_the_first_equals_sign_parts_key_and_value(tmp_path: Path) -> None:
    loaded = load(tmp_path, "", "output_dir=runs/a=b")
    assert (loaded.recipe.output_dir or "").endswith("/runs/a=b")


def test_paths_in_a_recipe_start_at_the_recipe_and_those_of_flags_at_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a run may be started from anywhere, and a flag means what the shell shows."""
    project, shell = tmp_path / "project", tmp_path / "shell"
    (project / "model").mkdir(parents=True)
    (shell / "rows").mkdir(parents=True)
    monkeypatch.chdir(shell)
    path = write(
        project,
        "model: {name_or_path: model}\noutput_dir: out\n"
        "data: {train: rows.jsonl, validation: ../v.csv}\n",
    )
    recipe = load_recipe(path, {}).recipe
    assert recipe.model.name_or_path == str(project / "model")
    assert recipe.output_dir == str(project / "out")
    assert recipe.data.train == str(project / "rows.jsonl")
    assert recipe.data.validation == str(tmp_path / "v.csv")
    flags = entries_from_flags(
        logging_strategy=None, logging_steps=None, train_file="rows", output_dir="out"
    )
    recipe = load_recipe(path, flags, ["data.validation=v.parquet"]).recipe
    assert recipe.data.train == str(shell / "rows")
    assert recipe.output_dir == str(shell / "out")
    assert recipe.data.validation == str(shell / "v.parquet")
    relative = load_recipe(Path("../project/recipe.yaml"), {}).recipe
    assert relative.data.train == str(project / "rows.jsonl")


@pytest.mark.parametrize("name", ["org/model", "gpt2", "mltune/tiny", "org/data:train[:5%]"])
def test_hub_ids_and_bundled_names_are_no_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load(tmp_path, "", f"model.name_or_path='{name}'", f"data.train='{name}'")
    assert (loaded.recipe.model.name_or_path, loaded.recipe.data.train) == (name, name)


def test_home_is_expanded_and_an_unknown_user_is_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/of/me")
    assert load(tmp_path, "", "data.train=~/a.jsonl").recipe.data.train == "/home/of/me/a.jsonl"
    assert "~no-such-user" in (
        load(tmp_path, "", "data.train=~no-such-user/a.jsonl").recipe.data.train or ""
    )


def test_a_name_too_long_for_any_file_is_no_crash(tmp_path: Path) -> None:
    name = "a" * 5000
    assert load(tmp_path, "", f"data.train={name}").recipe.data.train == name


def test_an_error_that_knows_only_its_key_gets_the_place(tmp_path: Path) -> None:
    loaded = load(tmp_path, "", "model.device=cuda")
    error = RecipeValueError("model.device", "cuda is asked for")
    assert place_error(error, loaded.origins).message == "--set model.device: cuda is asked for"
    error = RecipeValueError("data.train", "is gone")
    assert (
        place_error(error, loaded.origins).message
        == f"{tmp_path}/recipe.yaml:4: data.train: is gone"
    )
    assert place_error(error, {}).message == "data.train: is gone"


def test_a_huge_value_is_not_printed_whole(tmp_path: Path) -> None:
    long = "x" * 100_000
    assert len(refusal(tmp_path, "", f"train.max_steps={long}")) < 300
    assert len(refusal(tmp_path, "", "train.max_steps=" + "[" * 50 + "1" + "]" * 50)) < 300


def test_a_dumped_recipe_loads_as_an_equal_one(tmp_path: Path) -> None:
    first = load_recipe(None, {}).recipe
    path = write(tmp_path, yaml.safe_dump(first.model_dump(), sort_keys=False), "dumped.yaml")
    assert load_recipe(path, {}).recipe == first
    path.write_text(first.model_dump_json(), encoding="utf-8")
    assert load_recipe(path, {}).recipe == first


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 50), st.floats(), st.text(max_size=12),
    st.sampled_from(["auto", "lora", "all-linear", "epoch", "2e-4", "mltune/tiny", "~x/y.jsonl"]),
)  # fmt: skip
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(values=st.dictionaries(st.sampled_from(known_keys()), VALUES, max_size=6))
def test_any_values_give_a_recipe_that_survives_a_dump_or_one_sentence(
    tmp_path: Path, values: dict[str, object]
) -> None:
    """Through the file: a recipe that is accepted is equal after dumping and loading again."""
    tree: dict[str, object] = {"model.name_or_path": "a", "data.train": "b"}
    path = write(tmp_path, yaml.safe_dump(tree | values, allow_unicode=False))
    outcome = loaded_or_sentence(path)
    if isinstance(outcome, str):
        assert "\n" not in outcome
        return
    recipe = outcome.recipe
    again = write(tmp_path, yaml.safe_dump(recipe.model_dump()), "again.yaml")
    loaded = load_recipe(again, {}).recipe
    assert loaded == recipe
    assert loaded.bits_digest() == recipe.bits_digest()
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


YAML_PIECES = st.sampled_from(
    ["model", "data", "train", "max_steps", "output_dir", "lr", ":", ": ", "\n", "\n  ", "- ", "? ",
     "[", "]", "{", "}", ",", "&a ", "*a", "!!python/object:os.system ", "!!int ", "!!timestamp ",
     "!!binary ", "!!set ", "!x ", "<<: ", "|", ">", "'", '"', "\\", "#", "---\n", "...\n",
     "%YAML ",
     "2e-4", "0x1F", "1_0", "2026-13-45", "12:30:99", ".nan", "~", "null", "yes", "\t", "\x00",
     "\x85", "\ufeff", "@", "`"]
)  # fmt: skip
GARBAGE = st.one_of(
    st.lists(YAML_PIECES, max_size=25).map("".join),
    st.text(max_size=60),
    st.lists(st.one_of(YAML_PIECES, st.text(max_size=4)), max_size=20).map("".join),
)


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=GARBAGE, prefixed=st.booleans())
def test_garbage_as_a_recipe_file_is_one_sentence_or_a_recipe(
    tmp_path: Path, text: str, prefixed: bool
) -> None:
    path = tmp_path / "garbage.yaml"
    path.write_bytes(((MINIMAL if prefixed else "") + text).encode("utf-8", "surrogatepass"))
    outcome = loaded_or_sentence(path)
    assert not isinstance(outcome, str) or outcome.startswith(str(path))


@settings(max_examples=300, deadline=None)
@given(key=st.one_of(st.sampled_from(known_keys()), st.text(max_size=20)), value=GARBAGE)
def test_garbage_as_an_assignment_is_one_sentence_or_a_recipe(key: str, value: str) -> None:
    outcome = loaded_or_sentence(None, f"{key}={value}")
    assert not isinstance(outcome, str) or outcome.startswith(("--set", "smoke.yaml (bundled):"))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=80))
def test_any_bytes_as_a_recipe_file_are_one_sentence(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bytes.yaml"
    path.write_bytes(data)
    with pytest.raises(UsageError) as caught:
        load_recipe(path, {})
    assert caught.value.message.startswith(str(path))
