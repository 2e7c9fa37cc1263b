"""Experiments: lists of cells, each computed once, kept as a row, and shown from rows alone."""

from splitveil.experiments.cells import Place
from splitveil.experiments.cluster import sweep_on_ray
from splitveil.experiments.reproduction import EXPERIMENTS, PAPER, Experiment, Reproduction, find, overlooked, reproduce
from splitveil.experiments.training import Settings

__all__ = [
    "EXPERIMENTS", "PAPER", "Experiment", "Place", "Reproduction", "Settings", "find", "overlooked", "reproduce",
    "sweep_on_ray",
]  # fmt: skip
