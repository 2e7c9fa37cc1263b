"""Manifests and profiles: read or refused in one sentence; what is read says the same when it is written again."""

import json
import math
import random
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from splitveil.bundle import EdgeManifest, ServerManifest, identity_of
from splitveil.bundle.folder import _manifest
from splitveil.errors import BundleError
from splitveil.profile import Profile

from .bundles import COEFFICIENTS, FINITE
from .target import WORDS, Target, change_json

BUNDLE = Path(__file__).parents[1] / "bundle_of_0_1"
KINDS: tuple[type[Any], ...] = (EdgeManifest, ServerManifest, Profile)
KEYS = (
    *WORDS, "kind", "schema_version", "identity", "messages", "components", "positions", "codings", "scales", "levels",
    "certified", "files", "server.onnx", "edge.onnx", "profile.json", "manifest.json", "sha256", "0" * 64, "classes",
    "n_classes", "picture", "crop", "policy", "m", "coding", "name", "rows",
)  # fmt: skip


class Manifests(Target):
    """Manifests of both sides, and profiles. The first byte of a case says which."""

    def seeds(self) -> list[bytes]:
        edge, server = (json.loads((BUNDLE / side / "manifest.json").read_bytes()) for side in ("edge", "server"))
        profile = json.loads((BUNDLE / "edge" / "profile.json").read_bytes())
        profile["rows"] = profile["rows"][:2]
        found = [b"\0" + json.dumps(edge).encode(), b"\2" + json.dumps(profile).encode()]
        for messages, _ in (*COEFFICIENTS, *FINITE[:6]):
            graph = server["files"]["server.onnx"]["sha256"]
            facts = {"messages": messages.model_dump(mode="json"), "identity": identity_of(messages, graph)}
            policy = {**edge["policy"], "m": messages.components, "coding": messages.codings[0]}
            found.append(b"\0" + json.dumps({**edge, **facts, "policy": policy}).encode())
            found.append(b"\1" + json.dumps({**server, **facts}).encode())
        return found

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        first = data[:1] if rng.random() < 0.99 else bytes([rng.randrange(3)])
        return first + change_json(data[1:], rng, KEYS)

    def check(self, data: bytes) -> None:
        model, text = KINDS[data[0] % 3] if data else Profile, data[1:]
        try:
            found = model.model_validate_json(text) if model is Profile else _manifest(Path("made"), text, model)
        except ValidationError:
            assert model is Profile
            return
        except BundleError as error:
            assert "\n" not in str(error)
            return
        again = model.model_validate_json(found.model_dump_json())
        assert again == found
        if model is not Profile:
            _check_sense(found)


def _check_sense(manifest: Any) -> None:
    """What whoever reads a frame goes by."""
    messages = manifest.messages
    assert 1 <= messages.components < 2**16
    assert 1 <= math.prod(messages.positions) < 2**16
    assert all(math.isfinite(scale) and scale > 0 for row in messages.scales.values() for scale in row)
    assert all(len(row) == messages.components for row in messages.scales.values())
    assert all(math.isfinite(float(scale)) for coding in messages.scales for scale in messages.scale(coding))
    assert (messages.distinct is not None) == messages.certified
    assert all("/" not in name and "\\" not in name and name not in ("", ".", "..") for name in manifest.files)
    if isinstance(manifest, EdgeManifest):
        assert manifest.policy.coding in messages.codings
        assert messages.frame_bytes(manifest.policy.m, manifest.policy.coding) >= 16
    else:
        assert manifest.identity == identity_of(messages, manifest.files["server.onnx"].sha256)
