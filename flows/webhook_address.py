"""Where a webhook may lead: to no metadata service, to this machine only where that is allowed, nowhere else.

The address is an operator's, but it comes through settings that many can write, and a receiver can send on.
So the machine at the other end is looked at when the connection stands, before a byte is sent: a name that
resolves to another address by then gains nothing. Redirections are not followed.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import socket
import urllib.request
from typing import Any
from urllib.parse import urlsplit

ALLOW_LOCAL = "VDMINI_WEBHOOK_LOCAL"  # 1: receivers on this machine are meant
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# Metadata services that do not live at a link-local address: Alibaba, Oracle, Azure, AWS by IPv6.
METADATA = frozenset(
    map(ipaddress.ip_address, ("100.100.100.200", "192.0.0.192", "168.63.129.16", "fd00:ec2::254"))
)
NAMES = ("metadata", "metadata.google.internal", "instance-data")  # known to a proxy, perhaps, not here
NAT64 = ipaddress.ip_network("64:ff9b::/96")


class RefusedAddress(Exception):
    """An address that nothing is sent to; says why without naming it."""


def opener_for(url: str) -> urllib.request.OpenerDirector:
    """An opener that sends to the machine of this address alone.

    Args:
        url: the webhook's.

    Raises:
        RefusedAddress: for other schemes than http and https, and for an address that says itself where it
            leads. Opening raises it for a name that leads there.
    """
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
    except ValueError:
        raise RefusedAddress("is no http address") from None
    if parts.scheme not in ("http", "https") or not host:
        raise RefusedAddress("is no http address")
    if host.lower() in NAMES:
        raise RefusedAddress("leads to a metadata service")
    if host.lower() == "localhost" or host.lower().endswith(".localhost"):
        demand_allowed("127.0.0.1")
    with contextlib.suppress(ValueError):  # a name: its address is looked at when it is known
        demand_allowed(host)
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return urllib.request.build_opener(_NoRedirects)  # the proxy looks up the name
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects, _Http, _Https)


def demand_allowed(address: str) -> None:
    """Refuse an IP address that no notice goes to.

    Raises:
        RefusedAddress: for this machine, link-local, metadata, and addresses that are nobody's.
        ValueError: for a name.
    """
    found: Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        within = found.ipv4_mapped or found.sixtofour
        if found in NAT64:
            within = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        found = within or found
    if found.is_link_local or found in METADATA:
        raise RefusedAddress("leads to a metadata service")
    if found.is_loopback or found.is_unspecified:
        if os.environ.get(ALLOW_LOCAL) != "1":
            raise RefusedAddress(f"leads to this machine; {ALLOW_LOCAL}=1 where that is meant")
    elif found.is_multicast or found.is_reserved:
        raise RefusedAddress("leads to no single machine")


def _connection(address: tuple[str, int], *arguments: Any, **named: Any) -> socket.socket:
    """`socket.create_connection` to a machine that may be sent to."""
    made = socket.create_connection(address, *arguments, **named)
    try:
        demand_allowed(made.getpeername()[0])
        if made.getpeername()[0] == made.getsockname()[0]:  # by an address of its own on some network
            demand_allowed("127.0.0.1")
    except BaseException:
        made.close()
        raise
    return made


class _HttpConnection(http.client.HTTPConnection):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._create_connection = _connection


class _HttpsConnection(http.client.HTTPSConnection):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._create_connection = _connection


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HttpConnection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HttpsConnection, req)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None  # urllib then reports the answer itself, an HTTPError 3xx
