"""Files are whole or not at all, whenever a process is killed, and no file of anybody else is replaced."""

import itertools
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import warnings

import pytest
import torch
from hand_made import MODEL, specs
from launching import FORKS
from saving import models, save_in_turns

import vaelib as vl
from vaelib import _files
from vaelib._files import (
    check_claimed,
    claim,
    listed_in,
    read_json,
    target_directory,
    writable_directory,
    written_whole,
)
from vaelib._weights import write_tensors
from vaelib.cli import main
from vaelib.export.manifest import write_bundle
from vaelib.runtime.bundle import Bundle
from vaelib.serialization import describe
from vaelib.training.checkpoints import newest_checkpoint, read_checkpoint, write_checkpoint

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_a_file_appears_whole(tmp_path):
    target = tmp_path / "a.txt"
    with written_whole(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]
    assert stat.S_IMODE(target.stat().st_mode) & 0o400


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def interrupted():
        with written_whole(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        interrupted()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    assert writable_directory("out", tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"`out` must be a directory that can be written \(.*\), got.*file"):
        writable_directory("out", tmp_path / "file" / "c")


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() == 0, reason="root may write anywhere")
def test_a_directory_without_write_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="`out` must be a directory that can be written"):
        writable_directory("out", tmp_path)
    tmp_path.chmod(0o700)


