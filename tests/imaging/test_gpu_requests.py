"""`--gpu` on engines that are made to believe in a GPU: the request, the proof, the refusals."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mltune_cli.errors import ExitCode
from mltune_cli.imaging.faults import run_fault

New = Callable[[Any], Any]

# Plays the proof: the engine's hook is false, and so is the GPU.
PYTHON = """#!/bin/sh
for last; do :; done
case "$*" in
*gpu_proof*) ;;
*) exit 1 ;;
esac
if [ "$NVIDIA_VISIBLE_DEVICES" = all ]; then
  echo '{"gpu": "False GPU"}' >"$last"
else
  echo '{"error": "torch finds no GPU in the container"}' >"$last"
fi
"""


def gpu_image(one: Any, base: str, *lines: str, command: str = "true") -> Any:
    one.write(
        base, "COPY python3 /usr/local/bin/python3", *lines, f'CMD ["sh", "-c", "{command}"]',
        python3=PYTHON,
    )  # fmt: skip
    return one


@pytest.fixture
def requests_of(engine: Any) -> Iterator[Callable[[Any], list[Any]]]:
    """Watch what each container of a case asked for, while there is one."""
    stops = []

    def watch(one: Any) -> list[Any]:
        found: dict[str, Any] = {}
        stop = threading.Event()

        def look() -> None:
            while not stop.is_set():
                for container in one.containers():
                    try:
                        facts = one.engine.client.inspect_container(container["Id"])
                    except Exception:  # noqa: BLE001 - it has gone already
                        continue
                    found[container["Id"]] = facts["HostConfig"]["DeviceRequests"]
                    seen[:] = list(found.values())
                time.sleep(0.02)

        seen: list[Any] = []
        thread = threading.Thread(target=look)
        thread.start()
        stops.append((stop, thread))
        return seen

    yield watch
    for stop, thread in stops:
        stop.set()
        thread.join()


def test_the_nvidia_driver_is_asked_and_the_gpu_proven(
    engine: Any, tiny_base: str, case: New, false_nvidia_hook: Any, requests_of: Any
) -> None:
    false_nvidia_hook(0, "")
    one = gpu_image(case(engine), tiny_base, command="sleep 1; echo $NVIDIA_VISIBLE_DEVICES")
    seen = requests_of(one)
    done = one.build("--gpu")
    assert done.returncode == ExitCode.OK, (done.stdout, done.stderr)
    assert "[container] all" in done.stderr
    assert "computed on False GPU, asked for by nvidia" in done.stdout
    run = one.receipt["run"]
    assert (run["gpu"], run["gpu_path"]) == ("False GPU", "nvidia")
    wanted = {"Driver": "", "Count": -1, "DeviceIDs": None, "Capabilities": [["gpu"]]}
    requests = [r for r in seen if r]
    assert requests, seen
    for (request,) in requests:
        assert {key: request[key] or wanted[key] for key in wanted} == wanted


def test_an_entry_point_of_the_image_does_not_swallow_the_proof(
    engine: Any, tiny_base: str, case: New, false_nvidia_hook: Any
) -> None:
    false_nvidia_hook(0, "")
    one = gpu_image(case(engine), tiny_base, 'ENTRYPOINT ["echo", "called with"]')
    done = one.build("--gpu")
    assert done.returncode == ExitCode.OK, (done.stdout, done.stderr)
    assert "[container] called with sh -c true" in done.stderr
    assert one.receipt["run"]["gpu"] == "False GPU"


OLD = "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.4, please update"


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ((1, OLD), ("driver is too old", "needs cuda>=12.4", "update the driver", "--base")),
        (None, ("NVIDIA Container Toolkit", "libnvidia-ml.so.1", "nvidia-smi")),
        ((0, ""), ("does not compute on it: torch finds no GPU",)),
    ],
    ids=["old driver", "no driver", "no gpu inside"],
)
def test_a_gpu_that_cannot_be_given_is_explained(
    engine: Any, tiny_base: str, case: New, false_nvidia_hook: Any, planted: Any,
    said: tuple[str, ...], left_of_ours: Any,
) -> None:  # fmt: skip
    if planted is not None:
        false_nvidia_hook(*planted)
    one = gpu_image(case(engine), tiny_base)
    if planted == (0, ""):
        script = PYTHON.replace("$NVIDIA_VISIBLE_DEVICES", "nothing")
        (one.folder / "python3").write_text(script)
    done = one.build("--gpu")
    assert done.returncode == ExitCode.NO_VERDICT, done.stderr
    for part in said:
        assert part in one.receipt["reason"], one.receipt["reason"]
    assert one.receipt["run"] is None
    assert one.left(left_of_ours) == []


def test_without_a_device_the_toolkit_is_named(
    newer_engine: Any, newer_tiny_base: str, case: New, false_cdi_device: Any
) -> None:
    del false_cdi_device  # taken: no other test declares a device meanwhile
    one = gpu_image(case(newer_engine), newer_tiny_base)
    done = one.build("--gpu")
    assert done.returncode == ExitCode.NO_VERDICT
    assert "NVIDIA Container Toolkit" in one.receipt["reason"]
    assert "nvidia-ctk" in one.receipt["reason"]


def test_a_cdi_device_is_asked_for_by_cdi(
    newer_engine: Any, newer_tiny_base: str, case: New, false_cdi_device: Any, requests_of: Any
) -> None:
    false_cdi_device("all", "0", env={"NVIDIA_VISIBLE_DEVICES": "all"})
    one = gpu_image(case(newer_engine), newer_tiny_base, command="sleep 1")
    seen = requests_of(one)
    done = one.build("--gpu")
    assert done.returncode == ExitCode.OK, (done.stdout, done.stderr)
    run = one.receipt["run"]
    assert (run["gpu"], run["gpu_path"]) == ("False GPU", "cdi")
    wanted = {"Driver": "cdi", "Count": 0, "DeviceIDs": ["nvidia.com/gpu=all"]}
    requests = [r for r in seen if r]
    assert requests, seen
    for (request,) in requests:
        assert {key: request[key] for key in wanted} == wanted


def test_a_device_without_all_cannot_be_resolved(
    newer_engine: Any, newer_tiny_base: str, case: New, false_cdi_device: Any
) -> None:
    false_cdi_device("0", env={"NVIDIA_VISIBLE_DEVICES": "all"})
    one = gpu_image(case(newer_engine), newer_tiny_base)
    done = one.build("--gpu")
    assert done.returncode == ExitCode.NO_VERDICT
    assert "knows no CDI device nvidia.com/gpu=all" in one.receipt["reason"]
    assert "nvidia-ctk cdi generate" in one.receipt["reason"]


def test_an_engine_without_cdi_says_how_to_switch_it_on(
    engine: Any, tiny_base: str, false_nvidia_hook: Any
) -> None:
    """Engine 20.10 answers a CDI request as a newer one does whose CDI is off."""
    del false_nvidia_hook
    from mltune_cli.imaging.gpu import device_request

    client = engine.client
    host_config = client.create_host_config()
    host_config["DeviceRequests"] = [device_request("cdi")]
    container = client.create_container(tiny_base, ["true"], host_config=host_config)["Id"]
    try:
        with pytest.raises(Exception, match="could not select device driver") as caught:
            client.start(container)
    finally:
        client.remove_container(container, force=True)
    said = run_fault(str(caught.value.explanation), {"root": "/"}).message  # type: ignore[attr-defined]
    assert "CDI is switched off in the engine" in said
    assert '{"features": {"cdi": true}}' in said


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("AMD CDI spec not found", ("no NVIDIA GPU", "Toolkit", "nvidia-ctk cdi generate")),
        (
            'could not select device driver "" with capabilities: [[gpu]]',
            ("cannot give a GPU to a container", "nvidia-ctk runtime configure"),
        ),
        (
            'could not select device driver "cdi" with capabilities: [[gpu]]',
            ("CDI is switched off", "daemon.json"),
        ),
        (
            "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=all",
            ("no CDI device nvidia.com/gpu=all",),
        ),
        ("unknown or invalid runtime name: nvidia", ("does not have the runtime", "Toolkit")),
    ],
)
def test_each_message_of_an_engine_has_its_remedy(text: str, parts: tuple[str, ...]) -> None:
    error = run_fault(text, {"root": "/"})
    assert error.exit_code == ExitCode.NO_VERDICT
    for part in parts:
        assert part in error.message


def test_a_training_on_the_cpu_is_no_verdict(
    engine: Any, tiny_base: str, case: New, false_nvidia_hook: Any, finished_run: Path
) -> None:
    """The proof was good, and the training took the CPU all the same: said, never passed over."""
    false_nvidia_hook(0, "")
    manifest = (finished_run / "manifest.json").read_text()
    assert json.loads(manifest)["environment"]["gpu"] is None
    one = gpu_image(
        case(engine), tiny_base, "COPY manifest.json /",
        command="mkdir /repro_output/run && cp /manifest.json /repro_output/run",
    )  # fmt: skip
    (one.folder / "manifest.json").write_text(manifest)
    done = one.build("--gpu")
    assert done.returncode == ExitCode.NO_VERDICT, done.stderr
    assert "ran on the CPU although it was given a GPU" in one.receipt["reason"]


SMI = """#!/bin/sh
case "$1" in
--query*) echo "535.104.05, NVIDIA GeForce RTX 3090" ;;
*) echo "    Product Brand   : GeForce" ;;
esac
"""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('ENV NVIDIA_REQUIRE_CUDA="cuda>=12.4 brand=tesla,driver>=535,driver<536"', "cuda>=12.4"),
        ("ENV CUDA_VERSION=13.0.1", "cuda>=13.0"),
    ],
)
@pytest.mark.parametrize("is_in_base", [True, False], ids=["base", "image"])
def test_a_driver_that_is_too_old_is_told_before_anything_runs(
    engine: Any, tiny_base: str, case: New, line: str, said: str, is_in_base: bool,
    tmp_path: Path,
) -> None:  # fmt: skip
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    one = case(engine)
    path = f"{tmp_path}:{one.variables['PATH']}"
    if is_in_base:
        below = case(engine).write(tiny_base, line)
        assert below.build("--no-run").returncode == ExitCode.OK
        done = gpu_image(one, below.tag).build("--gpu", PATH=path)
        assert "step 1" not in done.stderr
        reason = done.stderr.splitlines()[-1]
    else:
        done = gpu_image(one, tiny_base, line).build("--gpu", PATH=path)
        assert "running" not in done.stderr
        reason = one.receipt["reason"]
    assert done.returncode == ExitCode.NO_VERDICT, done.stderr
    for part in (said, "535.104.05", "12.2", "update the driver", "--base"):
        assert part in reason
