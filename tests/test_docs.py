"""The README's example runs and holds; the examples of CONTRIBUTING work; tables are what their rows say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import splitveil as sv

ROOT = Path(__file__).parent.parent


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.slow
def test_the_readme_example_runs_and_its_assertions_hold(capsys):
    (code,) = blocks("README.md")
    assert code.count("assert ") >= 4
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), {})
    assert "prior" in capsys.readouterr().out


@pytest.mark.parametrize("number", [0, 1])
def test_the_contributing_examples_pass_the_lint(number):
    for job in (["check"], ["format", "--check"]):
        made = subprocess.run(
            [sys.executable, "-m", "ruff", *job, "--stdin-filename", "src/splitveil/attack/example.py", "-"],
            cwd=ROOT, input=blocks("CONTRIBUTING.md")[number], capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stdout + made.stderr


def test_the_contributing_obfuscator_works():
    names: dict = {}
    exec(blocks("CONTRIBUTING.md")[0], names)
    torch.manual_seed(0)
    model, x = sv.Table1Net((1, 16, 16), 2), torch.rand(3, 1, 16, 16)
    split = sv.SplitModel(model, at=4)
    factors = sv.factorise(split.server_layer, feature_shape=(256,))
    veil = names["Rounded"](sv.TopComponents(factors, m=5))
    message, _ = sv.Server(split, veil).read(sv.Client(split, veil).send(x))
    assert message.shape == (3, 5)
    assert torch.equal(message, message.round())
    assert sv.Server(split, veil).answer(sv.Client(split, veil).send(x)).shape == (3, 2)


def test_the_contributing_attack_finds_a_planted_secret():
    from splitveil.attack import Public, View

    names: dict = {}
    exec(blocks("CONTRIBUTING.md")[1], names)
    torch.manual_seed(0)
    secret = torch.randint(0, 3, (600,))
    sent = torch.randn(600, 4) + 5 * torch.eye(4)[secret]
    public = Public(sv.SplitModel(sv.Table1Net((1, 16, 16), 2), at=4), None)
    train, val, test = (View(sent[i : i + 200], torch.full((200,), 4), public) for i in (0, 200, 400))
    guess = names["NearestMean"]().fit(train, secret[:200], val, secret[200:400], n_values=3, seed=0)
    assert float((guess(test).argmax(1) == secret[400:]).float().mean()) > 0.95


def test_the_tables_of_readme_and_results_are_those_of_the_rows():
    made = subprocess.run(
        [sys.executable, "benchmarks/tables.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr


def test_version_is_the_same_everywhere():
    assert f"version: {sv.__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_links_between_documents_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
