"""Multiply-accumulates of a call, the unit of all edge compute here."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


def multiply_accumulates(function: Callable[[Tensor], Any], x: Tensor) -> int:
    """Multiply-accumulates of a call, half of what torch counts as floating-point operations."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(x)
    return int(counter.get_total_flops()) // 2
