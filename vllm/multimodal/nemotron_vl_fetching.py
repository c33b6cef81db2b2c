# SPDX-License-Identifier: Apache-2.0
"""A media connector that keeps clients apart.

vLLM fetches the URLs of all clients in one HTTP session. A cookie that a host sets for
one client is sent with the requests of the others, who then read what is that
client's.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.request import getproxies

import aiohttp
from vllm.connections import HTTPConnection
from vllm.multimodal.media.connector import MediaConnector
from yarl import URL


def _proxies() -> Iterator[tuple[str, int]]:
    """Hosts and ports of the environment's proxies that aiohttp may ask."""
    for scheme, address in getproxies().items():
        url = URL(address) if scheme in ("http", "https") else URL()
        if url.host and url.port:
            yield url.host, url.port


class _Connection(HTTPConnection):
    """A session without cookies.

    Args:
        public_only: Whether it connects only to public addresses and to the proxies of
            the environment, which decide by themselves.
    """

    def __init__(self, *, public_only: bool) -> None:
        super().__init__()
        self._public_only = public_only
        self._session: aiohttp.ClientSession | None = None
        self._of_proxies: set[tuple] = set()  # addresses and ports

    async def get_async_client(self) -> aiohttp.ClientSession:
        if self._public_only:
            await self._look_up_proxies()
        if self._session is None:
            self._session = aiohttp.ClientSession(
                trust_env=True,
                cookie_jar=aiohttp.DummyCookieJar(),
                connector=aiohttp.TCPConnector(
                    socket_factory=self._checked_socket if self._public_only else None
                ),
            )
        return self._session

    async def _look_up_proxies(self) -> None:
        loop = asyncio.get_running_loop()
        found = await asyncio.gather(
            *(loop.getaddrinfo(*p, type=socket.SOCK_STREAM) for p in _proxies()),
            return_exceptions=True,  # a proxy that has no address is asked in vain
        )
        self._of_proxies = {
            address[:2]
            for answers in found
            if not isinstance(answers, BaseException)
            for *_, address in answers
        }

    def _checked_socket(self, addr_info: aiohttp.AddrInfoType) -> socket.socket:
        """A socket for an address that was just resolved.

        Raises:
            OSError: The address belongs to this machine or to a private network, and
                is not that of a proxy.
        """
        family, kind, protocol, _, address = addr_info
        if address[:2] not in self._of_proxies:
            found = ipaddress.ip_address(address[0])
            if not (getattr(found, "ipv4_mapped", None) or found).is_global:
                raise OSError(f"{found} is no public address")
        return socket.socket(family, kind, protocol)

    def get_bytes(self, url: str, **options: Any) -> bytes:
        """Fetch as the asynchronous method does, with its checks and its time-outs."""

        async def fetch() -> bytes:
            own = _Connection(public_only=self._public_only)
            async with await own.get_async_client():  # closes it in the end
                return await own.async_get_bytes(url, **options)

        with ThreadPoolExecutor(1) as thread:  # this one may have a running loop
            return thread.submit(asyncio.run, fetch()).result()


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
