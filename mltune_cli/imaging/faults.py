"""What an engine's error messages mean, and what to do about each.

The messages are those of engines 20.10 to 29 and of the Docker SDK; the tests provoke them on real
engines and real sockets.
"""

import re
from dataclasses import dataclass

from mltune_cli.errors import MltuneError, NoVerdictError, UsageError

TOOLKIT = (
    "install the NVIDIA Container Toolkit, run `nvidia-ctk runtime configure --runtime=docker`, "
    "and restart the engine"
)


@dataclass(frozen=True)
class _Rule:
    """One message, known by a pattern; the sentence may name the pattern's groups."""

    pattern: str
    sentence: str
    kind: type[MltuneError] = NoVerdictError


_ENGINE_RULES = (
    _Rule(
        r"client version (?P<asked>[\d.]+) is too new\. Maximum supported API version is "
        r"(?P<has>\d+\.\d+)",
        "the engine speaks the Docker API up to {has}, and {asked} was asked for; "
        "unset DOCKER_API_VERSION, or update the engine",
    ),
    _Rule(
        r"client version (?P<asked>[\d.]+) is too old\. Minimum supported API version is "
        r"(?P<has>\d+\.\d+)",
        "the engine speaks the Docker API from {has} on, and {asked} was asked for; "
        "unset DOCKER_API_VERSION, or update the Python package docker",
    ),
    _Rule(
        r"API versions below (?P<least>\S+) are no longer supported",
        "the Docker API version asked for is older than {least}, the first that the Python package "
        "docker speaks; unset DOCKER_API_VERSION, or update the engine",
    ),
    _Rule(
        r"No such file or directory|FileNotFoundError",
        "no Docker engine listens at {host}; install Docker, or start it "
        "(`sudo systemctl start docker`), or name another engine with DOCKER_HOST",
    ),
    _Rule(
        r"Permission denied|PermissionError",
        "no permission to use the Docker engine at {host}; add yourself to the group docker "
        "(`sudo usermod -aG docker $USER`, then log in again), or use a rootless engine",
    ),
    _Rule(
        r"Connection refused|ConnectionRefusedError|Connection (?:aborted|reset|broken)",
        "{host} is there, and no Docker engine answers on it: it was stopped or has crashed; start "
        "it (`sudo systemctl restart docker`)",
    ),
    _Rule(
        r"[Tt]imed out|Max retries exceeded|Name or service not known|resolve",
        "no Docker engine answers at {host}; check DOCKER_HOST and the network",
    ),
)

_BUILD_RULES = (
    _Rule(
        r"Connection broken|Connection aborted|Connection reset|IncompleteRead",
        "the engine was lost while it built the image: it was stopped or has crashed; start it "
        "(`sudo systemctl restart docker`), and build again",
    ),
    _Rule(
        r"dockerfile parse error[^:]*(?: on)? line (?P<line>\d+): (?P<problem>.+)",
        "{dockerfile}:{line}: {problem}",
        UsageError,
    ),
    _Rule(
        r"(?:[Dd]ockerfile parse error|failed to parse Dockerfile|dockerfile parse error):?\s*"
        r"(?P<problem>.+)",
        "{dockerfile}: {problem}",
        UsageError,
    ),
    _Rule(
        r"(?:COPY|ADD) failed: (?P<problem>.+(?:no such file or directory|not found).*)",
        "{dockerfile}: a COPY or ADD names what is not in the build context: {problem}",
        UsageError,
    ),
    _Rule(
        r"invalid containerPort: (?P<problem>\S+)",
        "{dockerfile}: EXPOSE {problem}: is no port",
        UsageError,
    ),
    _Rule(
        r"the --mount option requires BuildKit|unknown flag: mount",
        "{dockerfile}: RUN --mount needs BuildKit; use --builder buildx",
        UsageError,
    ),
    _Rule(
        r"[Nn]o space left on device|disk quota exceeded",
        "the engine's disk is full (it keeps images in {root}); free some with "
        "`docker system prune`, or give it a larger disk",
    ),
    _Rule(
        r"invalid reference format|invalid argument .* for \"-t, --tag\"",
        "{base}: is no valid name of an image; --base takes NAME[:TAG][@DIGEST]",
        UsageError,
    ),
    _Rule(
        r"requested image's platform|does not match the (?:specified|requested) platform"
        r"|no match for platform",
        "{base}: is not made for --platform {platform}; choose a base of that platform",
    ),
    _Rule(
        r"pull access denied|repository does not exist|manifest (?:for \S+ )?(?:not found|unknown)"
        r"|unauthorized|authentication required|not found: manifest",
        "{base}: no registry gives this image out: the name or the tag is wrong, or it needs "
        "`docker login`",
    ),
    _Rule(
        r"dial tcp|no such host|i/o timeout|TLS handshake|connection refused"
        r"|Temporary failure in name resolution|failed to do request|Client\.Timeout",
        "{base}: is not in the engine and cannot be pulled: no registry is reached; connect the "
        "machine, or bring the image in with `docker load`, or pass --base",
    ),
)

