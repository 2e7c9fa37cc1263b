"""A run is bound to its model: what comes back as another function is refused, with the size of the difference."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import made_nets as nets
import splitveil as sv
from splitveil.errors import ExportError, RankError, RunError
from splitveil.export.policies import check_profile
from splitveil.models import TOLERANCE, answers_differ_by, fixed_answers
from splitveil.obfuscate import Features, ServerAware, read_obfuscator, write_obfuscator
from splitveil.profiling import measure_profile
from splitveil.runs import Run, obfuscate_run

MODULE = """
import torch
import made_nets
SIGN, KEPT, CODE = 1.0, 1.0, "relu"
class Mine(made_nets.Net):
    def more(self):
        self.sign = torch.full((8, 1, 1), SIGN)
        self.register_buffer("kept", torch.full((8, 1, 1), KEPT), persistent=False)
    def then(self, z):
        return getattr(torch, CODE)(z * self.sign * self.kept)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a function, in a module named `bound_mine` that stays imported."""
    folder = tmp_path_factory.mktemp("bound")
    (folder / "bound_mine.py").write_text(MODULE)
    for index, image in enumerate(nets.made_images(30)):
        pixels = (image * 255).byte().permute(1, 2, 0).numpy()
        (folder / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
    sys.path.insert(0, str(folder))
    obfuscate_run(
        folder / "run", "bound_mine:Mine", at="mid", method="server-aware", m=3, images=folder / "images",
        classes=["crane", "crane", "maillot", "maillot", "owl"],
    )  # fmt: skip
    sys.path.remove(str(folder))
    return folder / "run"


def test_the_same_function_is_the_same_model(run: Path) -> None:
    opened = Run(run)
    assert opened.is_bound
    assert opened.model() is not None
    assert opened.manifest.answers == fixed_answers(opened.model(), nets.SHAPE)
    assert opened.manifest.classes == ("crane", "crane", "maillot", "maillot", "owl")


@pytest.mark.parametrize(("name", "value"), [("SIGN", -1.0), ("KEPT", 1.05), ("CODE", "tanh")])
def test_a_function_that_comes_back_different_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    monkeypatch.setattr(f"bound_mine.{name}", value)
    with pytest.raises(
        RunError, match=r"answers otherwise than when the run was made, by \d+\.\d% of the answers' range"
    ):
        Run(run).model()


def test_a_function_that_answers_no_more_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bound_mine.CODE", "nothing_of_torch")
    with pytest.raises(RunError, match=r"answers no more \(.*nothing_of_torch"):
        Run(run).model()


def test_runs_from_before_are_read_and_say_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads((run / "run.json").read_text())
    del content["answers"]
    old = run.with_name("old")
    old.mkdir()
    for path in run.iterdir():
        (old / path.name).write_bytes(path.read_bytes())
    (old / "run.json").write_text(json.dumps(content))
    monkeypatch.setattr("bound_mine.SIGN", -1.0)
    opened = Run(old, trust=True)
    assert not opened.is_bound
    assert opened.model() is not None


def test_a_profile_of_other_code_with_the_same_weights_is_refused() -> None:
    images, net = nets.made_images(), nets.Net()
    profile = measure_profile(net, images, cuts=["mid"], kept=[1], epsilons=(), codings=["float32"])
    check_profile(profile, net)
    net.then = torch.tanh  # type: ignore[method-assign]
    with pytest.raises(ExportError, match=r"same weights that answered otherwise, by \d+\.\d%"):
        check_profile(profile, net)
    facts = profile.model.model_copy(update={"answers": None})
    check_profile(profile.model_copy(update={"model": facts}), net)  # one from before cannot be checked


def test_noise_of_rounding_is_no_other_model() -> None:
    then = fixed_answers(nets.Net(), nets.SHAPE)
    assert then is not None
    reach = max(then) - min(then)
    assert answers_differ_by(then, [value + 0.5 * TOLERANCE * reach for value in then]) < TOLERANCE
    assert answers_differ_by(then, [then[0] + 2 * TOLERANCE * reach, *then[1:]]) > TOLERANCE
    assert answers_differ_by(then, None) == float("inf")


def test_many_classes_are_kept_in_few_numbers_and_each_counts() -> None:
    net = nets.Net()
    net.fc = torch.nn.Linear(512, 100)
    then = fixed_answers(net, nets.SHAPE)
    assert then is not None
    assert len(then) == 128
    with torch.no_grad():
        net.fc.bias[77] += 0.1
    assert answers_differ_by(then, fixed_answers(net, nets.SHAPE)) > TOLERANCE


def test_few_images_are_the_reason_and_not_the_server(tmp_path: Path) -> None:
    net = nets.Net()
    net.fc = torch.nn.Linear(512, 40)
    split = sv.SplitModel(net.eval(), at="fc")
    features = Features.of(split, nets.made_images(14))
    with pytest.raises(RankError) as caught:
        ServerAware.fit(split, features, m=60)
    assert "only" in str(caught.value)
    assert "14 images show" in str(caught.value)
    veil = ServerAware.fit(split, features, m=2)
    write_obfuscator(str(tmp_path / "veil.safetensors"), veil)  # a text for a path
    again = read_obfuscator(str(tmp_path / "veil.safetensors"))
    assert torch.equal(again.encode(torch.ones(1, 512)), veil.encode(torch.ones(1, 512)))
