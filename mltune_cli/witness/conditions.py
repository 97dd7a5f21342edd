"""Other conditions for one process, made from inside: listings, clock, loader workers, seeds.

The start-up hook loads this file by path before any module of the script, so that no module has
kept what is replaced here under a name of its own. Standard library only; torch is told when it
has been imported.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

_NANOSECONDS = 1_000_000_000
# The clock that stands still goes on by this at each look, so that no wait for it is endless.
_FROZEN_TICK_NS = 1_000_000
_HOLD_SECONDS = 120.0

AfterImport = dict[str, list[Callable[[ModuleType], None]]]


def install(text: str) -> AfterImport:
    """Make the conditions that need no import; return what is to be called after which import.

    What stands under `witness` is called with torch once the witness watches: of hooks on
    optimizers, the last to come is the last to run.

    Args:
        text: a JSON object. `directory_order`: sorted, reversed or shuffled; `clock_shift_seconds`;
            `clock_frozen_at`, seconds since 1970; `loader_workers`; `hold_at_step`, the optimizer
            step after which the process waits to be killed; `seeds`; `deterministic`;
            `no_kernel_search`.

    Raises:
        ValueError: the text is no such object.
    """
    wanted: dict[str, Any] = json.loads(text)
    if "clock_shift_seconds" in wanted:
        shift = round(wanted["clock_shift_seconds"] * _NANOSECONDS)
        real = time.time_ns
        _replace_clock(lambda: real() + shift)
    if "clock_frozen_at" in wanted:
        _replace_clock(_frozen_clock(round(wanted["clock_frozen_at"] * _NANOSECONDS)))
    if "directory_order" in wanted:
        _replace_listings(wanted["directory_order"])
    later: AfterImport = {"numpy": [], "torch": [], "witness": []}
    if "seeds" in wanted:
        for name, call in _seeded(int(wanted["seeds"])).items():
            later[name].append(call)
    if wanted.get("deterministic"):
        later["torch"].append(lambda torch: torch.use_deterministic_algorithms(True))
    if wanted.get("no_kernel_search"):
        later["torch"].append(_stop_kernel_search)
    if "loader_workers" in wanted:
        workers = int(wanted["loader_workers"])
        later["torch"].append(lambda torch: _replace_loader_workers(torch, workers))
    if "hold_at_step" in wanted:
        step = int(wanted["hold_at_step"])
        later["witness"].append(lambda _: _hold_at(step))
    return {name: calls for name, calls in later.items() if calls}


# Kernels -----------------------------------------------------------------------------------------


def _stop_kernel_search(torch: Any) -> None:
    """Keep `torch.backends.cudnn.benchmark` False, whatever the script sets it to."""

    def ignore(value: bool) -> None:
        pass

    torch._C._set_cudnn_benchmark(False)
    torch._C._set_cudnn_benchmark = ignore
    kind = type(torch.backends.cudnn)
    kind.benchmark = torch.backends.ContextProp(torch._C._get_cudnn_benchmark, ignore)


# Seeds -------------------------------------------------------------------------------------------


def _seeded(seed: int) -> dict[str, Callable[[ModuleType], None]]:
    """Seed every generator, also those that a script makes for itself and leaves unseeded.

    Such a one asks the system for noise: `random.Random()`, `numpy.random.default_rng()`,
    `torch.seed()`, `torch.Generator().seed()`. The noise comes from one generator here, in the
    order of asking.
    """
    import random

    noise = random.Random(seed).getrandbits  # noqa: S311 - it stands in for noise
    real = random.Random.seed

    def seed_python(self: random.Random, a: Any = None, version: int = 2) -> None:
        real(self, noise(64) if a is None else a, version)

    random.Random.seed = seed_python  # type: ignore[method-assign]
    random.seed = random.seed.__self__.seed  # type: ignore[attr-defined]
    random.seed(seed)

    def seed_numpy(numpy: Any) -> None:
        numpy.random.seed(seed)
        # What SeedSequence asks, and through it every generator without a seed.
        numpy.random.bit_generator.randbits = noise

    def seed_torch(torch: Any) -> None:
        torch.manual_seed(seed)

        def seed_again(_: Any) -> Callable[[], int]:
            return lambda: int(torch.manual_seed(noise(63)).initial_seed())

        for module in (torch, torch.random):
            _replace(module, "seed", seed_again)
        torch.Generator = _generator_class(torch.Generator, lambda: noise(63))

    return {"numpy": seed_numpy, "torch": seed_torch}


def _generator_class(real: Any, noise: Callable[[], int]) -> Any:
    """Return a class of generators whose `seed` takes what `noise` gives.

    The real class cannot be changed. What it makes elsewhere, such as torch's default generator,
    passes for one of these.
    """

    class Kind(type(real)):  # type: ignore[misc]
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, real)

        def __subclasscheck__(cls, other: type) -> bool:
            return issubclass(other, real)

    class Generator(real, metaclass=Kind):  # type: ignore[misc]
        def seed(self) -> int:
            return int(self.manual_seed(noise()).initial_seed())

    return Generator


class _Replacement:
    """Stands in a module for a function of C.

    A function of Python would not do: kept as an attribute of a class, it becomes a method and
    gets the object as its first argument. `logging.Formatter.converter` is such an attribute.
    """

    def __init__(self, module: ModuleType, name: str, call: Callable[..., Any]) -> None:
        real = getattr(module, name)
        self._call = call
        self.__name__ = self.__qualname__ = name
        self.__module__ = module.__name__
        self.__doc__ = real.__doc__
        self.__wrapped__ = real

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __reduce__(self) -> str:
        return self.__name__  # pickled by its name, as the real one is


def _replace(module: ModuleType, name: str, make: Callable[[Any], Callable[..., Any]]) -> None:
    """Put `make(real)` in the place of a module's function, where the platform has it."""
    real = getattr(module, name, None)
    if real is not None:
        setattr(module, name, _Replacement(module, name, make(real)))


