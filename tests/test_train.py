"""Training: it learns, never looks at what is hidden, and goes on after any interruption as if nothing had been."""

import errno
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import splitveil as sv
from splitveil import tensors as tensor_files
from splitveil.data import Part
from splitveil.errors import DataError, ModelError, RecipeError, RunError, TrainingError
from splitveil.train import CHECKPOINT, Epoch, accuracy, fastest_precision, loop, precision, predict, products
from splitveil.train.checkpoint import State
from splitveil.train.ingredients import decov

SHORT = sv.Recipe(epochs=4, batch_size=32)
PAPER = sv.Recipe(epochs=4, batch_size=32, removal=0.5, decov=0.1, variational=0.1)


class PowerCutError(Exception):
    """Training stops here."""


@pytest.fixture(scope="module")
def data() -> sv.Dataset:
    """400 images 1×8×8: the brighter half, left or right, is the target; hidden is whether the top is bright too."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(400, 1, 8, 8, generator=generator) * 0.6
    y, hidden = (torch.randint(0, 2, (400,), generator=generator) for _ in range(2))
    x[:, :, :, :4] += 0.4 * (1 - y).reshape(-1, 1, 1, 1)
    x[:, :, :, 4:] += 0.4 * y.reshape(-1, 1, 1, 1)
    x[:, :, :4] *= (0.5 + 0.5 * hidden).reshape(-1, 1, 1, 1)
    return sv.Dataset.from_arrays(x, y, {"top": hidden})


def network(seed: int = 0) -> sv.Table1Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return sv.Table1Net((1, 8, 8), 2)


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for (name, left), right in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0, msg=name)


def stop_after(epochs: int) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, text: str) -> None:
        assert total == SHORT.epochs
        assert "validation" in text
        if done == epochs:
            raise PowerCutError

    return progress


@pytest.mark.parametrize("settings", [{}, {"precision": "bfloat16"}, {"removal": 0.5, "variational": 0.01}])
def test_training_learns(data: sv.Dataset, settings: dict[str, Any]) -> None:
    model = network()
    before = accuracy(model, data.val)
    # The test part has no say: here it is all wrong.
    wrong = replace(data, test=replace(data.test, y=1 - data.test.y))
    history = sv.fit(model, wrong, sv.Recipe(epochs=8, batch_size=32, **settings))
    assert before < 0.8
    assert history[-1].val_accuracy > 0.95
    assert history[-1].loss < history[0].loss / 2
    assert accuracy(model, data.test) > 0.95
    assert history[-1].val_accuracy == (predict(model, data.val).argmax(1) == data.val.y).double().mean().item()
    assert not model.training


def test_the_loss_is_the_mean_over_images_of_answers_and_penalties(data: sv.Dataset) -> None:
    x, y = data.train.x, data.train.y
    # One step, at which the feature at cut 2 is shaped.
    model, untouched = network(), network()
    (epoch,) = sv.fit(model, data, sv.Recipe(epochs=1, batch_size=len(x), decov=50.0))
    shaped = 50 * decov(untouched.layer1(x).flatten(1)).item()
    plain = nn.functional.cross_entropy(untouched(x), y).item()
    assert epoch.loss == pytest.approx(plain + shaped, rel=1e-4)
    assert shaped > plain / 10
    # Two batches of unequal size, and no learning to speak of.
    watcher = Watcher()
    plain = nn.functional.cross_entropy(watcher(x), y).item()
    (epoch,) = sv.fit(watcher, data, sv.Recipe(epochs=1, batch_size=len(x) - 40, learning_rate=1e-12))
    assert epoch.loss == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_ingredients_take_turns_over_all_steps_and_their_heads_learn(
    data: sv.Dataset, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    model, step = network(), loop.Ingredients.step
    numbers, dtypes, added = list[int](), set[tuple[bool, torch.dtype]](), list[loop.Ingredients]()

    @contextmanager
    def logged(self: loop.Ingredients, number: int, rows: Tensor) -> Iterator[list[Tensor]]:
        with step(self, number, rows) as penalties:
            yield penalties
        numbers.append(number)
        added.append(self)
        assert len(penalties) == 1  # the forward pass has been within

    monkeypatch.setattr(loop.Ingredients, "step", logged)
    model.layer6.register_forward_hook(lambda layer, _, y: dtypes.add((layer.training, y.dtype)))
    sv.fit(model, data, sv.Recipe(epochs=2, batch_size=32, precision=precision, variational=1.0))
    assert numbers == list(range(18))
    assert dtypes == {(True, getattr(torch, precision)), (False, torch.float32)}
    for head in added[0].heads:
        assert head.weight.abs().max() > 0
        assert (head.bias + 4).abs().max() > 0


class Watched:
    """An addition that asks one parameter to grow, and remembers which images came with which rows."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.heads = model, nn.ModuleList([nn.Linear(1, 1)])
        self.seen: list[tuple[int, Tensor, Tensor]] = []

    @contextmanager
    def step(self, number: int, rows: Tensor) -> Iterator[list[Tensor]]:
        penalties: list[Tensor] = []
        with self.model.register_forward_pre_hook(lambda _, inputs: self.seen.append((number, rows, inputs[0]))):
            yield penalties
        penalties.append(7 - self.heads[0].bias.sum())  # after the forward pass, before the gradient


