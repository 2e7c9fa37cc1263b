"""A residual network of one's own for splitveil: trained here in minutes, saved with torch.export.

An image shows three handwritten digits. The service answers how far the first two are apart, 0 to 9; the third is
nobody's business. The answer is no sum of what the two digits tell one by one, so it takes more than a small head.

    python examples/own_residual_network.py --out own       # model.pt2, images/, classes.txt; minutes on one core
    splitveil obfuscate own/model.pt2 --split layer1 --images own/images --m 32 --classes own/classes.txt --out own/run
    python examples/own_residual_network.py --out own --check own/run

What is measured stands in own/report.json too.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

import splitveil as sv
from splitveil.cost import edge_cost
from splitveil.counting import multiply_accumulates
from splitveil.runs import Run
from splitveil.statistics import proportion

CUT, M = "layer1", 32
CLASSES, REPORT = 10, "report.json"
SIZES = {"train": 16_000, "unlabelled": 4_000, "test": 2_000}
WIDTHS = (0, M, 2 * M, 4 * M)  # of heads on the device; M units cost what an encoder to M numbers costs
EPOCHS, HEAD_EPOCHS, BATCH, RATE = 5, 20, 128, 4e-3


class Normalise(nn.Module):
    """Mean and deviation of the pixels, which belong into the model: splitveil gives it images in [0, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) of about zero mean and unit deviation."""
        return (x - 0.3) / 0.35


class Block(nn.Module):
    """Two 3×3 convolutions, and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features of half the height and width where the stride is 2."""
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResidualNet(nn.Module):
    """Four stages of two residual blocks, for grey images."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.stem = nn.Conv2d(1, width, 3, 2, 1)
        self.layer1 = nn.Sequential(Block(width, width), Block(width, width))
        self.layer2 = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width))
        self.layer3 = nn.Sequential(Block(2 * width, 4 * width, 2), Block(4 * width, 4 * width))
        self.layer4 = nn.Sequential(Block(4 * width, 8 * width), Block(8 * width, 8 * width))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(8 * width * 2 * 6, 128), nn.ReLU(), nn.Linear(128, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 10) of images (B, 1, 16, 48)."""
        return self.head(self.layer4(self.layer3(self.layer2(self.layer1(self.stem(self.normalise(x)))))))


def draw_images() -> dict[str, tuple[Tensor, Tensor]]:
    """Images (N, 1, 16, 48) in [0, 1] and their digits (N, 3), for each part; no picture of a digit is in two."""
    digits = load_digits()
    small = torch.tensor(digits.images / 16).float()[:, None]
    pictures = nn.functional.interpolate(small, scale_factor=2.0, mode="bilinear")
    random = torch.Generator().manual_seed(0)
    order = torch.randperm(len(pictures), generator=random)
    homes = dict(zip(SIZES, torch.tensor_split(order, (1000, 1400)), strict=True))
    parts = {}
    for name, count in SIZES.items():
        rows = homes[name][torch.randint(len(homes[name]), (count, 3), generator=random)]
        images = torch.cat([pictures[rows[:, place]] for place in range(3)], dim=3)
        parts[name] = images, torch.tensor(digits.target)[rows]
    return parts


def apart(digits: Tensor) -> Tensor:
    """How far the first two digits are apart."""
    return (digits[:, 0] - digits[:, 1]).abs()


def train(model: nn.Module, x: Tensor, y: Tensor, *, epochs: int, soft: Tensor | None = None) -> nn.Module:
    """Adam with one cycle of the rate; on ``soft`` probabilities beside the labels where they are given."""
    steps = epochs * -(-len(x) // BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=1e-2)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    for epoch in range(epochs):
        model.train()
        total = 0.0
        for rows in torch.split(torch.randperm(len(x)), BATCH):
            logits = model(x[rows])
            loss = nn.functional.cross_entropy(logits, y[rows])
            if soft is not None:
                loss = loss + nn.functional.cross_entropy(logits, soft[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rates.step()
            total += float(loss.detach())
        if soft is None:
            print(f"epoch {epoch + 1} of {epochs}: loss {total / len(x) * BATCH:.3f}", flush=True)
    return model.eval()


def note(file: Path, by: str, logits: Tensor, digits: Tensor, *, edge: int, after_cut: int | None) -> None:
    """Print, and keep in a file, how often answers are right, with Wilson's 95 % interval, and what they cost the edge.

    Args:
        file: JSON, an object for each way to answer.
        by: the way.
        logits, digits: (N, 10) and (N, 3).
        edge: multiply-accumulates on the edge, in all.
        after_cut: those after the cut.
    """
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    right = proportion((logits.argmax(1) == apart(digits)).numpy()).as_row()
    found[by] = {**right, "n": len(digits), "edge": edge, "after_cut": after_cut}
    file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"{by}: {right['value']:.1%} [{right['low']:.1%}, {right['high']:.1%}], {edge:,} on the edge", flush=True)


@torch.no_grad()
def in_batches(function: nn.Module, x: Tensor) -> Tensor:
    """What a module makes of many inputs."""
    return torch.cat([function(rows) for rows in torch.split(x, 500)])


def make(out: Path, epochs: int) -> None:
    """Train, save, and say what answering on the device would come to at the same cut."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # layers this small are slower on several cores, and many times where those are busy
    parts = draw_images()
    (x, digits), (x_test, digits_test) = parts["train"], parts["test"]
    model = train(ResidualNet(), x, apart(digits), epochs=epochs)
    save(out, model, parts["unlabelled"][0])
    split = sv.SplitModel(model, at=CUT)
    soft = in_batches(model, x).softmax(1)
    z, z_test = in_batches(split.client, x), in_batches(split.client, x_test)
    n = z[0].numel()
    edge, all_of_it = (multiply_accumulates(part, x[:1]) for part in (split.client, model))
    print(f"{all_of_it:,} multiply-accumulates, of which {edge:,} up to the input of {CUT}")
    report = out / REPORT
    report.unlink(missing_ok=True)
    note(report, "the whole network", in_batches(model, x_test), digits_test, edge=all_of_it, after_cut=None)
    for width in WIDTHS:
        inner = [nn.Linear(n, width), nn.ReLU(), nn.Linear(width, CLASSES)] if width else [nn.Linear(n, CLASSES)]
        head = nn.Sequential(nn.BatchNorm2d(z.shape[1]), nn.Flatten(), *inner)
        train(head, z, apart(digits), epochs=HEAD_EPOCHS, soft=soft)
        kind = f"a head with {width} hidden units" if width else "a linear head"
        adds = multiply_accumulates(head, z[:1])
        answers = in_batches(head, z_test)
        note(report, f"{kind} on the device", answers, digits_test, edge=edge + adds, after_cut=adds)


