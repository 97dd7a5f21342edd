"""The wheel of the running mltune: the same bytes each time, and those that hatchling builds."""

import hashlib
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from mltune_cli import __version__
from mltune_cli.errors import NoVerdictError
from mltune_cli.imaging.packed_wheel import pack_wheel

# Each tool writes its own name or its own list into these.
OWN_FILES = ("/RECORD", "/WHEEL")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_wheel(tmp_path_factory.mktemp("packed"))


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_it_is_what_the_build_backend_builds(packed: Path, project: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", tmp_path, project], check=True, timeout=180)
    built, mine = contents(next(tmp_path.glob("*.whl"))), contents(packed)
    assert sorted(mine) == sorted(built)
    assert len(mine) > 100
    different = [name for name in built if mine[name] != built[name]]
    assert all(name.endswith(OWN_FILES) for name in different), different
    assert (
        packed.name == next(tmp_path.glob("*.whl")).name == f"mltune-{__version__}-py3-none-any.whl"
    )


def test_twice_is_the_same_bytes(packed: Path, tmp_path: Path) -> None:
    again = pack_wheel(tmp_path / "new" / "folder")
    assert again.read_bytes() == packed.read_bytes()


def test_nothing_of_this_installation_is_in_it(packed: Path) -> None:
    names = set(contents(packed))
    left_over = ("direct_url.json", "INSTALLER", "REQUESTED", ".pyc", ".pth")
    assert not [name for name in names if name.endswith(left_over) or "__pycache__" in name]
    locks = {f"mltune_cli/_bundled/locks/requirements{kind}.txt" for kind in ("", "-gpu")}
    assert names >= locks | {"mltune_cli/_bundled/templates/Dockerfile.j2"}


def test_pip_installs_it_and_every_file_is_recorded(packed: Path, tmp_path: Path) -> None:
    """Installed from the packed wheel, mltune packs the very same wheel again."""
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", site, packed], check=True, timeout=180)
    record = next(site.glob("*.dist-info/RECORD")).read_text(encoding="utf-8").splitlines()
    recorded = {line.partition(",")[0] for line in record}
    assert recorded >= set(contents(packed))

    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "import mltune_cli; assert mltune_cli.__file__.startswith(sys.argv[1])\n"
        "from mltune_cli.imaging.packed_wheel import pack_wheel; pack_wheel(Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", program, site, tmp_path / "again"], check=True)
    again = next((tmp_path / "again").glob("*.whl"))
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (packed, again)]
    assert digests[0] == digests[1]


def test_without_an_installation_there_is_nothing_to_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_found(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", not_found)
    with pytest.raises(NoVerdictError, match="without being installed"):
        pack_wheel(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NoVerdictError, match="cannot be written"):
        pack_wheel(tmp_path / "file" / "folder")
