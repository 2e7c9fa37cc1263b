"""Tensors on disk: safetensors with a JSON object beside them, written whole or not at all."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from splitveil.errors import RunError
from splitveil.files import write_with

# safetensors keeps only strings beside the tensors; ours are one JSON object under this key.
FACTS = "splitveil"


def write_tensors(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and a JSON object as one safetensors file, atomically; raises `RunError` as `write_json`."""
    # Copies, because safetensors refuses tensors that share memory, as tied weights do.
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    metadata = {FACTS: json.dumps(facts, allow_nan=False)}

    def save(temporary: str) -> None:
        try:
            save_file(plain, temporary, metadata)
        except SafetensorError as error:  # such as a full disk
            raise OSError(str(error)) from error

    write_with(path, save)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote.

    Raises:
        RunError: the file is missing, damaged, or not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})[FACTS])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118 (no mapping)
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist; train first") from error
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged or not a file of splitveil ({error}); train again") from error