_GPU_RULES = (
    _Rule(
        r"AMD CDI spec not found",
        "the engine finds no NVIDIA GPU (its message speaks of AMD because it looked there last): "
        f"{TOOLKIT}, or write a CDI specification with `nvidia-ctk cdi generate`",
    ),
    _Rule(
        r"could not select device driver \"cdi\"|CDI (?:is )?(?:disabled|not enabled)"
        r"|cdi.*feature.*(?:disabled|not enabled)",
        "CDI is switched off in the engine; put "
        '{{"features": {{"cdi": true}}}} into its daemon.json and restart it',
    ),
    _Rule(
        r"could not select device driver",
        f"the engine cannot give a GPU to a container; {TOOLKIT}",
    ),
    _Rule(
        r"unresolvable CDI devices (?P<device>\S+)",
        "the engine knows no CDI device {device}; write its specification anew with "
        "`sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`",
    ),
    _Rule(
        r"unsatisfied condition: (?P<condition>[^\s,;\"\\]+)",
        "the GPU's driver is too old for the image, which needs {condition}; update the driver, or "
        "build on an older CUDA base with --base",
    ),
    _Rule(
        r"nvidia-container-cli: (?P<problem>[^\n\\]+)",
        "the NVIDIA Container Toolkit could not give the GPU to the container: {problem}; check "
        "that nvidia-smi works on this machine",
    ),
    _Rule(
        r"unknown or invalid runtime name|Unknown runtime specified",
        f"the engine does not have the runtime that its configuration names; {TOOLKIT}",
    ),
)

_RUN_RULES = (
    _Rule(
        r"bind source path does not exist: (?P<path>\S+)|invalid mount config.*(?P<other>/\S+)",
        "the engine does not see this machine's folders, so nothing can be brought out of the "
        "container; use an engine on this machine",
    ),
    _Rule(
        r"exec: \"?(?P<program>[^\"\s:]+)\"?: (?:executable file not found|no such file)"
        r"|stat (?P<path>\S+): no such file or directory",
        "the image has no program {program}; check the Dockerfile and what follows --",
    ),
    _Rule(
        r"exec: \"?(?P<program>[^\"\s:]+)\"?: permission denied|(?P<path>\S+): permission denied",
        "{program} in the image may not be executed; make it executable in the Dockerfile",
    ),
    _Rule(
        r"(?P<program>\S+): exec format error|exec format error",
        "the image's programs are for another processor; build it with --platform",
    ),
    _Rule(
        r"[Nn]o space left on device",
        "the engine's disk is full (it keeps images in {root}); free some with "
        "`docker system prune`, or give it a larger disk",
    ),
)

_RETURNED = re.compile(
    r"The command '(?P<command>.*)' returned a non-zero code: (?P<code>\d+)", re.S
)
_BUILDX_RETURNED = re.compile(
    r'process "(?P<command>.*?)" did not complete successfully: exit code: (?P<code>\d+)', re.S
)
_KILLED = 137
_COMMAND_SHOWN = 80


