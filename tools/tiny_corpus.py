"""The text that the bundled tiny model reads before anybody fine-tunes it.

Plain statements about the Lantern Isles, and only statements: no question is ever followed by its
answer and no role token appears, so the question-and-answer format is left for fine-tuning.
"""

from __future__ import annotations

import sys
from pathlib import Path

WORLD_FOLDER = Path(__file__).resolve().parent.parent / "repro_dataset"
sys.path.insert(0, str(WORLD_FOLDER))

from phrases import PHRASES  # noqa: E402  the folder is put on the path just above
from world import Fact, all_facts, arrange, draw  # noqa: E402

# How many times each subject is written about, each time in another order and other words.
ENTRIES_OF_SUBJECT = 8
# Statements in one entry; longer lists are cut into several entries.
ENTRY_STATEMENTS = 4
OPENINGS = ("", "", "From the almanac of the Lantern Isles. ", "Almanac entry on {s}. ")


def state(fact: Fact, label: str) -> str:
    """Return the statement of `fact` that belongs to `label`."""
    statements = PHRASES[fact.relation].statements
    return statements[draw(f"corpus/{label}/{fact.key}", len(statements))].format(**fact.slots())


def write_entries() -> list[str]:
    """Return the pretraining corpus: short entries of statements about one subject each."""
    groups: dict[str, list[Fact]] = {}
    for fact in all_facts():
        groups.setdefault(fact.subject, []).append(fact)
    entries = []
    for subject, facts in groups.items():
        for number in range(ENTRIES_OF_SUBJECT):
            label = f"{number}/{subject}"
            order = arrange(f"entry/{label}", facts, lambda fact: fact.key)
            for start in range(0, len(order), ENTRY_STATEMENTS):
                opening = OPENINGS[draw(f"opening/{label}/{start}", len(OPENINGS))]
                chosen = order[start : start + ENTRY_STATEMENTS]
                text = " ".join(state(fact, label) for fact in chosen)
                entries.append(opening.format(s=subject) + text)
    return arrange("corpus", sorted(set(entries)))


def write_tokenizer_text() -> list[str]:
    """Return the text from which the vocabulary is learned.

    It has the questions and short requests too, without answers, so that their words are not
    spelled out letter by letter when the model is fine-tuned.
    """
    asked = [
        question.format(**fact.slots())
        for fact in all_facts()
        for question in PHRASES[fact.relation].questions
    ]
    tasks = [phrases.task for phrases in PHRASES.values()]
    labels = ["Question: Answer: Traveller: Guide: You are a guide to the Lantern Isles."] * 20
    return [*write_entries(), *asked, *tasks, *labels]
