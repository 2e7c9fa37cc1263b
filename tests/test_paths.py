"""The same test images by every path give the same answers: uncut, cut in this process, and over REST and gRPC.

The paths by way of Triton and Ray lie in their own files, with the same helpers.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc
import tritonclient.http

import splitveil as sv
from made_bundles import made_model
from made_paths import TOLERANCE, Truth, check_agree, check_client, rows_of
from made_server import Server, serving
from made_veils import made_veil
from splitveil.bundle import from_frames
from splitveil.client import EdgeClient, EdgeEncoder
from splitveil.codec import CODINGS, Coding
from splitveil.export import export


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return Truth(tmp_path_factory.mktemp("paths"))


@pytest.fixture(scope="module")
def server(truth: Truth) -> Iterator[Server]:
    with serving(truth.server) as server:
        yield server


def test_the_cut_without_loss_answers_as_the_uncut_model(truth: Truth) -> None:
    check_agree(truth.cut("float32"), truth.uncut)
    # Integers cost something, but not the classes that the model is sure of.
    check_agree(truth.cut("int8"), truth.uncut, 0.1)


@pytest.mark.parametrize("coding", CODINGS)
def test_the_edge_graph_writes_the_frames_of_this_process(truth: Truth, coding: Coding) -> None:
    manifest = truth.encoder.manifest
    found, wanted = (
        from_frames(frames, manifest.messages, manifest.short_identity)
        for frames in (_encoded(truth, coding), truth.frames(coding))
    )
    step = 0.0 if coding == "float32" else manifest.messages.scale(coding)
    # Rounding may fall to the neighbouring integer where a coefficient lies half-way, and hardly ever does.
    assert (np.abs(found - wanted) <= step + TOLERANCE * np.abs(wanted).max()).all()
    assert (np.abs(found - wanted) > TOLERANCE * np.abs(wanted).max()).mean() < 0.001


@pytest.mark.parametrize("coding", CODINGS)
def test_rest_and_grpc_answer_as_the_cut_in_this_process(truth: Truth, server: Server, coding: Coding) -> None:
    rows = rows_of(truth.frames(coding))
    for module, address in ((tritonclient.http, server.host), (tritonclient.grpc, server.grpc)):
        tensor = module.InferInput("frame", list(rows.shape), "UINT8")
        tensor.set_data_from_numpy(rows)
        with module.InferenceServerClient(address) as client:
            found = client.infer("pairs", [tensor]).as_numpy("logits")
        check_agree(found, truth.cut(coding))
        if coding == "float32":
            check_agree(found, truth.uncut)


@pytest.mark.parametrize("coding", CODINGS)
def test_photos_through_our_client(truth: Truth, server: Server, coding: Coding) -> None:
    check_client(truth, server.rest, coding)


@pytest.mark.parametrize("kind", ["distilled", "quantised", "codebook"])
def test_a_fitted_obfuscator_answers_by_every_path(truth: Truth, tmp_path: Path, kind: str) -> None:
    data, split = sv.load_data("digit-pairs"), sv.SplitModel(made_model(), at=4)
    veil = made_veil(kind, split, data.train)
    messages = export(split.model, data, tmp_path, cut=4, obfuscator=veil, name="fitted").server.messages
    coding = "float32" if messages.levels is None else None
    with serving(tmp_path / "server") as server, EdgeClient(tmp_path / "edge", server.rest, coding=coding) as client:
        answers = client.answers(list(truth.images))
        found, frames = np.stack([answer.logits for answer in answers]), [answer.frame for answer in answers]
        for module, address in ((tritonclient.http, server.host), (tritonclient.grpc, server.grpc)):
            tensor = module.InferInput("frame", [len(frames), len(frames[0])], "UINT8")
            tensor.set_data_from_numpy(rows_of(frames))
            with module.InferenceServerClient(address) as other:
                check_agree(other.infer("fitted", [tensor]).as_numpy("logits"), found)
        sent = from_frames(frames, messages, client.encoder.manifest.short_identity)
    with torch.no_grad():
        wanted = veil.encode(split.client(torch.from_numpy(truth.images)))
        if messages.levels is not None:
            # Rounding may decide where a score lies at a boundary, and hardly ever does; the digits sent are answered.
            assert (sent == wanted.numpy()).mean() > 0.95
            wanted = torch.from_numpy(sent).long()
        check_agree(found, split.answer(veil, wanted).numpy())


def _encoded(truth: Truth, coding: Coding) -> list[bytes]:
    return EdgeEncoder(truth.edge, coding=coding).frames(list(truth.images))
