"""The paper's claims, each with a rule that decides from rows, by intervals, whether it holds here."""

from splitveil.experiments.verdicts.attributes import (
    beats_adversarial,
    blind_to_the_rest,
    hides_the_uncorrelated,
    leaves_the_correlated,
)
from splitveil.experiments.verdicts.depth import bounded_hides_more, free_hides, keeps_more_with_depth, with_depth
from splitveil.experiments.verdicts.layers import content_falls, sends_share, takes_share
from splitveil.experiments.verdicts.tradeoffs import beats, beats_every_baseline, both_errors, strongest_of_prior_work
from splitveil.experiments.verdicts.verdict import Claim, Verdict, together

__all__ = ["CLAIMS", "Claim", "Verdict", "together"]

CLAIMS = (
    Claim("fig2", "The signal content falls from layer to layer.", content_falls),
    Claim("fig3", "The attack's accuracy falls with the depth of the cut, in all three settings.", with_depth),
    Claim("fig3", "Distortion-free obfuscation lowers the attack at every cut.", free_hides),
    Claim("fig3", "Bounded distortion lowers it further, at a drop of at most 1 point.", bounded_hides_more),
    Claim("fig3", "Deeper cuts need to discard a smaller share of the signal content.", keeps_more_with_depth),
    Claim("fig4", "With more components the target's error falls, and so does the attack's.", both_errors),
    Claim("fig5", "In most cases better than pruning at equal target error.", beats("pruning")),
    Claim("fig6", "In most cases better than adversarial training at equal target error.", beats("adversarial")),
    Claim("fig7", "One component hides the attributes that do not correlate with smiling.", hides_the_uncorrelated),
    Claim("fig7", "It does not hide those that do: high cheekbones and an open mouth.", leaves_the_correlated),
    Claim("fig7", "Adversarial training hides what it was told, and not the others.", blind_to_the_rest),
    Claim("fig7", "One component is better than adversarial training in target and attack.", beats_adversarial),
    Claim(
        "baselines", "Adversarial training trades better than the information bottleneck and noise.",
        strongest_of_prior_work,
    ),
    Claim(
        "baselines", "Ours is better than every baseline at equal target error (not stated by the paper).",
        beats_every_baseline,
    ),
    Claim("cost", "The encoder costs m'/m of the server's first layer.", takes_share),
    Claim("cost", "The message is m'/n of the feature.", sends_share),
)  # fmt: skip
"""In the order of the paper's figures; ``figure`` is the experiment whose rows decide."""
