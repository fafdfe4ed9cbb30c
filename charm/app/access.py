"""By which names, through which proxies and with which token the server may be used."""

import hmac
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from charm.images.find import escape_path
from charm.runtime.errors import UserError

EVERYWHERE = ("", "0.0.0.0", "::")  # what a server listens on to be reached under all of a machine's addresses
# A name or an IPv4 address, or an IPv6 address without a zone in brackets; then a port or nothing.
_HOST = re.compile(r"(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9_.-]+))(?::(?P<port>[0-9]{1,5}))?")
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9_.~-]*)*")
_TOKEN = re.compile(r"[!-~]{16,4096}")


@dataclass(frozen=True)
class Access:
    """What a server is asked to let through.

    Other names than its own are refused, or a page elsewhere whose name is made to point here could read the answers
    ("DNS rebinding"). An address is no such name: on all addresses, all are taken. Raises UserError if a name, path or
    address is not as described.
    """

    host: str = "127.0.0.1"  # that the server listens on
    allow_hosts: Sequence[str] = ()  # names that it has besides, as in the address bar: with a port if that is shown
    root_path: str = ""  # what a proxy puts before the routes, as "/charm"; with and without it, a request is served
    token: str = ""  # that requests have to bring; "" for none
    trust_proxies: Sequence[str] = ()  # addresses and networks whose X-Forwarded-Host and -For are believed
    log: bool = False  # whether a line is printed for each request

    def __post_init__(self) -> None:
        for name in self.allow_hosts:
            if not _HOST.fullmatch(name.lower()):
                expected = "a name as in the address bar, photos.example.org or photos.example.org:8443"
                raise UserError(f"--allow-host {escape_path(name)}: expected {expected}")
        if not _ROOT_PATH.fullmatch(self.root):
            raise UserError(f"--root-path {escape_path(self.root_path)}: expected a path that begins with /, as /charm")
        try:
            self._networks  # noqa: B018
        except ValueError as error:
            told = "expected an address or a network, 172.18.0.2 or 172.18.0.0/16"
            raise UserError(f"--trust-proxy: {escape_path(str(error))}; {told}") from error

    @property
    def root(self) -> str:
        """The root path without a slash at its end."""
        return self.root_path.removesuffix("/")

    @cached_property
    def _names(self) -> set[str]:
        names = {"localhost", "127.0.0.1", "::1", _spell(self.host)}
        if self.host in EVERYWHERE:
            names.add(socket.gethostname().lower())
        found = (_HOST.fullmatch(name.lower()) for name in self.allow_hosts)
        return names | {_spell(one["ipv6"] or one["name"]) for one in found if one}

    @cached_property
    def _networks(self) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        return [ipaddress.ip_network(given, strict=False) for given in self.trust_proxies]

    def trusts(self, address: str) -> bool:
        """Tells whether the headers of whoever has this address are believed."""
        try:
            found = ipaddress.ip_address(address)
        except ValueError:  # of a socket that is none of the network
            return False
        return any(found in network for network in self._networks)

    def find_client(self, forwarded: Sequence[str], proxy: str) -> str:
        """Returns the address of the client that a trusted proxy names, else the proxy's own.

        Each proxy adds whom it spoke to at the end: the last that is no trusted proxy is the first to be believed.
        """
        for text in reversed(",".join(forwarded).split(",")):
            try:
                address = str(ipaddress.ip_address(text.strip()))
            except ValueError:
                return proxy
            if not self.trusts(address):
                return address
        return proxy

    def is_own(self, host: str) -> bool:
        """Tells whether a host, in lower case and perhaps with a port, is a name of this server."""
        found = _HOST.fullmatch(host)
        if found is None or int(found["port"] or 0) > 65535:
            return False
        try:
            address = ipaddress.ip_address(found["ipv6"] or found["name"])
        except ValueError:
            return found["name"] in self._names
        is_bracketed = found["ipv6"] is not None
        return is_bracketed == (address.version == 6) and (self.host in EVERYWHERE or str(address) in self._names)

    def is_own_page(self, origin: str, host: str) -> bool:
        """Tells whether an origin is of a page of this server, which a request calls `host`."""
        scheme, _, place = origin.lower().partition("://")
        allowed = (re.sub(":(80|443)$", "", name.lower()) for name in self.allow_hosts)
        return scheme in ("http", "https") and place in (host, *allowed)

    def has_token(self, given: Sequence[str]) -> bool:
        """Tells whether Authorization headers are the one that is asked for; takes the same time for any other."""
        scheme, _, value = (given[0] if len(given) == 1 else "").partition(" ")
        return hmac.compare_digest(value.strip().encode("latin-1"), self.token.encode()) and scheme.lower() == "bearer"


def read_token(path: Path | None) -> str:
    """Reads a token from its file; "" without one.

    Raises UserError if the file holds no token.
    """
    if path is None:
        return ""
    with open(path, "rb") as file:
        token = file.read(5000).decode("latin-1").strip()
    if not _TOKEN.fullmatch(token):
        expected = "one line of 16 characters or more, no spaces, as `openssl rand -hex 32` makes one"
        raise UserError(f"--token-file {escape_path(str(path))}: expected {expected}")
    return token


def _spell(host: str) -> str:
    """Returns a host as it is compared: an address in its shortest form, without a zone."""
    try:
        return str(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        return host.lower()
