"""What a trained decoder recovers of the image from what was sent, and how alike the two are."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from splitveil.attack.networks import Training
from splitveil.attack.regression import regress
from splitveil.attack.view import View
from splitveil.errors import ShapeError


def reconstruct(
    train: View, images: Tensor, val: View, val_images: Tensor, test: View, *, epochs: int = 20, seed: int = 0
) -> Tensor:
    """Train decoders from messages to images, and apply the one with the least squared error on validation.

    One is linear (ridge regression), one a perceptron, see `regress`; both read the message as a vector.

    Args:
        train: messages of the adversary's own images.
        images: those images, (N, C, H, W) in [0, 1].
        val: more of them; the decoder, its penalty or epoch are chosen on these.
        val_images: their images.
        test: messages to invert.
        epochs: passes of the perceptron over the training messages at most.
        seed: of the weights and of the order.

    Returns:
        Images of the test messages, (M, C, H, W) in [0, 1].
    """
    training = Training(epochs=epochs, least_steps=1, learning_rate=2e-3, weight_decays=(), batch_size=128)
    decode = regress(train, images.flatten(1), val, val_images.flatten(1), training=training, seed=seed)
    return decode(test).clamp(0, 1).reshape(len(test), *images.shape[1:])


@dataclass(frozen=True, eq=False)
class Similarity:
    """How alike recovered images and true ones are.

    Attributes:
        ssim: structural similarity of each image, (N,); 1 for equal images.
        psnr: peak signal-to-noise ratio of each image in decibels, (N,); infinite for equal images.
    """

    ssim: Tensor
    psnr: Tensor


def similarity(found: Tensor, truth: Tensor) -> Similarity:
    """SSIM and PSNR per image, with a data range of 1.

    SSIM is the mean over channels and over windows of 7×7 pixels, or the largest odd window that fits.

    Args:
        found: images, (N, C, H, W) in [0, 1].
        truth: the images that they should be, of the same shape.

    Raises:
        ShapeError: the shapes differ, or the images have fewer than 3×3 pixels.
    """
    if found.shape != truth.shape or truth.dim() != 4:
        raise ShapeError(
            f"images of shape {tuple(found.shape)} cannot be compared with {tuple(truth.shape)}; give two N×C×H×W"
        )
    side = min(truth.shape[2:])
    if side < 3:
        raise ShapeError(f"images of {truth.shape[2]}×{truth.shape[3]} pixels are too small for SSIM; 3×3 are needed")
    window = min(7, side - 1 + side % 2)
    pairs = list(zip(found.numpy(), truth.numpy(), strict=True))
    alike, ratio = cast(Any, structural_similarity), cast(Any, peak_signal_noise_ratio)  # without annotations
    ssim = [alike(a, b, win_size=window, data_range=1.0, channel_axis=0) for a, b in pairs]
    with np.errstate(divide="ignore"):  # equal images
        psnr = [ratio(b, a, data_range=1.0) for a, b in pairs]
    return Similarity(torch.tensor(ssim, dtype=torch.float64), torch.tensor(psnr, dtype=torch.float64))


def mean_image(images: Tensor, count: int) -> Tensor:
    """The mean of the training images, ``count`` times: what is recovered from a message that says nothing."""
    return images.mean(0, keepdim=True).repeat(count, 1, 1, 1)