@pytest.mark.parametrize("removal", [0.0, 0.5])
def test_an_addition_knows_the_rows_of_every_batch_and_its_penalties_and_heads_count(
    data: sv.Dataset, removal: float
) -> None:
    model = network()
    watched = Watched(model)
    before = watched.heads[0].bias.item()
    recipe = replace(SHORT, epochs=2, removal=removal)
    history = sv.fit(model, replace(data, mirror=True), recipe, addition=watched)
    assert [number for number, _, _ in watched.seen] == list(range(18))
    mirrored = 0
    for _, rows, x in watched.seen:
        for row, image in zip(data.train.images(rows), x, strict=True):
            mirrored += not torch.equal(row, image)
            assert torch.equal(row, image) or torch.equal(row.flip(2), image)
    assert 0.4 < mirrored / (2 * len(data.train)) < 0.6
    assert watched.heads[0].bias.item() > before + 0.005
    plain = network()
    alone = sv.fit(plain, replace(data, mirror=True), recipe)
    assert history[0].loss == pytest.approx(alone[0].loss + 7 - before, abs=0.02)
    assert_same(model, plain)


def test_an_addition_has_no_checkpoints(data: sv.Dataset, tmp_path: Path) -> None:
    model = network()
    with pytest.raises(TrainingError, match="with an addition keeps no checkpoints; leave out the folder"):
        sv.fit(model, data, SHORT, out=tmp_path, addition=Watched(model))
    assert not list(tmp_path.iterdir())