def connection_fault(error: BaseException, host: str) -> MltuneError:
    """Say why an engine cannot be spoken to.

    Args:
        error: what the SDK raised.
        host: the engine's address, as it is looked for.
    """
    return _explained(str(error), _ENGINE_RULES, {"host": host}) or NoVerdictError(
        f"the Docker engine at {host} cannot be used: {one_line(error)}"
    )


def build_fault(message: str, log: list[str], places: dict[str, str]) -> MltuneError:
    """Say why a build failed.

    Args:
        message: the builder's error.
        log: the last lines that the failing step printed.
        places: `dockerfile`, `base`, `platform` and `root`, the engine's data folder.
    """
    returned = _RETURNED.search(message) or _BUILDX_RETURNED.search(message)
    if returned is None:
        return _explained(message, _BUILD_RULES, places) or NoVerdictError(
            f"the image could not be built: {one_line(message)}"
        )
    step, code = _shortened(returned["command"]), int(returned["code"])
    printed = "\n".join(log)
    # A program that finds no room says so itself; all the engine has is its exit status.
    for rule in (r for r in _BUILD_RULES if "space left" in r.pattern):
        found = _explained(printed, (rule,), places)
        if found is not None:
            return found
    advice = _step_advice(printed, code)
    return NoVerdictError(f"the build step `{step}` ended with {code}{advice}")


def _step_advice(printed: str, code: int) -> str:
    if code == _KILLED:
        return ": it was killed, most likely for memory; give the engine more"
    if "exec format error" in printed:
        return ": the base's programs are for another processor; name its own with --platform"
    if "No matching distribution found for torch" in printed:
        return (
            ": pip finds no CPU build of torch there; name PyTorch's own CPU index with "
            "--build-arg PIP_EXTRA_INDEX_URL=..., or bring the wheels in with --wheelhouse DIR"
        )
    if "CERTIFICATE_VERIFY_FAILED" in printed or "SSLError" in printed:
        return ": the package index's certificate is not trusted; pass --ca-bundle FILE"
    if re.search(
        r"name resolution|NewConnectionError|Could not resolve|Connection refused", printed
    ):
        return ": no package index is reached; pass --wheelhouse DIR to build without a network"
    if "THESE PACKAGES DO NOT MATCH THE HASHES" in printed:
        return ": a package is not the one that the lock names; it was replaced, or is damaged"
    return "; its last lines stand above"


def run_fault(error: BaseException | str, places: dict[str, str]) -> MltuneError:
    """Say why a container could not be created or started.

    Args:
        error: what the engine said.
        places: `root`, the engine's data folder.
    """
    text = str(error)
    return (
        _explained(text, _GPU_RULES, places)
        or _explained(text, _RUN_RULES, places)
        or NoVerdictError(f"the container could not be started: {one_line(text)}")
    )


def pull_fault(error: BaseException | str, base: str, platform: str, root: str) -> MltuneError:
    """Say why a base image is not to be had."""
    places = {"base": base, "platform": platform, "root": root, "dockerfile": "Dockerfile"}
    return _explained(str(error), _BUILD_RULES, places) or NoVerdictError(
        f"{base}: is not in the engine and cannot be pulled: {one_line(error)}"
    )


def _explained(text: str, rules: tuple[_Rule, ...], places: dict[str, str]) -> MltuneError | None:
    for rule in rules:
        found = re.search(rule.pattern, text, re.I | re.S)
        if found is not None:
            groups = {name: one_line(value) for name, value in found.groupdict().items() if value}
            named = {"program": groups.get("path", ""), **places, **groups}
            return rule.kind(rule.sentence.format_map(named))
    return None


def _shortened(command: str) -> str:
    command = one_line(command).removeprefix("/bin/sh -c ")
    return command if len(command) <= _COMMAND_SHOWN else command[: _COMMAND_SHOWN - 3] + "..."


def one_line(text: object) -> str:
    """Return a message on one line."""
    return " ".join(str(text).split())
