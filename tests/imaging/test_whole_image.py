"""mltune's own image on a real engine: built offline, run, and held to the host bit for bit."""

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mltune_cli.imaging.locks import locked_packages

SECRET = "s3cr3t-5b1f0c7e"


@pytest.fixture
def ca_bundle(tmp_path: Path) -> Path:
    """Certificates with a remark that must not be found in an image."""
    import certifi

    path = tmp_path / "ca.pem"
    text = Path(certifi.where()).read_text(encoding="utf-8")
    path.write_text(f"# {SECRET}-ca\n{text}", encoding="utf-8")
    return path


def held(engine: Any, image: str, needles: set[bytes]) -> set[bytes]:
    """Return which bytes stand anywhere in an image: layers, history, configuration."""
    found: set[bytes] = set()
    rest, longest = b"", max(map(len, needles))
    for chunk in engine.client.get_image(image):  # all of it, which takes long: once
        block = rest + chunk
        found |= {needle for needle in needles if needle in block}
        rest = block[-longest:]
    return found


def test_the_image_gives_the_bits_of_the_host(
    engine: Any, python_base: str, wheelhouse: Path, ca_bundle: Path, mltune: Any, tmp_path: Path,
    project: Path,
) -> None:  # fmt: skip
    host = mltune("repro-check", "--no-explain", cwd=tmp_path)
    assert host.code == 0, host.stderr
    arguments = (
        "build-image", "--json", "--base", python_base, "--wheelhouse", wheelhouse, "--ca-bundle",
        ca_bundle,
    )  # fmt: skip
    env = {**engine.variables, "HF_TOKEN": SECRET, "MY_PASSWORD": SECRET}
    result = mltune(*arguments, "--against", "repro_output", cwd=tmp_path, env=env, timeout=590)
    assert result.code == 0, result.stderr
    receipt = json.loads(result.stdout)
    schema = json.loads((project / "docs/schemas/image.schema.json").read_text())
    jsonschema.validate(receipt, schema)
    assert json.loads((tmp_path / "image_output/image.json").read_text()) == receipt

    # The container's bits are the host's.
    assert receipt["comparison"]["verdict"] == "same"
    ours, theirs = (tmp_path / name for name in ("repro_output", "image_output/repro_output"))
    for name in ("adapter/adapter_model.safetensors", "training_log.jsonl", "last_loss.txt"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    manifest = json.loads((theirs / "run-1/manifest.json").read_text())
    assert manifest["image_digest"] == receipt["image_id"]
    assert {path.stat().st_uid for path in theirs.rglob("*")} == {os.getuid()}

    # What is in it is what the lock says, and nothing else.
    locked = locked_packages((project / "requirements.txt").read_text())
    listed = {name.lower().replace("_", "-"): v for name, v in receipt["packages"].items()}
    assert {n: v for n, v in listed.items() if n not in ("pip", "mltune")} == locked
    assert {"pip", "mltune"} <= listed.keys()
    config = engine.client.inspect_image(receipt["image_id"])["Config"]
    assert config["User"] == "10001:10001"
    assert config["Labels"]["mltune.context"] == receipt["context_digest"]
    known = b"plan.py"  # it looks
    assert held(engine, receipt["image_id"], {SECRET.encode(), known}) == {known}

    # The second time everything but the first lines comes from the cache.
    again = mltune(*arguments, "--no-run", cwd=tmp_path, env=engine.variables)
    assert again.code == 0, again.stderr
    second = json.loads(again.stdout)
    assert second["image_id"] == receipt["image_id"]
    work = [step for step in second["steps"] if step["text"].startswith(("RUN", "COPY"))]
    assert len(work) >= 8
    assert all(step["is_cached"] for step in work)
