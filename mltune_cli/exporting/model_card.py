"""The model card of an export: what it was made from, what is claimed, how to make it again.

The same run gives the same bytes. Nothing of the machine is in it, no path, clock, host or user.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from mltune_cli.bundled import BUNDLED_PREFIX
from mltune_cli.exporting.finished_run import FinishedRun
from mltune_cli.exporting.markdown_text import escaped, fenced, shown

CARD_FILE = "README.md"
Kind = Literal["adapter", "merged", "full"]
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?", re.ASCII)
_METHODS = {
    "lora": "LoRA", "rslora": "rank-stabilised LoRA", "dora": "DoRA", "full": "full fine-tuning",
}  # fmt: skip
_LOADED_WHOLE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/of/this/folder"
model = AutoModelForCausalLM.from_pretrained({arguments})
tokenizer = AutoTokenizer.from_pretrained(folder)
"""
_LOADED_WITH_PEFT = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({arguments})
model = PeftModel.from_pretrained(base, "path/of/this/folder")
"""


@dataclass(frozen=True)
class CardFacts:
    """What a card tells of.

    Attributes:
        run: as `open_run` returns it.
        kind: what the folder holds.
        weights: names of the weight files to their digests.
    """

    run: FinishedRun
    kind: Kind
    weights: Mapping[str, str]


def model_card(facts: CardFacts) -> str:
    """Return the whole `README.md`: YAML front matter, then sections of Markdown."""
    front_matter = yaml.safe_dump(_front_matter(facts), sort_keys=True)
    sections = [
        f"# {shown(facts.run.manifest.recipe_name)}, trained with mltune",
        _summary(facts),
        "## How to load it",
        fenced(_loading_code(facts), "python"),
        "## What it was made from",
        _bullets(_digests(facts)),
        "## How it was trained",
        _bullets(_training(facts)),
        "## What is claimed",
        _claims(facts.run),
        "## How to train it again",
        _repetition(facts.run),
    ]
    return f"---\n{front_matter}---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(facts: CardFacts) -> dict[str, Any]:
    recipe = facts.run.recipe
    matter: dict[str, Any] = {
        "library_name": "peft" if facts.kind == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["mltune", recipe.adapter.method],
    }
    if _is_hub_id(recipe.model.name_or_path):
        matter["base_model"] = recipe.model.name_or_path
    if _is_hub_id(recipe.data.train):
        matter["datasets"] = [recipe.data.train]
    return matter


def _is_hub_id(name: str | None) -> bool:
    """Tell a hub id from a path, which is absolute in a resolved recipe, and from bundled names."""
    is_bundled = name is not None and name.startswith(BUNDLED_PREFIX)
    return name is not None and not is_bundled and bool(_HUB_ID.fullmatch(name))


def _summary(facts: CardFacts) -> str:
    run = facts.run
    base = shown(_public_name(run.recipe.model.name_or_path))
    method = _METHODS[run.recipe.adapter.method]
    what = {
        "adapter": f"A {method} adapter for the model {base}, in the format of peft.",
        "merged": f"The model {base} with a {method} adapter merged into its weights.",
        "full": f"The model {base} after {method}.",
    }
    sentences = [what[facts.kind]]
    if run.is_best:
        when = "" if run.step is None else f" after step {run.step} of {run.manifest.result.steps}"
        sentences.append(f"Taken{when}, where the held-out loss was lowest.")
    precision = run.recipe.model.base_precision
    if precision != "dtype":
        held = "4 bits (NF4)" if precision == "nf4" else "8 bits (FP8)"
        sentences.append(f"The base was held in {held} while the adapter was trained.")
        if facts.kind == "merged":
            sentences.append(
                "The adapter is merged into the unquantised base, so what this model computes is "
                "near to what the trained one computed, and not equal to it."
            )
    return " ".join(sentences)


def _loading_code(facts: CardFacts) -> str:
    model = facts.run.recipe.model
    if facts.kind != "adapter":
        extra = ", trust_remote_code=True" if model.trust_remote_code else ""
        return _LOADED_WHOLE.format(arguments=f"folder{extra}")
    arguments = ['"path/of/the/base/model"']
    if model.name_or_path is not None and _is_hub_id(model.name_or_path):
        arguments = [json.dumps(model.name_or_path)]
        if facts.run.manifest.model.revision:
            arguments.append(f"revision={json.dumps(facts.run.manifest.model.revision)}")
    if model.trust_remote_code:
        arguments.append("trust_remote_code=True")
    return _LOADED_WITH_PEFT.format(arguments=", ".join(arguments))


def _digests(facts: CardFacts) -> list[tuple[str, str]]:
    manifest = facts.run.manifest
    rows = [
        ("recipe", shown(manifest.recipe_digest)),
        ("base model", _named(facts.run.recipe.model.name_or_path, manifest.model.digest)),
        ("tokenizer", shown(manifest.model.tokenizer_digest)),
        ("training data", _named(manifest.train_data.name, manifest.train_data.digest)),
    ]
    if manifest.model.revision:
        rows.insert(2, ("base model's revision", shown(manifest.model.revision)))
    if manifest.validation_data is not None:
        held_out = manifest.validation_data
        rows.append(("held-out data", _named(held_out.name, held_out.digest)))
    initial = "initial parameters" if facts.run.is_full else "initial adapter"
    rows.append((initial, shown(manifest.model.initial_adapter_digest)))
    if facts.run.trained_digest is not None:
        rows.append(("trained parameters", shown(facts.run.trained_digest)))
    rows += [(f"file {shown(name)}", shown(digest)) for name, digest in facts.weights.items()]
    rows += [("environment class", shown(name)) for name in manifest.environment_classes]
    return rows


def _named(name: str | None, digest: str) -> str:
    return f"{shown(_public_name(name))}, {shown(digest)}"


def _public_name(name: str | None) -> str:
    """Return a name without the folders of somebody's machine."""
    if not name:
        return "unnamed"
    return Path(name).name if Path(name).is_absolute() else name


