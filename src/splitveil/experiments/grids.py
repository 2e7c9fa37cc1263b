"""Which defences at which settings each figure needs, as cells; figures share the cells that they have in common."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from splitveil.attack import ATTACKS
from splitveil.baselines import BASELINES
from splitveil.experiments.lines import ON_MAPS
from splitveil.experiments.ours import TUNED
from splitveil.experiments.points import PointsCell, only, settings_of
from splitveil.experiments.training import HIDDEN, KEPT, Settings, data_names
from splitveil.obfuscate import FINITE

DATA = ("utkface", "celeba", "qmnist", "pins")
SEEDS = (0, 1, 2)
EPOCHS = 20
CUT = 4
DROP = 0.01
CELEBA = ("Male", "Heavy_Makeup", "High_Cheekbones", "Mouth_Slightly_Open", "Wearing_Lipstick", "Attractive")
TRAIN_A_NETWORK = ("adversarial", "bottleneck", "blur")
PATCH = (64, 48, 32, 24, 16, 12, 8, 6, 4, 2, 1)
DENSE = (1024, 512, 256, 128, 64, 32)
CONVOLUTIONS = (1, 2, 3)
COEFFICIENTS = (16, 8, 4, 2, 1)
MESSAGES = dict.fromkeys(("utkface", "celeba", "pins"), (64, 16, 8, 4, 2)) | dict.fromkeys(
    ("qmnist", "digit-pairs"), (64, 32, 16, 12, 10)
)
"""How many messages finite ones have: from 64 to the number of answers, 2 or 10."""
WIDTHS = (128, 80, 32, 16)
"""Of the answer on the device: as much as our encoders cost where these have a hidden layer, and m' = 16 without."""
_REVISIONS = {"device": 2}
"""Of baselines that have changed, as `TUNED` is of ours."""
AVERAGED = 2
"""The cut where a layer that reads every number costs too much, and a client has one: what is tuned there is one
revision ahead of `TUNED`, since an encoder without a layer is tried beside one that reads averages."""
DEFAULTS = ("distilled", "codebook")
EPSILONS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
BASELINE_SEEDS: dict[str, Sequence[int]] = {"adversarial": (SEEDS[0], SEEDS[-1])}
BASELINE_SEEDS |= dict.fromkeys(("noise", "gaussian", "leace", "blur", "device"), SEEDS[-1:])
"""Of the models that baselines stand on where not of the first. Processors of different kinds train different models
from one seed, and rows of one model alone compare; what has one seed is spread over seeds, so that the published rows
need no single machine. The paper compares adversarial training with noise and with the bottleneck: it has both."""


