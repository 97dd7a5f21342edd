"""Write train.jsonl, val.jsonl and SHA256SUMS from the facts of `world.py`.

    python repro_dataset/generate.py            write the files
    python repro_dataset/generate.py --check    exit 1 if the files differ from what it would write

Uses the standard library only. Every choice comes from `world.draw` or `world.arrange`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phrases import PHRASES
from world import Fact, all_facts, arrange, draw

HERE = Path(__file__).resolve().parent

# Rows of each format; the names are those of the README's table.
TRAIN_ROWS = {
    "question": 130,
    "prompt": 100,
    "instruction": 110,
    "messages": 110,
    "conversations": 90,
    "text": 60,
}
VAL_ROWS = {
    "question": 20,
    "prompt": 16,
    "instruction": 16,
    "messages": 16,
    "conversations": 12,
    "text": 10,
}
# Facts that no training row asks for. The other validation rows ask a trained fact in new words.
UNASKED_FACTS = 60

SYSTEM_PROMPTS = (
    "You are a guide to the Lantern Isles.",
    "Answer questions about the Lantern Isles. Be brief.",
    "You keep the almanac of the Isles and answer from it.",
    "You work in the harbour office and help travellers.",
)
INSTRUCTIONS = (
    "Answer the question about the Isles.",
    "Reply to the traveller.",
    "Use the almanac of the Isles to answer.",
)
TEXT_LABELS = (("Question: ", "Answer: "), ("Q: ", "A: "), ("Traveller: ", "Guide: "))


@dataclass(frozen=True)
class Exchange:
    """One question, the fact it asks for and its answer."""

    fact: Fact
    phrasing: int
    question: str
    answer: str

    @property
    def key(self) -> str:
        """A text that no other exchange has."""
        return f"{self.fact.key}/{self.phrasing}"


def ask(fact: Fact, phrasing: int) -> Exchange:
    """Return the exchange that asks for `fact` in its question number `phrasing`."""
    phrases = PHRASES[fact.relation]
    slots = fact.slots()
    label = f"{fact.key}/{phrasing}"
    answer = phrases.answers[draw(f"answer/{label}", len(phrases.answers))].format(**slots)
    # A third of the answers goes on with a statement about the same subject, so lengths vary.
    if draw(f"longer/{label}", 3) == 0:
        others = [other for other in FACTS_ABOUT[fact.subject] if other.key != fact.key]
        for other in arrange(f"more/{label}", others, lambda item: item.key)[
            : 1 + draw(f"sentences/{label}", 2)
        ]:
            answer += " " + state(other, label)
    return Exchange(fact, phrasing, phrases.questions[phrasing].format(**slots), answer)


def state(fact: Fact, label: str) -> str:
    """Return the statement of `fact` that belongs to `label`."""
    statements = PHRASES[fact.relation].statements
    return statements[draw(f"statement/{label}/{fact.key}", len(statements))].format(**fact.slots())


def group_by_subject(facts: list[Fact]) -> dict[str, list[Fact]]:
    """Return the facts of each subject, in their order."""
    groups: dict[str, list[Fact]] = {}
    for fact in facts:
        groups.setdefault(fact.subject, []).append(fact)
    return groups


FACTS_ABOUT = group_by_subject(all_facts())


def split_exchanges() -> tuple[list[Exchange], list[Exchange]]:
    """Return the exchanges that training rows and validation rows may use, in order of use.

    Each fact's questions are put in an order of its own. Training takes them from the front and
    validation takes the last one, so no question is asked in both. Validation alternates between
    facts that training never asks for and facts that it asks for in other words.
    """
    facts = arrange("facts", all_facts(), lambda fact: fact.key)
    orders = {
        fact.key: arrange(f"phrasing/{fact.key}", range(len(PHRASES[fact.relation].questions)))
        for fact in facts
    }
    unasked, asked = facts[:UNASKED_FACTS], facts[UNASKED_FACTS:]
    train = [
        ask(fact, orders[fact.key][turn])
        for turn in range(2)
        for fact in arrange(f"turn {turn}", asked, lambda fact: fact.key)
    ]
    val = []
    for new_fact, known_fact in zip(unasked, asked, strict=False):
        val += [ask(fact, orders[fact.key][-1]) for fact in (new_fact, known_fact)]
    return train, val


def take(pool: list[Exchange], count: int) -> list[Exchange]:
    """Remove the first exchange and up to `count - 1` more on its subject from `pool`."""
    first = pool[0]
    same = [exchange for exchange in pool if exchange.fact.subject == first.fact.subject]
    seen: dict[str, Exchange] = {}
    for exchange in same:
        seen.setdefault(exchange.fact.key, exchange)
    taken = list(seen.values())[:count]
    pool[:] = [exchange for exchange in pool if exchange not in taken]
    return taken


def write_question(pool: list[Exchange]) -> dict[str, Any]:
    """Return a row with the keys question and answer."""
    (exchange,) = take(pool, 1)
    return {"question": exchange.question, "answer": exchange.answer}


def write_prompt(pool: list[Exchange]) -> dict[str, Any]:
    """Return a row whose prompt and completion, joined, are one text.

    Where a statement ends with the value, half of the rows stop before it and let the completion
    finish the sentence. The others ask a question.
    """
    (exchange,) = take(pool, 1)
    fact, label = exchange.fact, f"prompt/{exchange.key}"
    open_ended = [text for text in PHRASES[fact.relation].statements if text.endswith(" {v}.")]
    if open_ended and draw(label, 2):
        sentence = open_ended[draw(f"cloze/{label}", len(open_ended))]
        opening = ("", "In the Lantern Isles: ", "From the almanac: ")
        stem = opening[draw(f"opening/{label}", 3)] + sentence.removesuffix(" {v}.")
        return {"prompt": stem.format(**fact.slots()), "completion": f" {fact.value}."}
    ask_label, reply_label = TEXT_LABELS[draw(f"labels/{label}", len(TEXT_LABELS))]
    prompt = f"{ask_label}{exchange.question}\n{reply_label.rstrip()}"
    return {"prompt": prompt, "completion": f" {exchange.answer}"}


def write_instruction(pool: list[Exchange]) -> dict[str, Any]:
    """Return a row with the keys instruction, input and output; the input may be empty."""
    (exchange,) = take(pool, 1)
    fact, label = exchange.fact, f"instruction/{exchange.key}"
    kind = draw(label, 3)
    if kind == 0:
        instruction, text = exchange.question, ""
    elif kind == 1:
        instruction = INSTRUCTIONS[draw(f"which/{label}", len(INSTRUCTIONS))]
        text = exchange.question
    else:
        instruction, text = PHRASES[fact.relation].task.format(**fact.slots()), fact.subject
    return {"instruction": instruction, "input": text, "output": exchange.answer}


def write_turns(pool: list[Exchange], label: str) -> list[tuple[str, str]]:
    """Return one to three exchanges as (role, content), some after a system prompt."""
    exchanges = take(pool, 1 + draw(f"{label} turns/{pool[0].key}", 3))
    turns = []
    if draw(f"{label} system/{exchanges[0].key}", 5) < 2:
        which = draw(f"{label} prompt/{exchanges[0].key}", len(SYSTEM_PROMPTS))
        turns.append(("system", SYSTEM_PROMPTS[which]))
    for exchange in exchanges:
        turns += [("user", exchange.question), ("assistant", exchange.answer)]
    return turns


def write_messages(pool: list[Exchange]) -> dict[str, Any]:
    """Return a row whose messages have the keys role and content."""
    turns = write_turns(pool, "messages")
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def write_conversations(pool: list[Exchange]) -> dict[str, Any]:
    """Return a row whose turns have the keys from and value."""
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = write_turns(pool, "conversations")
    return {"conversations": [{"from": names[role], "value": text} for role, text in turns]}


def write_text(pool: list[Exchange]) -> dict[str, Any]:
    """Return a row with the key text: a written-out exchange, or a short almanac entry."""
    (exchange,) = take(pool, 1)
    fact, label = exchange.fact, f"text/{exchange.key}"
    if draw(label, 2):
        ask_label, reply_label = TEXT_LABELS[draw(f"labels/{label}", len(TEXT_LABELS))]
        return {"text": f"{ask_label}{exchange.question}\n{reply_label}{exchange.answer}"}
    others = [other for other in FACTS_ABOUT[fact.subject] if other.key != fact.key]
    chosen = [fact, *arrange(f"entry/{label}", others, lambda other: other.key)[:2]]
    entry = " ".join(state(other, label) for other in chosen)
    return {"text": f"Almanac entry on {fact.subject}. {entry}"}


WRITERS = {
    "question": write_question,
    "prompt": write_prompt,
    "instruction": write_instruction,
    "messages": write_messages,
    "conversations": write_conversations,
    "text": write_text,
}


def write_rows(name: str, counts: dict[str, int], pool: list[Exchange]) -> bytes:
    """Return the JSON lines of one file: `counts` rows of each format, mixed."""
    slots = [f"{kind}/{number}" for kind, count in counts.items() for number in range(count)]
    lines = []
    for slot in arrange(f"{name} formats", slots):
        row = WRITERS[slot.partition("/")[0]](pool)
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def build_files() -> dict[str, bytes]:
    """Return the bytes of every generated file under its name."""
    train, val = split_exchanges()
    files = {
        "train.jsonl": write_rows("train", TRAIN_ROWS, train),
        "val.jsonl": write_rows("val", VAL_ROWS, val),
    }
    sums = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()]
    return {**files, "SHA256SUMS": "".join(sums).encode()}


def main() -> int:
    """Write the files, or compare them with `--check`; return the exit code."""
    parser = argparse.ArgumentParser(description="Write the bundled data set of mltune.")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    for name, data in build_files().items():
        path = HERE / name
        if not check:
            path.write_bytes(data)
        elif not path.is_file() or path.read_bytes() != data:
            print(f"{name} is not what generate.py writes; run it without --check.")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
