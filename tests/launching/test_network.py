"""Processes talk over the address that leads to the others, whatever this machine calls itself."""

import os
import socket

import pytest

from mltune_cli.errors import ExitCode, UsageError
from mltune_cli.launching.network import use_interface_towards, use_loopback

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@pytest.fixture(autouse=True)
def _nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a choice of the user's; what a test leaves in the environment is taken back."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "to be taken back")
        monkeypatch.delenv(name)


def chosen_interfaces() -> list[str | None]:
    return [os.environ.get(name) for name in VARIABLES]


def test_on_one_machine_loopback_is_enough() -> None:
    assert use_loopback() == "127.0.0.1"
    assert chosen_interfaces() == ["lo", "lo"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.53"])
def test_the_way_to_a_loopback_address_is_loopback(host: str) -> None:
    """Nobody has to listen there: the route is asked for, and nothing is sent."""
    assert use_interface_towards(f"{host}:1") == "127.0.0.1"
    assert chosen_interfaces() == ["lo", "lo"]


def test_the_way_out_is_the_interface_with_this_machines_address() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1: an address that is nobody's
        except OSError:
            pytest.skip("this machine has no way out")
        own = probe.getsockname()[0]
    assert use_interface_towards("192.0.2.1:9") == own
    names = {name for _, name in socket.if_nameindex()}
    assert set(chosen_interfaces()) <= names - {"lo"}


@pytest.mark.parametrize("function", ["loopback", "towards"])
def test_a_choice_of_the_users_stays(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    """Whoever sets these variables knows a network that a route does not tell of."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    address = use_loopback() if function == "loopback" else use_interface_towards("127.0.0.1:1")
    assert address == "127.0.0.1"
    assert chosen_interfaces() == ["ib0", "lo"]


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let every name have these addresses, as /etc/hosts may."""
    places = [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (one, 0)) for one in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: places)


@pytest.mark.parametrize("host", ["machine-0", "machine-0.example.org", "localhost.example.org"])
@pytest.mark.parametrize("addresses", [("127.0.1.1",), ("127.0.0.1", "127.0.1.1")])
def test_a_machines_name_that_leads_back_to_itself_is_refused(
    monkeypatch: pytest.MonkeyPatch, host: str, addresses: tuple[str, ...]
) -> None:
    """Machine 0 would tell the others to look for it on loopback, their own."""
    resolve_to(monkeypatch, *addresses)
    with pytest.raises(UsageError) as raised:
        use_interface_towards(f"{host}:29400")
    assert raised.value.message == (
        f"--rdzv-endpoint {host}:29400: on this machine {host} is {addresses[0]}, which leads no "
        "other machine here; name the address of machine 0, such as 10.0.0.1:29400"
    )
    assert chosen_interfaces() == [None, None]


@pytest.mark.parametrize("host", ["localhost", "LocalHost.", "any.localhost", "127.0.1.1", "127.1"])
def test_who_asks_for_loopback_gets_it(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    resolve_to(monkeypatch, "127.0.1.1")
    assert use_interface_towards(f"{host}:29400").startswith("127.")
    assert chosen_interfaces() == ["lo", "lo"]


def test_of_several_addresses_one_that_others_reach_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no way out")
        own = probe.getsockname()[0]
    resolve_to(monkeypatch, "127.0.1.1", own)
    assert use_interface_towards("machine-0:29400") == own


@pytest.mark.parametrize(
    "host", ["no-such-host.invalid", "[::1]", "256.1.1.1", "two words", "x" * 70]
)
def test_a_host_without_an_address_is_the_users_mistake(host: str) -> None:
    with pytest.raises(UsageError) as raised:
        use_interface_towards(f"{host}:29400")
    assert raised.value.exit_code is ExitCode.USAGE
    assert raised.value.message.startswith(
        f"--rdzv-endpoint {host}:29400: {host} cannot be reached: "
    )
    assert "\n" not in raised.value.message
    assert chosen_interfaces() == [None, None]
