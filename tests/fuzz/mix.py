"""The targets, and how many cases of each a run has.

A frame is checked in 20 µs, an exchange over sockets takes 1 ms of two processes. CI's million has to fit into two
minutes, so that the cheap targets make up its number, and each dear one gets some seconds. The ten million of `make
fuzz` have an hour: there what costs most per case, and what strangers reach first, gets most of the time.
"""

import importlib
from typing import NamedTuple

from .target import Target


class Entry(NamedTuple):
    """Where a target is, and how many cases of it a run has.

    Attributes:
        place: module and class.
        quick: cases per million of a run of at most a million.
        large: cases per million of a longer one.
        rate: cases per second, as measured on one core; sizes pieces, and shows the time left before there are figures.
    """

    place: str
    quick: int
    large: int
    rate: float


MIX = {
    "frames": Entry("frames.Frames", 540_000, 200_000, 40_000),
    "messages": Entry("messages.Messages", 120_000, 90_000, 22_000),
    "finite": Entry("messages.Finite", 80_000, 50_000, 20_000),
    "answers": Entry("answers.Answers", 79_000, 40_000, 20_000),
    "requests": Entry("requests.Requests", 80_000, 200_000, 6_000),
    "manifests": Entry("manifests.Manifests", 30_000, 100_000, 4_500),
    "graphs": Entry("graphs.Graphs", 30_000, 150_000, 2_300),
    "http1": Entry("http1.Http1", 20_000, 80_000, 1_000),
    "grpc": Entry("grpc_.Grpc", 10_000, 40_000, 1_000),
    "http2": Entry("http2.Http2", 5_000, 20_000, 400),
    "servers": Entry("servers.Servers", 3_000, 20_000, 150),
    "ledgers": Entry("ledgers.Ledgers", 3_000, 10_000, 300),
}
MILLION = 10**6


def cases(name: str, total: int) -> int:
    """Of a target, in a run of so many."""
    entry = MIX[name]
    return max(1, (entry.quick if total <= MILLION else entry.large) * total // MILLION)


def target(name: str) -> Target:
    """A target by its name."""
    module, _, kind = MIX[name].place.partition(".")
    return getattr(importlib.import_module(f"{__package__}.{module}"), kind)()
