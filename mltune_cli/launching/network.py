"""Which of this machine's addresses the processes of a run talk over.

Left alone, PyTorch asks for the host's own name, which many machines resolve to an address that
nobody else can reach, or cannot resolve at all.
"""

import fcntl
import os
import socket
import struct

from mltune_cli.errors import UsageError

_GET_INTERFACE_ADDRESS = 0x8915  # SIOCGIFADDR, Linux


def use_loopback() -> str:
    """Let processes of one machine talk over loopback, which is there without any network.

    Returns:
        The address.
    """
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if names:
        _use_interface(names[0])
    return "127.0.0.1"


def use_interface_towards(endpoint: str) -> str:
    """Let processes talk over the interface that leads to the rendezvous.

    Args:
        endpoint: `HOST:PORT`.

    Returns:
        This machine's address on that interface.

    Raises:
        UsageError: the host has no address.
    """
    host, _, port = endpoint.rpartition(":")
    try:
        # Nothing is sent: connecting a datagram socket only picks the route.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, int(port)))
            address = str(probe.getsockname()[0])
    except OSError as error:
        raise UsageError(
            f"--rdzv-endpoint {endpoint}: {host} cannot be reached: {error.strerror or error}"
        ) from None
    name = _interface_of(address)
    if name is not None:
        _use_interface(name)
    return address


def _interface_of(address: str) -> str | None:
    wanted = socket.inet_aton(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), _GET_INTERFACE_ADDRESS, request)
            except OSError:
                continue  # an interface without an address
            if answer[20:24] == wanted:
                return name
    return None


def _use_interface(name: str) -> None:
    """Name the interface to gloo and NCCL, unless the user has."""
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, name)
