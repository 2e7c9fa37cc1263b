"""Tiny networks that go wrong in one way each, and images for them."""

import torch
from torch import Tensor, nn
from torch.nn import functional

SHAPE = (3, 16, 16)


def made_images(count: int = 40, seed: int = 0) -> Tensor:
    """Smooth images (count, 3, 16, 16) with some noise."""
    generator = torch.Generator().manual_seed(seed)
    low = functional.interpolate(torch.rand(count, 3, 4, 4, generator=generator), size=SHAPE[1:], mode="bilinear")
    return (0.8 * low + 0.2 * torch.rand(count, *SHAPE, generator=generator)).clamp(0, 1)


class Net(nn.Module):
    """Two convolutions and a linear layer: cut it at "mid"."""

    input_shape = SHAPE

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv, self.mid = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1)
            self.fc = nn.Linear(512, 5)
            self.more()
        self.eval()

    def more(self) -> None:
        """Further layers."""

    def first(self, x: Tensor) -> Tensor:
        """The client's part beyond its convolution."""
        return x

    def then(self, z: Tensor) -> Tensor:
        """What the server makes of its convolution."""
        return z.relu()

    def last(self, logits: Tensor) -> Tensor:
        """What becomes of the logits."""
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.fc(self.then(self.mid(self.first(self.conv(x)))).flatten(1)))


class NoStatistics(Net):
    def more(self) -> None:
        self.norm = nn.BatchNorm2d(8, track_running_stats=False)

    def then(self, z: Tensor) -> Tensor:
        return self.norm(z)


class NormalisedAtTheClient(NoStatistics):
    def first(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def then(self, z: Tensor) -> Tensor:
        return z


class MeanOfAll(Net):
    def then(self, z: Tensor) -> Tensor:
        return z - z.mean()


class SoftmaxOverTheBatch(Net):
    def then(self, z: Tensor) -> Tensor:
        return z.softmax(0)


class AttentionOverTheBatch(Net):
    def more(self) -> None:
        self.attention = nn.MultiheadAttention(64, 4)  # batch_first is forgotten

    def then(self, z: Tensor) -> Tensor:
        rows = z.flatten(2)
        return self.attention(rows, rows, rows)[0]


class Attention(AttentionOverTheBatch):
    def more(self) -> None:
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)


class Cumulated(Net):
    def then(self, z: Tensor) -> Tensor:
        return z.cumsum(0)


class Sorted(Net):
    def then(self, z: Tensor) -> Tensor:
        return z.sort(0).values


class HardlyMixed(Net):
    def then(self, z: Tensor) -> Tensor:
        return z + 1e-3 * z.amax(0, keepdim=True)


class Recurrent(Net):
    def more(self) -> None:
        self.rnn, self.fc = nn.LSTM(64, 16), nn.Linear(128, 5)  # batch_first is forgotten

    def then(self, z: Tensor) -> Tensor:
        return self.rnn(z.flatten(2))[0]


class Dropped(Net):
    def then(self, z: Tensor) -> Tensor:
        return functional.dropout(z, 0.001)


class Noisy(Net):
    def first(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class InstanceNormalised(Net):
    def then(self, z: Tensor) -> Tensor:
        return functional.instance_norm(z)


class RandomOnlyInTraining(Net):
    def more(self) -> None:
        self.relu, self.drop = nn.RReLU(), nn.Dropout(0.5)

    def then(self, z: Tensor) -> Tensor:
        return self.drop(self.relu(z))


class Double(Net):
    """All of it in a number format of its own, with casts at both ends."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.dtype)).float()


class Mixed(Net):
    def more(self) -> None:
        self.fc.double()

    def then(self, z: Tensor) -> Tensor:
        return z.double()

    def last(self, logits: Tensor) -> Tensor:
        return logits.float()


class HalfBetween(Net):
    def then(self, z: Tensor) -> Tensor:
        return z.half().exp().float()


class DoubleAnswers(Net):
    def last(self, logits: Tensor) -> Tensor:
        return logits.double()


class DoubleFeature(Net):
    def more(self) -> None:
        self.cut = nn.Identity()

    def first(self, x: Tensor) -> Tensor:
        return self.cut(x.double()).float()


class Standardised(Net):
    """No answer to a black image, 0/0, but to every photo."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True))


class Probabilities(Net):
    def last(self, logits: Tensor) -> Tensor:
        return (3 * logits).softmax(1)


class DivisorAtTheClient(Net):
    """The ONNX converter of torch 2.13 leaves the divisor out."""

    def more(self) -> None:
        self.pool = nn.AvgPool2d(3, 1, 1, divisor_override=1)

    def first(self, x: Tensor) -> Tensor:
        return self.pool(x)


class DivisorAtTheServer(DivisorAtTheClient):
    def first(self, x: Tensor) -> Tensor:
        return x

    def then(self, z: Tensor) -> Tensor:
        return self.pool(z)


class NotInOnnx(Net):
    def more(self) -> None:
        self.pool, self.fc = nn.AdaptiveMaxPool2d(3), nn.Linear(72, 5)

    def then(self, z: Tensor) -> Tensor:
        return self.pool(z)
