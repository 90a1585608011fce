"""README's own code, run as it stands in an empty directory."""

import re
import shlex
from pathlib import Path

import pytest

from vaelib.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language):
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", README, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    if "pictures" in names:
        assert names["pictures"].shape == (16, 1, 32, 32)
        assert names["history"][-1].val.loss < names["history"][0].val.loss
    elif "trainer" in names:
        assert len(names["history"]) == 2
    else:
        assert names["terms"].kl.shape == (8,)


def test_command_line_blocks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [line for code in blocks("bash") for line in code.splitlines() if line.startswith("vaelib ")]
    assert len(lines) == 8
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, line
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        "first", "samples.png", "mine.png", "embedding.npz", "embedding.png", "bundle",
    }  # fmt: skip


def test_the_two_commands_are_there():
    commands = [code.strip() for code in blocks("bash") if code.startswith("pip install")]
    assert commands == ['pip install -e ".[all]" && vaelib demo', 'pip install -e ".[dev]" && pytest']


def test_no_placeholder_is_left():
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md", "docs/growing.md"):
        text = (Path(__file__).parent.parent / name).read_text()
        assert not re.search(r"^[A-Z]{4,}$", text, re.MULTILINE), name
