"""Whether kernels can be compiled for a GPU on this machine. No torch."""

import importlib.util
import os
import shutil


def why_no_gpu_compiler() -> str | None:
    """Say what triton lacks here, which compiles kernels at run time; None where it lacks nothing.

    Whether there is a GPU is another question.
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):
        return "there is no C compiler, which triton needs; install gcc"
    return None
