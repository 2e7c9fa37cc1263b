"""How often and how long a server is asked before it is given up."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from splitveil.errors import RemoteError

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """Limits of one request; all that it takes ends within ``deadline``.

    Attributes:
        timeout: seconds that one attempt may take, from connecting to the last byte of the answer.
        deadline: seconds that all attempts and the waits between them may take.
        retries: attempts after the first.
        first_wait: seconds before the first retry; each further wait is twice as long.
        longest_wait: seconds; the most that a wait grows to. A server that asks for more with Retry-After gets it.

    Raises:
        RemoteError: a limit is not a number that can be waited for.
    """

    timeout: float = 10.0
    deadline: float = 30.0
    retries: int = 3
    first_wait: float = 0.1
    longest_wait: float = 5.0

    def __post_init__(self) -> None:
        if not (0 < self.timeout < float("inf") and 0 < self.deadline < float("inf") and self.retries >= 0):
            raise RemoteError("timeout and deadline are seconds above 0, and retries a count from 0; change them")


@dataclass(frozen=True)
class Clock:
    """What time is for retries; tests have their own.

    Attributes:
        now: seconds since some moment.
        sleep: waits for so many seconds.
        chance: a number in [0, 1), so that clients that failed together do not come back together.
    """

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = random.random


class TryAgain(Exception):  # noqa: N818 - it is caught by `persist`, and never reaches a caller
    """An attempt failed in a way that another may not.

    Args:
        reason: what happened, as the end of a sentence about the server.
        after: seconds to wait for at least.
    """

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


async def persist(attempt: Callable[[], Awaitable[T]], patience: Patience, clock: Clock, who: str) -> tuple[T, int]:
    """What an attempt gives, and how many it took.

    Args:
        attempt: one try; raises `TryAgain` where another may succeed.
        patience: limits.
        clock: of the waits.
        who: the server, as it is called in errors.

    Raises:
        RemoteError: no attempt succeeded within the limits.
    """
    end = clock.now() + patience.deadline
    number = 0
    while True:
        number += 1
        try:
            async with asyncio.timeout(min(patience.timeout, end - clock.now())):
                return await attempt(), number
        except TimeoutError:
            failure = TryAgain("did not answer in time")
        except TryAgain as error:
            failure = error
        wait = _wait(number, failure, patience, clock)
        if number > patience.retries or clock.now() + wait >= end:
            raise _given_up(number, failure, wait, patience, who) from failure
        await clock.sleep(wait)


def _wait(number: int, failure: TryAgain, patience: Patience, clock: Clock) -> float:
    longest = min(patience.first_wait * 2.0 ** min(number - 1, 60), patience.longest_wait)
    return max(longest * (1 + clock.chance()) / 2, failure.after)


def _given_up(number: int, failure: TryAgain, wait: float, patience: Patience, who: str) -> RemoteError:
    tried = "once" if number == 1 else f"{number} times"
    if number <= patience.retries and 0 < failure.after == wait:
        advice = f"it asks to come back in {failure.after:.0f} s"
    else:
        advice = "see that it runs and can be reached, or allow more time"
    return RemoteError(f"{who} {failure} (tried {tried}); {advice}")
