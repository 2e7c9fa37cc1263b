"""A model that a function of the user's own makes, named as ``package.module:function``."""

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from splitveil.errors import ModelError

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


def is_reference(text: str) -> bool:
    """Whether a text has the form ``package.module:function``."""
    return _REFERENCE.fullmatch(text) is not None


def call_function(reference: str) -> nn.Module:
    """The model that a function without arguments returns, in evaluation mode. Runs the user's code.

    Args:
        reference: ``package.module:function``; modules of the current folder are found too.

    Raises:
        ModelError: there is no such module or function, it fails, or returns no `torch.nn.Module` with weights.
    """
    if not is_reference(reference):
        raise ModelError(f"{reference!r} is no function's name; write package.module:function")
    module_name, _, path = reference.partition(":")
    with _current_folder():
        try:
            found: Any = importlib.import_module(module_name)
            for part in path.split("."):
                found = getattr(found, part)
            model = found()
        except Exception as error:  # whatever the user's own code raises
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise ModelError(
                f"{reference} gives no model ({reason}); name a function without arguments that returns one, in a "
                "module that can be imported from here"
            ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{reference} returns a {type(model).__name__}; let it return a torch.nn.Module")
    return _ready(reference, model)


def _ready(reference: str, model: nn.Module) -> nn.Module:
    """The model on the CPU, in evaluation mode, as it was before torch.compile."""
    model = model._modules.get("_orig_mod") or model
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ModelError(
                f"{reference} returns a model that keeps {name!r} as a {type(value).__name__}, as quantisation does; "
                "return the model as it was before (messages are quantised by the obfuscator and by export)"
            )
        if value.is_meta:
            raise ModelError(f"{reference} returns a model without weights ({name!r} is on the device 'meta')")
    return model.eval().cpu()


@contextmanager
def _current_folder() -> Iterator[None]:
    """Modules beside the user are found, as with ``python -m``, which an installed command does not offer."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
