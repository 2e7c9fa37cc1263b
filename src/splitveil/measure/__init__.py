"""Honest numbers: what the answer is worth, and what an adversary learns from what was sent."""

from splitveil.attack import ATTACKS
from splitveil.measure.features import RawFeatures
from splitveil.measure.leak import Leakage, leakage, leakages
from splitveil.measure.references import References, reference_lines, references_of
from splitveil.measure.scores import AttackScore
from splitveil.measure.suite import Question, best_attack, best_attacks
from splitveil.measure.transmission import view
from splitveil.statistics import Estimate

__all__ = [
    "ATTACKS", "AttackScore", "Estimate", "Leakage", "Question", "RawFeatures", "References", "best_attack",
    "best_attacks", "leakage", "leakages", "reference_lines", "references_of", "view",
]  # fmt: skip