def save(out: Path, model: nn.Module, unlabelled: Tensor) -> None:
    """The three things that splitveil is given; no label is among them."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    batch = torch.export.Dim("batch")
    # Not images[:2]: the file would keep them, and all the images behind the slice.
    example = torch.zeros(2, *unlabelled.shape[1:])
    program = torch.export.export(model.eval(), (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, out / "model.pt2")
    for number, picture in enumerate((unlabelled[:, 0] * 255).round().byte()):
        Image.fromarray(picture.numpy()).save(out / "images" / f"{number:04}.png")
    (out / "classes.txt").write_text("".join(f"{count} apart\n" for count in range(CLASSES)), encoding="utf-8")


def check(out: Path, run: Path) -> None:
    """What a run answers on images that nothing was fitted to, from the bytes that are sent."""
    x, digits = draw_images()["test"]
    opened = Run(run)
    split, veil = opened.split(), opened.obfuscator()
    frames = sv.Client(split, veil).send(x)
    asked = opened.manifest.obfuscator
    how = veil.name if asked is None or asked.width is None else f"{veil.name} --width {asked.width}"
    count = veil.message.distinct
    sent = f"{veil.message.shape[0]} numbers" if count is None else f"one of {count} messages"
    print(f"{len(frames[0])} bytes a query")
    cost, answers = edge_cost(split, veil, x[:1]), sv.Server(split, veil).answer(frames)
    note(
        out / REPORT, f"{sent} to the server ({how})", answers, digits,
        edge=cost.client_macs + cost.encoder_macs, after_cut=cost.encoder_macs,
    )  # fmt: skip


def main() -> None:
    """Make the model, or check a run that was made from it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and the images")
    parser.add_argument("--check", type=Path, metavar="RUN", help="a folder that 'splitveil obfuscate' has written")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the training")
    given = parser.parse_args()
    try:
        if given.check is None:
            make(given.out, given.epochs)
        else:
            check(given.out, given.check)
    except (sv.SplitveilError, OSError, json.JSONDecodeError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
