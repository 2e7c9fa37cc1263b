"""What a finite number of messages proves against every adversary; free of torch. The proofs: docs/certificate.md."""

import math
import numbers
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Self

from splitveil.errors import CertificateError
from splitveil.message import Message

# More messages than any list of priors has values, and than the inverse of the smallest float above 0.
_UNCOUNTED = 2**1100
_MOST_QUERIES = 2**63 - 1
_SUM_TOLERANCE = 1e-6
_ROUNDING = 1e-12  # bits, by which sums of floats may be off; taken to the adversary's favour


@dataclass(frozen=True, repr=False)
class Certificate:
    """At most so many different messages can be sent, so that no adversary can tell more secrets apart.

    It holds for every guesser, however strong, and for randomised encoders too. It bounds what messages tell, and
    nothing else: not what timing, the number of queries, refusals or network addresses tell.

    Args:
        messages: M, how many different ones one query may send, every field of the frame counted.

    Raises:
        CertificateError: that is no number from 1 on.
    """

    messages: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", _count(self.messages, "a number of different messages"))

    def __repr__(self) -> str:
        return f"Certificate(messages={_shown(self.messages)})"

    @classmethod
    def of(cls, message: Message) -> Self:
        """The certificate of an obfuscator's messages.

        Raises:
            CertificateError: they are real numbers, of which there is no finite number, or their length differs.
        """
        if message.distinct is None:
            raise CertificateError(
                "a message of real numbers has no finite bound on what it tells; use one of whole numbers, such as "
                "Quantised or Codebook"
            )
        if not message.fixed_length:
            raise CertificateError("the length of these messages tells something too; use one of fixed length")
        return cls(message.distinct)

    @property
    def bits(self) -> float:
        """Maximal leakage of one query at most, log2 M (Issa, Wagner and Kamath 2018, arXiv 1807.07878)."""
        return math.log2(self.messages)

    def leakage_bits(self, queries: int = 1, *, varies: bool = False) -> float:
        """Maximal leakage of several queries at most, in bits; arguments and errors as of `guess_bound`."""
        transcripts = self._transcripts(queries, varies)
        if transcripts < _UNCOUNTED:
            return math.log2(transcripts)
        # Of the sum of powers all but a share below 2^-1000 is M^q · M / (M - 1).
        return operator.index(queries) * self.bits + (
            math.log1p(1 / (self.messages - 1)) / math.log(2) if varies else 0.0
        )

    def guess_bound(
        self,
        prior: float | None = None,
        *,
        priors: Iterable[float] | None = None,
        queries: int = 1,
        varies: bool = False,
    ) -> float:
        """The chance at most that a secret is guessed right from a subject's messages.

        Give either ``prior`` or ``priors``: what is known of the secret without any message.

        Args:
            prior: chance of the secret's most likely value; the bound is then min(1, M^q · prior).
            priors: chances of all its values; the bound is the sum of the M^q largest, which is never larger.
            queries: q, messages of one subject.
            varies: whether ``queries`` is only the most that there may be, and the actual number may depend on the
                secret. Then Σ M^i over i = 0 … q stands in place of M^q; it begins at 0, as no query at all is
                something that an adversary can see, too.

        Raises:
            CertificateError: both or neither is given, they are no chances, or ``queries`` is no number from 1 on.
        """
        transcripts = self._transcripts(queries, varies)
        if priors is None:
            # Exact, and compared before it becomes a float: M^q may be larger than any float.
            bound = transcripts * Fraction(_chance(prior))
            return 1.0 if bound >= 1 else float(bound)
        if prior is not None:
            raise CertificateError("give the secret's prior or its priors, not both")
        possible = sorted((share for share in _chances(priors) if share > 0), reverse=True)
        return 1.0 if transcripts >= len(possible) else min(1.0, math.fsum(possible[:transcripts]))

    def vacuous(
        self,
        prior: float | None = None,
        *,
        priors: Iterable[float] | None = None,
        queries: int = 1,
        varies: bool = False,
    ) -> bool:
        """Whether the bound says nothing of this secret, being 1; arguments and errors as of `guess_bound`."""
        return self.guess_bound(prior, priors=priors, queries=queries, varies=varies) >= 1

    def in_words(
        self,
        prior: float | None = None,
        *,
        priors: Iterable[float] | None = None,
        queries: int = 1,
        varies: bool = False,
    ) -> str:
        """The bound in plain words, and where it is vacuous; arguments and errors as of `guess_bound`."""
        priors = None if priors is None else _chances(priors)
        bound = self.guess_bound(prior, priors=priors, queries=queries, varies=varies)
        before = max(priors) if priors else prior
        most = "at most " if varies else ""
        seen = f"{most}one message" if queries == 1 else f"{most}{queries} messages"
        messages = "1 message" if self.messages == 1 else f"{_shown(self.messages)} different messages"
        known = f"At most {messages} can be sent ({in_bits(self.bits)} each)."
        if bound >= 1:
            return (
                f"{known} For this secret that proves nothing: {seen} of a subject could tell all of its likely "
                "values apart, and only measured attacks say whether they do."
            )
        return (
            f"{known} Whoever sees {seen} of a subject and guesses this secret is right with a chance of at most "
            f"{bound:.3g}, beside {before:.3g} without any. Timing, refusals and addresses are not counted."
        )

    def entropy_limit(self, counts: Iterable[int], *, level: float = 0.05) -> float:
        """An upper confidence limit of the messages' entropy, in bits; never more than log2 M.

        The entropy of the observed shares (the plug-in estimate) is too low on average, by at most
        log2(1 + (M − 1)/n) (Paninski 2003), and one query moves it by at most 2 log2(n)/n, so that by McDiarmid's
        inequality it lies below its mean by more than log2(n) sqrt(2 ln(1/level) / n) with chance ``level`` at most.

        Args:
            counts: how often each message was sent in n independent queries; those never sent may be left out.
            level: the chance at most that the entropy is larger than the limit.

        Raises:
            CertificateError: there are no counts, more than messages, or ``level`` is no chance between 0 and 1.
        """
        seen = [_count(count, "how often a message was sent", least=0) for count in counts]
        n = sum(seen)
        if n == 0 or sum(count > 0 for count in seen) > self.messages:
            raise CertificateError(f"counts are of 1 to {_shown(self.messages)} different messages; count some queries")
        level_ = finite(level)
        if level_ is None or not 0 < level_ < 1:
            raise CertificateError(f"the level {level!r} is no chance between 0 and 1; give one such as 0.05")
        plug_in = _entropy(count / n for count in seen)
        bias = math.log2(n + self.messages - 1) - math.log2(n)
        return min(self.bits, plug_in + bias + math.log2(n) * math.sqrt(2 * math.log(1 / level_) / n))

    def fano_bound(self, priors: Iterable[float], *, entropy_bits: float, queries: int = 1) -> float:
        """The chance at most that a secret is guessed right, on the average over all messages, by Fano's inequality.

        Mostly weaker than `guess_bound`; of use where there are many messages, of which few are ever sent.

        Args:
            priors: chances of all values of the secret.
            entropy_bits: an upper limit of one message's entropy, such as `entropy_limit` gives; never an estimate.
            queries: q, messages of one subject.

        Raises:
            CertificateError: these are no chances, no entropy, or no number of queries.
        """
        shares = [share for share in _chances(priors) if share > 0]
        entropy = finite(entropy_bits)
        if entropy is None or entropy < 0:
            raise CertificateError(f"{entropy_bits!r} is no entropy in bits; give a number from 0 on")
        told = min(entropy, self.bits) * _count(queries, "a number of queries", most=_MOST_QUERIES)
        left = _entropy(shares) - told - _ROUNDING
        if left <= 0 or len(shares) == 1:
            return 1.0

        def unsure(right: float) -> float:
            """The most that can be unknown to who guesses right with this chance; falls from 1/n on."""
            return _entropy((right, 1 - right)) + (1 - right) * math.log2(len(shares) - 1)

        low, high = 1 / len(shares), 1.0
        while high - low > 1e-9:
            middle = (low + high) / 2
            low, high = (middle, high) if unsure(middle) >= left else (low, middle)
        return high

    def _transcripts(self, queries: int, varies: bool) -> int:
        """How many different sequences of messages a subject can send, or `_UNCOUNTED` where there are more."""
        queries = _count(queries, "a number of queries", most=_MOST_QUERIES)
        if self.messages == 1:
            return queries + 1 if varies else 1
        if (self.messages.bit_length() - 1) * queries > 1100:  # M^q is at least 2 to this power
            return _UNCOUNTED
        return int((self.messages ** (queries + 1) - 1) // (self.messages - 1) if varies else self.messages**queries)


def finite(value: object) -> float | None:
    """A real number of any type as a float; None for texts, truth values, NaN, infinities and what is too large."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real | Decimal):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def in_bits(bits: float) -> str:
    """A number of bits in words."""
    return "1 bit" if f"{bits:.6g}" == "1" else f"{bits:.6g} bits"


def _count(value: Any, what: str, *, least: int = 1, most: int | None = None) -> int:
    try:
        count = operator.index(value)
    except TypeError as error:
        raise CertificateError(f"{what} is a whole number, not {type(value).__name__}") from error
    if isinstance(value, bool) or count < least or (most is not None and count > most):
        limits = f"from {least} on" if most is None else f"from {least} to {most}"
        raise CertificateError(f"{what} is a whole number {limits}; change it")
    return count


def _chance(value: Any) -> float:
    chance = finite(value)
    if chance is None:
        raise CertificateError("give the chance of the secret's most likely value, or priors of all values")
    if not 0 < chance <= 1:
        raise CertificateError(f"a prior of {chance} is no chance above 0 and up to 1; change it")
    return chance


def _chances(values: Iterable[float]) -> list[float]:
    given = [finite(value) for value in values] if isinstance(values, Iterable) else [None]
    chances = [chance for chance in given if chance is not None]
    if len(chances) < len(given):
        raise CertificateError("priors are the chances of all values of the secret; give a list of numbers")
    if not all(0 <= chance <= 1 for chance in chances) or abs(math.fsum(chances) - 1) > _SUM_TOLERANCE:
        raise CertificateError("priors are chances from 0 to 1 that sum to 1, one for every value of the secret")
    return chances


def _entropy(shares: Iterable[float]) -> float:
    return -math.fsum(share * math.log2(share) for share in shares if share > 0)


def _shown(messages: int) -> str:
    """Short for people; Python refuses to print integers of thousands of digits."""
    return str(messages) if messages < 10**12 else f"2^{math.log2(messages):.6g}"
