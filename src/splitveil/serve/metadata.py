"""What a server says of itself and its models, in the terms of neither protocol."""

from typing import Any

from splitveil.serve.model import Model
from splitveil.serve.query import COEFFICIENTS, DATATYPE, FRAME, LOGITS, input_names
from splitveil.serve.repository import Models, Place
from splitveil.version import __version__

PLATFORM = "onnxruntime_onnx"
EXTENSIONS = ["binary_tensor_data", "model_configuration", "model_repository", "statistics"]


def server_metadata() -> dict[str, Any]:
    """Name, version and extensions."""
    return {"name": "splitveil", "version": __version__, "extensions": EXTENSIONS}


def model_metadata(model: Model, models: Models) -> dict[str, Any]:
    """Inputs, outputs and the bundle's identity; -1 where a size varies."""
    shapes = {FRAME: [-1, -1], COEFFICIENTS: [-1, -1, *model.messages.positions]}
    return {
        "name": model.name,
        "versions": [place.version for place in reversed(models.places[model.name].values()) if place.model],
        "platform": PLATFORM,
        "identity": model.manifest.identity,
        "inputs": [
            {"name": name, "datatype": DATATYPE[name], "shape": shapes[name]} for name in input_names(model.messages)
        ],
        "outputs": [{"name": LOGITS, "datatype": "FP32", "shape": [-1, model.manifest.n_classes]}],
    }


def model_config(model: Model) -> dict[str, Any]:
    """In the words of Triton's ModelConfig; sizes are of one row."""
    sizes = {FRAME: [-1], COEFFICIENTS: [-1, *model.messages.positions]}
    names = input_names(model.messages)
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "max_batch_size": model.max_batch,
        "input": [
            {"name": name, "data_type": f"TYPE_{DATATYPE[name]}", "dims": sizes[name], "optional": len(names) > 1}
            for name in names
        ],
        "output": [{"name": LOGITS, "data_type": "TYPE_FP32", "dims": [model.manifest.n_classes]}],
        **({"dynamic_batching": {}} if model.mixes else {}),
        "parameters": {key: {"string_value": value} for key, value in model.manifest.parameters.items()},
    }


def repository_index(models: Models, ready_only: bool) -> list[dict[str, str]]:
    """Every version of every model, whether it is served, and why not."""
    return [
        {"name": name, "version": place.version, "state": "READY" if place.model else "UNAVAILABLE",
         "reason": _reason(place)}
        for name, versions in models.places.items()
        for place in versions.values()
        if place.model or not ready_only
    ]  # fmt: skip


def model_statistics(model: Model) -> dict[str, Any]:
    """In the words of Triton's ModelStatistics."""
    seen = model.statistics
    none = {"count": 0, "ns": 0}
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": seen.last_ms,
        "inference_count": seen.rows,
        "execution_count": seen.runs,
        "inference_stats": {
            "success": {"count": seen.requests, "ns": seen.request_ns},
            "fail": {"count": seen.failures, "ns": seen.failure_ns},
            "queue": {"count": seen.queued, "ns": seen.queue_ns},
            "compute_input": none,
            "compute_infer": {"count": seen.runs, "ns": seen.run_ns},
            "compute_output": none,
        },
    }


def _reason(place: Place) -> str:
    if place.refused:
        return "its bundle was refused; the server's log says why"
    return "" if place.model else "unloaded"