# Listings of folders -----------------------------------------------------------------------------


def _replace_listings(order: str) -> None:
    """Give what Python reads from folders in another order; glob, walk and pathlib go through it.

    Reversed means: the other way round than the system gives it, so of two entries and more the
    order is another one for certain.
    """
    arrange = {"sorted": _sorted, "reversed": _reversed, "shuffled": _shuffled}[order]

    def listdir(real: Any) -> Callable[..., Any]:
        return lambda path=None: arrange(real(path), _own_name)

    def scandir(real: Any) -> Callable[..., Any]:
        def scan(path: Any = None) -> _Listing:
            with real(path) as entries:
                return _Listing(arrange(list(entries), _entry_name))

        return scan

    for name, make in (("listdir", listdir), ("scandir", scandir)):
        takes_descriptors = getattr(os, name) in os.supports_fd
        _replace(os, name, make)
        if takes_descriptors:
            os.supports_fd.add(getattr(os, name))  # shutil.rmtree looks for it there


def _own_name(name: Any) -> bytes:
    return os.fsencode(name)


def _entry_name(entry: Any) -> bytes:
    return os.fsencode(entry.name)


def _sorted(entries: list[Any], name: Callable[[Any], bytes]) -> list[Any]:
    return sorted(entries, key=name)


def _reversed(entries: list[Any], name: Callable[[Any], bytes]) -> list[Any]:  # noqa: ARG001
    return entries[::-1]


def _shuffled(entries: list[Any], name: Callable[[Any], bytes]) -> list[Any]:
    """Shuffle, the same way in each process: by a digest of each name."""
    import hashlib

    return sorted(entries, key=lambda entry: hashlib.blake2b(name(entry)).digest())


