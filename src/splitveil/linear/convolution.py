"""A two-dimensional convolution as a linear map: products, adjoint and patch matrix."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class Convolution:
    """A two-dimensional convolution with zero padding; `pads` is (top, left, bottom, right)."""

    weight: Tensor
    feature_shape: tuple[int, ...]
    stride: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns between the first and the last pixel of a patch."""
        kh, kw = self.weight.shape[2:]
        return self.dilation[0] * (kh - 1), self.dilation[1] * (kw - 1)

    @property
    def positions(self) -> tuple[int, ...]:
        """``(H', W')``; not positive where the kernel is larger than the padded feature."""
        (top, left, bottom, right), (_, H, W) = self.pads, self.feature_shape
        rows, columns = self.reach
        return (
            (H + top + bottom - rows - 1) // self.stride[0] + 1,
            (W + left + right - columns - 1) // self.stride[1] + 1,
        )

    @property
    def output_shape(self) -> tuple[int, ...]:
        """``(out, H', W')``."""
        return (self.weight.shape[0], *self.positions)

    @property
    def geometry(self) -> tuple[object, ...]:
        """Kernel size, stride, padding and dilation; groups do not matter, see `patch_matrix`."""
        return ("convolution", tuple(self.weight.shape[2:]), self.stride, self.pads, self.dilation)

    @property
    def disjoint(self) -> bool:
        """Whether the kernel is as large as the stride, and the patches tile the feature without padding."""
        kernel = tuple(self.weight.shape[2:])
        tiles = tuple(p * k for p, k in zip(self.positions, kernel, strict=True)) == self.feature_shape[1:]
        return tiles and self.stride == kernel and self.dilation == (1, 1) and not any(self.pads)

    def to(self, like: Tensor) -> Self:
        """The same map in the dtype and on the device of `like`."""
        return replace(self, weight=self.weight.to(like))

    def apply(self, z: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, out, H', W')``."""
        top, left, bottom, right = self.pads
        padded = functional.pad(z, (left, right, top, bottom))
        return functional.conv2d(padded, self.weight, None, self.stride, 0, self.dilation, self.groups)

    def adjoint(self, y: Tensor) -> Tensor:
        """``(B, out, H', W')`` -> ``(B, C, H, W)``."""
        (top, left, _, _), (_, H, W) = self.pads, self.feature_shape
        z = functional.conv_transpose2d(y, self.weight, None, self.stride, 0, 0, self.groups, self.dilation)
        # Crop the padding away; where the stride left a margin unread, its adjoint is zero.
        return functional.pad(z, (-left, W + left - z.shape[3], -top, H + top - z.shape[2]))

    def patch_matrix(self) -> Tensor:
        """``(out, C·kh·kw)``, with zeros where a filter's group does not look."""
        blocks = self.weight.flatten(1).chunk(self.groups)
        matrix: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
        return matrix

    def project(self, z: Tensor, rows: Tensor) -> Tensor:
        """A convolution with k filters at this layer's stride, padding and dilation: ``(B, k, H', W')``."""
        return self._with_filters(rows).apply(z) if len(rows) else z.new_zeros(len(z), 0, *self.positions)

    def scatter(self, a: Tensor, rows: Tensor) -> Tensor:
        """The adjoint of `project`: ``(B, k, H', W')`` -> ``(B, C, H, W)``."""
        return self._with_filters(rows).adjoint(a)

    def _with_filters(self, rows: Tensor) -> Self:
        filters = rows.reshape(-1, self.feature_shape[0], *self.weight.shape[2:])
        return replace(self, weight=filters, groups=1)

    def arrange(self, y: Tensor) -> Tensor:
        """``(B, out, H', W')`` as it is."""
        return y
