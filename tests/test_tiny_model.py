"""The bundled model mltune/tiny: its files, its tokenizer and its weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "mltune_cli" / "tiny_model"
FILES = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is Tidegate?"},
    {"role": "assistant", "content": "On Orlen."},
    {"role": "user", "content": "And Glass Cove?"},
    {"role": "assistant", "content": "On Åsk."},
]
TOKENIZER = AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, local_files_only=True).eval()


def test_the_folder_holds_these_files_and_is_small() -> None:
    found = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert set(found) == {*FILES, "SHA256SUMS"}
    assert sum(found.values()) <= 2_000_000
    assert found["model.safetensors"] <= 1_900_000


def test_checksums_are_right_and_complete() -> None:
    lines = (FOLDER / "SHA256SUMS").read_text("utf-8").splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert set(sums) == FILES
    for name, digest in sums.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name


def test_the_configuration_says_what_the_model_is() -> None:
    config = json.loads((FOLDER / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is True
    assert config["max_position_embeddings"] >= 512
    assert config["dtype"] == "bfloat16"
    assert config["vocab_size"] == len(TOKENIZER)
    assert (config["pad_token_id"], config["eos_token_id"]) == (
        TOKENIZER.pad_token_id,
        TOKENIZER.eos_token_id,
    )


def test_special_tokens_are_single_and_apart() -> None:
    names = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    ids = [TOKENIZER(name)["input_ids"] for name in names]
    assert ids == [[0], [1], [2], [3], [4]]
    assert TOKENIZER.pad_token == "<|pad|>"
    assert TOKENIZER.eos_token == "<|end|>"
    assert TOKENIZER.is_fast


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_survives_the_tokenizer(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


def test_every_byte_has_a_token() -> None:
    text = bytes(range(256)).decode("latin-1") + "日本 🦊 \u200b e\u0301"
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text
    # Every byte that can occur in UTF-8, alone, must be in the vocabulary.
    single = [token for token in TOKENIZER.get_vocab() if len(token) == 1]
    assert len(single) == 256


def test_the_template_marks_each_answer_and_its_end_token() -> None:
    encoded = TOKENIZER.apply_chat_template(
        CHAT, return_assistant_tokens_mask=True, return_dict=True
    )
    ids, mask = encoded["input_ids"], encoded["assistant_masks"]
    assert len(ids) == len(mask)
    marked = [token for token, chosen in zip(ids, mask, strict=True) if chosen]
    assert TOKENIZER.decode(marked) == "On Orlen.<|end|>On Åsk.<|end|>"


def test_the_template_writes_one_plain_form() -> None:
    text = TOKENIZER.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)
    assert text == "<|system|>Be brief.<|end|><|user|>Where is Tidegate?<|end|><|assistant|>"
    whole = TOKENIZER.apply_chat_template(CHAT[:3], tokenize=False)
    assert whole == text + "On Orlen.<|end|>"


def test_the_template_does_not_read_the_clock() -> None:
    template = (FOLDER / "chat_template.jinja").read_text("utf-8")
    assert "{%- generation -%}" in template
    assert "strftime_now" not in template


def test_the_template_refuses_an_unknown_role() -> None:
    with pytest.raises(Exception, match="not tool"):
        TOKENIZER.apply_chat_template([{"role": "tool", "content": "1"}], tokenize=False)


def test_logits_are_finite_and_the_embedding_is_tied(model: Any) -> None:
    assert model.dtype == torch.bfloat16
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    batch = TOKENIZER(["The harbour of Orlen is", "Åsk"], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
    assert logits.shape == (*batch["input_ids"].shape, len(TOKENIZER))
    assert torch.isfinite(logits).all()


def test_the_model_knows_statements_about_the_isles(model: Any) -> None:
    text = "The harbour of Orlen is called Tidegate. The flag of Orlen is blue and white."
    ids = TOKENIZER(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    # A model that guesses evenly over the vocabulary is at ln(1024), about 6.9.
    assert loss < 2.5


def test_every_row_of_the_data_set_fits_the_context() -> None:
    limit = json.loads((FOLDER / "config.json").read_text("utf-8"))["max_position_embeddings"]
    rows = [
        line
        for name in ("train.jsonl", "val.jsonl")
        for line in (ROOT / "repro_dataset" / name).read_text("utf-8").splitlines()
    ]
    assert len(rows) >= 540
    assert max(len(TOKENIZER(row)["input_ids"]) for row in rows) <= limit
