"""Write `docs/causes.md` from the planted faults, or check with `--check` that it is true.

What the page says of a cause is what a test shows: the rows and the faults are those of
`tests/faults/`, titles and remedies are those that `repro-check` prints.
"""

import runpy
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
FAULTS = PROJECT / "tests" / "faults"
PAGE = PROJECT / "docs" / "causes.md"

_OPENING = """# Why two runs differ

Written by `python tools/write_causes.py`; do not edit.

Each section is a cause: how it shows, how `mltune repro-check` finds it, what it prints, and which
test plants it. A cause is named where something convicts it; where nothing does, the answer is
`unknown`, with what was seen.
"""


def page() -> str:
    """Return the whole page."""
    from mltune_cli.reproduction.causes import CAUSES

    faults = runpy.run_path(str(FAULTS / "catalogue.py"))["FAULTS"]
    gpu_faults = runpy.run_path(str(FAULTS / "gpu_catalogue.py"))["FAULTS"]
    parts = [_OPENING]
    for row in runpy.run_path(str(FAULTS / "rows.py"))["ROWS"]:
        numbers = (row.number, None)
        own = [one for one in faults if one.script in row.faults and one.row in numbers]
        on_gpu = [one for one in gpu_faults if one.row == row.number]
        parts.append(_section(row, own, on_gpu, CAUSES))
    parts.append(_unknown(CAUSES))
    return "\n".join(parts)


def _section(row: Any, faults: list[Any], on_gpu: list[Any], causes: dict[str, Any]) -> str:
    title = f"{row.number}. {row.title}" if row.number else row.title
    lines = [f"## {title}", "", row.symptom, ""]
    if row.unplanted:
        return "\n".join([*lines, f"Not planted: {row.unplanted}.", ""])
    lines += ["How to find it:", ""]
    lines += [f"- `{command}`" for command in dict.fromkeys(map(_command, faults))]
    on_gpu_commands = dict.fromkeys(
        f"mltune repro-check{_varied(f)} -- python train.py" for f in on_gpu
    )
    lines += [f"- `{command}`, on a machine with a GPU" for command in on_gpu_commands]
    if row.hint:
        lines.append(f"- {row.hint}")
    elif not (faults or on_gpu):
        lines.append("- `mltune repro-check -- python train.py`, on a machine with a GPU")
    lines += ["", "What is printed:", ""]
    for name in row.names:
        cause = causes[name]
        lines.append(f"- `{name}`: {cause.title}. Remedy: {cause.remedy}.")
    lines += ["", "Planted by:", ""]
    for fault in faults:
        path = f"../tests/faults/scripts/{fault.script}.py"
        step = "any step" if fault.step is None else f"step {fault.step}"
        where = f"{step}, {' or '.join(fault.stages)}"
        lines.append(f"- [{fault.script}]({path}) ({fault.framework}): {where}")
    for fault in on_gpu:
        lines.append(f"- [{fault.script}](../tests/faults/scripts/{fault.script}.py), on a GPU")
    for test in row.tests:
        file, _, name = test.partition("::")
        lines.append(f"- [{file}](../{file}): `{name}`")
    return "\n".join([*lines, ""])


def _command(fault: Any) -> str:
    program = {
        "torchrun": "torchrun --nproc-per-node 2 train.py",
        "accelerate": "accelerate launch --multi_gpu --num_processes 2 train.py",
    }.get(fault.framework, "python train.py")
    if "{run}" in fault.arguments:
        program += " {run}"
    return f"mltune repro-check{_varied(fault)} -- {program}".replace("{made}", "other")


def _varied(fault: Any) -> str:
    return "".join(f" --vary {_quoted(one)}" for one in fault.vary)


def _quoted(condition: str) -> str:
    return f'{condition.replace("=", chr(61) + chr(34), 1)}"' if " " in condition else condition


def _unknown(causes: dict[str, Any]) -> str:
    cause = causes["unknown"]
    return f"## Unknown\n\n`unknown`: {cause.title}. {cause.remedy.capitalize()}.\n"


def main() -> int:
    """Write or check; return the exit status."""
    text = page()
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            print("docs/causes.md is out of date; run python tools/write_causes.py")
            return 1
        return 0
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
