"""Tiny models of a user's own, as files of torch.export and as functions, and folders of unlabelled images."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(torch.relu(self.bn1(self.conv1(x)))) + self.shortcut(x))


class ResidualNet(nn.Module):
    """Two stages, and reshapes that ask the images for the length of the batch."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 4, 3, 1, 1)
        self.layer1 = nn.Sequential(Block(4, 4, 1), Block(4, 4, 1))
        self.layer2 = nn.Sequential(Block(4, 8, 2), Block(8, 8, 1))
        self.drop = nn.Dropout(0.5)
        self.fc1 = nn.Linear(8 * 4 * 4, 6)
        self.fc2 = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer2(self.layer1(self.stem(x - 0.5)))
        return self.fc2(torch.relu(self.fc1(self.drop(z).view(z.size(0), -1))))


def residual_net(channels: int = 1) -> ResidualNet:
    """Always the same weights; statistics as after some training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResidualNet(channels)
        for _ in range(3):
            model(torch.rand(16, channels, 8, 8))
    return model.eval()


def write_program(path: Path, model: nn.Module, *, channels: int = 1, batch: bool = True) -> Path:
    """A file as users are told to make it."""
    shapes = ({0: torch.export.Dim("batch")},) if batch else None
    program = torch.export.export(model, (torch.rand(2, channels, 8, 8),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


def write_images(folder: Path, count: int = 40, *, channels: int = 1, depth: bool = True, seed: int = 0) -> Path:
    """Noise as pictures of several sizes, some of them in subfolders where ``depth`` is true."""
    random = np.random.default_rng(seed)
    for index in range(count):
        side = (8, 8) if index % 2 else (16, 24)
        pixels = random.integers(0, 256, (*side, 3) if channels == 3 else side, dtype=np.uint8)
        place = folder / ("deep/er" if depth and index % 3 else ".") / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
    return folder
