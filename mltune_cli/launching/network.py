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
        UsageError: the host has no address, or is a name that leads no machine to another.
    """
    host, _, port = endpoint.rpartition(":")
    try:
        target = _address_of(host)
        # Nothing is sent: connecting a datagram socket only picks the route.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((target, int(port)))
            address = str(probe.getsockname()[0])
    except (OSError, UnicodeError) as error:
        problem = getattr(error, "strerror", None) or error
        raise UsageError(
            f"--rdzv-endpoint {endpoint}: {host} cannot be reached: {problem}"
        ) from None
    if _is_loopback(target) and not _means_this_machine(host):
        raise UsageError(
            f"--rdzv-endpoint {endpoint}: on this machine {host} is {target}, which leads no other "
            f"machine here; name the address of machine 0, such as 10.0.0.1:{port}"
        )
    name = _interface_of(address)
    if name is not None:
        _use_interface(name)
    return address


def _address_of(host: str) -> str:
    """Return a host's address, one that others may reach before one of loopback.

    Raises:
        OSError: it has none.
        UnicodeError: it is no name that a host can have.
    """
    found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_DGRAM)
    addresses = [str(place[0]) for *_, place in found]
    return next((one for one in addresses if not _is_loopback(one)), addresses[0])


def _is_loopback(address: str) -> bool:
    return address.startswith("127.")


def _means_this_machine(host: str) -> bool:
    """Tell whether a user who writes this asks for loopback; a machine's own name does not.

    Many systems give that name an address of loopback in /etc/hosts, such as 127.0.1.1.
    """
    name = host.lower().rstrip(".")
    if name in ("localhost", "localhost.localdomain") or name.endswith(".localhost"):
        return True
    try:
        socket.inet_aton(host)
    except OSError:
        return False
    return True


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