class _Listing:
    """What `os.scandir` returns: an iterator that can be closed."""

    def __init__(self, entries: Iterable[Any]) -> None:
        self._entries = iter(entries)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._entries)

    def __enter__(self) -> "_Listing":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give nothing any more."""
        self._entries = iter(())


# The clock ---------------------------------------------------------------------------------------


def _frozen_clock(start_ns: int) -> Callable[[], int]:
    import itertools

    ticks = itertools.count(start_ns, _FROZEN_TICK_NS)
    return lambda: next(ticks)


def _replace_clock(now_ns: Callable[[], int]) -> None:
    """Let everything that tells the time of day in Python tell another one.

    Clocks that only measure (monotonic, perf_counter), and with them every wait with a time limit,
    stay as they are. So does what compiled libraries ask the system for by themselves.
    """

    def at(value: Any) -> Any:
        return now_ns() / _NANOSECONDS if value is None else value

    def of_clock(real: Any, own: Callable[[], Any]) -> Callable[..., Any]:
        return lambda clock: own() if clock == time.CLOCK_REALTIME else real(clock)

    def strftime(real: Any) -> Callable[..., Any]:
        return lambda text, moment=None: real(text, time.localtime() if moment is None else moment)

    def asctime(real: Any) -> Callable[..., Any]:
        return lambda moment=None: real(time.localtime() if moment is None else moment)

    for name in ("localtime", "gmtime", "ctime"):
        _replace(time, name, lambda real: lambda seconds=None: real(at(seconds)))
    _replace(time, "strftime", strftime)
    _replace(time, "asctime", asctime)
    _replace(time, "clock_gettime", lambda real: of_clock(real, lambda: at(None)))
    _replace(time, "clock_gettime_ns", lambda real: of_clock(real, now_ns))
    _replace(time, "time", lambda real: lambda: at(None))  # noqa: ARG005 - the real one is not asked
    _replace(time, "time_ns", lambda real: now_ns)  # noqa: ARG005 - the real one is not asked
    _replace_date_clock(lambda: at(None))


def _replace_date_clock(now: Callable[[], float]) -> None:
    """Let `datetime` and `date` look at that clock, in the classes themselves.

    Classes of our own in their place would be others than those that C code makes (pickle, pandas,
    sqlite): no `type(x) is datetime` would hold. Classes of C refuse new attributes; the dictionary
    behind them takes them.
    """
    import ctypes
    import datetime

    def today(cls: Any) -> Any:
        return cls.fromtimestamp(now())

    def now_in(cls: Any, tz: Any = None) -> Any:
        return cls.fromtimestamp(now(), tz)

    def utcnow(cls: Any) -> Any:
        utc = datetime.timezone.utc  # noqa: UP017 - scripts may run in an older Python than ours
        return cls.fromtimestamp(now(), utc).replace(tzinfo=None)

    for kind, methods in (
        (datetime.date, {"today": today}),
        (datetime.datetime, {"now": now_in, "utcnow": utcnow}),
    ):
        (attributes,) = (held for held in gc.get_referents(kind.__dict__) if isinstance(held, dict))
        for name, method in methods.items():
            method.__name__ = name
            attributes[name] = classmethod(method)
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(kind))


# After torch has been imported -------------------------------------------------------------------


def _replace_loader_workers(torch: Any, workers: int) -> None:
    """Give every `DataLoader` so many workers, and the settings that go with them."""
    import functools
    import inspect

    kind = torch.utils.data.DataLoader
    initialise = kind.__init__
    signature = inspect.signature(initialise)
    alone = {
        "prefetch_factor": None, "persistent_workers": False, "multiprocessing_context": None,
        "timeout": 0,
    }  # fmt: skip

    @functools.wraps(initialise)
    def initialise_with_workers(*args: Any, **kwargs: Any) -> None:
        given = signature.bind(*args, **kwargs)
        given.arguments["num_workers"] = workers
        if workers == 0:  # these are errors without workers
            given.arguments |= {k: v for k, v in alone.items() if k in given.arguments}
        initialise(*given.args, **given.kwargs)

    kind.__init__ = initialise_with_workers


def _hold_at(step: int) -> None:
    """Wait, once the process has taken so many optimizer steps, to be killed.

    Killed from outside while it ran on, it would have got to another step each time.
    """
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from mltune_cli.witness.open_step import is_inside_its_step

    taken = 0

    def count(optimizer: Any, *_: object) -> None:
        nonlocal taken
        if is_inside_its_step(optimizer, sys._getframe(1)):  # the witness counts it once, too
            return
        taken += 1
        if taken == step:
            time.sleep(_HOLD_SECONDS)
            os.write(2, b"mltune: nobody came to kill this process\n")
            os._exit(1)

    register_optimizer_step_post_hook(count)
