"""Which lock an image gets, what it names, and what a wheelhouse lacks."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mltune_cli.errors import UsageError
from mltune_cli.imaging.locks import (
    is_hash_pinned,
    locked_packages,
    missing_from_wheelhouse,
    read_lock,
    variant_lock,
    wheels_of_lock,
)

HASH = "--hash=sha256:" + "0" * 64
LOCK = f"""# A lock.
Typing_Extensions==4.0 \\
    {HASH} \\
    {HASH}
old==1.0 ; python_version == '3.11' \\
    {HASH}
old==2.0 ; python_version >= '3.12' \\
    {HASH}
torch==2.13.0+cpu {HASH}
"""


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_the_bundled_locks_are_read_whole(project: Path, variant: str) -> None:
    name = {"cpu": "requirements.txt", "gpu": "requirements-gpu.txt"}[variant]
    lock = variant_lock(variant, None)  # type: ignore[arg-type]
    text = read_lock(lock)
    assert lock.name == name
    assert text == (project / name).read_text(encoding="utf-8")
    assert is_hash_pinned(lock)
    for python in ("3.11", "3.12", "3.13"):
        packages = locked_packages(text, python)
        assert len(packages) >= 50
        assert packages["torch"].startswith("2.")
        assert list(packages) == sorted(packages)


def test_a_project_brings_its_own_lock(tmp_path: Path) -> None:
    own = tmp_path / "requirements.txt"
    own.write_text(LOCK)
    assert variant_lock("cpu", tmp_path) == own
    assert variant_lock("gpu", tmp_path).parent != tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "torch\n",
        "torch==2.0\n",
        f"torch>=2.0 {HASH}\n",
        f"torch==2.0 {HASH}\nnumpy==1.0\n",
        f"-r other.txt\ntorch==2.0 {HASH}\n",
        f"torch==2.0 ; python == '3' {HASH}\n",
        f"torch==two {HASH}\n",
        "torch @ file:///wheel.whl\n",
    ],
)
def test_what_is_no_lock_is_not_taken_for_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "requirements.txt").write_text(text)
    assert variant_lock("cpu", tmp_path).parent != tmp_path


def test_a_lock_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"requirements\.txt: cannot be read: is not UTF-8"):
        variant_lock("cpu", tmp_path)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_lock(tmp_path / "none.txt")


def test_markers_are_evaluated_where_they_stand() -> None:
    both = {"torch": "2.13.0+cpu", "typing-extensions": "4.0"}
    assert locked_packages(LOCK, "3.11") == {**both, "old": "1.0"}
    assert locked_packages(LOCK, "3.13") == {**both, "old": "2.0"}
    assert locked_packages(LOCK)["old"] in ("1.0", "2.0")


def test_what_a_wheelhouse_lacks(tmp_path: Path) -> None:
    assert missing_from_wheelhouse(LOCK, tmp_path) == [
        "torch==2.13.0+cpu",
        "typing-extensions==4.0",
    ]
    for name in (
        "typing_extensions-4.0.0-py3-none-any.whl",  # 4.0 and 4.0.0 are one version
        "torch-2.13.0-cp311-cp311-linux_x86_64.whl",  # another build
        "old-1.0-py3-none-any.whl",
        "old-3.0-py3-none-any.whl",
        "not a wheel.whl",
        "numpy-2.0-py3-none-any.whl",
    ):
        (tmp_path / name).touch()
    assert missing_from_wheelhouse(LOCK, tmp_path) == ["torch==2.13.0+cpu"]
    assert [path.name for path in wheels_of_lock(LOCK, tmp_path)] == [
        "old-1.0-py3-none-any.whl",
        "typing_extensions-4.0.0-py3-none-any.whl",
    ]
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl").touch()
    assert missing_from_wheelhouse(LOCK, tmp_path) == []


def test_a_wheelhouse_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder of wheels"):
        missing_from_wheelhouse(LOCK, tmp_path / "none")


NAMES = st.from_regex(re.compile(r"[a-z][a-z0-9]{0,8}"), fullmatch=True)
VERSIONS = st.from_regex(re.compile(r"[1-9]\.[0-9]{1,2}"), fullmatch=True)


@given(st.dictionaries(NAMES, VERSIONS, min_size=1), st.data())
def test_every_pin_is_either_in_the_wheelhouse_or_missed(
    tmp_path_factory: pytest.TempPathFactory, pins: dict[str, str], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("wheels")
    text = "".join(f"{name}=={version} {HASH}\n" for name, version in pins.items())
    held = data.draw(st.sets(st.sampled_from(sorted(pins))))
    for name in held:
        (folder / f"{name}-{pins[name]}-py3-none-any.whl").touch()
    assert locked_packages(text) == dict(sorted(pins.items()))
    missing = {entry.partition("==")[0] for entry in missing_from_wheelhouse(text, folder)}
    assert missing == set(pins) - held
    assert len(wheels_of_lock(text, folder)) == len(held)