def killed(act, step):
    """Run ``act`` in a fork that ends before its ``step``-th change to the file system; whether it came to that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside torch's threads, which are not used
        child = os.fork()
    if child == 0:
        remaining = itertools.count(step, -1)

        def hook(event, arguments):
            changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
            if event == "open":
                changes = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if changes and next(remaining) == 0:
                os._exit(9)

        try:
            sys.addaudithook(hook)
            act()
            os._exit(0)
        except BaseException:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def same_model(one, other):
    states = one.state_dict(), other.state_dict()
    return describe(one) == describe(other) and all(torch.equal(states[0][name], states[1][name]) for name in states[0])


OLD, NEW = models()
STATES = [{"step": step, "weights": torch.full((3,), float(step))} for step in (0, 1)]
GRAPHS = [{"encoder.onnx": b"0", "vae.onnx": b"0"}, {"encoder.onnx": b"1", "prior.onnx": b"1"}]


IMAGE, Z = "float[B,1,8,8]", "float[B,2] z"
DESCRIBED = {
    "schema": "3",
    "version": "0",
    "model": MODEL | {"image_shape": [1, 8, 8], "latent_shape": [2], "prior": "none"},
    "graphs": {
        "encoder": {"file": "encoder.onnx", "inputs": specs(f"{IMAGE} image"), "outputs": specs(Z)},
        "decoder": {"file": "decoder.onnx", "inputs": specs(Z), "outputs": specs(f"{IMAGE} mean")},
    },
}


def bundle_is(directory, number):
    bundle = Bundle(directory)
    contents = {name: bundle._verified(bundle._existing(name)) for name in bundle._files}
    return contents == GRAPHS[number]


# How to write the old (0) and the new (1), whether what is there is one of them, and the files of the new.
KINDS = {
    "model": (
        lambda directory, new: vl.save(NEW if new else OLD, directory),
        lambda directory, new: same_model(vl.load(directory), NEW if new else OLD),
        ["config.json", "model.safetensors"],
    ),
    "checkpoint": (
        lambda directory, new: write_checkpoint(directory, STATES[new]),
        lambda directory, new: read_checkpoint(directory)["step"] == read_checkpoint(directory)["weights"][0] == new,
        ["state.json", "tensors.safetensors"],
    ),
    "bundle": (
        lambda directory, new: write_bundle(directory, DESCRIBED, GRAPHS[new]),
        bundle_is,
        ["encoder.onnx", "manifest.json", "prior.onnx"],
    ),
}


@needs_fork
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [True, False], ids=["new", "replaced"])
def test_killed_at_any_step_the_old_or_the_new_is_there(kind, first, tmp_path):
    """And the next write cleans up."""
    write, is_there, files = KINDS[kind]
    was = []
    for step in itertools.count():
        directory = tmp_path / f"{step}" / "model"
        directory.parent.mkdir()
        if not first:
            write(directory, 0)
            (directory / "notes.txt").write_text("mine")
        was_killed = killed(lambda where=directory: write(where, 1), step)
        if directory.exists():
            assert is_there(directory, 1) or (not first and is_there(directory, 0)), f"killed before change {step}"
            was.append(is_there(directory, 1))
        write(directory, 1)
        assert is_there(directory, 1)
        assert sorted(os.listdir(directory)) == sorted([*files, *([] if first else ["notes.txt"])])
        assert os.listdir(directory.parent) == ["model"]
        if not was_killed:
            break
    assert step >= 5
    assert was == sorted(was) and was[-1]


@pytest.mark.slow
@needs_fork
def test_killed_between_two_updates_the_first_is_finished(tmp_path):
    """A kill after the act leaves files to move; another kill while the next update moves them loses nothing."""
    half_moved = 0
    for first, second in itertools.product((5, 6, 7), range(8)):
        directory = tmp_path / f"{first}-{second}"
        write_checkpoint(directory, STATES[0])
        killed(lambda where=directory: write_checkpoint(where, STATES[1]), first)
        half_moved += (directory / ".vaelib-pending-state.json" / "state.json").exists()
        killed(lambda where=directory: write_checkpoint(where, STATES[0]), second)
        state = read_checkpoint(directory)
        assert state["step"] == state["weights"][0]
    assert half_moved == 16


@pytest.mark.slow
def test_saves_that_are_really_killed(tmp_path):
    generator = random.Random(0)
    for _ in range(10):
        saved = FORKS.Event()
        process = FORKS.Process(target=save_in_turns, args=(tmp_path / "model", saved), daemon=True)
        process.start()
        assert saved.wait(60)
        process.join(generator.uniform(0, 0.5))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        loaded = vl.load(tmp_path / "model")
        assert same_model(loaded, OLD) or same_model(loaded, NEW)
    vl.save(OLD, tmp_path / "model")
    assert sorted(os.listdir(tmp_path / "model")) == ["config.json", "model.safetensors"]


def test_a_model_can_be_loaded_while_another_is_saved_over_it(tmp_path):
    vl.save(OLD, tmp_path)
    done = threading.Event()

    def save_by_turns():
        for _ in range(15):
            vl.save(NEW, tmp_path)
            vl.save(OLD, tmp_path)
        done.set()

    thread = threading.Thread(target=save_by_turns)
    thread.start()
    loads = 0
    while not done.is_set():
        loaded = vl.load(tmp_path)
        assert same_model(loaded, OLD) or same_model(loaded, NEW)
        loads += 1
    thread.join()
    assert loads > 0


def leftover(directory, host, pid, token):
    path = directory / f".vaelib-{host}-{pid}-{token}-0"
    path.mkdir()
    (path / "half").touch()
    return path


def test_leftovers_are_removed_unless_somebody_may_be_writing_them(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = [
        leftover(tmp_path, _files._HOST, ended.pid, "00000000"),
        leftover(tmp_path, _files._HOST, os.getpid(), "00000000"),  # the number has come again
        leftover(tmp_path, "0" * 8, 5, "00000000"),
    ]
    os.utime(dead[-1], (0, 0))
    alive = [
        leftover(tmp_path, _files._HOST, os.getppid(), "00000000"),
        leftover(tmp_path, _files._HOST, os.getpid(), _files._TOKEN),
        leftover(tmp_path, "0" * 8, 5, "11111111"),  # another machine's, of today
        tmp_path / ".vaelib-mine",
    ]
    alive[-1].touch()
    with written_whole(tmp_path / "a.txt") as temporary:
        temporary.touch()
    assert not any(path.exists() for path in dead)
    assert all(path.exists() for path in alive)


FOREIGN = r"must not hold files that vaelib did not write, or that were changed since, .* holds "


def link(path, target):
    target.write_text("{}")
    path.unlink(missing_ok=True)
    path.symlink_to(target)


# What a user has done to a directory, in which a model, a bundle or nothing was; the file that is then named.
STRANGERS = {
    "a config of another tool": ("model", None, lambda d: (d / "config.json").write_text("{}"), "config.json"),
    "a config that is no JSON": ("model", None, lambda d: (d / "config.json").write_text("a: 1"), "config.json"),
    "weights of another tool": (
        "model",
        None,
        lambda d: write_tensors(d / "model.safetensors", {"a": torch.ones(1)}),
        "model.safetensors",
    ),
    "an edited config": (
        "model",
        0,
        lambda d: (d / "config.json").write_text((d / "config.json").read_text().replace("silu", "relu")),
        "config.json",
    ),
    "a link": ("model", 0, lambda d: link(d / "model.safetensors", d / "other"), "model.safetensors"),
    "a folder": ("model", None, lambda d: (d / "config.json").mkdir(), "config.json"),
    "a graph": ("bundle", None, lambda d: (d / "encoder.onnx").write_bytes(b"mine"), "encoder.onnx"),
    "an edited graph": ("bundle", 0, lambda d: (d / "encoder.onnx").write_bytes(b"mine"), "encoder.onnx"),
    "a graph beside a bundle": ("bundle", 0, lambda d: (d / "prior.onnx").write_bytes(b"mine"), "prior.onnx"),
    "a graph edited that goes": ("bundle", 0, lambda d: (d / "vae.onnx").write_bytes(b"mine"), None),
    "another tool's manifest": (
        "bundle",
        None,
        lambda d: (d / "manifest.json").write_text('{"kind": "VAE", "files": {"encoder.onnx": {}}}'),
        "manifest.json",
    ),
    "a manifest that points elsewhere": (
        "bundle",
        0,
        lambda d: (d / "manifest.json").write_text(json.dumps({"schema": "3", "files": {"../a": {"sha256": ""}}})),
        "encoder.onnx, manifest.json",
    ),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_files_of_other_origin_stay(case, tmp_path):
    kind, before, change, named = STRANGERS[case]
    write, directory = KINDS[kind][0], tmp_path / "directory"
    directory.mkdir()
    if before is not None:
        write(directory, before)
    change(directory)
    kept = {path.name: path.lstat().st_mtime_ns for path in directory.iterdir()}
    if named is None:
        write(directory, 1)
        assert (directory / "vae.onnx").read_bytes() == b"mine"
        return
    with pytest.raises(FileExistsError, match=FOREIGN + named):
        write(directory, 1)
    assert {path.name: path.lstat().st_mtime_ns for path in directory.iterdir()} == kept


def test_a_torn_model_is_mended_by_saving_again_and_one_of_version_0_1_is_replaced(tmp_path, as_version_0_1):
    vl.save(OLD, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    vl.save(NEW, tmp_path)
    as_version_0_1(tmp_path)
    assert same_model(vl.load(tmp_path), NEW)
    vl.save(OLD, tmp_path)
    assert same_model(vl.load(tmp_path), OLD)


def test_links_to_directories_are_followed(tmp_path, monkeypatch):
    (tmp_path / "there").symlink_to(tmp_path / "target")  # which is not there yet
    for model in (OLD, NEW):
        vl.save(model, tmp_path / "there")
        assert (tmp_path / "there").is_symlink()
        assert same_model(vl.load(tmp_path / "target"), model)
    monkeypatch.chdir(tmp_path / "target")
    vl.save(OLD, ".")
    assert sorted(os.listdir()) == ["config.json", "model.safetensors"]
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match="`directory` must be a directory that can be written"):
        vl.save(OLD, tmp_path / "loop")
    assert target_directory("directory", tmp_path / "x" / "y") == tmp_path / "x" / "y"
    assert (tmp_path / "x").is_dir() and not (tmp_path / "x" / "y").exists()


def test_only_claimed_names_are_ones_own(tmp_path):
    (tmp_path / "history.csv").touch()
    with pytest.raises(FileExistsError, match=r"`out` must not hold files or folders that .* holds history.csv\. Move"):
        check_claimed("out", tmp_path, ["history.csv", "best"])
    check_claimed("out", tmp_path, ["best"])
    claim(tmp_path, ["best"])
    (tmp_path / "best").mkdir()
    check_claimed("out", tmp_path, ["best"])
    claim(tmp_path, ["last"])
    check_claimed("out", tmp_path, ["best", "last"])


@pytest.mark.parametrize("name", ["history.csv", "curves.png", "best", "samples", "checkpoints"])
def test_a_run_does_not_write_over_what_it_did_not_write(name, tmp_path):
    (tmp_path / name).mkdir()
    for resume in (False, True):
        with pytest.raises(FileExistsError, match=f"`output_dir` must not hold .* holds {name}"):
            vl.Trainer(output_dir=tmp_path).fit(OLD, torch.rand(4, 1, 8, 8), resume=resume, progress=False)
    assert not os.listdir(tmp_path / name) and {*os.listdir(tmp_path)} <= {name, ".vaelib-lock"}


@pytest.mark.parametrize(
    ("command", "name"),
    [("train", "run.json"), ("train", "best"), ("demo", "checkpoints"), ("demo", "samples.png"), ("demo", "run.json")],
)
def test_commands_do_not_write_over_what_they_did_not_write(command, name, tmp_path, capsys):
    (tmp_path / name).write_text("{}")
    assert main([command, "--out", str(tmp_path)]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "`--out` must not hold files or folders that vaelib did not write" in error and f"holds {name}." in error
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_text() == "{}"


def test_a_link_in_the_place_of_pending_files_is_not_followed(tmp_path):
    vl.save(OLD, tmp_path / "model")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    (tmp_path / "model" / ".vaelib-pending-config.json").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="vaelib-pending"):
        vl.save(NEW, tmp_path / "model")
    assert os.listdir(tmp_path / "mine") == ["notes.txt"]
    assert shutil.rmtree.avoids_symlink_attacks or os.name == "nt"
    assert same_model(vl.load(tmp_path / "model"), OLD)


def test_checkpoints_of_other_names_or_with_other_files_are_not_removed(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "step_0_backup").mkdir()
    keep = vl.Checkpoints(keep_last=1)
    for step in (1, 2):
        keep.write(tmp_path, step, STATES[0])
    (folder / "step_0000000002" / "notes.txt").touch()
    keep.write(tmp_path, 3, STATES[0])
    assert sorted(os.listdir(folder)) == ["step_0000000002", "step_0000000003", "step_0_backup"]
    assert newest_checkpoint(tmp_path)[0].name == "step_0000000003"


DEEP = "[" * 10_000 + "]" * 10_000


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "is no JSON: Expecting"),
        (DEEP, "is no JSON: nested too deeply"),
        ("[" * 120 + "]" * 120, "is no JSON: nested too deeply"),
        ('{"a": 1, "a": 2}', "is no JSON: a key occurs twice"),
        ("9" * 5000, "is no JSON: Exceeds the limit"),
        (b"\xff\xff", "is no JSON: .*can't decode"),
        (" " * 100_001, "must have at most 100000 bytes, got 100001"),
    ],
)
def test_json_that_is_not_read(text, match, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=match):
        read_json(path, 100_000)
    assert listed_in(path, lambda content: True) is None
