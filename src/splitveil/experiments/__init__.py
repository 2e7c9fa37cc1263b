"""Experiments: lists of cells, each computed once, kept as a row, and shown from rows alone."""

from splitveil.experiments.cells import Place
from splitveil.experiments.reproduction import EXPERIMENTS, Experiment, Reproduction, find, reproduce
from splitveil.experiments.training import Settings

__all__ = ["EXPERIMENTS", "Experiment", "Place", "Reproduction", "Settings", "find", "reproduce"]
