"""Packages that do not go together: by their own word, and where they forgot to say so."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mltune_cli.diagnosis.finding import Check, Finding, broken, doubtful, in_order, judged, known
from mltune_cli.diagnosis.packages import (
    installed_packages,
    installed_version,
    package_folder,
    satisfies,
    torch_build,
)
from mltune_cli.diagnosis.subject import Subject, written

# What breaks training when it does not go together; of other packages it is only said.
_TRAINING = {
    "accelerate", "bitsandbytes", "datasets", "flash-attn", "huggingface-hub", "jinja2",
    "liger-kernel", "numpy", "peft", "pyarrow", "safetensors", "tokenizers", "torch", "torchao",
    "torchaudio", "torchvision", "transformers", "triton", "trl", "unsloth",
}  # fmt: skip


@dataclass(frozen=True)
class BadPair:
    """Two packages that are installed together without complaint and do not work together.

    Attributes:
        first: with the versions that are bad beside `second`.
        mend: what to install instead.
        is_needed: whether mltune itself needs both.
    """

    first: str
    second: str
    why: str
    mend: str
    is_needed: bool = True


# Each is what the packages' own issue trackers report; none declares it.
BAD_PAIRS = (
    BadPair(
        "peft<0.18",
        "transformers>=5",
        "peft before 0.18 imports HybridCache, which transformers 5 no longer has, so peft cannot "
        "be imported",
        "peft>=0.18",
    ),
    BadPair(
        "liger-kernel<0.6.5",
        "transformers>=5",
        "Liger before 0.6.5 imports HybridCache, which transformers 5 no longer has, so it cannot "
        "be imported",
        "liger-kernel>=0.6.5",
        is_needed=False,
    ),
    BadPair(
        "torch<2.3",
        "numpy>=2",
        "torch before 2.3 was compiled for NumPy 1 and cannot exchange arrays with NumPy 2",
        "numpy<2",
    ),
)


def look(subject: Subject) -> Sequence[Finding]:
    """Look for combinations that do not work."""
    findings = [*_known_pairs(), *_own_words(), *_bitsandbytes(subject)]
    return findings or [in_order(f"{len(installed_packages())} installed packages go together")]


def _known_pairs() -> Iterator[Finding]:
    for pair in BAD_PAIRS:
        first, second = Requirement(pair.first), Requirement(pair.second)
        versions = installed_version(first.name), installed_version(second.name)
        if versions[0] is None or versions[1] is None:
            continue
        if satisfies(versions[0], first) and satisfies(versions[1], second):
            yield judged(
                pair.is_needed,
                f"{first.name} {versions[0]} with {second.name} {versions[1]}",
                pair.why,
                f"install {pair.mend}",
                command=_install(pair.mend),
                scope="everything" if pair.is_needed else "scripts",
            )


def _own_words() -> Iterator[Finding]:
    """Yield what packages ask for and do not get, as `pip check` would."""
    packages = installed_packages()
    for package in packages.values():
        if package.name == "mltune":
            continue  # the check `requirements` looks at it
        for requirement in package.asks_for:
            asked_name = canonicalize_name(requirement.name)
            other = packages.get(asked_name)
            if other is not None and satisfies(other.version, requirement):
                continue
            asked = f"{requirement.name}{requirement.specifier}"
            # The name of mltune is somebody else's on the public index.
            command = None if asked_name == "mltune" else _install(package.name, asked)
            names = {package.name, asked_name}
            has = "is not installed" if other is None else f"{other.version} is installed"
            seen = (
                f"{package.name} {package.version} asks for {asked}, and {requirement.name} {has}"
            )
            if names & _TRAINING:
                yield doubtful(
                    seen,
                    "its authors did not try it so; it may fail, or compute something else",
                    f"install {asked}, or another {package.name}",
                    command=command,
                )
            else:
                yield known(seen, command=command)


def _bitsandbytes(subject: Subject) -> Iterator[Finding]:
    is_wanted = subject.recipe.model.base_precision == "nf4"
    build, folder = torch_build(), package_folder("bitsandbytes")
    if folder is None:
        if is_wanted:
            yield broken(
                "bitsandbytes is not installed, and model.base_precision is nf4",
                "4-bit weights are its business",
                "install it",
                command=_install("bitsandbytes"),
            )
        return
    if build is None or build[1] is None:
        if is_wanted:
            yield broken(
                "torch is a CPU build, and model.base_precision is nf4",
                "4-bit weights need CUDA",
                f"install a CUDA build of torch, or {written('model.base_precision=dtype')}",
                command=subject.trial("combinations", "model.base_precision=dtype"),
            )
        return
    library = f"libbitsandbytes_cuda{build[1][0]}{build[1][1]}.so"
    if not (folder / library).is_file():
        yield judged(
            is_wanted,
            f"bitsandbytes {installed_version('bitsandbytes')} has no {library}, and torch is "
            f"built for CUDA {build[1][0]}.{build[1][1]}",
            "it loads the library of torch's own CUDA, and fails without",
            "install a newer one",
            command=_install("--upgrade", "bitsandbytes"),
        )


def _install(*words: str) -> str:
    return f"{shlex.quote(sys.executable)} -m pip install {shlex.join(words)}"


CHECK = Check("combinations", "packages that do not go together", look)
