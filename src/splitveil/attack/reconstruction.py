"""What a trained decoder recovers of the image from what was sent."""

import torch
from torch import Tensor, nn

from splitveil.attack.networks import standardised
from splitveil.attack.view import View


def reconstruct(train: View, images: Tensor, test: View, *, epochs: int = 20, seed: int = 0) -> Tensor:
    """Train a decoder from messages to images, and apply it.

    Args:
        train: messages of the adversary's own images.
        images: those images, (N, C, H, W) in [0, 1].
        test: messages to invert.
        epochs: passes over the training messages.
        seed: of the weights and of the order.

    Returns:
        Images of the test messages, (M, C, H, W) in [0, 1].
    """
    inputs = standardised(View.vectors, train)
    x = inputs(train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _decoder(x.shape[1], images[0].numel())
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(x)), 128):
                loss = nn.functional.mse_loss(net(x[rows]), images[rows].flatten(1))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            schedule.step()
    with torch.no_grad():
        return net.eval()(inputs(test)).reshape(len(test), *images.shape[1:])  # type: ignore[no-any-return]


def _decoder(inputs: int, pixels: int) -> nn.Module:
    """Layer normalisation instead of batch normalisation: a batch may be a single row."""
    return nn.Sequential(
        nn.Linear(inputs, 256), nn.ReLU(), nn.LayerNorm(256),
        nn.Linear(256, 512), nn.ReLU(), nn.LayerNorm(512),
        nn.Linear(512, pixels), nn.Sigmoid(),
    )  # fmt: skip
