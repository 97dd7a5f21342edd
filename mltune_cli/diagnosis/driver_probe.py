"""The process that loads NVIDIA's driver library and asks it; standard library only.

Run as a file, so that nothing of mltune is imported. The answer is one JSON object on stdout.
"""

import ctypes
import json
import sys


def main() -> None:
    """Write what libcuda says."""
    json.dump(_answer(), sys.stdout)


def _answer() -> dict[str, object]:
    try:
        library = ctypes.CDLL("libcuda.so.1")
        status = int(library.cuInit(0))
    except (OSError, AttributeError) as error:
        return {"library": str(error)}
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    names = []
    if status == 0 and library.cuDeviceGetCount(ctypes.byref(count)) == 0:
        for index in range(count.value):
            name = ctypes.create_string_buffer(256)
            if library.cuDeviceGetName(name, 256, index) == 0:
                names.append(name.value.decode("utf-8", errors="replace"))
    # The version is 1000 * major + 10 * minor.
    cuda = version.value // 1000, version.value % 1000 // 10
    return {"status": status, "cuda": cuda, "gpus": names}


if __name__ == "__main__":
    main()
