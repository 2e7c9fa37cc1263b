"""The same test images by every path: what their answers must be, computed by torch in this process."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

import splitveil as sv
from made_bundles import made_model
from splitveil.bundle import from_frames, to_frames
from splitveil.client import EdgeClient, EdgeEncoder
from splitveil.codec import Coding
from splitveil.export import export

IMAGES = 24
# Of a logit, relative to the largest one: float32 in two frameworks.
TOLERANCE = 1e-5


class Truth:
    """An untrained network that was exported without loss: the uncut model is answered to rounding by float32 frames.

    Args:
        folder: for the bundles ``edge`` and ``server``.
        name: of the model.
        cut, m: as of `export`; without m all that the server's layer sees is sent.

    Attributes:
        lossless: whether all that the server's layer sees is sent.
        images: (B, C, H, W), float32 in [0, 1].
        uncut: logits (B, classes) of the uncut model.
        encoder: of the edge bundle, at the bundle's own number of components.
    """

    def __init__(self, folder: Path, *, name: str = "pairs", cut: int = 4, m: int | None = None) -> None:
        self.lossless = m is None
        data, model = sv.load_data("digit-pairs"), made_model()
        export(model, data, folder, cut=cut, method="free" if m is None else "top", m=m, name=name)
        self.edge, self.server = folder / "edge", folder / "server"
        self.images: np.ndarray[Any, Any] = data.test.images(slice(0, IMAGES)).numpy()
        self.encoder = EdgeEncoder(self.edge)
        self._split = sv.SplitModel(model, at=cut)
        with torch.no_grad():
            self.uncut = model(torch.from_numpy(self.images)).numpy()
            z = self._split.client(torch.from_numpy(self.images))
            factors = sv.factorise(self._split.server_layer, feature_shape=z.shape[1:], operator="patch", rank=m)
            self._veil = sv.DistortionFree(factors) if m is None else sv.TopComponents(factors, m=m)
            self.coefficients = self._veil.encode(z).numpy()

    def frames(self, coding: Coding) -> list[bytes]:
        """One frame per image."""
        messages = self.encoder.manifest.messages
        return to_frames(
            self.coefficients, messages, self.encoder.manifest.short_identity, m=messages.components, coding=coding
        )

    def cut(self, coding: Coding) -> np.ndarray[Any, Any]:
        """Logits of the cut model in this process, which reads frames of this coding."""
        return self.read(self.frames(coding))

    def read(self, frames: list[bytes]) -> np.ndarray[Any, Any]:
        """Logits of the cut model for what frames say."""
        manifest = self.encoder.manifest
        return self.answer(from_frames(frames, manifest.messages, manifest.short_identity))

    def answer(self, coefficients: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Logits of the cut model for coefficients."""
        with torch.no_grad():
            return self._split.answer(self._veil, torch.from_numpy(coefficients)).numpy()


def rows_of(frames: list[bytes]) -> np.ndarray[Any, Any]:
    """Frames of one length as the tensor ``frame``, uint8 (B, length)."""
    return np.stack([np.frombuffer(frame, np.uint8) for frame in frames])


def check_agree(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any], tolerance: float = TOLERANCE) -> None:
    """Logits agree within the tolerance, and so do the classes wherever the two best ones are further apart."""
    allowed = tolerance * float(np.abs(wanted).max())
    np.testing.assert_allclose(found, wanted, rtol=0, atol=allowed)
    ranked = np.sort(wanted, axis=1)
    sure = ranked[:, -1] - ranked[:, -2] > 2 * allowed
    assert sure.mean() > 0.5  # or the comparison says nothing
    np.testing.assert_array_equal(found.argmax(1)[sure], wanted.argmax(1)[sure])


def check_client(truth: Truth, url: str, coding: Coding, **more: Any) -> None:
    """What our own client gets for the images is what its frames say: the uncut answers where they lose nothing."""
    with EdgeClient(truth.edge, url, coding=coding, **more) as client:
        answers = client.answers(list(truth.images))
    found = np.stack([answer.logits for answer in answers])
    check_agree(found, truth.read([answer.frame for answer in answers]))
    assert [answer.index for answer in answers] == found.argmax(1).tolist()
    if coding == "float32" and truth.lossless:
        check_agree(found, truth.uncut)
