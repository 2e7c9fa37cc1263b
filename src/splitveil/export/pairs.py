"""The two graphs, run on real images against torch, before anything is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from splitveil.bundle import Graph, Messages, from_frames, to_frames
from splitveil.codec import FrameCoding
from splitveil.errors import BundleError, ExportError, GraphError
from splitveil.export.graphs import Converted
from splitveil.export.halves import Veil
from splitveil.export.places import failing, first_difference, fixing
from splitveil.models import logarithm
from splitveil.obfuscate import Tables
from splitveil.soundness import BATCH, Rows, check_rows, share_of
from splitveil.soundness.rows import apart, span
from splitveil.split import SplitModel

BATCHES = (1, 2, 64)
"""Lengths that the graphs are run at: one photo, two, and `Settings.max_batch` of a server by default."""
TOLERANCE = 1e-4
"""Share of the range of all messages, or of all logits, by which ONNX Runtime may differ from torch: it adds in
another order and fuses operations, which changes some 1e-6 of the range, and 1e-5 in deep networks. Codes of integers
are therefore the same but where a coefficient lies as close as that to the middle between two, and labels but where
the two largest logits do."""
_IDENTITY = bytes(4)

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Pair:
    """Both halves in torch and as graphs.

    Attributes:
        split, veil: what is exported.
        probabilities: whether the model ends in a softmax, after which the graph takes the logarithm.
        messages: how they are written.
        edge, server: the halves and what they were converted to.
        encoder, answerer: the graphs, loaded as a device and a server load them.
    """

    split: SplitModel
    veil: Veil
    probabilities: bool
    messages: Messages
    edge: Converted
    server: Converted
    encoder: Graph
    answerer: Graph

    @classmethod
    def of(
        cls, split: SplitModel, veil: Veil, probabilities: bool, messages: Messages, edge: Converted,
        server: Converted, *, image: Sequence[int], classes: int,
    ) -> "Pair":  # fmt: skip
        """The graphs, loaded; raises `ExportError` where they cannot be."""
        inside = (messages.components, *messages.positions)
        loaded = _loaded("edge", edge, image, inside), _loaded("server", server, inside, (classes,))
        return cls(split, veil, probabilities, messages, edge, server, *loaded)

    def labels(self, images: Tensor, m: int, coding: FrameCoding) -> Tensor:
        """Answers (N,) to images (N, C, H, W), as a client gets them: each message travels as a frame."""
        found = []
        for batch in torch.split(images, BATCHES[-1]):
            frames = to_frames(self.encoder.run(batch.numpy()), self.messages, _IDENTITY, m=m, coding=coding)
            found.append(self.answerer.run(from_frames(frames, self.messages, _IDENTITY)).argmax(1))
        return torch.from_numpy(np.concatenate(found))


@torch.no_grad()
def check_pair(pair: Pair, images: Tensor) -> None:
    """See that both graphs give what torch gives, for batches of all lengths, and each row by itself.

    Args:
        pair: the graphs.
        images: real ones, as many as the longest batch has, (64, C, H, W).

    Raises:
        ExportError: naming the graph, the operation where it is found, and the size of the difference.
    """
    split, device = pair.split, pair.split.device
    z = split.client(images.to(device, copy=True))  # a copy, as a model may work in place
    sent = pair.veil.encode(z.clone())
    answers = split.answer(pair.veil, sent.clone()).cpu()
    messages, logits = sent.cpu().float(), logarithm(answers) if pair.probabilities else answers
    doubtful = _doubtful(pair.veil, z, sent).cpu()
    _compare("edge", pair.edge, pair.encoder, images, torch.where(doubtful, torch.nan, messages))
    _compare("server", pair.server, pair.answerer, messages, logits)
    few = slice(0, BATCH)
    _check_rows("edge", pair.encoder, Rows.of(images[few], images.flip(0)[few]))
    _check_rows("server", pair.answerer, Rows.of(messages[few], messages.flip(0)[few]))


def _compare(side: str, half: Converted, graph: Graph, inputs: Tensor, expected: Tensor) -> None:
    """One graph against torch, at every length; where torch has no number nothing is compared."""
    what = "messages" if side == "edge" else "logits"
    for length in BATCHES:
        found, wanted = _run(side, half, graph, inputs[:length]), expected[:length]
        gap = apart(wanted, torch.where(wanted.isnan(), wanted, found), span(expected))
        if not gap <= TOLERANCE:
            place = first_difference(half, inputs[:length])
            where = "" if place is None else f", from {place} on"
            raise ExportError(
                f"the exported {side} graph gives other {what} than torch{where}: they differ by {share_of(gap)} of "
                f"the {what}' range for {length} at once; torch's exporter does not carry all of it over, so replace "
                "the operation in the model, or cut elsewhere"
            )


def _run(side: str, half: Converted, graph: Graph, inputs: Tensor) -> Tensor:
    """Outputs of a graph for so many rows; raises `ExportError` where it does not take them."""
    error, found = None, None
    try:
        found = torch.from_numpy(graph.run(inputs.numpy()))
    except Exception as caught:  # ONNX Runtime raises classes of its own that share no base
        error = caught
    if found is not None and len(found) == len(inputs):
        return found
    takes = [str(length) for length in (1, 2, 3, 4, BATCHES[-1]) if _takes(graph, inputs, length)]
    return _refuse_length(side, takes, None if error is None else failing(half, error))


def _takes(graph: Graph, inputs: Tensor, length: int) -> bool:
    try:
        return len(graph.run(inputs[torch.arange(length) % len(inputs)].numpy())) == length
    except Exception:  # as above
        return False


def _doubtful(veil: Veil, z: Tensor, sent: Tensor) -> Tensor:
    """Digits that change where the feature changes by what is tolerated: which value they have says nothing."""
    changed = torch.zeros_like(sent, dtype=torch.bool)
    if isinstance(veil, Tables):
        generator = torch.Generator().manual_seed(0)
        for _ in range(8):
            signs = torch.randint(0, 2, z.shape, generator=generator).to(z) * 2 - 1
            for step in (signs, -signs):
                changed |= veil.encode(z + TOLERANCE * span(z) * step) != sent
    return changed


def _check_rows(side: str, graph: Graph, rows: Rows) -> None:
    _, found = check_rows(lambda x: torch.from_numpy(graph.run(x.numpy())), rows)
    if found is not None:
        raise ExportError(
            f"the exported {side} graph gives other values {found.when}, by {share_of(found.size)} of their range; "
            "torch's exporter mixes the rows of a batch, so cut elsewhere"
        )


def _loaded(side: str, half: Converted, inside: Sequence[int], outside: Sequence[int]) -> Graph:
    if length := half.program.model_proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value:
        _refuse_length(side, [str(length)], fixing(half))
    try:
        return Graph(half.content, inside, outside)
    except GraphError as error:
        raise ExportError(
            f"a bundle may not hold the exported {side} graph ({error.reason}); cut elsewhere, or use other layers"
        ) from error
    except BundleError as error:
        raise ExportError(f"the exported {side} graph is of no use ({error}); cut elsewhere") from error


def _refuse_length(side: str, takes: Sequence[str], place: str | None) -> NoReturn:
    only = f"takes batches of {' or '.join(takes)} alone" if takes else "does not run at all"
    where = "" if place is None else f" at {place}"
    raise ExportError(
        f"the exported {side} graph {only}: torch's exporter has fixed the length of a batch{where}; replace this "
        "operation in the model, or cut elsewhere"
    )
