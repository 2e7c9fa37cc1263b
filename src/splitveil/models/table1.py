"""The network of the paper's Table 1."""

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from splitveil.errors import ModelError

CONVOLUTION_WIDTHS = (16, 32, 64)
CONNECTED_WIDTHS = (128, 64)


class Table1Net(nn.Module):
    """The architecture of Table 1: three convolutional blocks and three fully connected layers.

         x ─► layer1 ─► layer2 ─► layer3 ─► flatten ─► layer4 ─► layer5 ─► layer6 ─► logits
              Conv 3×3 (16, 32, 64), ReLU, MaxPool 2×2, BatchNorm      FC 128, FC 64 (ReLU, BatchNorm), FC n_classes

    Convolutions are padded by one pixel, which the paper does not say; without it the counts of its section 5
    would not fit its image sizes. The softmax belongs to the loss: the network returns logits.

    Args:
        input_shape: (channels, height, width) of one image; height and width at least 8.
        n_classes: number of target classes, at least 2.

    Raises:
        ModelError: the shape or the number of classes is impossible.
    """

    def __init__(self, input_shape: Sequence[int], n_classes: int) -> None:
        super().__init__()
        shape = tuple(int(size) for size in input_shape)
        if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < 8:
            raise ModelError(
                f"Table1Net needs an input shape (channels, height, width) of at least 8 by 8 pixels, not {shape}"
            )
        if n_classes < 2:
            raise ModelError(f"Table1Net needs at least 2 classes, not {n_classes}")
        self.input_shape: tuple[int, ...] = shape
        self.n_classes = int(n_classes)
        self.layer1, self.layer2, self.layer3 = (
            _convolutional(a, b) for a, b in itertools.pairwise((shape[0], *CONVOLUTION_WIDTHS))
        )
        self.flatten = nn.Flatten()
        flat = CONVOLUTION_WIDTHS[-1] * (shape[1] // 8) * (shape[2] // 8)
        self.layer4, self.layer5 = (_connected(a, b) for a, b in itertools.pairwise((flat, *CONNECTED_WIDTHS)))
        self.layer6 = nn.Linear(CONNECTED_WIDTHS[-1], n_classes)

    @property
    def cut_points(self) -> tuple[str, ...]:
        """Names of the layers that the paper's cut numbers 1 to 6 stand for."""
        return ("layer1", "layer2", "layer3", "layer4", "layer5", "layer6")

    @property
    def arguments(self) -> dict[str, object]:
        """What to call the constructor with to get the same network."""
        return {"input_shape": list(self.input_shape), "n_classes": self.n_classes}

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, n_classes) of images (B, C, H, W)."""
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.layer6(self.layer5(self.layer4(self.flatten(x))))  # type: ignore[no-any-return]


def _convolutional(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)
    return nn.Sequential(convolution, nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(outputs))


def _connected(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.BatchNorm1d(outputs))