@dataclass(frozen=True)
class _Grid:
    """What the cells of one call have in common."""

    settings: Settings

    @property
    def quick(self) -> bool:
        return self.settings.quick

    @property
    def seeds(self) -> Sequence[int]:
        return SEEDS[:1] if self.quick else SEEDS

    @property
    def last(self) -> int:
        return self.seeds[-1]

    def names(self, own: Sequence[str] = DATA) -> list[str]:
        return data_names(self.settings, own)

    def cell(self, data: str, defence: str, settings: Sequence[dict[str, Any]], **more: Any) -> PointsCell:
        attacks = ("linear",) if self.quick else tuple(attack.name for attack in ATTACKS)
        cell = PointsCell(
            data=data, training="plain", seed=0, epochs=self.settings.epochs or (2 if self.quick else EPOCHS),
            precision=self.settings.precision, cut=CUT, operator="dense", defence=defence, settings=tuple(settings),
            drop=None, plain_seeds=(), hidden=(HIDDEN[data],), attacks=attacks,
            tuning=TUNED.get(defence, _REVISIONS.get(defence)),
        )  # fmt: skip
        return replace(cell, **more)

    def hidden(self, data: str, seed: int) -> tuple[str, ...]:
        """The attributes of figure 7 where it needs them."""
        return CELEBA if data == "celeba" and seed == 0 else (HIDDEN[data],)

    def ours(self, data: str, defence: str, cut: int, seed: int) -> PointsCell:
        """One of ours, or of the baselines that every cut has beside them, on plain training."""
        names = tuple(attack.name for attack in ATTACKS)
        narrow = tuple(name for name in names if name != "de-censoring")
        more: dict[str, Any] = {} if self.quick else {"attacks": narrow if cut in CONVOLUTIONS else names}
        if cut == AVERAGED and defence in TUNED:
            more["tuning"] = TUNED[defence] + 1
        return self.cell(data, defence, self.settings_at(data, defence, cut), cut=cut, seed=seed, **more)

    def settings_at(self, data: str, defence: str, cut: int) -> Sequence[dict[str, Any]]:
        """The settings of a defence, from the weakest to the strongest privacy."""
        if defence in FINITE:
            found = [{"messages": count} for count in MESSAGES.get(data, MESSAGES["utkface"])]
        elif defence == "top":
            found = [{"m": m} for m in KEPT]
        elif defence == "device":
            found = [{"width": width} for width in WIDTHS]
            found += list(settings_of(defence)) if cut != CUT else []  # at this cut they have a cell already
        elif defence in BASELINES:
            found = list(settings_of(defence))
        else:
            found = [{"m": m} for m in COEFFICIENTS]
        return found[::2] if self.quick else found

    def baseline(self, data: str, name: str) -> list[PointsCell]:
        settings = settings_of(name)[: 1 if self.quick else None]
        seeds = self.seeds if self.quick else BASELINE_SEEDS.get(name, SEEDS[:1])
        found = []
        for seed in seeds:
            hidden = self.hidden(data, seed) if name == "adversarial" else (HIDDEN[data],)
            cell = self.cell(data, name, settings, hidden=hidden, seed=seed)
            found += only(cell, settings) if name in TRAIN_A_NETWORK else [cell]
        return found


def tradeoff(settings: Settings) -> list[PointsCell]:
    """Figure 4: our method at cut 4, on the paper's recipe and on plain training, with every seed."""
    grid, kept = _Grid(settings), [{"m": m} for m in (KEPT[::2] if settings.quick else KEPT)]
    return [
        grid.cell(name, "top", kept, training=training, seed=seed, hidden=grid.hidden(name, seed))
        for seed in grid.seeds
        for name in grid.names()
        for training in ("paper", "plain")
    ]


def pruning(settings: Settings) -> list[PointsCell]:
    """Figure 5: our method, pruning, and the answer on the device."""
    return [*tradeoff(settings), *_baselines(settings, ("device", "pruning"))]


def adversarial(settings: Settings) -> list[PointsCell]:
    """Figure 6: our method, adversarial training, and the answer on the device."""
    return [*tradeoff(settings), *_baselines(settings, ("device", "adversarial"))]


def attributes(settings: Settings) -> list[PointsCell]:
    """Figure 7: CelebA's six attributes."""
    name = "digit-pairs" if settings.quick else "celeba"
    if name not in _Grid(settings).names((name,)):
        return []  # the figure is of this data set alone
    one = replace(settings, data=(name,))
    found = [*tradeoff(one), *_baselines(one, ("adversarial",))]
    return [cell for cell in found if cell.seed == SEEDS[0]]


def baselines(settings: Settings) -> list[PointsCell]:
    """Every baseline at its whole tuning grid, beside our method."""
    return [*tradeoff(settings), *_baselines(settings, tuple(BASELINES))]


def _baselines(settings: Settings, names: Sequence[str]) -> list[PointsCell]:
    grid = _Grid(settings)
    return [cell for name in names for data in grid.names() for cell in grid.baseline(data, name)]


