"""What crosses the wire: every measured message has been bytes before an adversary sees it."""

import torch
from torch import Tensor

from splitveil.attack import Public, View
from splitveil.data import Part
from splitveil.exchange import Client, Server
from splitveil.message import Obfuscator
from splitveil.split import SplitModel


def view(
    split: SplitModel,
    veil: Obfuscator,
    part: Part,
    *,
    rows: slice = slice(None),
    batch_size: int = 512,
    features: Tensor | None = None,
    own: bool = False,
    draws: int = 1,
    seed: int = 0,
) -> tuple[View, Tensor, Tensor]:
    """What crosses the wire for a part or some rows of it.

    Args:
        split: the model, cut.
        veil: what obfuscates at the cut.
        part: the images.
        rows: which of them.
        batch_size: images at once.
        features: what the client's half makes of these rows (N, *feature), where it is known already.
        own: whether these are the adversary's own samples, so that it has their raw features.
        draws: messages per image, one pass over all images after the other; for obfuscators that draw noise.
        seed: of that noise.

    Returns:
        The view (draws·N messages), the server's logits (draws·N, K), and the bytes of each frame (draws·N,).
    """
    client, server = Client(split, veil), Server(split, veil)
    sent, kept, answers, sizes, raw = [], [], [], [], []
    indices = torch.arange(len(part))[rows]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for batch in torch.split(torch.arange(len(indices)).repeat(draws), batch_size):
            z = split.client(part.images(indices[batch]).to(split.device)) if features is None else features[batch]
            frames = client.send_features(z.to(split.device))
            messages, lengths = server.read(frames)
            sent.append(messages)
            kept.append(lengths)
            answers.append(server.answer(frames).cpu())
            sizes += [len(frame) for frame in frames]
            raw += [z.cpu()] if own and (features is None or draws > 1) else []
    # The caller's own tensor where it is complete: attacks may see that several views are of the same features.
    known = features if draws == 1 else None
    own_features = (torch.cat(raw) if known is None else known) if own else None
    seen = View(torch.cat(sent), torch.cat(kept), Public(split, veil), own_features)
    return seen, torch.cat(answers), torch.tensor(sizes)