def test_every_step_of_every_seed_has_randomness_of_its_own(data: sv.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []

    def loss(model: nn.Module, x: Tensor, y: Tensor, recipe: sv.Recipe) -> Tensor:
        drawn.append(torch.rand(()).item())
        return original(model, x, y, recipe)

    original = loop._loss
    monkeypatch.setattr(loop, "_loss", loss)
    for seed in (0, 1):
        sv.fit(network(), data, replace(SHORT, epochs=2, seed=seed))
    assert len(set(drawn)) == len(drawn) == 36


def test_hidden_attributes_change_nothing(data: sv.Dataset) -> None:
    garbage = [replace(p, hidden={"top": torch.arange(len(p)) % 2}) for p in data.parts.values()]
    spoilt = replace(data, train=garbage[0], val=garbage[1], test=garbage[2])
    models = []
    for shown in (data, data.without_hidden(), spoilt):
        models.append(network())
        sv.fit(models[-1], shown, SHORT)
    assert_same(models[0], models[1])
    assert_same(models[0], models[2])


def test_hidden_attributes_are_not_even_read(data: sv.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = data.digest  # names the data, hidden attributes included
    parts = {name: Part(part.pixels, part.y) for name, part in data.parts.items()}
    for part in parts.values():
        object.__delattr__(part, "hidden")
    monkeypatch.setattr(sv.Dataset, "__post_init__", lambda _: None)
    blind = replace(data, **parts)
    monkeypatch.setattr(sv.Dataset, "digest", digest)
    sv.fit(network(), blind, sv.Recipe(epochs=1))
    with pytest.raises(AttributeError):
        _ = blind.train.hidden


def test_the_seed_decides_the_order_and_the_callers_generator_is_left_alone(data: sv.Dataset) -> None:
    once, again, other = network(), network(), network()
    state = torch.get_rng_state()
    sv.fit(once, data, SHORT)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(7)
    sv.fit(again, data, SHORT)
    sv.fit(other, data, replace(SHORT, seed=1))
    assert_same(once, again)
    with pytest.raises(AssertionError):
        assert_same(once, other)


@pytest.mark.parametrize("epochs", [1, 3, 4])
@pytest.mark.parametrize("recipe", [SHORT, PAPER, replace(PAPER, precision="bfloat16")], ids=["plain", "paper", "bf16"])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    data: sv.Dataset, tmp_path: Path, epochs: int, recipe: sv.Recipe
) -> None:
    whole = network()
    expected = sv.fit(whole, data, recipe)
    with pytest.raises(PowerCutError):
        sv.fit(network(), data, recipe, out=tmp_path, progress=stop_after(epochs))
    resumed, reports = network(), []
    history = sv.fit(resumed, data, recipe, out=tmp_path, progress=lambda done, *_: reports.append(done))
    assert history == expected
    assert reports == list(range(epochs + 1, 5))
    assert_same(whole, resumed)
    assert not resumed.training
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


def test_an_interruption_within_an_epoch_loses_that_epoch_alone(
    data: sv.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, steps = network(), itertools.count()
    sv.fit(whole, data, SHORT)

    def images(part: Part, rows: Tensor) -> Tensor:
        if next(steps) == 25:
            raise KeyboardInterrupt
        return original(part, rows)

    original = Part.images
    monkeypatch.setattr(Part, "images", images)
    with pytest.raises(KeyboardInterrupt):
        sv.fit(network(), data, SHORT, out=tmp_path)
    monkeypatch.undo()
    resumed = network()
    sv.fit(resumed, data, SHORT, out=tmp_path)
    assert_same(whole, resumed)


class Noisy(nn.Module):
    """Dropout, and two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.head, self.drop = nn.Linear(64, 2), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(torch.relu(self.second(torch.relu(self.first(x.flatten(1)))))))


def test_dropout_and_tied_weights_go_on_as_well(data: sv.Dataset, tmp_path: Path) -> None:
    def noisy() -> Noisy:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Noisy()

    whole, resumed = noisy(), noisy()
    sv.fit(whole, data, SHORT)
    with pytest.raises(PowerCutError):
        sv.fit(noisy(), data, SHORT, out=tmp_path, progress=stop_after(2))
    torch.rand(3)
    sv.fit(resumed, data, SHORT, out=tmp_path)
    assert_same(whole, resumed)


class Spoilt(nn.Module):
    """A network whose logits become NaN, or whose gradient becomes infinite, at one training step."""

    def __init__(self, at: int, *, gradient: bool) -> None:
        super().__init__()
        self.net, self.at, self.gradient, self.calls = network(), at, gradient, 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        self.calls += self.training
        if self.training and self.calls == self.at:
            if not self.gradient:
                return y * torch.nan
            y.register_hook(lambda g: g * torch.inf)
        return y


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (lambda: Spoilt(21, gradient=False), r"the loss became infinite or NaN in epoch 3, step 3;"),
        # The last step of epoch 2: no loss ever sees it.
        (lambda: Spoilt(18, gradient=True), r"the weights became infinite or NaN in epoch 2, step 9;"),
    ],
    ids=["loss", "weights"],
)
def test_training_that_explodes_stops_and_keeps_the_last_good_checkpoint(
    data: sv.Dataset, tmp_path: Path, model: Callable[[], nn.Module], sentence: str
) -> None:
    assert len(data.train) // 32 + (len(data.train) % 32 > 1) == 9
    with pytest.raises(TrainingError, match=sentence):
        sv.fit(model(), data, SHORT, out=tmp_path)
    tensors, facts = tensor_files.read_tensors(tmp_path / CHECKPOINT)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert len(facts["history"]) == (2 if "loss" in sentence else 1)


def test_a_full_disk_keeps_the_last_good_checkpoint(
    data: sv.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves = itertools.count(1)

    def save_file(tensors: dict[str, Tensor], path: str, metadata: dict[str, str]) -> None:
        if next(saves) == 3:
            Path(path).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(tensors, path, metadata)

    original = tensor_files.save_file
    monkeypatch.setattr(tensor_files, "save_file", save_file)
    with pytest.raises(RunError, match=r"No space left on device.*free space"):
        sv.fit(network(), data, SHORT, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    whole, resumed = network(), network()
    sv.fit(whole, data, SHORT)
    assert len(sv.fit(resumed, data, SHORT, out=tmp_path)) == 4
    assert_same(whole, resumed)


def test_an_interruption_while_saving_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save_file(_tensors: dict[str, Tensor], path: str, _metadata: dict[str, str]) -> None:
        Path(path).write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(tensor_files, "save_file", save_file)
    with pytest.raises(KeyboardInterrupt):
        tensor_files.write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(2)}, {})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def stopped(data: sv.Dataset, tmp_path: Path) -> Path:
    """A checkpoint after one epoch."""
    with pytest.raises(PowerCutError):
        sv.fit(network(), data, SHORT, out=tmp_path, progress=stop_after(1))
    return tmp_path / CHECKPOINT


def assert_refused(data: sv.Dataset, path: Path, sentence: str, recipe: sv.Recipe = SHORT, wide: bool = False) -> None:
    content = path.read_bytes()
    model = network()
    if wide:
        model.layer5[0] = nn.Linear(128, 80)
        model.layer5[2], model.layer6 = nn.BatchNorm1d(80), nn.Linear(80, 2)
    with pytest.raises(RunError, match=sentence):
        sv.fit(model, data, recipe, out=path.parent)
    assert path.read_bytes() == content
    assert [other.name for other in path.parent.iterdir()] == [CHECKPOINT]


def test_a_checkpoint_of_something_else_is_refused_and_left_alone(data: sv.Dataset, stopped: Path) -> None:
    assert_refused(data, stopped, "another data set or recipe", replace(SHORT, seed=1))
    assert_refused(data, stopped, "another data set or recipe", replace(SHORT, epochs=5))
    assert_refused(data.without_hidden(), stopped, "another data set or recipe")
    assert_refused(data, stopped, "another data set or recipe", replace(SHORT, removal=0.5))
    assert_refused(data, stopped, "another model", wide=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:100],
        lambda _: b"",
        lambda _: bytes(range(256)) * 50,
        lambda _: b"\xff" * 8 + b"{}",
        lambda content: content.replace(b'"splitveil"', b'"splitvail"'),
        lambda content: content.replace(b"history", b"hostile"),
    ],
    ids=["one byte short", "header only", "empty", "noise", "huge header", "not ours", "other facts"],
)
def test_a_damaged_checkpoint_is_refused_and_left_alone(
    data: sv.Dataset, stopped: Path, damage: Callable[[bytes], bytes]
) -> None:
    damaged = damage(stopped.read_bytes())
    assert damaged != stopped.read_bytes()
    stopped.write_bytes(damaged)
    assert_refused(data, stopped, "is damaged or not a file of splitveil|is not a checkpoint of this version")


@pytest.mark.parametrize("place", ["file/x", "x" * 300])
def test_a_folder_that_cannot_be_written_is_a_run_error(data: sv.Dataset, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"cannot be (written|looked up) \(.*choose another folder"):
        sv.fit(network(), data, sv.Recipe(epochs=1), out=tmp_path / place)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"epoch": 3}, "no setting 'epoch'; it has: epochs, seed, batch_size, learning_rate, flip, precision, removal"),
        ({"epochs": 0}, "epochs must be a whole number from 1"),
        ({"epochs": 2.0}, "epochs must be a whole number"),
        ({"epochs": "2"}, "epochs must be a whole number .* not '2'"),
        ({"epochs": True}, "epochs must be a whole number .* not True"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"seed": 2**32}, "seed must be a whole number from 0 to 4294967295"),
        ({"batch_size": 1}, "batch_size must be a whole number from 2"),
        ({"batch_size": None}, "batch_size must be a whole number"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number"),
        ({"learning_rate": float("nan")}, "learning_rate must be a positive number, not nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be a positive number, not inf"),
        ({"learning_rate": "1e-3"}, "learning_rate must be a positive number"),
        ({"learning_rate": True}, "learning_rate must be a positive number"),
        ({"flip": 1}, "flip must be True or False, not 1"),
        ({"precision": "float16"}, "precision must be float32 or bfloat16, not 'float16'"),
        ({"removal": 1.1}, "removal must be a share from 0 to 1, not 1.1"),
        ({"removal": True}, "removal must be a share from 0 to 1, not True"),
        ({"decov": -0.1}, "decov must be a number of at least 0, not -0.1"),
        ({"variational": float("nan")}, "variational must be a number of at least 0, not nan"),
        ({"variational": float("inf")}, "variational must be a number of at least 0, not inf"),
    ],
)
def test_an_impossible_recipe_is_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        sv.Recipe.from_mapping(settings)


def test_the_largest_seed_trains(data: sv.Dataset) -> None:
    assert len(sv.fit(network(), data, sv.Recipe(epochs=1, seed=2**32 - 1))) == 1


@pytest.mark.parametrize(("epochs", "drops"), [(50, (20, 40)), (10, (4, 8)), (5, (2, 4)), (2, (1,)), (1, ())])
def test_the_rate_drops_tenfold_after_two_and_four_fifths(
    data: sv.Dataset, monkeypatch: pytest.MonkeyPatch, epochs: int, drops: tuple[int, ...]
) -> None:
    rates: list[float] = []

    def epoch(state: State, *_: object) -> float:
        rates.append(state.optimizer.param_groups[0]["lr"])
        return 0.0

    monkeypatch.setattr(loop, "_train_epoch", epoch)
    sv.fit(network(), data, sv.Recipe(epochs=epochs, learning_rate=0.5))
    assert rates == pytest.approx([0.5 / 10 ** sum(number >= drop for drop in drops) for number in range(epochs)])


class Watcher(nn.Module):
    """Remembers the training images that it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.seen = nn.Linear(64, 2), []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(x.clone())
        return self.head(x.flatten(1))


@pytest.mark.parametrize(("mirror", "flip"), list(itertools.product([True, False], repeat=2)))
def test_images_are_mirrored_only_where_the_data_allows_it(data: sv.Dataset, mirror: bool, flip: bool) -> None:
    model = Watcher()
    sv.fit(model, replace(data, mirror=mirror), sv.Recipe(epochs=1, flip=flip))
    originals = {image.numpy().tobytes() for image in data.train.x}
    mirrored = {image.numpy().tobytes() for image in data.train.x.flip(3)}
    seen = [image.numpy().tobytes() for image in torch.cat(model.seen)]
    assert len(seen) == len(data.train)
    assert all(image in originals | mirrored for image in seen)
    share = sum(image not in originals for image in seen) / len(seen)
    assert 0.4 < share < 0.6 if mirror and flip else share == 0


def test_every_image_is_seen_once_an_epoch_in_a_new_order(data: sv.Dataset) -> None:
    model = Watcher()
    sv.fit(model, data, sv.Recipe(epochs=2, batch_size=(len(data.train) - 1) // 3))
    batches = [len(batch) for batch in model.seen]
    first, second = torch.cat(model.seen).split(len(data.train))
    assert min(batches) > 1  # batch normalisation needs two
    assert not torch.equal(first, second)
    for epoch in (first, second):
        torch.testing.assert_close(epoch.flatten(1).sum(1).sort()[0], data.train.x.flatten(1).sum(1).sort()[0])


@pytest.mark.parametrize(
    ("model", "error", "sentence"),
    [
        (lambda: sv.Table1Net((1, 8, 8), 3), ModelError, "has 2 classes, but the model answers 2 images with shape"),
        (lambda: sv.Table1Net((3, 8, 8), 2), ModelError, r"cannot read images of shape \(1, 8, 8\)"),
        (nn.Flatten, ModelError, "Flatten has no parameters"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_refused(
    data: sv.Dataset, model: Callable[[], nn.Module], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        sv.fit(model(), data, SHORT)


def test_one_image_is_too_few_to_train_on() -> None:
    images = torch.rand(4, 1, 8, 8)
    data = sv.Dataset.from_arrays(images, [0, 1, 0, 1], split={"train": [0], "val": [1], "test": [2, 3]})
    with pytest.raises(DataError, match="has one training image"):
        sv.fit(network(), data, SHORT)


@pytest.mark.parametrize("device", ["nonsense", "cuda:77", "meta", "cpu:x"])
def test_a_device_that_is_not_there_is_named(data: sv.Dataset, device: str) -> None:
    with pytest.raises(TrainingError, match=f"the device '{device}' cannot be used here"):
        sv.fit(network(), data, SHORT, device=device)


@pytest.mark.parametrize("allowed", ["AVX512", "AVX2"])
@pytest.mark.parametrize("facts", [{}, {"avx512_bf16": True}, {"amx_bf16": True}, {"avx512_f": True}])
def test_bfloat16_is_for_processors_made_for_it(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, bool], allowed: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: facts, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: allowed)
    native = allowed == "AVX512" and any("bf16" in name for name in facts)
    assert fastest_precision("cpu") == ("bfloat16" if native else "float32")


def test_a_newer_processor_can_be_told_to_train_as_one_with_avx2() -> None:
    asks = "from splitveil.train import fastest_precision as f; import torch; print(torch.zeros(1).item(), f('cpu'))"
    told = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", asks], env=told, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0.0", "float32"]


@pytest.mark.parametrize("layer", [nn.Linear(6, 3), nn.Conv2d(2, 3, 3, padding=1)], ids=["linear", "convolution"])
def test_without_instructions_bfloat16_is_computed_from_rounded_factors(
    monkeypatch: pytest.MonkeyPatch, layer: nn.Module
) -> None:
    torch.manual_seed(0)
    # Multiples of 1/4 up to 2, so that no order of summation rounds, and a little more that bfloat16 does not hold.
    more = 1 + 2**-12
    with torch.no_grad():
        for each in layer.parameters():
            each.copy_(torch.randint(-8, 9, each.shape) / 4).mul_(more)
    x = torch.randint(-8, 9, (5, 6) if isinstance(layer, nn.Linear) else (2, 2, 4, 4)) / 4 * more
    pull = torch.randint(-1, 2, layer(x).shape) * more

    rounded, factors = precision._rounded, list[object]()
    monkeypatch.setattr(precision, "_rounded", lambda value: rounded(factors.append(value) or value))

    def computed(native: str) -> list[Tensor]:
        monkeypatch.setattr(precision, "fastest_precision", lambda _: native)
        layer.zero_grad()
        at = x.clone().requires_grad_()
        with products(torch.device("cpu"), "bfloat16"):
            y = layer(at)
            with torch.autocast("cpu", enabled=False):
                assert layer(at).dtype == torch.float32  # what asks for float32 within gets it
        (y.float() * pull).sum().backward()
        return [y, at.grad, *(each.grad for each in layer.parameters())]

    native = computed("bfloat16")
    assert not factors
    emulated = computed("float32")
    assert factors  # torch's own bfloat16, which is as right and very slow, was not asked
    assert [each.dtype for each in emulated] == [torch.bfloat16, *[torch.float32] * 3]
    for mine, its in zip(emulated, native, strict=True):
        assert torch.equal(mine, its)
    assert not torch.equal(emulated[0].float(), layer(x))


def test_float32_is_left_alone_and_a_training_does_not_need_instructions(
    data: sv.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = nn.Linear(6, 3), torch.randn(5, 6)
    with products(x.device, "float32"):
        assert torch.equal(layer(x), layer(x).float())
        assert layer(x).dtype == torch.float32
    monkeypatch.setattr("splitveil.train.precision.fastest_precision", lambda _: "float32")
    found = [sv.fit(network(), data, replace(SHORT, precision=name))[-1] for name in ("bfloat16", "float32")]
    assert found[0].loss == pytest.approx(found[1].loss, rel=0.1)
    assert found[0].loss != found[1].loss


def test_predictions_do_not_depend_on_the_batch(data: sv.Dataset) -> None:
    model = network().eval()
    torch.testing.assert_close(predict(model, data.val, batch_size=7), predict(model, data.val))
    assert Epoch(0.5, accuracy(model, data.val)) == Epoch(0.5, accuracy(model.train(), data.val))
