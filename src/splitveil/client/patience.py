"""How often and how long a server is asked before it is given up."""

import asyncio
import numbers
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from splitveil.certificate import finite
from splitveil.errors import RemoteError

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """Limits of one request; all that it takes ends within ``deadline``.

    Attributes:
        timeout: seconds that one attempt may take, from connecting to the last byte of the answer.
        deadline: seconds that all attempts and the waits between them may take.
        retries: attempts after the first; as many as the deadline has time for where not given.
        first_wait: seconds before the first retry; each further wait is twice as long.
        longest_wait: seconds; the most that a wait grows to. A server that asks for more with Retry-After gets it.

    Each wait is shortened by chance, to half of it at most, so that clients that failed together do not come back
    together.

    Raises:
        RemoteError: a limit is not a number that can be waited for; or there is no first wait and no number of retries.
    """

    timeout: float = 10.0
    deadline: float = 30.0
    retries: int | None = None
    first_wait: float = 0.1
    longest_wait: float = 5.0

    def __post_init__(self) -> None:
        limits = [finite(given) for given in (self.timeout, self.deadline, self.first_wait, self.longest_wait)]
        timeout, deadline, *waits = (-1.0 if limit is None else limit for limit in limits)
        if timeout <= 0 or deadline <= 0 or not (self.retries is None or _is_count(self.retries)):
            raise RemoteError("timeout and deadline are seconds above 0, and retries a count from 0; change them")
        if min(waits) < 0:
            raise RemoteError("waits are seconds from 0; change them")
        if self.retries is None and 0 in waits:
            raise RemoteError("without a number of retries a server is not asked again at once; give a first wait")


def _is_count(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 0


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
        left = end - clock.now()
        last = patience.retries is not None and number > patience.retries
        if last or failure.after >= left or left <= patience.first_wait:
            raise _given_up(number, failure, patience, who, last=last) from failure
        await clock.sleep(max(_wait(number, left, patience, clock), failure.after))


def _wait(number: int, left: float, patience: Patience, clock: Clock) -> float:
    longest = min(patience.first_wait * 2.0 ** min(number - 1, 60), patience.longest_wait)
    # Not past the deadline: a server that comes back shortly before it is to be met.
    return min(longest * (1 + clock.chance()) / 2, left / 2)


def _given_up(number: int, failure: TryAgain, patience: Patience, who: str, *, last: bool) -> RemoteError:
    tried = "once" if number == 1 else f"{number} times"
    if failure.after and not last:
        advice = f"it asks to come back in {failure.after:.0f} s"
    elif last:
        advice = "see that it runs and can be reached, or allow more retries and more time"
    else:
        advice = f"see that it runs and can be reached, or allow more time than {patience.deadline:.4g} s"
    return RemoteError(f"{who} {failure} (tried {tried}); {advice}")
