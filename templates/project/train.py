#!/usr/bin/env python3
"""Trains this project: hands its arguments to `mltune train`.

    python train.py                           trains recipe.yaml
    python train.py --max_steps 100 --seed 7  trains it with other values
    python train.py --model_name_or_path MODEL --train_file ROWS --output_dir DIR
                                              trains other rows; recipe.yaml has no part in it

`mltune train --help` lists every flag.
"""

import os
import shutil
import sys
from pathlib import Path

RECIPE = Path(__file__).resolve().with_name("recipe.yaml")
# Who names rows or a recipe does not mean the rows of this one.
OWN_SOURCES = ("--config", "--train_file", "--train-file")
NO_VERDICT = 125


def find_mltune():
    """Return the mltune command of this Python, else the first on PATH, else None."""
    beside = Path(sys.executable).with_name("mltune")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("mltune")


def main(arguments):
    """Become `mltune train`; 125 where there is no mltune."""
    command = find_mltune()
    if command is None:
        print(
            f"train.py: mltune is not installed for {sys.executable}; install it there, or start "
            "train.py with the Python that has it",
            file=sys.stderr,
        )
        return NO_VERDICT
    names_sources = any(word.partition("=")[0] in OWN_SOURCES for word in arguments)
    recipe = [] if names_sources else ["--config", str(RECIPE)]
    os.execv(command, [command, "train", *recipe, *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
