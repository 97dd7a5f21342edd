"""The GPU of a container: how it is asked for, and whether the driver is new enough for the image.

That a container started is no proof that it has a GPU: an engine may take the request and do
nothing. The proof is made inside (`mltune_cli.training.gpu_proof`).
"""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mltune_cli.errors import NoVerdictError
from mltune_cli.imaging.engine import EngineFacts

GpuPath = Literal["cdi", "nvidia"]
_NVIDIA_CDI = "nvidia.com/gpu="
# The newest CUDA that a driver branch runs, from the compatibility table of NVIDIA's CUDA release
# notes. A branch that is not here is judged by the nearest older one.
_CUDA_OF_DRIVER = (
    (450, (11, 0)), (455, (11, 1)), (460, (11, 2)), (465, (11, 3)), (470, (11, 4)), (495, (11, 5)),
    (510, (11, 6)), (515, (11, 7)), (520, (11, 8)), (525, (12, 0)), (530, (12, 1)), (535, (12, 2)),
    (545, (12, 3)), (550, (12, 4)), (555, (12, 5)), (560, (12, 6)), (565, (12, 7)), (570, (12, 8)),
    (575, (12, 9)), (580, (13, 0)), (590, (13, 1)),
)  # fmt: skip
# Within a major version of CUDA newer libraries run on older drivers, from these on.
_MINOR_COMPATIBLE_FROM = {11: 450, 12: 525, 13: 580}


@dataclass(frozen=True)
class GpuDriver:
    """The NVIDIA driver of a machine.

    Attributes:
        version: such as `580.65.06`.
        brand: the products' brand in small letters, such as `tesla`; None where it is not told.
    """

    version: str
    brand: str | None = None

    @property
    def branch(self) -> int:
        """The first number of the version."""
        return int(self.version.partition(".")[0])

    @property
    def cuda(self) -> tuple[int, int]:
        """The newest CUDA that it runs; (0, 0) for a branch older than all that are known."""
        known = [cuda for branch, cuda in _CUDA_OF_DRIVER if branch <= self.branch]
        return known[-1] if known else (0, 0)


def gpu_path(facts: EngineFacts) -> GpuPath:
    """Choose how a GPU is asked for.

    An NVIDIA device that the engine has discovered by CDI decides; the list of runtimes says
    nothing, for it is the same on machines with CDI or with the hook alone.
    """
    has_cdi = any(device.startswith(_NVIDIA_CDI) for device in facts.cdi_devices)
    return "cdi" if has_cdi else "nvidia"


def device_request(path: GpuPath) -> dict[str, Any]:
    """Return the request for all GPUs, as the engine's API takes it."""
    from docker.types import DeviceRequest

    if path == "cdi":
        request = DeviceRequest(driver="cdi", count=0, device_ids=[f"{_NVIDIA_CDI}all"])
    else:
        request = DeviceRequest(count=-1, capabilities=[["gpu"]])
    return dict(request)


def host_driver() -> GpuDriver | None:
    """Return this machine's driver; None where nvidia-smi does not answer."""
    rows = _nvidia_smi("--query-gpu=driver_version,name", "--format=csv,noheader")
    found = re.match(r"\s*(\d+(?:\.\d+)+)\s*(?:,|$)", rows or "")
    if found is None:
        return None
    brand = re.search(r"Product Brand\s*:\s*(.+)", _nvidia_smi("-q") or "")
    return GpuDriver(found[1], brand[1].strip().lower() if brand else None)


def _nvidia_smi(*arguments: str) -> str | None:
    try:
        return subprocess.run(
            ["nvidia-smi", *arguments], capture_output=True, text=True, timeout=20, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None


def require_cuda(variables: Sequence[str], driver: GpuDriver, image: str) -> None:
    """Refuse an image whose CUDA the driver does not run.

    Engines that give GPUs by CDI do not check `NVIDIA_REQUIRE_CUDA` themselves.

    Args:
        variables: the image's environment, `NAME=VALUE` each.
        driver: of the machine that the container will run on.
        image: named in the error.

    Raises:
        NoVerdictError: the driver is too old; the sentence names what is asked for.
    """
    named = dict(variable.partition("=")[::2] for variable in variables)
    if named.get("NVIDIA_DISABLE_REQUIRE", "").lower() in ("1", "true"):
        return
    requirement = named.get("NVIDIA_REQUIRE_CUDA", "").strip()
    if requirement and not is_satisfied(requirement, driver):
        raise NoVerdictError(_too_old(driver, image, requirement.split()[0].split(",")[0]))
    version = re.match(r"(\d+)\.(\d+)", named.get("CUDA_VERSION", ""))
    if not requirement and version is not None:
        needed = int(version[1]), int(version[2])
        least = _MINOR_COMPATIBLE_FROM.get(needed[0])
        runs_by_minor = least is not None and driver.branch >= least
        if needed > driver.cuda and not runs_by_minor:
            raise NoVerdictError(_too_old(driver, image, f"cuda>={needed[0]}.{needed[1]}"))


def _too_old(driver: GpuDriver, image: str, condition: str) -> str:
    major, minor = driver.cuda
    return (
        f"{image}: needs {condition}, and this machine's driver {driver.version} runs CUDA up to "
        f"{major}.{minor}; update the driver, or build on an older CUDA base with --base"
    )


def is_satisfied(requirement: str, driver: GpuDriver) -> bool:
    """Judge an `NVIDIA_REQUIRE_CUDA`: groups are alternatives, conditions in a group must all hold.

    A condition on what is not known here, such as a GPU's architecture, counts as held.
    """
    return any(
        all(_holds(condition, driver) for condition in group.split(",") if condition)
        for group in requirement.split()
    )


def _holds(condition: str, driver: GpuDriver) -> bool:
    found = re.fullmatch(r"(cuda|driver|brand|arch)(>=|<=|!=|=|<|>)(.+)", condition)
    if found is None:
        return True
    subject, sign, value = found.groups()
    if subject == "brand":
        return driver.brand is None or (driver.brand == value) == (sign == "=")
    if subject == "arch":
        return True
    wanted = _numbers(value)
    has = driver.cuda if subject == "cuda" else _numbers(driver.version)
    width = max(len(wanted), len(has))
    a, b = (tuple(v) + (0,) * (width - len(v)) for v in (has, wanted))
    return {
        ">=": a >= b, "<=": a <= b, "=": a == b, "!=": a != b, "<": a < b, ">": a > b,
    }[sign]  # fmt: skip


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))
