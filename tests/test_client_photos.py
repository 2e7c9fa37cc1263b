"""What a client takes for a photo, generators that are read as they are sent, and what an error says of the rest."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

import splitveil as sv
from made_bundles import made_finite_bundle
from made_servers import Answering
from splitveil.client import Answer, EdgeClient, EdgeEncoder, Patience
from splitveil.errors import BudgetSpentError, DataError, RemoteError

URL = "https://server.example"


@pytest.fixture(scope="module")
def finite(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles of eight different messages: three bits each."""
    return made_finite_bundle(tmp_path_factory.mktemp("finite") / "bundle", exported, (4, 2))


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1, 16, 32), np.uint8)


def test_every_way_to_give_a_photo_makes_the_same_frame(exported: Path, pixels: np.ndarray, tmp_path: Path) -> None:
    encoder = EdgeEncoder(exported)  # the folder above "edge"
    file = tmp_path / "a.png"
    picture = Image.fromarray(pixels[0])
    picture.save(file)
    content = file.read_bytes()
    share = pixels.astype(np.float32) / np.float32(255)
    ways = [
        file, str(file), content, bytearray(content), memoryview(content), picture, picture.convert("RGB"),
        Image.open(file), pixels, share, torch.from_numpy(pixels), torch.from_numpy(share).requires_grad_(),
    ]  # fmt: skip
    want = encoder.frames([pixels])
    for way in ways:
        assert encoder.frames([way]) == want, type(way)
    assert encoder.frames(iter(ways)) == want * len(ways)
    turned = Image.fromarray(pixels[0].T[::-1])
    turned.getexif()[274] = 6
    assert encoder.frames([turned]) == want  # upright


@pytest.mark.parametrize(
    "photo", [b"", b"nonsense", None, 5, object(), torch.zeros(1, 16, 32).bfloat16(), Image.new("F", (9, 9))],
    ids=lambda photo: type(photo).__name__,
)  # fmt: skip
def test_what_is_no_photo_is_one_sentence(exported: Path, photo: Any) -> None:
    with pytest.raises(DataError):
        EdgeEncoder(exported / "edge").frames([photo])


@pytest.mark.parametrize("photos", ["a.png", b"x", Path("a.png"), Image.new("L", (9, 9)), None, 5])
def test_one_photo_is_no_list(exported: Path, photos: Any) -> None:
    with pytest.raises(DataError, match="photos come as a list"):
        EdgeEncoder(exported / "edge").frames(photos)


def test_a_generator_is_read_as_it_is_sent(exported: Path, pixels: np.ndarray) -> None:
    server, read = Answering(exported / "server"), 0
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            seen.append(read)
        return server(request)

    def photos() -> Iterator[np.ndarray]:
        nonlocal read
        for _ in range(70):
            read += 1
            yield pixels

    with EdgeClient(exported / "edge", URL, transport=httpx.MockTransport(handler)) as client:
        assert len(client.answers(photos())) == 70
        assert client.answers(iter(())) == []
    assert seen == [32, 64, 70]


def test_an_error_halfway_says_what_was_answered_and_debited(finite: Path, pixels: np.ndarray, tmp_path: Path) -> None:
    server = Answering(finite / "server")
    budget = sv.Budget(tmp_path / "ledger", limit_bits=3 * 70)
    with EdgeClient(
        finite / "edge", URL, transport=httpx.MockTransport(server), budget=budget, patience=Patience(retries=0)
    ) as client:
        with pytest.raises(BudgetSpentError, match="64 photos were answered before") as spent:
            client.answers((pixels for _ in range(100)), subject="anna")
        found: list[Answer] = vars(spent.value)["answers"]
        assert len(found) == 64
        assert budget.spent("anna") == 3 * 64
        server.next = [None, httpx.Response(503)]
        with pytest.raises(RemoteError, match="32 photos stay debited; 32 photos were answered before") as gone:
            client.answers([pixels] * 64, subject="bert")
        assert len(vars(gone.value)["answers"]) == 32
        assert budget.spent("bert") == 3 * 64

        def broken() -> Iterator[np.ndarray]:
            yield from [pixels] * 40
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine") as own:
            client.answers(broken(), subject="cara")
        assert own.value.__notes__ == ["32 photos were answered before, see the error's attribute 'answers'"]
        assert len(vars(own.value)["answers"]) == 32
        assert budget.spent("cara") == 3 * 32
