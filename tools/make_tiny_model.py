"""Make the bundled model mltune/tiny: learn a vocabulary, then pretrain a small Llama on the CPU.

    python tools/make_tiny_model.py --out FOLDER

Run twice in one environment it writes the same bytes. Another CPU or another PyTorch may
round differently, so the files that are shipped are the authority, not this script.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import sys
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Thread pools read this when torch is imported, and the order of a sum depends on their size.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from tiny_corpus import write_entries, write_tokenizer_text
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SEED = 20
VOCABULARY = 1024
PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, END, SYSTEM, USER, ASSISTANT)
CONTEXT_TOKENS = 1024

# Few enough passes that the statements are known but not recited: a model that is sure of every
# token learns another format more slowly.
STEPS = 500
BATCH_ROWS = 12
ROW_TOKENS = 128
WARMUP_STEPS = 40
PEAK_LEARNING_RATE = 4e-3

README = Path(__file__).resolve().parent / "tiny_model_readme.md"

# The generation block covers the answer and the token that ends it: those are what a model that is
# trained on its own turns only must learn to write.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {%- if message['role'] == 'assistant' -%}
        {{- '<|assistant|>' -}}
        {%- generation -%}
            {{- message['content'] + '<|end|>' -}}
        {%- endgeneration -%}
    {%- elif message['role'] in ('system', 'user') -%}
        {{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}
    {%- else -%}
        {{- raise_exception('The roles are system, user and assistant, not ' + message['role']) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}
"""


def learn_vocabulary(texts: list[str]) -> Tokenizer:
    """Return a byte-level BPE tokenizer learned from `texts`; every byte has a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Numbers are spelled digit by digit, so all of them are written in the same way.
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def wrap_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Return the transformers tokenizer, with its special tokens and its chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the untrained model in float32."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def pack_rows(tokenizer: PreTrainedTokenizerFast, entries: list[str]) -> torch.Tensor:
    """Return the corpus as token rows of shape (rows, ROW_TOKENS), entries ended by END."""
    stream: list[int] = []
    for entry in entries:
        stream += [*tokenizer(entry)["input_ids"], tokenizer.eos_token_id]
    rows = len(stream) // ROW_TOKENS
    return torch.tensor(stream[: rows * ROW_TOKENS]).view(rows, ROW_TOKENS)


def learning_rate(step: int) -> float:
    """Return the learning rate of `step`: a linear warm-up, then a half cosine to a tenth."""
    if step < WARMUP_STEPS:
        return PEAK_LEARNING_RATE * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / (STEPS - WARMUP_STEPS)
    return PEAK_LEARNING_RATE * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def pretrain(model: LlamaForCausalLM, rows: torch.Tensor) -> None:
    """Train `model` in place to continue `rows`, drawn without repeats in each pass."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.05
    )
    generator = torch.Generator().manual_seed(SEED)
    order = torch.empty(0, dtype=torch.long)
    started = time.perf_counter()
    for step in range(STEPS):
        if len(order) < BATCH_ROWS:
            order = torch.cat([order, torch.randperm(len(rows), generator=generator)])
        batch, order = rows[order[:BATCH_ROWS]], order[BATCH_ROWS:]
        optimizer.param_groups[0]["lr"] = learning_rate(step)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == STEPS - 1:
            seconds = time.perf_counter() - started
            print(f"step {step:4d}  loss {loss.item():.4f}  {seconds:.0f} s", flush=True)


def write_folder(out: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the model, the tokenizer, the README and SHA256SUMS into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "README.md").write_bytes(README.read_bytes())
    for path in out.glob("*.json"):
        # The library leaves some of its files without a final newline.
        path.write_text(path.read_text("utf-8").rstrip("\n") + "\n", "utf-8")
    # safetensors creates its file for the owner alone, which an installed package cannot keep.
    (out / "model.safetensors").chmod(0o644)
    names = sorted(path.name for path in out.iterdir() if path.name != "SHA256SUMS")
    sums = [f"{hashlib.sha256((out / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (out / "SHA256SUMS").write_text("".join(sums), "utf-8")


def main() -> int:
    """Make the model and write it to `--out`; return the exit code."""
    parser = argparse.ArgumentParser(description="Make the bundled model mltune/tiny.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    tokenizer = wrap_tokenizer(learn_vocabulary(write_tokenizer_text()))
    model = build_model(tokenizer)
    rows = pack_rows(tokenizer, write_entries())
    print(f"{model.num_parameters():,} parameters, {rows.numel():,} tokens of corpus", flush=True)
    pretrain(model, rows)
    write_folder(out, model, tokenizer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
