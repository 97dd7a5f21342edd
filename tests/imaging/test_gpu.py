"""A GPU for a container: what is asked for, whether the driver will do, and that it computes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mltune_cli.errors import NoVerdictError
from mltune_cli.imaging.engine import EngineFacts
from mltune_cli.imaging.gpu import (
    GpuDriver,
    device_request,
    gpu_path,
    host_driver,
    is_satisfied,
    require_cuda,
)


def facts(*devices: str) -> EngineFacts:
    return EngineFacts("unix:///x", "28", "1.51", "linux/amd64", "overlay2", "/", devices, 0)


def test_an_nvidia_cdi_device_is_asked_for_by_cdi() -> None:
    assert gpu_path(facts("nvidia.com/gpu=0", "nvidia.com/gpu=all")) == "cdi"
    assert device_request("cdi")["Driver"] == "cdi"
    assert device_request("cdi")["DeviceIDs"] == ["nvidia.com/gpu=all"]
    assert device_request("cdi")["Count"] == 0


@pytest.mark.parametrize("devices", [(), ("vendor.example/net=1",), ("amd.com/gpu=all",)])
def test_without_one_it_is_asked_of_the_nvidia_driver(devices: tuple[str, ...]) -> None:
    assert gpu_path(facts(*devices)) == "nvidia"
    request = device_request("nvidia")
    assert (request["Count"], request["Capabilities"]) == (-1, [["gpu"]])


# What nvidia/cuda images carry: one line of alternatives.
CUDA_12_4 = (
    "cuda>=12.4 brand=tesla,driver>=470,driver<471 brand=unknown,driver>=470,driver<471 "
    "brand=tesla,driver>=535,driver<536"
)


@pytest.mark.parametrize(
    ("version", "brand", "requirement", "is_enough"),
    [
        ("550.54", None, CUDA_12_4, True),
        ("545.23", None, CUDA_12_4, False),
        ("535.104.05", "tesla", CUDA_12_4, True),
        ("535.104.05", "geforce", CUDA_12_4, False),
        ("535.104.05", None, CUDA_12_4, True),
        ("470.82", "tesla", CUDA_12_4, True),
        ("471.0", "tesla", CUDA_12_4, False),
        ("580.65.06", None, "cuda>=13.0", True),
        ("999.1", None, "cuda>=13.1", True),
        ("390.1", None, "cuda>=9.0", False),
        ("550.54", None, "driver=550.54", True),
        ("550.54", None, "driver!=550.54", False),
        ("550.54", None, "driver>550.53,cuda<=12.4", True),
        ("550.54", None, "arch>=9.0", True),
        ("550.54", None, "something=new", True),
    ],
)
def test_a_requirement_is_judged(
    version: str, brand: str | None, requirement: str, is_enough: bool
) -> None:
    assert is_satisfied(requirement, GpuDriver(version, brand)) is is_enough


@given(st.integers(400, 700), st.integers(400, 700))
def test_a_newer_driver_never_satisfies_less(older: int, newer: int) -> None:
    older, newer = sorted((older, newer))
    for cuda in ("11.0", "11.8", "12.0", "12.4", "13.0", "13.1"):
        if is_satisfied(f"cuda>={cuda}", GpuDriver(f"{older}.1")):
            assert is_satisfied(f"cuda>={cuda}", GpuDriver(f"{newer}.1"))


def test_an_old_driver_is_named_with_what_the_image_needs() -> None:
    with pytest.raises(NoVerdictError) as caught:
        require_cuda([f"NVIDIA_REQUIRE_CUDA={CUDA_12_4}"], GpuDriver("525.60", "geforce"), "my:gpu")
    for part in ("my:gpu", "cuda>=12.4", "525.60", "12.0", "update the driver", "--base"):
        assert part in caught.value.message


@pytest.mark.parametrize(
    ("variables", "version", "is_enough"),
    [
        (["CUDA_VERSION=13.0.1"], "580.1", True),
        (["CUDA_VERSION=13.0.1"], "575.1", False),
        (["CUDA_VERSION=12.6.0"], "525.1", True),  # minor versions are compatible
        (["CUDA_VERSION=12.6.0"], "520.1", False),
        (["CUDA_VERSION=12.6.0", "NVIDIA_DISABLE_REQUIRE=1"], "450.1", True),
        (["NVIDIA_REQUIRE_CUDA=cuda>=12.4", "NVIDIA_DISABLE_REQUIRE=true"], "450.1", True),
        ([], "450.1", True),
        (["CUDA_VERSION=unknown"], "450.1", True),
    ],
)
def test_the_version_counts_where_nothing_is_required(
    variables: list[str], version: str, is_enough: bool
) -> None:
    driver = GpuDriver(version)
    if is_enough:
        require_cuda(variables, driver, "my:gpu")
        return
    with pytest.raises(NoVerdictError):
        require_cuda(variables, driver, "my:gpu")


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    def plant(script: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return plant


def test_the_driver_of_this_machine_is_read(nvidia_smi) -> None:
    nvidia_smi(
        'case "$1" in --query*) echo "550.54.15, NVIDIA H100";; '
        '*) echo "    Product Brand   : Tesla";; esac'
    )
    assert host_driver() == GpuDriver("550.54.15", "tesla")


@pytest.mark.parametrize("script", ["exit 9", "echo garbage", "echo 'No devices were found'", ":"])
def test_a_machine_without_a_driver_has_none(nvidia_smi, script: str) -> None:
    nvidia_smi(script)
    assert host_driver() is None