def frontier(settings: Settings) -> list[PointsCell]:
    """Our obfuscators after plain training and the baselines, at every cut; what tells most comes first."""
    grid = _Grid(settings)
    if grid.quick:
        return [
            cell
            for data in grid.names()
            for cell in (
                *(grid.ours(data, name, CUT, 0) for name in ("distilled", "codebook", "top")),
                *grid.baseline(data, "device"),
            )
        ]

    def every(names: Sequence[str], at: Sequence[int], seeds: Sequence[int] = SEEDS[-1:]) -> list[PointsCell]:
        wanted = itertools.product(seeds, at, names, grid.names())
        return [grid.ours(data, name, cut, seed) for seed, cut, name, data in wanted]

    connected, maps = (4, 5, 6), (3, 2)
    found = [
        *every(DEFAULTS, connected), *_baselines(settings, ("device",)), *every(("device",), connected),
        *tradeoff(settings), *(_connected(grid, data, cut, 0)[0] for cut in connected[1:] for data in grid.names()),
        *_baselines(settings, ("pruning", "adversarial")),
        *every((*DEFAULTS, "device"), maps),
        *every(DEFAULTS, (*connected, *maps), SEEDS[1:2]),
        *every(("server-aware", "quantised", "covariance-aware"), connected),
        *every(("top", "pruning", "pca"), connected[1:]),
        *every(("server-aware", "quantised", "covariance-aware", "top", "pruning", "pca"), maps),
        *every((*DEFAULTS, "device", "server-aware"), (1,)),
        *_baselines(settings, tuple(BASELINES)),
    ]  # fmt: skip
    return list({repr(cell): cell for cell in found}.values())


def cuts(settings: Settings) -> list[PointsCell]:
    """Figure 3: nothing, distortion-free and distortion-bounded, at every cut; both operators at convolutions."""
    grid = _Grid(settings)
    connected = [
        cell
        for seed in grid.seeds
        for name in grid.names()
        for cut in ((4,) if settings.quick else (4, 5, 6))
        for cell in _connected(grid, name, cut, seed)
    ]
    convolutions = [
        cell
        for cut in ((3,) if settings.quick else (3, 2, 1))
        for name in grid.names()
        for cell in _convolutional(grid, name, cut)
    ]
    return [*connected, *convolutions]


def _connected(grid: _Grid, data: str, cut: int, seed: int) -> list[PointsCell]:
    same: dict[str, Any] = {"training": "paper", "cut": cut, "seed": seed}
    kept = [{"m": m} for m in (KEPT[::2] if grid.quick else KEPT)]
    hidden = grid.hidden(data, seed) if cut == CUT else (HIDDEN[data],)  # at cut 4 this is figure 4's cell
    return [
        grid.cell(data, "top", kept, hidden=hidden, **same),
        grid.cell(data, "free", [{}], **same),
        grid.cell(data, "bounded", _epsilons(grid), drop=DROP, plain_seeds=tuple(grid.seeds), **same),
    ]


def _convolutional(grid: _Grid, data: str, cut: int) -> list[PointsCell]:
    attacks = ("linear",) if grid.quick else ON_MAPS
    same: dict[str, Any] = {"training": "paper", "cut": cut, "attacks": attacks, "seed": grid.last}
    chosen: dict[str, Any] = {"drop": DROP, "plain_seeds": tuple(grid.seeds)}
    kept = {"patch": PATCH, "dense": DENSE[-1:] if grid.quick else DENSE}
    found = [grid.cell(data, "free", [{}], operator="patch", **same)]  # dense: no null space, nothing to remove
    for operator, numbers in kept.items():
        found += [
            grid.cell(data, "top", [{"m": m} for m in numbers], operator=operator, **chosen, **same),
            grid.cell(data, "bounded", _epsilons(grid), operator=operator, **chosen, **same),
        ]
    return found


def _epsilons(grid: _Grid) -> list[dict[str, float]]:
    return [{"epsilon": epsilon} for epsilon in (EPSILONS[1::3] if grid.quick else EPSILONS)]
