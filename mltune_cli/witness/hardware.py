"""The processor and the driver of this machine, as the system tells of them. No torch."""

import platform
from pathlib import Path


def processor() -> str:
    """Return the processor's model, or `unknown`."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver; None where there is none."""
    try:
        return Path("/sys/module/nvidia/version").read_text(encoding="utf-8").strip()
    except OSError:
        return None
