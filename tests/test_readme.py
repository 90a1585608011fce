"""README's own code, run as it stands in an empty directory."""

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vaelib as vl
from vaelib.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language):
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", README, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


def python_blocks():
    """The first trains, exports and samples."""
    first, *more = blocks("python")
    return [pytest.param(first, marks=pytest.mark.slow), *more]


@pytest.fixture(autouse=True)
def _few_shapes(monkeypatch):
    """The built-in set, of which README's code trains on all, is smaller here."""
    monkeypatch.setattr("vaelib.data.named.NUM_SHAPES", {"train": 1500, "test": 300})


@pytest.mark.parametrize("code", python_blocks())
def test_python_blocks(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    if "images" in names:
        assert names["images"].shape == (16, 1, 32, 32)
        assert names["history"][-1].val.loss < names["history"][0].val.loss
    elif "estimate" in names:
        assert names["estimate"].num_images == 50
    elif "codes" in names:
        assert names["codes"].shape == (16, 49)
    elif "objective" in names:
        x = torch.rand(2, 3, 32, 32)
        assert names["again"].reconstruct(x).equal(names["vae"].reconstruct(x))
        assert isinstance(names["trainer"].objective, vl.Adversarial)
    elif "trainer" in names:
        assert len(names["history"]) == 2
    else:
        assert names["terms"].kl.shape == (8,)


@pytest.mark.slow
def test_command_line_blocks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [line for code in blocks("bash") for line in code.splitlines() if line.startswith("vaelib ")]
    assert len(lines) == 9
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, line
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        "first", "samples.png", "one.png", "mine.png", "embedding.npz", "embedding.png", "bundle",
    }  # fmt: skip


def test_the_two_commands_are_there():
    commands = [code.strip() for code in blocks("bash") if code.startswith("pip install")]
    assert commands == ['pip install -e ".[all]" && vaelib demo', 'pip install -e ".[dev]" && pytest']


def test_no_placeholder_is_left():
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md", "docs/benchmarks.md"):
        text = (Path(__file__).parent.parent / name).read_text()
        assert not re.search(r"^[A-Z]{4,}$", text, re.MULTILINE), name


def test_the_throughputs_are_those_of_the_report():
    """Each number of README's table, in the row and column of benchmarks/results/cpu.md that it names."""
    report = (Path(__file__).parent.parent / "benchmarks/results/cpu.md").read_text()
    measured = {}
    for part in report.split("\n## ")[1:]:
        network, *lines = part.splitlines()
        for line in lines:
            operation, *rest = [cell.strip() for cell in line.strip("|").split("|")]
            if network in ("article", "default") and operation in ("encode", "decode"):
                backend, *speeds = rest
                for batch, speed in zip((1, 8, 64, 256, 1024), speeds, strict=True):
                    measured[network, operation, f"{batch:,}", backend] = speed.strip("*")
    table = re.search(r"^\| images/s \|.*?\n\n", README, re.MULTILINE | re.DOTALL).group()
    columns, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    assert len(lines) == 12
    for what, batch, *speeds in lines:
        for backend, speed in zip(columns[2:], speeds, strict=True):
            assert speed.strip("*") == measured[(*what.split(", "), batch, backend)], (what, batch, backend)


@pytest.mark.parametrize("table", ["nats", "fid", "codes", "mig"])
def test_the_results_are_those_of_the_scripts(table):
    """docs/results.md holds the tables that examples/reproduce/table.py makes of the committed JSON."""
    root = Path(__file__).parent.parent
    made = runpy.run_path(str(root / "examples/reproduce/table.py"))[table]()
    assert made.count("\n") > 3
    assert made in (root / "docs/results.md").read_text()


def test_the_nats_are_those_of_the_scripts():
    table = runpy.run_path(str(Path(__file__).parent.parent / "examples/reproduce/table.py"))
    rows = re.findall(r"^\| `(\w+)` [^|]*\| `(.*?)` \| (\S+ \+- \S+) \| ([\d,]+) \| (.*?) \|$", README, re.MULTILINE)
    assert [row for row, *_ in rows] == [row for row in table["ROWS"] if table["there"](row)]
    for row, flags, nll, draws, published in rows:
        found = table["read"](row)
        assert flags == found["flags"]
        assert nll == f"{found['nll']:.2f} +- {found['standard_error']:.2f}"
        assert (draws, found["num_images"]) == (f"{found['num_samples']:,}", 10_000)
        assert published == table["published"](found)
        assert ("static" in published) == ("static" in found["source"])


REPRODUCE = Path(__file__).parent.parent / "examples/reproduce"
RESULTS = sorted((REPRODUCE / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_flags_of_a_result_give_its_settings(path, monkeypatch):
    """The script's defaults and these flags, as the script reads them: epochs, samples, precision, seed, images."""
    found = json.loads(path.read_text())
    monkeypatch.setattr(sys, "argv", [f"{path.stem}.py", *found["flags"].split()])
    monkeypatch.syspath_prepend(REPRODUCE)
    name, epochs = re.search(r'options\("(\w+)", epochs=(\d+)\)', (REPRODUCE / f"{path.stem}.py").read_text()).groups()
    options = runpy.run_path(str(REPRODUCE / "protocol.py"))["options"](name, int(epochs))
    assert (name, options.epochs, options.seed) == (found["row"], found["epochs"], found["seed"])
    if "nll" in found:
        assert (options.samples, options.precision) == (found["num_samples"], found["precision"])
        assert (options.images, found["num_images"]) == (None, 10_000)


def git(directory, *words):
    return subprocess.run(["git", *words], cwd=directory, capture_output=True, text=True)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_names_commits_that_exist(path):
    if git(REPRODUCE, "rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("no repository with its history")
    found = json.loads(path.read_text())
    named = [found[name] for name in ("commit", "recorded_by") if found.get(name)]
    assert named
    for commit in named:
        assert git(REPRODUCE, "merge-base", "--is-ancestor", commit, "HEAD").returncode == 0


def test_a_result_says_which_code_it_is_of(tmp_path, monkeypatch):
    """The commit, and whatever differs from it; results themselves do not count."""
    monkeypatch.syspath_prepend(REPRODUCE)
    code_of = runpy.run_path(str(REPRODUCE / "protocol.py"))["code_of"]
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert code_of(tmp_path) == {"commit": None, "changed_files": None}
    (tmp_path / "results").mkdir()
    for name in ("a.py", "b.py", "results/row.json"):
        (tmp_path / name).write_text("1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "first")
    head = git(tmp_path, "rev-parse", "HEAD").stdout.strip()
    assert len(head) == 40
    assert code_of(tmp_path) == {"commit": head, "changed_files": []}
    for name in ("b.py", "results/row.json"):
        (tmp_path / name).write_text("2\n")
    assert code_of(tmp_path) == {"commit": head, "changed_files": ["b.py"]}


def test_the_reader_knows_no_goal():
    """Results stand beside published figures, not beside what somebody wanted."""
    root = Path(__file__).parent.parent
    for path in [root / "README.md", *(root / "docs").rglob("*.md")]:
        assert not re.search(r"\bgoals?\b.{0,20}\b(met|missed|were|was|is)\b", path.read_text(), re.DOTALL), path
