"""The Docker engine: how it is reached, and what it says of itself."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mltune_cli.errors import UsageError
from mltune_cli.imaging.faults import connection_fault, one_line

_ANSWER_SECONDS = 60
_DEFAULT_SOCKET = "unix:///var/run/docker.sock"


@dataclass(frozen=True)
class EngineFacts:
    """What an engine says of itself.

    Attributes:
        host: its address.
        version: of the engine, such as `28.5.1`.
        api_version: that is spoken with it.
        platform: of the machine it runs on, such as `linux/amd64`.
        storage_driver: how it keeps images.
        root: the folder on its machine in which it keeps images.
        cdi_devices: the CDI devices that it has found, such as `nvidia.com/gpu=all`; engines
            before API 1.50 do not tell.
        memory_bytes: of its machine.
    """

    host: str
    version: str
    api_version: str
    platform: str
    storage_driver: str
    root: str
    cdi_devices: tuple[str, ...]
    memory_bytes: int

    @property
    def is_local(self) -> bool:
        """Whether it is reached by a socket of this machine, so that folders can be shared."""
        return self.host.startswith(("unix://", "http+unix://"))


@dataclass(frozen=True)
class Engine:
    """An engine that has answered.

    Attributes:
        client: the SDK's low-level client (`docker.APIClient`).
        facts: what it said of itself.
    """

    client: Any
    facts: EngineFacts


@contextmanager
def open_engine(variables: Mapping[str, str] = os.environ) -> Iterator[Engine]:
    """Connect to the engine that the Docker command line would use.

    `DOCKER_HOST` names it, else the current Docker context, else it is the default socket.

    Args:
        variables: `DOCKER_HOST`, `DOCKER_CONTEXT`, `DOCKER_API_VERSION`, `DOCKER_TLS_VERIFY` and
            `DOCKER_CERT_PATH` are read.

    Raises:
        UsageError: `DOCKER_HOST` is no address.
        NoVerdictError: no engine answers there, or it may not be used.
    """
    from docker.errors import DockerException
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    host = _host(variables)
    client = _client(host, variables)
    try:
        yield Engine(client, _facts(client, host))
    except (DockerException, RequestException, HTTPError) as error:
        raise connection_fault(error, host) from None  # it was lost in between
    finally:
        client.close()


def _host(variables: Mapping[str, str]) -> str:
    from docker.errors import DockerException
    from docker.utils import parse_host

    named = variables.get("DOCKER_HOST", "").strip()
    if named:
        try:
            parse_host(named)
        except (DockerException, ValueError) as error:
            raise UsageError(
                f"DOCKER_HOST: {named!r} is no engine's address ({one_line(error)}); it looks like "
                f"{_DEFAULT_SOCKET} or tcp://HOST:PORT, or is not set"
            ) from None
        return named
    return _context_host(variables) or _DEFAULT_SOCKET


def _context_host(variables: Mapping[str, str]) -> str | None:
    """Return the address of the Docker context in use, as Docker Desktop and rootless set it."""
    from docker.context import ContextAPI
    from docker.errors import DockerException

    name = variables.get("DOCKER_CONTEXT") or None
    try:
        context = ContextAPI.get_context(name)
    except (DockerException, OSError, ValueError, KeyError) as error:
        raise UsageError(f"the Docker context cannot be read: {one_line(error)}") from None
    if context is None:
        if name is None:
            return None
        raise UsageError(f"DOCKER_CONTEXT: there is no Docker context named {name}")
    host = str(context.Host or "")
    # The SDK's name for the default socket lacks the slashes of an address.
    return host.replace("http+unix://", "unix://") if "://" in host else None


def _client(host: str, variables: Mapping[str, str]) -> Any:
    import docker
    from docker.errors import DockerException, TLSParameterError
    from docker.utils import kwargs_from_env

    try:
        tls = kwargs_from_env(environment={**variables, "DOCKER_HOST": host}).get("tls", False)
        return docker.APIClient(
            base_url=host,
            version=variables.get("DOCKER_API_VERSION") or "auto",
            timeout=_ANSWER_SECONDS,
            tls=tls,
            use_ssh_client=host.startswith("ssh://"),
        )
    except TLSParameterError as error:
        raise UsageError(f"DOCKER_CERT_PATH: {one_line(error)}") from None
    except (DockerException, OSError, ValueError) as error:
        raise connection_fault(error, host) from None


def _facts(client: Any, host: str) -> EngineFacts:
    from docker.errors import DockerException

    try:
        version, info = client.version(), client.info()
    except (DockerException, OSError, ValueError) as error:
        raise connection_fault(error, host) from None
    devices = info.get("DiscoveredDevices") or []
    return EngineFacts(
        host=host,
        version=str(version.get("Version", "unknown")),
        api_version=str(client.api_version),
        platform=f"{version.get('Os', 'linux')}/{version.get('Arch', 'unknown')}",
        storage_driver=str(info.get("Driver", "unknown")),
        root=str(info.get("DockerRootDir", "")),
        cdi_devices=tuple(str(d.get("ID")) for d in devices if d.get("Source") == "cdi"),
        memory_bytes=int(info.get("MemTotal", 0)),
    )


def free_bytes(facts: EngineFacts) -> int | None:
    """Return the free space of an engine's disk; None where it is not this machine's."""
    if not facts.is_local or not Path(facts.root).is_dir():
        return None
    try:
        status = os.statvfs(facts.root)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize
