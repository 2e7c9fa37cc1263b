"""Experiments: lists of cells, each computed once, kept as a row, and shown from rows alone."""

from splitveil.experiments.ablation import Settings
from splitveil.experiments.cells import Place
from splitveil.experiments.reproduction import EXPERIMENTS, Experiment, Reproduction, find, reproduce

__all__ = ["EXPERIMENTS", "Experiment", "Place", "Reproduction", "Settings", "find", "reproduce"]
