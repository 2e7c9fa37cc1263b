"""Experiments: lists of cells, each computed once, kept as a row, and shown from rows alone."""

from splitveil.experiments.cells import Place
from splitveil.experiments.cluster import sweep_on_ray
from splitveil.experiments.reproduction import EXPERIMENTS, PAPER, Experiment, Reproduction, find, reproduce
from splitveil.experiments.training import Settings

__all__ = [
    "EXPERIMENTS", "PAPER", "Experiment", "Place", "Reproduction", "Settings", "find", "reproduce", "sweep_on_ray",
]  # fmt: skip
