"""The command line: one JSON object or a table on stdout, the rest on stderr, and exit codes that can be relied on."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest
import torch
from PIL import Image

import splitveil as sv
from splitveil import cli, measure
from splitveil.attack import Attack, Guess
from splitveil.cli.inspect import _listing
from splitveil.cli.output import print_table, progress_bar
from splitveil.errors import RunError
from splitveil.obfuscate import Codebook
from splitveil.profiling import measure_profile
from splitveil.runs import Run, train_run
from splitveil.tensors import write_tensors
from splitveil.train import fastest_precision

COMMANDS = ("demo", "data", "inspect", "train", "profile", "choose", "attack")
ESTIMATES = (
    "attack", "prior", "label", "logits", "raw", "excess", "excess_over_label", "advantage", "balanced", "auc",
    "bits", "target", "undefended", "target_validation",
)  # fmt: skip


class Result(NamedTuple):
    code: Any
    out: str
    err: str


class Splitveil:
    """Calls the entry point in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments: object) -> Result:
        self.monkeypatch.setattr(sys, "argv", ["splitveil", *map(str, arguments)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return Result(exit_.value.code, *self.capsys.readouterr())


@pytest.fixture
def splitveil(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Splitveil:
    monkeypatch.delenv("SPLITVEIL_DATA", raising=False)
    return Splitveil(capsys, monkeypatch)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digit-pairs; its name holds what rich would take for markup."""
    folder = tmp_path_factory.mktemp("runs") / "[red]run[/blue]"
    train_run(folder, sv.load_data("digit-pairs"), sv.Recipe(epochs=1), source="digit-pairs")
    return folder


def test_version(splitveil: Splitveil) -> None:
    assert splitveil("--version") == (0, f"splitveil {sv.__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(splitveil: Splitveil, command: str) -> None:
    code, out, err = splitveil(command, "--help")
    assert (code, err) == (0, "")
    for option in ("--json", "--quiet"):
        assert option in out
    assert command in splitveil("--help").out


def test_no_command_shows_the_help(splitveil: Splitveil) -> None:
    code, out, err = splitveil()
    assert code == 2
    assert all(command in out + err for command in COMMANDS)


def test_training_reports_on_stderr_and_gives_one_json_object(splitveil: Splitveil, run: Path, tmp_path: Path) -> None:
    options = ("--epochs", 1, "--recipe", "plain", "--precision", "float32", "--json")
    train = ("train", "--data", "digit-pairs", "--out", tmp_path, *options)
    code, out, err = splitveil(*train)
    found = json.loads(out)
    assert code == 0
    assert found["run"] == str(tmp_path)
    assert (found["data"], found["recipe"], found["epochs"]) == ("digit-pairs", "plain", 1)
    assert found["settings"] == asdict(sv.Recipe(epochs=1))
    assert found["validation_accuracy"] > 0.5
    assert "1/1" in err
    assert "validation" in err
    # The same as the library gives, and the same again without a word.
    assert (tmp_path / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert splitveil(*train, "--quiet") == (0, out, "")


def test_the_recipe_is_what_the_options_say(
    splitveil: Splitveil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def no_training(_out: Path, _data: sv.Dataset, recipe: sv.Recipe, **_: object) -> NoReturn:
        asked.append(recipe)
        raise RunError("enough")

    monkeypatch.setattr("splitveil.runs.train_run", no_training)
    train = ("train", "--data", "digit-pairs", "--out", tmp_path, "--epochs", 3)
    for options in (("--recipe", "plain"), (), ("--recipe", "paper", "--set", "removal=0.3", "--seed", 4)):
        assert splitveil(*train, *options).code == 2
    precision = fastest_precision("cpu")
    assert asked == [
        sv.Recipe(epochs=3, precision=precision),
        sv.Recipe.paper(epochs=3, precision=precision),
        replace(sv.Recipe.paper(epochs=3, precision=precision), removal=0.3, seed=4),
    ]


def test_data_are_listed_and_described(splitveil: Splitveil) -> None:
    listed = splitveil("data", "--json")
    assert listed.code == 0
    assert "digit-pairs" in json.loads(listed.out)["names"]
    assert "celeba" in splitveil("data").out
    code, out, err = splitveil("data", "digit-pairs", "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert facts["input_shape"] == [1, 16, 32]
    assert facts["samples"] == {"train": 8000, "val": 1000, "test": 1000}
    assert facts["hidden"] == {"digit": list("0123456789")}
    assert facts["digest"] == sv.load_data("digit-pairs").digest
    assert facts["digest"] in splitveil("data", "digit-pairs").out


def test_inspect_lists_the_cuts_and_their_cost(splitveil: Splitveil, run: Path) -> None:
    code, out, err = splitveil("inspect", run, "--json", "--m", 5)
    cuts = json.loads(out)["cuts"]
    assert code == 0
    assert "6/6" in err
    assert [cut["cut"] for cut in cuts] == [1, 2, 3, 4, 5, 6]
    assert [cut["operator"] for cut in cuts] == ["dense"] * 6
    assert [cut["null_share"] for cut in cuts[:3]] == [0.0] * 3  # more outputs than inputs: nothing to remove
    assert [cut["rank"] for cut in cuts[3:]] == [128, 64, 10]
    assert [cut["null_share"] for cut in cuts[3:]] == [0.75, 0.5, 54 / 64]
    assert [cut["message_bytes"] for cut in cuts[3:]] == [16 + 4 * 5] * 3
    assert splitveil("inspect", run, "--json", "--m", 5, "--quiet") == (0, out, "")
    patch = json.loads(splitveil("inspect", run, "--json", "--operator", "patch").out)["cuts"]
    assert [cut["operator"] for cut in patch] == ["patch"] * 3 + ["dense"] * 3
    assert patch[1]["message_bytes"] == 16 + 4 * 8 * (8 * 16)


def test_tables_show_names_as_they_are(splitveil: Splitveil, run: Path) -> None:
    code, out, _ = splitveil("inspect", run)
    assert code == 0
    assert run.name in out
    assert "75.0%" in out
    for head in ("message", "encoder", "parameters"):
        assert head in out


def test_what_inspect_lists_is_never_cut_off() -> None:
    rows = [
        {
            "cut": f"features.{'deep_and_narrow.' * 4}{n}",
            "feature": [16, 20 + n, 20],
            "client_macs": 123_456_789 + n,
            "share": 0.5,
        }
        for n in range(3)
    ]
    cells = [cell for row in rows for cell in (row["cut"], str(row["feature"]), str(row["client_macs"]), "50.0%")]
    for width in (None, 200, 80, 40):
        text = _listing("cuts of x", rows, width)
        assert all(cell in text for cell in cells)
        lines = text.splitlines()
        assert width is None or max(map(len, lines)) <= max(width, len(rows[0]["cut"]) + len("cut ,"))
        assert ("client macs" in text) == (width in (80, 40))  # else the head of a column, in two lines


class Shrug:
    """An attack that learns nothing, in no time."""

    name = "shrug"

    def fit(self, *_: object, n_values: int, **__: object) -> Guess:
        return lambda view: torch.full((len(view), n_values), 1 / n_values).log()


def mount(monkeypatch: pytest.MonkeyPatch, *attacks: Attack) -> None:
    """These attacks in place of the whole suite."""
    monkeypatch.setitem(measure.leakage.__kwdefaults__, "attacks", attacks)


def test_attack_gives_every_number_with_its_interval(
    splitveil: Splitveil, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount(monkeypatch, measure.ATTACKS[0], Shrug())
    code, out, err = splitveil("attack", run, "--split", "6", "--m", 3, "--json")
    result = json.loads(out)
    assert code == 0
    assert "attacks on the messages" in err
    assert (result["split"], result["method"], result["m"], result["operator"]) == ("6", "top", 3, "dense")
    assert result["message_shape"] == [3]
    assert list(result["hidden"]) == ["digit"]
    row = result["hidden"]["digit"]
    assert set(row) == {*ESTIMATES, "best", "best_by", "message_bytes", "validation", "several"}
    for name in ESTIMATES:
        assert set(row[name]) == {"value", "low", "high"}
        assert row[name]["low"] <= row[name]["value"] <= row[name]["high"]
    assert row["message_bytes"] == 16 + 4 * 3
    assert row["best"] == measure.ATTACKS[0].name
    assert set(row["validation"]) == {"shrug", row["best"]}
    assert row["raw"]["value"] > row["prior"]["value"]


def test_attack_fits_an_obfuscator_to_the_training_part(
    splitveil: Splitveil, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount(monkeypatch, Shrug())
    monkeypatch.setitem(Codebook.fit.__func__.__kwdefaults__, "epochs", 1)  # type: ignore[attr-defined]
    codebook = ("--split", 6, "--method", "codebook", "--messages", 4)
    code, out, err = splitveil("attack", run, *codebook, "--json")
    assert code == 0, err
    assert "attacks on the messages" in err
    result = json.loads(out)
    assert (result["method"], result["message_shape"], result["operator"]) == ("codebook", [1], "no operator")
    assert 2 <= result["messages"] <= 4
    assert result["hidden"]["digit"]["message_bytes"] == 17
    code, out, err = splitveil("attack", run, "--split", 5, "--method", "server-aware", "--m", 2, "--json", "--quiet")
    assert (code, json.loads(out)["message_shape"], json.loads(out)["messages"]) == (0, [2], None)


def test_attack_speaks_to_people_too(splitveil: Splitveil, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount(monkeypatch, Shrug())
    arguments = ("--split", "layer6", "--method", "bounded", "--epsilon", 0.3, "--relative", "--quiet")
    code, out, err = splitveil("attack", run, *arguments)
    assert (code, err) == (0, "")
    assert "cut layer6, bounded (dense): digit from" in " ".join(out.split())
    assert "[95 % interval]" in out
    assert "strongest attack" in out


def test_a_veil_that_protects_nothing_is_noted_even_where_it_is_quiet(
    splitveil: Splitveil, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount(monkeypatch, Shrug())
    code, out, err = splitveil("attack", run, "--split", 3, "--method", "free", "--quiet", "--json")
    assert code == 0
    assert json.loads(out)["message_shape"] == [32, 4, 8]
    assert err.startswith("note: the dense operator has no null space here")


def test_a_profile_is_made_and_chosen_from(
    splitveil: Splitveil, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount(monkeypatch, Shrug())
    for name, value in (("attacks", (Shrug(),)), ("kept", (8,))):
        monkeypatch.setitem(measure_profile.__kwdefaults__, name, value)
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    code, out, err = splitveil("profile", folder, "--split", 5, "--split", "layer6", "--hidden", "digit", "--json")
    assert code == 0, err
    assert "rows measured" in err
    content = json.loads(out)
    assert content == json.loads((folder / "profile.json").read_text(encoding="utf-8"))
    assert {row["cut"] for row in content["rows"]} == {5, 6}
    assert content["rows"][0]["leakage"]["digit"]["best"] == "shrug"
    assert "</svg>" in (folder / "profile.svg").read_text(encoding="utf-8")

    wishes = ("choose", folder / "profile.json", "--max-drop", 5, "--max-edge-macs", "5M")
    code, out, err = splitveil(*wishes, "--json")
    assert (code, err) == (0, "")
    choice = json.loads(out)["choice"]
    assert (choice["proven_drop_points"], choice["confidence"]) == (5, 0.95)
    assert (choice["cut"], choice["m"]) == (lambda row: (row.cut, row.m))(
        sv.choose(sv.read_profile(folder / "profile.json"), max_drop=5, max_edge_macs=5e6).row
    )
    code, out, err = splitveil("choose", folder, *wishes[2:])
    assert code == 0
    assert err.startswith(f"note: what it still tells: splitveil attack {folder} --split ")
    assert "proven at 95 % confidence to drop at most 5 points" in " ".join(out.split())
    assert "measured │ accuracy " in " ".join(out.split())
    assert err.splitlines()[-1] == (
        f"note: to serve it: splitveil export {folder} --out FOLDER --split {choice['cut']} --method top "
        f"--m {choice['m']} --operator dense --coding int8 --max-drop 5 --confidence 0.95"
    )
    code, out, err = splitveil(*wishes, "--coding", "int4", "--json")
    assert (code, json.loads(out)["choice"]["coding"]) == (0, "int4")

    # What a smaller profile would lose is not written over.
    before = (folder / "profile.json").read_bytes()
    for less in (("--split", 5, "--hidden", "digit"), ("--split", 5, "--split", 6)):
        code, out, err = splitveil("profile", folder, *less)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"also holds {'layer6' if 'digit' in less else 'digit'}, which would be lost" in err
    assert splitveil("profile", folder, "--split", 5, "--out", tmp_path / "other").code == 0
    assert (folder / "profile.json").read_bytes() == before
    code, out, err = splitveil(
        "profile", folder, "--split", 5, "--method", "server-aware", "--m", 2, "--out", tmp_path / "other"
    )
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "also holds" in err
    assert "top at layer5" in err
    (tmp_path / "other" / "profile.json").write_text("{")
    assert "move it away first" in splitveil("profile", folder, "--out", tmp_path / "other").err

    write_tensors(folder / "model.safetensors", {"w": torch.ones(1)}, {})
    code, out, err = splitveil(*wishes)
    assert (code, out) == (2, "")
    assert "this is the profile of another model" in err


def test_a_profile_of_one_operator_does_not_replace_that_of_the_other(
    splitveil: Splitveil, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(measure_profile.__kwdefaults__, "kept", (8,))
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for operator, other in (("patch", "dense"), ("dense", "patch")):
        out = tmp_path / operator
        assert splitveil("profile", folder, "--split", 3, "--operator", operator, "--out", out).code == 0
        code, _, err = splitveil("profile", folder, "--split", 3, "--operator", other, "--out", out)
        assert code == 2
        assert f"the {operator} operator at layer3" in err
        assert splitveil("profile", folder, "--split", 3, "--operator", operator, "--out", out).code == 0


def test_a_profile_speaks_to_people_and_names_its_reference(splitveil: Splitveil, run: Path, tmp_path: Path) -> None:
    folder, plain = tmp_path / "run", tmp_path / "plain"
    shutil.copytree(run, folder)
    shutil.copytree(run, plain)
    code, out, err = splitveil("profile", folder, "--reference", plain, "--split", 6, "--quiet")
    text = " ".join(out.split())
    assert (code, err.count("\n")) == (0, 1)
    assert "1000 validation images of digit-pairs; drop against the model of" in text
    assert "ε=0.05" in text
    file = folder / "profile.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["reference"] |= {"own": False, "weights": "0" * 64}  # as of a model that is not a copy of this one
    file.write_text(json.dumps(content), encoding="utf-8")
    before = file.read_bytes()
    code, out, err = splitveil("profile", folder, "--split", 6, "--quiet")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "also holds drops against --reference" in err
    assert file.read_bytes() == before
    assert [text.count(f"│ {coding} │") for coding in ("int8", "int4")] == [5, 5]  # m' = 1, 2, 4, 8 and all
    assert not json.loads((folder / "profile.json").read_text(encoding="utf-8"))["reference"]["own"]
    manifest = json.loads((plain / "run.json").read_text(encoding="utf-8"))
    manifest["data"]["digest"] = "0" * 64
    (plain / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
    code, out, err = splitveil("profile", folder, "--reference", plain)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "was trained on other data than" in err


@pytest.mark.parametrize(
    "options", [("--set", "epochs=2"), ("--set", "seed=2"), ("--set", "removal=0.1", "--set", "removal=0.2")]
)
def test_settings_given_twice_are_refused(splitveil: Splitveil, tmp_path: Path, options: tuple[object, ...]) -> None:
    code, out, err = splitveil("train", "--data", "digit-pairs", "--out", tmp_path, *options)
    assert (code, out) == (2, "")
    assert "has an option of its own" in err or "is given twice" in err


def test_who_stops_a_training_learns_that_it_goes_on(
    splitveil: Splitveil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("splitveil.runs.train_run", stopped)
    code, out, err = splitveil("train", "--data", "digit-pairs", "--out", tmp_path, "--quiet")
    assert (code, out) == (130, "")
    assert "stopped; the same command goes on after the last whole epoch" in err


def test_the_schema_is_printed_without_a_run(splitveil: Splitveil) -> None:
    code, out, err = splitveil("profile", "--schema")
    assert (code, err) == (0, "")
    assert json.loads(out)["title"] == "Profile"


TRAIN = ("train", "--data", "digit-pairs", "--out", "new")
ATTACK = ("attack", "RUN", "--split", 6)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("data", "nope"), "there is no data set 'nope'; choose digit-pairs"),
        (("data", "folder:nowhere"), "there is no folder nowhere"),
        (("data", "utkface"), "no data folder is named"),
        (("data", "utkface", "--data-root", "nowhere"), "was not found in nowhere/utkface"),
        (("train", "--data", "utkface", "--out", "new"), "no data folder is named"),
        ((*TRAIN, "--epochs", 0), "epochs must be a whole number from 1"),
        ((*TRAIN, "--seed", -1), "seed must be a whole number from 0"),
        ((*TRAIN, "--seed", 2**40), "seed must be a whole number from 0 to 4294967295"),
        ((*TRAIN, "--device", "nonsense"), "the device 'nonsense' cannot be used here"),
        ((*TRAIN, "--device", "cuda:77"), "the device 'cuda:77' cannot be used here"),
        (("train", "--data", "digit-pairs", "--out", "RUN", "--epochs", 2), "a run with another recipe"),
        (("train", "--data", "digit-pairs", "--out", "RUN", "--recipe", "paper"), "removal 0.0 there, 0.5 asked"),
        ((*TRAIN, "--set", "removals=0.3"), "a recipe has no setting 'removals'; it has: epochs, seed"),
        ((*TRAIN, "--set", "removal=2"), "removal must be a share from 0 to 1, not 2"),
        (("train", "--data", "digit-pairs", "--out", "file/x"), "cannot be written"),
        (("train", "--data", "digit-pairs", "--out", "x" * 300), "choose another folder"),
        (
            ("inspect", "nowhere"),
            "there is no model 'nowhere'; name a run's folder, a .pt2 file, or package.module:function",
        ),
        (("inspect", "x" * 300), "File name too long"),
        (("inspect", "damaged"), "cannot be read as JSON"),
        (("inspect", "unfinished"), "holds no finished training"),
        (("attack", "damaged", "--split", 6, "--m", 3), "cannot be read as JSON"),
        (("attack", "RUN", "--split", 9, "--m", 3), "there is no cut 9: Table1Net has cuts 1 to 6"),
        (("attack", "RUN", "--split", 0, "--m", 3), "there is no cut 0"),
        (("attack", "RUN", "--split", "layer9", "--m", 3), "the model has no module 'layer9'; choose one of: layer1"),
        (("attack", "RUN", "--split", "layer6.0", "--m", 3), "the model has no module 'layer6.0'"),
        (("attack", "RUN", "--split", "layer4.1", "--m", 3), "not a fully connected or convolutional layer"),
        (("profile", "damaged"), "cannot be read as JSON"),
        (("profile", "unfinished"), "holds no finished training"),
        (("profile", "RUN", "--device", "cuda:77"), "the device 'cuda:77' cannot be used here"),
        (("profile", "RUN", "--split", 9), "there is no cut 9: Table1Net has cuts 1 to 6"),
        (("profile", "RUN", "--split", "layer4.1"), "not a fully connected or convolutional layer"),
        (("profile", "RUN", "--hidden", "race"), "digit-pairs has no hidden attribute 'race'; it has: digit"),
        (("profile", "RUN", "--reference", "unfinished"), "unfinished holds no finished training"),
        (("choose", "nowhere.json"), "nowhere.json does not exist; make one with 'splitveil profile RUN'"),
        (("choose", "damaged/run.json"), "damaged/run.json cannot be read as JSON"),
        (("choose", "unfinished/run.json"), "unfinished/run.json is not a valid profile"),
        ((*ATTACK, "--m", 11), "m=11 is outside 0 to 10"),
        ((*ATTACK, "--method", "bounded", "--epsilon", -1), "epsilon must be a finite number of at least 0, not -1"),
        ((*ATTACK, "--method", "bounded", "--epsilon", "nan"), "epsilon must be a finite number of at least 0"),
        ((*ATTACK, "--m", 3, "--hidden", "race"), "digit-pairs has no hidden attribute 'race'; it has: digit"),
    ],
)
def test_a_mistake_is_one_sentence(
    splitveil: Splitveil, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...], sentence: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("in the way")
    for name in ("damaged", "unfinished"):
        Path(name).mkdir()
    Path("damaged/run.json").write_text('{"model": ')
    Path("unfinished/run.json").write_bytes((run / "run.json").read_bytes())
    code, out, err = splitveil(*(run if argument == "RUN" else argument for argument in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("splitveil: ")
    assert err.count("\n") == 1
    assert sentence in err
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("nope",), "nope"),
        (("train",), "--data"),
        (("train", "--data", "digit-pairs"), "--out"),
        ((*TRAIN, "--recipe", "secret"), "--recipe"),
        ((*TRAIN, "--epochs", "many"), "--epochs"),
        (("inspect",), "MODEL"),
        (("inspect", "RUN", "--m", 0), "--m"),
        (("profile",), "RUN"),
        (("choose",), "PROFILE"),
        (("choose", "p.json", "--max-edge-macs", "5X"), "5X"),
        (("choose", "p.json", "--max-edge-macs", "-5M"), "-5M"),
        (("choose", "p.json", "--max-edge-macs", "nan"), "nan"),
        (("choose", "p.json", "--max-bytes", "0"), "--max-bytes"),
        (("choose", "p.json", "--max-drop", "much"), "--max-drop"),
        (("attack", "RUN"), "--split"),
        (ATTACK, "--m"),
        ((*ATTACK, "--m", -1), "--m"),
        ((*ATTACK, "--m", 3, "--seed", -1), "--seed"),
        ((*ATTACK, "--method", "bounded"), "--epsilon"),
        ((*ATTACK, "--method", "bounded", "--m", 3), "--m"),
        ((*ATTACK, "--method", "free", "--relative"), "--relative"),
        ((*ATTACK, "--m", 3, "--epsilon", 1), "--epsilon"),
        ((*ATTACK, "--m", 3, "--operator", "magic"), "--operator"),
        ((*ATTACK, "--m", 3, "--messages", 4), "--messages"),
        ((*ATTACK, "--method", "distilled"), "--m"),
        ((*ATTACK, "--method", "quantised", "--m", 3), "--messages"),
        ((*ATTACK, "--method", "codebook", "--messages", 1), "--messages"),
        ((*ATTACK, "--method", "distilled", "--m", 3, "--operator", "dense"), "--operator"),
        (("profile", "RUN", "--m", 3), "--method"),
        (("profile", "RUN", "--method", "distilled", "--m", 3), "--split"),
        (("export", "RUN", "--out", "b", "--m", 3), "--split"),
    ],
)
def test_a_call_that_makes_no_sense_is_named_with_its_option(
    splitveil: Splitveil, run: Path, arguments: tuple[object, ...], word: str
) -> None:
    code, out, err = splitveil(*(run if argument == "RUN" else argument for argument in arguments))
    assert (code, out) == (2, "")
    assert word in err
    assert err.startswith("splitveil: ")
    asked = "splitveil" if arguments[0] == "nope" else f"splitveil {arguments[0]}"
    assert err.endswith(f"; see '{asked} --help'\n")
    assert err.count("\n") == 1


def test_without_a_command_the_help_is_shown(splitveil: Splitveil) -> None:
    for call in ((), ("deploy",)):
        code, out, err = splitveil(*call)
        assert (code, err) == (2, "")
        assert " ".join(("Usage: splitveil", *call)) in out
    assert splitveil("nonsense") == (2, "", "splitveil: No such command 'nonsense'; see 'splitveil --help'\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_an_output_that_is_full_is_one_sentence(options: tuple[str, ...]) -> None:
    call = (sys.executable, "-c", "import splitveil.cli as cli; cli.main()", "data", "digit-pairs", "--quiet", *options)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(call, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2, "splitveil: the output cannot be written: no space is left where it goes\n"
    )  # fmt: skip


def test_an_interrupted_command_leaves_with_130(splitveil: Splitveil, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("splitveil.data.load_data", stopped)
    assert splitveil("data", "digit-pairs", "--quiet").code == 130


@pytest.mark.parametrize(
    ("package", "extra"),
    [("torch", "train"), ("sklearn", "train"), ("grpc", "serve"), ("cryptography", "sign"), ("ray", "ray")],
)
def test_a_missing_extra_is_one_sentence(
    splitveil: Splitveil, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    error = ModuleNotFoundError(f"No module named {package!r}", name=f"{package}.more")
    monkeypatch.setattr(cli, "app", lambda **_: (_ for _ in ()).throw(error))
    code, out, err = splitveil(*TRAIN)
    assert (code, out) == (2, "")
    assert err == f"splitveil: this command needs the package {package!r}: pip install 'splitveil[{extra}]'\n"


def test_a_fault_of_ours_is_exit_code_1_with_a_traceback() -> None:
    program = (
        "import sys, splitveil.data, splitveil.cli as cli\n"
        "def broken(*_, **__): raise ModuleNotFoundError('ours', name='splitveil.oops')\n"
        "splitveil.data.load_data = broken\n"
        "sys.argv = ['splitveil', 'data', 'digit-pairs']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("ModuleNotFoundError: ours\n")


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "splitveil", "inspect", "nowhere"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("splitveil: there is no model 'nowhere'")


def test_cells_and_heads_show_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("title", ["[bold]head", "b"], [["[red]x[/blue]", 1]])
    out = capsys.readouterr().out
    assert "[bold]head" in out
    assert "[red]x[/blue]" in out


def test_progress_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(False) as report:
        assert report is not None
        report(1, 2, "folder:[red]x[/blue]")
    out, err = capsys.readouterr()
    assert out == ""
    assert "folder:[red]x[/blue]" in err
    assert "1/2" in err


def images(folder: Path) -> Path:
    """Two classes of thirty small noise images, and a CSV of a hidden attribute."""
    generator = torch.Generator().manual_seed(0)
    lines = ["file,colour"]
    for index in range(60):
        kind = ("cat", "dog")[index % 2]
        (folder / kind).mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 255, (16, 16, 3), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / kind / f"{index}.png")
        lines.append(f"{kind}/{index}.png,{('red', 'blue', 'green')[index % 3]}")
    (folder / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_options_of_a_data_set_travel_with_the_run(splitveil: Splitveil, tmp_path: Path) -> None:
    folder = images(tmp_path / "pictures")
    options = ("--option", f"hidden_csv={folder}/labels.csv", "--option", "size=[16, 16]")
    code, out, err = splitveil("data", f"folder:{folder}", *options, "--json")
    assert code == 0, err
    assert json.loads(out)["hidden"] == {"colour": ["blue", "green", "red"]}
    assert json.loads(out)["input_shape"] == [3, 16, 16]
    run = tmp_path / "run"
    assert splitveil("train", "--data", f"folder:{folder}", "--out", run, "--epochs", 1, *options).code == 0
    recorded = json.loads((run / "run.json").read_text(encoding="utf-8"))["data"]["options"]
    assert recorded == {"hidden_csv": f"{folder}/labels.csv", "size": [16, 16]}
    assert list(Run(run).data().hidden_classes) == ["colour"]


@pytest.mark.parametrize(
    ("options", "says"),
    [(["writers"], "NAME=VALUE"), (["=3"], "NAME=VALUE"), (["nonsense=3"], "nonsense")],
)
def test_impossible_options(splitveil: Splitveil, options: list[str], says: str) -> None:
    given = [word for option in options for word in ("--option", option)]
    code, out, err = splitveil("data", "digit-pairs", *given)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


def test_another_recipe_in_the_same_folder_says_what_differs(splitveil: Splitveil, run: Path) -> None:
    code, _, err = splitveil("train", "--data", "digit-pairs", "--out", run, "--epochs", 9)
    assert code == 2
    assert "epochs 1 there, 9 asked" in err


@pytest.mark.parametrize("size", ["nan", "inf", "0", "2048"])
def test_a_size_that_no_body_can_have_is_one_sentence(splitveil: Splitveil, tmp_path: Path, size: str) -> None:
    code, out, err = splitveil("serve", tmp_path, "--max-body", size)
    assert (code, out) == (2, "")
    assert "--max-body is a number of MiB" in err
