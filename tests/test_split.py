"""Cutting a model: exactness, refusals, and finding what the server does first."""

import pytest
import torch
from torch import Tensor, nn

import splitveil as sv
from splitveil.errors import ModelError, NoLinearLayerError, ShapeError, SplitError


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.conv2(torch.relu(self.norm(self.conv1(x)))))


class Residual(nn.Module):
    """stem, two residual blocks, a strided block with a projection shortcut, a head after pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block1 = Block(8)
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.shortcut = nn.Conv2d(8, 12, 1, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(torch.relu(self.stem(x)))
        x = torch.relu(self.down(x) + self.shortcut(x))
        x = self.pool(x)
        return self.head(x.view(x.size(0), -1))


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mix = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        weights = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)
        return self.mix(weights @ v)


class Transformer(nn.Module):
    """One pre-norm block on 4×4 patches with a learned position."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, stride=4)
        self.position = nn.Parameter(torch.randn(1, 4, width))
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(x.mean(1))


def warmed(model: nn.Module, x: Tensor) -> nn.Module:
    """A model whose batch statistics are not the initial ones."""
    model.train()
    with torch.no_grad():
        model(x)
    return model.eval()


@pytest.mark.parametrize("at", range(1, 7))
@pytest.mark.parametrize(
    ("shape", "n_classes"), [((1, 28, 28), 10), ((3, 50, 50), 2), ((3, 73, 60), 2), ((1, 8, 8), 3)]
)
def test_table1_halves_equal_the_whole_bit_for_bit(at, shape, n_classes):
    torch.manual_seed(at)
    x = torch.rand(4, *shape)
    model = warmed(sv.Table1Net(shape, n_classes), x)
    split = sv.SplitModel(model, at=at)
    assert torch.equal(split.server(split.client(x)), model(x))


@pytest.mark.parametrize(
    ("at", "feature"),
    [(1, (3, 50, 50)), (2, (16, 25, 25)), (3, (32, 12, 12)), (4, (2304,)), (5, (128,)), (6, (64,))],
)
def test_table1_features_have_the_papers_shapes(at, feature):
    split = sv.SplitModel(sv.Table1Net((3, 50, 50), 2), at=at)
    assert split.client(torch.rand(2, 3, 50, 50)).shape[1:] == feature


def test_each_half_holds_only_its_own_parameters():
    split = sv.SplitModel(sv.Table1Net((1, 16, 16), 2), at=4)
    assert {name.split(".")[0] for name in split.client.state_dict()} == {"layer1", "layer2", "layer3"}
    assert {name.split(".")[0] for name in split.server.state_dict()} == {"layer4", "layer5", "layer6"}


def test_halves_follow_later_training_of_the_model():
    model = sv.Table1Net((1, 16, 16), 2)
    split, x = sv.SplitModel(model, at=4), torch.rand(2, 1, 16, 16)
    before = split.server(split.client(x))
    with torch.no_grad():
        model.layer6.bias.add_(1.0)
    torch.testing.assert_close(split.server(split.client(x)), before + 1)


@pytest.mark.parametrize("at", ["block1", "block1.conv2", "stem", "down", "pool", "head"])
def test_residual_network(at):
    torch.manual_seed(0)
    x = torch.rand(3, 3, 12, 12)
    model = warmed(Residual(), x)
    if at == "block1.conv2":  # inside the block the shortcut crosses too
        with pytest.raises(SplitError, match=r"2 tensors cross.*relu"):
            sv.SplitModel(model, at=at)
        return
    split = sv.SplitModel(model, at=at)
    assert torch.equal(split.server(split.client(x)), model(x))


def test_all_layers_that_read_the_feature_are_found():
    split = sv.SplitModel(Residual(), at="down")
    assert split.server_layer == (split.model.down, split.model.shortcut)


def test_a_residual_connection_has_no_null_space():
    with pytest.raises(NoLinearLayerError, match=r"'add'.*residual"):
        _ = sv.SplitModel(Residual(), at="block1").server_layer


def test_an_activation_or_pooling_is_not_linear():
    with pytest.raises(NoLinearLayerError, match="AdaptiveAvgPool2d"):
        _ = sv.SplitModel(Residual(), at="pool").server_layer


@pytest.mark.parametrize("at", ["norm1", "embed", "norm2", "head"])
def test_transformer(at):
    torch.manual_seed(0)
    x = torch.rand(3, 3, 8, 8)
    model = Transformer().eval()
    if at in ("norm1", "norm2"):  # the residual stream goes on beside the norm: the stream itself is the one tensor
        split = sv.SplitModel(model, at=at)
        with pytest.raises(NoLinearLayerError):
            _ = split.server_layer
    split = sv.SplitModel(model, at=at)
    assert torch.equal(split.server(split.client(x)), model(x))


