"""Bounded resources that strangers share: nobody may hold more than a share of what the others leave."""

import ipaddress
from collections.abc import Callable, Hashable, Iterable
from functools import lru_cache
from types import TracebackType
from typing import Self

Caller = tuple[Hashable, ...]
"""Under whose names a request counts: its address, its token. Empty for a trusted proxy, which speaks for many."""
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Pool:
    """A resource of which so much exists.

    A caller may hold up to ``share`` of what the others leave, and one piece at least. One greedy caller alone gets
    that share of all, n of them get a part each, and they leave something for a newcomer: the dynamic thresholds of
    shared-memory switches (Choudhury and Hahne, 1998), which need no list of callers and no size per caller.

    Args:
        most: that may be held altogether.
        share: 0 to 1; 1: callers are not held apart.

    Attributes:
        used: held now.
    """

    def __init__(self, most: int, share: float) -> None:
        self.most, self._share = most, share
        self.used = 0
        self._held: dict[Hashable, int] = {}

    def fits(self, caller: Caller, amount: int = 1) -> bool:
        """Whether so much more could be taken now."""
        if self.used + amount > self.most:
            return False
        for name in caller:
            mine = self._held.get(name, 0)
            if mine + amount > max(1, int(self._share * (self.most - self.used + mine))):
                return False
        return True

    def take(self, caller: Caller, amount: int = 1) -> bool:
        """Take so much; False, and nothing is taken, where it does not fit."""
        if not self.fits(caller, amount):
            return False
        self.used += amount
        for name in caller:
            self._held[name] = self._held.get(name, 0) + amount
        return True

    def give(self, caller: Caller, amount: int = 1) -> None:
        """Give back what was taken."""
        self.used -= amount
        for name in caller:
            left = self._held[name] - amount
            if left:
                self._held[name] = left
            else:
                del self._held[name]


class Held:
    """Bytes of one request or connection in memory, counted as they come; a context that gives them back.

    Args:
        pool: of bytes.
        caller: whose they are.
        free: bytes that are not counted, because room is kept for so many of everybody.
        refuse: what is raised when there is no room.
    """

    def __init__(self, pool: Pool, caller: Caller, free: int, refuse: Callable[[], Exception]) -> None:
        self._pool, self._caller, self._free, self._refuse = pool, caller, free, refuse
        self.size = self._counted = 0

    def add(self, amount: int) -> None:
        """So many more bytes have come; raises the refusal where there is no room for them."""
        self.size += amount
        if self.size > self._free or self._counted:
            self.set(self.size)

    def set(self, size: int) -> None:
        """So many bytes are held now; raises the refusal where there is no room for them."""
        self.size = size
        counted = max(0, size - self._free)
        if counted > self._counted:
            if not self._pool.take(self._caller, counted - self._counted):
                raise self._refuse()
        elif counted < self._counted:
            self._pool.give(self._caller, self._counted - counted)
        self._counted = counted

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._counted:
            self.set(0)


class Addresses:
    """Under which name an address counts.

    Args:
        proxies: addresses and networks whose ``X-Forwarded-For`` is believed; nobody else's is.

    Raises:
        ValueError: one of them is no address or network.
    """

    def __init__(self, proxies: Iterable[str]) -> None:
        self._proxies: list[_Network] = [ipaddress.ip_network(proxy, strict=False) for proxy in proxies]

    def caller(self, address: str, forwarded: bytes | None = None) -> Caller:
        """The name of the client: of a trusted proxy's request, the last address that no such proxy has.

        Args:
            address: of the connection's other end.
            forwarded: the header ``X-Forwarded-For``; None: there is none, or it is about a connection.
        """
        if not self._proxies or not self._trusted(address):
            return (network_of(address),) if address else ()
        client = self.client(address, forwarded)
        return () if self._trusted(client) else (network_of(client),)

    def client(self, address: str, forwarded: bytes | None = None) -> str:
        """The address of the client; the proxy's own where a trusted one does not say it. Arguments as of `caller`."""
        if self._proxies and self._trusted(address):
            for item in reversed((forwarded or b"").split(b",")):
                earlier = item.strip().decode("latin-1")
                if not _known(earlier):
                    break
                if not self._trusted(earlier):
                    return earlier
        return address

    def _trusted(self, address: str) -> bool:
        ip = _known(address)
        return ip is not None and any(ip in network for network in self._proxies)


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """What one client has to itself: an IPv4 address, or the /64 network of an IPv6 one."""
    ip = _known(address)
    if ip is None or ip.version == 4:
        return str(ip or address)
    return str(ipaddress.ip_network((ip, 64), strict=False))


@lru_cache(maxsize=4096)
def _known(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        ip = ipaddress.ip_address(address.partition("%")[0].strip("[]"))
    except ValueError:
        return None
    return (ip.ipv4_mapped or ip) if ip.version == 6 else ip