def _training(facts: CardFacts) -> list[tuple[str, str]]:
    run, manifest = facts.run, facts.run.manifest
    result = manifest.result
    rows = [
        ("method", _METHODS[run.recipe.adapter.method]),
        ("seed", str(run.recipe.reproducibility.seed)),
        ("steps", str(result.steps)),
        ("last loss", "unknown" if result.last_loss is None else f"{result.last_loss!r} nats"),
        ("rows", str(manifest.train_data.rows)),
        ("processes", str(manifest.processes)),
        ("size", f"{manifest.model.trained_parameters:,} trained of {manifest.model.parameters:,}"),
        ("mltune", shown(manifest.mltune)),
    ]
    if run.held_out_loss is not None:
        where = "held-out loss" if run.is_best else "held-out loss after the last step"
        rows.append((where, f"{run.held_out_loss!r} nats"))
    return rows


def _bullets(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in rows)


def _claims(run: FinishedRun) -> str:
    if not run.manifest.claims:
        return "Nothing."
    return "\n".join(
        f"- {'claimed' if claim.holds else 'not claimed'}: {escaped(claim.name)}: "
        f"{escaped(claim.reason)}"
        for claim in run.manifest.claims
    )


def _repetition(run: FinishedRun) -> str:
    recipe = yaml.safe_dump(_portable_recipe(run), sort_keys=False, width=1000)
    return (
        "This is the recipe with every value that the run used. Save it as `recipe.yaml`. A name "
        "of data or model that is no hub id is that of a local file or folder: put yours, with the "
        "digest above, beside the recipe.\n\n"
        f"{fenced(recipe, 'yaml')}\n\n"
        f"{fenced('mltune train --config recipe.yaml', 'bash')}\n\n"
        "`mltune diff` compares the two runs bit for bit. They are the same in the environment "
        "class above, if `repeatable` is claimed."
    )


def _portable_recipe(run: FinishedRun) -> dict[str, Any]:
    """Return the recipe as a tree, without places, with the base at its commit."""
    tree = run.recipe.model_dump(exclude={"output_dir"})
    for section, key in (("model", "name_or_path"), ("data", "train"), ("data", "validation")):
        if tree[section][key] is not None:
            tree[section][key] = _public_name(tree[section][key])
    tree["model"]["revision"] = run.manifest.model.revision
    return {
        section: {key: value for key, value in values.items() if value is not None}
        for section, values in tree.items()
    }