def test_transformer_attention_input_is_crossed_by_the_residual_stream_too():
    with pytest.raises(SplitError, match="2 tensors cross"):
        sv.SplitModel(Transformer(), at="attention.query")


def test_query_key_and_value_are_stacked_without_a_residual_stream():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), Attention(6), nn.Flatten(), nn.Linear(24, 2)).eval()
    split = sv.SplitModel(model, at="1")
    attention = model[1]
    assert split.server_layer == (attention.query, attention.key, attention.value)
    x = torch.rand(2, 4, 6)
    z = split.client(x)
    for operator in ("dense", "patch"):
        factors = sv.factorise(split.server_layer, feature_shape=z.shape[1:], operator=operator)
        veil = sv.TopComponents(factors, m=len(factors.s))
        torch.testing.assert_close(split.answer(veil, veil.encode(z)), model(x))


@pytest.mark.parametrize("operator", ["dense", "patch"])
def test_several_convolutions_that_read_the_feature_resume(operator):
    torch.manual_seed(0)
    model = Residual().eval()
    model.shortcut = nn.Conv2d(8, 12, 3, stride=2, padding=1)
    split, x = sv.SplitModel(model, at="down"), torch.rand(2, 3, 12, 12)
    z = split.client(x)
    factors = sv.factorise(split.server_layer, feature_shape=z.shape[1:], operator=operator)
    veil = sv.TopComponents(factors, m=len(factors.s))
    torch.testing.assert_close(split.answer(veil, veil.encode(z)), model(x))


@pytest.mark.parametrize("flatten", ["module", "method", "function", "view", "reshape", "dropout"])
def test_reshapes_before_the_first_layer_are_looked_through(flatten):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mark = nn.Identity()
            self.flat = nn.Flatten()
            self.drop = nn.Dropout(0.5)
            self.fc = nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.mark(x)
            ways = {
                "module": lambda: self.flat(x), "method": lambda: x.flatten(1), "function": lambda: torch.flatten(x, 1),
                "view": lambda: x.view(x.shape[0], -1), "reshape": lambda: x.reshape(-1, 12),
                "dropout": lambda: self.drop(self.flat(x)),
            }  # fmt: skip
            return self.fc(ways[flatten]())

    split = sv.SplitModel(Net(), at="mark")
    if flatten == "reshape":  # (-1, 12) may mix images, so it is not looked through
        with pytest.raises(NoLinearLayerError, match="reshape"):
            _ = split.server_layer
    else:
        assert split.server_layer is split.model.fc


@pytest.mark.parametrize(
    ("at", "says"),
    [
        (0, "cuts 1 to 6"),
        (7, "cuts 1 to 6"),
        ("layer9", "choose one of"),
        ("4.5", "choose one of"),
        ("-1", "choose one of"),
        ("²", "choose one of"),
    ],
)
def test_impossible_cut(at, says):
    with pytest.raises(SplitError, match=says):
        sv.SplitModel(sv.Table1Net((1, 16, 16), 2), at=at)


def test_a_number_and_its_string_are_the_same_cut():
    model = sv.Table1Net((1, 16, 16), 2)
    assert sv.SplitModel(model, at="4").layer_name == sv.SplitModel(model, at=4).layer_name == "layer4"


def test_models_without_numbers_want_a_name():
    with pytest.raises(SplitError, match="no numbered cuts"):
        sv.SplitModel(Residual(), at=3)


def test_untraceable_ambiguous_and_unused_modules_are_refused():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) if x.sum() > 0 else x

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.relu(self.fc(x)))

    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.fc(x + y)

    for model, at, says in (
        (Branching(), "fc", "cannot trace"),
        (Twice(), "fc", "more than once"),
        (Twice(), "unused", "never calls"),
        (TwoInputs(), "fc", "takes 2"),
    ):
        with pytest.raises(SplitError, match=says):
            sv.SplitModel(model, at=at)


def test_the_models_output_has_no_reader():
    model = nn.Sequential(nn.Linear(2, 2), nn.Identity())
    with pytest.raises(NoLinearLayerError, match="output"):
        _ = sv.SplitModel(model, at="1").server_layer


def test_resume_wants_one_output_per_layer():
    split = sv.SplitModel(Residual(), at="down")
    with pytest.raises(ShapeError, match="2 layers"):
        split.resume((torch.zeros(1, 12, 6, 6),))


@pytest.mark.parametrize(("shape", "classes"), [((3, 7, 50), 2), ((3, 50), 2), ((3, 50, 50), 1), ((0, 50, 50), 2)])
def test_impossible_table1_networks(shape, classes):
    with pytest.raises(ModelError):
        sv.Table1Net(shape, classes)
