"""The precision of a training's products, on processors with and without instructions for bfloat16."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from splitveil.errors import TrainingError

Precision = Literal["float32", "bfloat16"]


def available(device: str | torch.device) -> torch.device:
    """The device, if it can be used here; raises `TrainingError` if not."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises all three
        first = str(error).partition("\n")[0]
        raise TrainingError(f"the device {str(device)!r} cannot be used here ({first}); choose cpu") from error
    return torch.device(device)


def fastest_precision(device: str | torch.device) -> Precision:
    """ "bfloat16" where the device has instructions for it that torch may use, else "float32"; see `Recipe.precision`.

    Raises:
        TrainingError: there is no such device.
    """
    kind = available(device).type
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Older versions of torch cannot say.
        facts: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if kind == "cpu" else {}
        native = bool(facts.get("avx512_bf16") or facts.get("amx_bf16")) and _allowed()
    return "bfloat16" if native else "float32"


def _allowed() -> bool:
    """Whether torch uses such instructions: ATEN_CPU_CAPABILITY may forbid it all that came after AVX2."""
    return torch.backends.cpu.get_cpu_capability() != "AVX2"


@contextmanager
def products(device: torch.device, precision: Precision) -> Iterator[None]:
    """While entered, linear layers and convolutions compute in this precision; all else follows torch.autocast.

    Where the device has no instructions for bfloat16, torch multiplies such numbers one by one, many times slower than
    float32. There factors are rounded to bfloat16 and multiplied and added in float32, as such instructions do.
    """
    fast = precision == "bfloat16"
    emulated = fast and device.type == "cpu" and fastest_precision(device) == "float32"
    with torch.autocast(device.type, torch.bfloat16, enabled=fast), _Rounding() if emulated else nullcontext():
        yield


class _Rounding(TorchFunctionMode):
    """Computes what autocast would in bfloat16 from rounded factors, where autocast is on."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS or not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            product: Tensor = func(*map(_rounded, args), **{name: _rounded(each) for name, each in kwargs.items()})
        return product.to(torch.bfloat16)


_PRODUCTS: frozenset[Callable[..., Tensor]] = frozenset({functional.linear, functional.conv2d})


def _rounded(value: Any) -> Any:
    """A tensor rounded to bfloat16, in float32; its gradient is rounded, too."""
    return value.to(torch.bfloat16).float() if isinstance(value, Tensor) else value
