"""Other people's defences, each behind the obfuscator's interface, with the grid of settings that it is tuned over."""

from splitveil.baselines.adversarial import AdversarialTraining
from splitveil.baselines.blur import Blur
from splitveil.baselines.bottleneck import InformationBottleneck
from splitveil.baselines.defence import Defence, Defended, Undefended
from splitveil.baselines.device import AnswerOnDevice
from splitveil.baselines.erasure import LeastSquaresErasure
from splitveil.baselines.noise import LearnedNoise
from splitveil.baselines.privacy import GaussianMechanism
from splitveil.baselines.projection import PrincipalComponents, RandomProjection
from splitveil.baselines.pruning import Pruning

__all__ = ["BASELINES", "Defence", "Defended", "Undefended"]

BASELINES: dict[str, tuple[Defence, ...]] = {
    "pruning": tuple(Pruning(m) for m in (64, 16, 8, 4, 1)),
    "random": tuple(RandomProjection(m) for m in (32, 8, 4, 2, 1)),
    "pca": tuple(PrincipalComponents(m) for m in (32, 8, 4, 2, 1)),
    "adversarial": tuple(AdversarialTraining(gamma) for gamma in (0.1, 0.3, 0.5, 0.7, 1.0)),
    "bottleneck": tuple(
        InformationBottleneck(beta, gamma)
        for beta, gamma in ((1e-5, 1e-5), (1e-4, 1e-4), (1e-3, 1e-5), (1e-3, 1e-3), (3e-4, 3e-3))
    ),
    "blur": tuple(Blur(sigma) for sigma in (1.0, 2.0, 3.0, 4.0, 6.0)),
    "noise": tuple(LearnedNoise(weight) for weight in (0.01, 0.03, 0.1, 0.3, 1.0)),
    "gaussian": tuple(GaussianMechanism(epsilon) for epsilon in (3000.0, 1000.0, 300.0, 100.0, 30.0)),
    "leace": (LeastSquaresErasure(),),
    "device": tuple(AnswerOnDevice(width) for width in (7, 4, 3, 2, 0)),
}
"""Every baseline's settings by its name: five each, the same tuning budget as our method has."""
