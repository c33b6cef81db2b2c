# SPDX-License-Identifier: Apache-2.0
"""A media connector that keeps clients apart.

vLLM fetches the URLs of all clients in one HTTP session. A cookie that a host sets for
one client is sent with the requests of the others, who then read what is that
client's.
"""

import ipaddress
import socket
from typing import Any
from urllib.request import getproxies

import aiohttp
from vllm.connections import HTTPConnection
from vllm.multimodal.media.connector import MediaConnector


def _public_socket(addr_info: aiohttp.AddrInfoType) -> socket.socket:
    """A socket for an address that was just resolved.

    Raises:
        OSError: The address belongs to this machine or to a private network.
    """
    family, kind, protocol, _, address = addr_info
    found = ipaddress.ip_address(address[0])
    if not (getattr(found, "ipv4_mapped", None) or found).is_global:
        raise OSError(f"{found} is no public address")
    return socket.socket(family, kind, protocol)


class _Connection(HTTPConnection):
    """A session without cookies.

    Args:
        public_only: Whether it connects to public addresses only.
    """

    def __init__(self, *, public_only: bool) -> None:
        super().__init__()
        self._public_only = public_only
        self._session: aiohttp.ClientSession | None = None

    async def get_async_client(self) -> aiohttp.ClientSession:
        if self._session is None:
            checked = self._public_only and not getproxies()  # else the proxy decides
            self._session = aiohttp.ClientSession(
                trust_env=True,
                cookie_jar=aiohttp.DummyCookieJar(),
                connector=aiohttp.TCPConnector(
                    socket_factory=_public_socket if checked else None
                ),
            )
        return self._session


_TO_ANY = _Connection(public_only=False)
_TO_PUBLIC = _Connection(public_only=True)


class SeparateConnector(MediaConnector):
    """vLLM's connector without cookies."""

    # If not, only with ``--allowed-media-domains``, whatever the name of the host and
    # wherever a redirect leads.
    connects_to_private_addresses = True

    def __init__(
        self,
        media_io_kwargs: dict[str, dict[str, Any]] | None = None,
        *,
        allowed_media_domains: list[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            media_io_kwargs,
            _TO_ANY
            if allowed_media_domains or self.connects_to_private_addresses
            else _TO_PUBLIC,
            allowed_media_domains=allowed_media_domains,
            **options,
        )
