"""Documents to train on: lengths spread as those of real texts are, the same on every machine."""

import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path

from mltune_cli.bundled import bundled_data

_GOLDEN_RATIO = (1 + math.sqrt(5)) / 2
# Far from the ends, where the logarithm of a length has none.
_MARGIN = 1e-6


def documents(count: int, median_words: int, spread: float) -> Iterator[str]:
    """Yield texts of log-normal length, one at a time.

    No random numbers: the fractional parts of the multiples of the golden ratio fill the interval
    from 0 to 1 evenly, however many are taken, and each is the quantile of one length.

    Args:
        count: how many.
        median_words: half of them are shorter.
        spread: standard deviation of the lengths' natural logarithm; 0 makes all alike.
    """
    source = bundled_data("mltune/repro_dataset/train.jsonl").read_text(encoding="utf-8")
    words = source.split()
    normal = statistics.NormalDist()
    for number in range(count):
        quantile = min(max((number * _GOLDEN_RATIO) % 1.0, _MARGIN), 1.0 - _MARGIN)
        length = max(1, round(median_words * math.exp(spread * normal.inv_cdf(quantile))))
        # 7919 is prime: texts begin all over the source, and the number tells them apart.
        first = number * 7919 % len(words)
        repeated = words[first : first + length]
        while len(repeated) < length:
            repeated += words[: length - len(repeated)]
        yield f"{number}. " + " ".join(repeated)


def write_documents(path: Path, count: int, median_words: int, spread: float) -> Path:
    """Write a JSONL file of documents; one that is there already is left as it is."""
    if not path.is_file():
        draft = path.with_suffix(".draft")
        with draft.open("w", encoding="utf-8") as stream:
            for text in documents(count, median_words, spread):
                stream.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        draft.rename(path)
    return path
