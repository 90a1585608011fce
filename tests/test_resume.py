"""A run that is stopped, in whatever way, and resumed ends bitwise as one that never was."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from launching import FORKS, PROGRAMS, Fork, environment_of
from PIL import Image
from runs import StopAt, images_of, seeded, tiny, weights
from torch.utils._pytree import tree_leaves
from writing import write_shard

import vaelib as vl
from vaelib._files import claim
from vaelib.cli import main
from vaelib.errors import ModelFileError, TrainingError
from vaelib.serialization import describe
from vaelib.training import recipe
from vaelib.training.checkpoints import by_parameter, newest_checkpoint, read_checkpoint, write_checkpoint
from vaelib.training.processes import locked
from vaelib.training.recipe import differences, fingerprint


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    """They take a third of a run as small as these; tests/test_callbacks.py draws them."""
    monkeypatch.setattr("vaelib.plots.save_curves", lambda *_: None)


class NoisyImages(torch.utils.data.Dataset):
    """Draws from all three global generators, as old transforms do."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        base = torch.full((1, 8, 8), index / 20)
        return (base + torch.rand(1) + float(np.random.rand()) + random.random()).clamp(max=4) / 4  # noqa: NPY002


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for number in range(2):
        images = vl.data.shapes(10, image_size=10, seed=number).images.numpy()
        write_shard(folder / f"{number}.tar", [(f"{index}.png", image) for index, image in enumerate(images)])
    return folder


class EndAfter:
    """Sets ``stop_reason`` in a step, as a callback of one's own may."""

    def __init__(self, step):
        self.step = step

    def on_step(self, run):
        if run.step == self.step:
            run.stop_reason = "enough"


def small_run(directory, *callbacks, resume=False, start=0, objective=None, train=None, val=True, parts=dict, **kwargs):
    """3 epochs of 4 steps: the weights, and the history without times."""
    torch.manual_seed(start)
    model, images = tiny(start, **{"hidden_channels": (4,), "dropout": 0.2} | parts()), images_of(20)
    labels = None if model.condition is None else torch.arange(20) % 3
    data = vl.data.ImageDataset(images, dynamic=True, flip=True, condition=labels)
    data = data if train is None else train(images / 255)
    own = [vl.Pictures(every=99), *([vl.EMA(0.9), vl.EarlyStopping(patience=9)] if val else []), *callbacks]
    options = {"max_epochs": 3, "batch_size": 5, "output_dir": directory} | kwargs
    trainer = vl.Trainer(None if objective is None else objective(), callbacks=own, **options)
    measured = vl.data.ImageDataset(images, condition=labels) if val else None
    history = trainer.fit(model, data, measured, resume=resume, progress=False)
    records = [[r.epoch, r.step, r.train, r.val, r.learning_rate, r.num_images] for r in history]
    return weights(model).tolist(), records


def run_stopped_at(steps, directory, *callbacks, event="on_step", **kwargs):
    """Ctrl-C at each of ``steps`` in turn, resumed each time with other weights to begin with."""
    for count, step in enumerate(steps):
        own = {"resume": count > 0, "start": count}
        with pytest.raises(vl.TrainingInterrupted) as stop:
            small_run(directory, StopAt(step, event=event), *callbacks, **own, **kwargs)
        assert (stop.value.code, stop.value.step) == (130, step)
    return small_run(directory, StopAt(event=event), *callbacks, resume=True, start=99, **kwargs)


def loader(images, **kwargs):
    return torch.utils.data.DataLoader(images, 5, shuffle=True, **kwargs)


def stream(shards):
    return vl.data.stream(
        shards, "all", image_size=8, flip=True, transform=lambda x: x.roll(int(torch.randint(9, ())), 2), workers=0
    )


CODES = {"latent_dim": None}
STOPPED = {
    "val, EMA, early stopping": {"parts": lambda: {"corruption": vl.GaussianNoise(0.1)}},
    "accumulate": {"accumulate": 2, "val": False},
    "a loader": {"train": lambda x: loader(NoisyImages())},
    "a stream": {},
    "labels that are dropped": {"parts": lambda: {"condition": vl.Labels(3, dropout=0.3)}, "accumulate": 2},
    "codes that are restarted": {"parts": lambda: {**CODES, "latent": vl.VectorQuantizer((2, 4, 4), 16, restart=0.5)}},
    "codes by gradients, with labels": {
        "parts": lambda: {
            **CODES,
            "latent": vl.ResidualQuantizer((2, 4, 4), 4, 2, decay=None),
            "condition": vl.Labels(3, dropout=0.3),
        }
    },
    "a loader with a generator": {"train": lambda x: loader(x, generator=seeded(3)), "val": False},
    "a discriminator": {"objective": lambda: vl.FactorLoss(2, gamma=2.0, hidden_features=(8, 8))},
}


@pytest.mark.parametrize("name", STOPPED)
def test_a_run_stopped_at_any_step_is_bitwise_the_one_that_was_not(name, tmp_path, shards):
    options = STOPPED[name] | ({"train": lambda x: stream(shards)} if name == "a stream" else {})
    expected = small_run(tmp_path / "whole", StopAt(), **options)
    steps = (3, 8) if name in ("a stream", "a discriminator") else range(1, 13)
    assert run_stopped_at(steps, tmp_path / "run", **options) == expected
    for model in ("best", "last"):
        assert torch.equal(*(weights(vl.load(tmp_path / run / model)) for run in ("whole", "run")))
    states = [newest_checkpoint(tmp_path / run)[1] for run in ("whole", "run")]
    for part in ("model", "optimization", "random"):
        assert str(states[0][part]) == str(states[1][part])


def test_a_stop_after_an_epoch_ends_the_program_and_resumes(tmp_path):
    """A signal that comes in validation or in on_epoch is not lost, not even in the last epoch."""
    expected = small_run(tmp_path / "whole", StopAt(event="on_epoch"))
    assert run_stopped_at([4, 8, 12], tmp_path / "run", event="on_epoch") == expected


@pytest.mark.parametrize("end", [5, 8])
def test_an_epoch_in_which_a_callback_ends_the_run_is_finished_after_a_stop(end, tmp_path):
    expected = small_run(tmp_path / "whole", StopAt(), EndAfter(end))
    assert [row[0] for row in expected[1]] == [1, 2]
    assert run_stopped_at(range(end, 9), tmp_path / "run", EndAfter(end)) == expected


def test_a_second_ctrl_c_ends_at_once_and_the_run_resumes(tmp_path, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what nohup starts ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    expected = small_run(tmp_path / "whole", StopAt(), vl.Checkpoints(every=3))
    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path / "run", StopAt(7), StopAt(7), vl.Checkpoints(every=3))
    with pytest.raises(ValueError, match="`callbacks` must be"):
        small_run(tmp_path / "run", StopAt(), vl.Checkpoints(every=3), resume=True)
    assert small_run(tmp_path / "run", StopAt(), StopAt(), vl.Checkpoints(every=3), resume=True, start=9) == expected


def joined(parts):
    """Moments as version 0.1 kept them: as weights channels last lie in memory, by multiples of 16."""
    flat = [(part.permute(0, 2, 3, 1) if part.ndim == 4 else part).flatten() for part in parts]
    return torch.cat([torch.nn.functional.pad(part, (0, -len(part) % 16)) for part in flat])


def as_one_tensor(optimizer):
    """An optimiser's state as version 0.1 kept it."""
    moments = [*optimizer["state"].values()]
    whole = {name: joined([kept[name] for kept in moments]) for name in ("exp_avg", "exp_avg_sq")}
    (group,) = optimizer["param_groups"]
    return {"state": {0: whole | {"step": moments[0]["step"]}}, "param_groups": [group | {"params": [0]}]}


def test_an_optimiser_of_one_tensor_for_each_group_and_dtype_is_read():
    weights = [
        torch.rand(3, 2, 2, 2).to(memory_format=torch.channels_last),
        torch.rand(9),
        torch.rand(5),
        torch.rand(3, 7),
    ]
    first, frozen, double, other = (torch.nn.Parameter(weight) for weight in weights)
    frozen.requires_grad_(False)
    double.data = double.data.double()
    optimizer = torch.optim.Adam([{"params": [first, frozen, double]}, {"params": [other], "lr": 0.5}])
    kept = optimizer.state_dict()["param_groups"]
    groups = [kept[0] | {"params": [0, 1]}, kept[1] | {"params": [2]}]
    parts = [torch.rand_like(weight) for weight in (first, double, other)]
    state = {number: {"step": torch.tensor(3.0), "exp_avg": joined([part])} for number, part in enumerate(parts)}
    found = by_parameter({"state": state, "param_groups": groups}, optimizer)
    assert [group["params"] for group in found["param_groups"]] == [[0, 1, 2], [3]] and [*found["state"]] == [0, 2, 3]
    for moments, part in zip(found["state"].values(), parts, strict=True):
        assert moments["step"] == 3 and torch.equal(moments["exp_avg"], part)
    assert by_parameter(found, optimizer) is found


@pytest.mark.parametrize("step", [4, 7, 8])
def test_checkpoints_of_version_0_1_are_resumed(step, tmp_path):
    expected = small_run(tmp_path / "whole", StopAt())
    with pytest.raises(vl.TrainingInterrupted):
        small_run(tmp_path / "run", StopAt(step))
    path, state = newest_checkpoint(tmp_path / "run")
    if step != 7:  # at the end of an epoch
        del state["terms"]
    state["optimization"]["optimizer"] = as_one_tensor(state["optimization"]["optimizer"])
    write_checkpoint(path, state)
    assert small_run(tmp_path / "run", StopAt(), resume=True, start=9) == expected


class FailsFrom:
    """An objective that becomes NaN from a step on."""

    from_step = 100

    def __call__(self, model, x, *, step=0, generator=None):
        terms = vl.Elbo()(model, x)
        return terms._replace(loss=terms.loss * float("nan")) if model.training and step >= self.from_step else terms


def test_a_run_that_ended_by_an_error_resumes_when_its_cause_is_gone(tmp_path):
    expected = small_run(tmp_path / "whole", objective=FailsFrom)
    broken = FailsFrom()
    broken.from_step = 8
    with pytest.raises(TrainingError, match=r"Before step 12: .* The last is .*step_0000000008"):
        small_run(tmp_path / "run", objective=lambda: broken)
    assert small_run(tmp_path / "run", objective=FailsFrom, resume=True, start=9) == expected


def test_where_no_checkpoint_can_be_read_a_run_starts_again_only_if_told(finished_run, tmp_path, caplog):
    shutil.copytree(finished_run[0], tmp_path / "run")
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        (checkpoint / "state.json").write_text("{}")
    with pytest.raises(FileExistsError, match="has the checkpoints of a run"):
        small_run(tmp_path / "run")
    assert small_run(tmp_path / "run", resume=True) == finished_run[1]
    said = [record.getMessage().rsplit(". ", 1)[1] for record in caplog.records if "step_" in record.getMessage()]
    assert said == ["The one before it is used.", "No checkpoint is left: the run starts again."]


def test_fewer_epochs_than_a_run_has_begun_are_refused(tmp_path):
    with pytest.raises(vl.TrainingInterrupted):
        small_run(tmp_path, StopAt(9))
    with pytest.raises(ValueError, match=r"`max_epochs` must be >= 3, the epochs begun in .*step_0000000009, got 2"):
        small_run(tmp_path, StopAt(), resume=True, max_epochs=2)
    assert len(small_run(tmp_path, StopAt(), resume=True)[1]) == 3


def test_a_longer_run_is_compiled_if_the_one_so_far_was(tmp_path, monkeypatch):
    """By itself a run is compiled from a number of steps on, which more epochs may pass."""
    small_run(tmp_path)
    monkeypatch.setattr("vaelib.training.hardware._STEPS_THAT_PAY", 13)
    assert len(small_run(tmp_path, resume=True, max_epochs=4)[1]) == 4


def images_like(x, count=1):
    """Other images of the same number and shape: ``count`` pixels differ."""
    other = x.clone()
    other[-1].flatten()[:count] = 255 - other[-1].flatten()[:count]
    return other


def set_of(x, indices=range(20)):
    whole = torch.utils.data.TensorDataset(x / 255, torch.arange(20))
    return torch.utils.data.DataLoader(torch.utils.data.Subset(whole, indices), 5)


OTHER_IMAGES = {
    "one pixel": (lambda x: x, images_like, "got others: contents [0-9a-f]{16} there, [0-9a-f]{16} here"),
    "dtype": (lambda x: x, lambda x: x / 255, "got others: dtype torch.uint8 there, torch.float32 here; contents"),
    "flipped": (lambda x: x, lambda x: vl.data.ImageDataset(x, flip=True), "got others: flip False there, True here"),
    "loader's one pixel": (set_of, lambda x: set_of(images_like(x)), "contents .* there, .* here"),
    "loader's subset": (set_of, lambda x: set_of(x, [*range(18), 19, 18]), "contents .* there, .* here"),
    "loader of more": (lambda x: loader(x / 255), lambda x: loader(x[:18] / 255), "images 20 there, 18 here"),
}


@pytest.mark.parametrize("name", OTHER_IMAGES)
@pytest.mark.parametrize("split", ["train", "val"])
def test_other_images_are_refused(name, split, tmp_path):
    x, (first, second, match) = images_of(20), OTHER_IMAGES[name]

    def run(source, **kwargs):
        data = {"train": x, "val": x, split: source(x)}
        trainer = vl.Trainer(max_epochs=2, batch_size=5, output_dir=tmp_path, callbacks=[vl.Pictures(every=9)])
        return trainer.fit(tiny(), **data, progress=False, **kwargs)

    run(first)
    with pytest.raises(ValueError, match=rf"`{split}` must be the images that .*step_0000000008 was trained.*{match}"):
        run(second, resume=True)
    assert len(run(first, resume=True)) == 2


def test_images_of_a_stream_are_known_by_their_files(tmp_path):
    def write(folder, value=7, name="d.png"):
        folder.mkdir()
        for place in ("a.png", "b.png", "c.png", name):
            Image.new("L", (8, 8), value).save(folder / place)
            value = 99 if place == "c.png" else value
        return vl.data.stream(folder, "all", workers=0)

    whole = fingerprint(write(tmp_path / "a"))
    assert fingerprint(write(tmp_path / "moved")) == whole
    for folder, arguments in (("other name", {"name": "e.png"}), ("other size", {"value": 0})):
        (tmp_path / folder).mkdir()
        other = write(tmp_path / folder / "x", **arguments)
        if folder == "other size":
            Image.effect_noise((8, 8), 50).save(tmp_path / folder / "x" / "d.png")
        assert differences(whole, fingerprint(other)) == [
            f"files {whole['files']} there, {fingerprint(other)['files']} here"
        ]


def test_a_large_set_is_known_by_evenly_spaced_images(monkeypatch):
    x = images_of(20)
    monkeypatch.setattr("vaelib.training.recipe._MOST_BYTES", 8 * 64)  # every third image
    marks = [fingerprint(vl.data.ImageDataset(images)) for images in (x, images_like(x), images_like(x[:19]))]
    assert marks[0] == marks[1] and marks[0]["contents"] != marks[2]["contents"]


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_first_batch_of_a_loader_that_is_another_is_reported(shuffled, tmp_path, caplog):
    def run(pixels, **kwargs):
        x = images_like(images_of(20), pixels) / 255
        trainer = vl.Trainer(max_epochs=1, output_dir=tmp_path, callbacks=[vl.Pictures(every=9)])
        trainer.fit(tiny(), torch.utils.data.DataLoader(x, 20, shuffle=shuffled), progress=False, **kwargs)

    run(0)
    run(0, resume=True)
    assert "first batch" not in caplog.text
    run(1, resume=True)
    assert "The first batch of `train` is not the one that" in caplog.text


def test_images_of_version_0_1_are_not_compared_but_val_stays(tmp_path, caplog):
    small_run(tmp_path)
    path, state = newest_checkpoint(tmp_path)
    for name in ("images", "objective_arguments", "optimizer_class"):
        del state["recipe"][name]
    for name in ("terms", "scheduled", "max_epochs"):
        del state[name]
    write_checkpoint(path, state)
    assert len(small_run(tmp_path, resume=True)[1]) == 3
    assert "step_0000000012 is of version 0.1, which did not note its images" in caplog.text
    x = images_of(20)
    parts = [vl.Pictures(every=99), vl.EMA(0.9), vl.EarlyStopping(patience=9)]
    trainer = vl.Trainer(max_epochs=3, batch_size=5, output_dir=tmp_path, callbacks=parts)
    model = tiny(hidden_channels=(4,), dropout=0.2)
    with pytest.raises(ValueError, match="`val` must be given as in .*step_0000000012"):
        trainer.fit(model, x, resume=True, progress=False)


OTHER_OBJECTIVES = {
    "free bits": (
        lambda: vl.Elbo(free_bits=0.1),
        vl.Elbo,
        r"`free_bits` of the objective must be 0.1 as in .*, got 0.0",
    ),
    "gamma": (
        lambda: vl.FactorLoss(2, gamma=2.0, hidden_features=(4,)),
        lambda: vl.FactorLoss(2, hidden_features=(4,)),
        "`gamma` of the objective must be 2.0 as in",
    ),
    "widths": (
        lambda: vl.FactorLoss(2, hidden_features=(4,)),
        lambda: vl.FactorLoss(2, hidden_features=(4, 4)),
        r"`hidden_features` of the objective must be \[4\] as in .*, got \[4, 4\]",
    ),
    "beta": (vl.Elbo, lambda: vl.Elbo(beta=4.0), "`beta` must be 1 at step 4 as in .*step_0000000004, got 4"),
    "capacity": (
        lambda: vl.Elbo(capacity=vl.linear_warmup(6)),
        lambda: vl.Elbo(capacity=vl.linear_warmup(12)),
        "`capacity` must be 0.5 at step 4 as in .*, got 0.25",
    ),
}


@pytest.mark.parametrize("name", OTHER_OBJECTIVES)
def test_other_weights_of_the_objective_are_refused(name, tmp_path):
    first, second, match = OTHER_OBJECTIVES[name]
    with pytest.raises(vl.TrainingInterrupted):
        small_run(tmp_path, StopAt(4), objective=first)
    with pytest.raises(ValueError, match=match):
        small_run(tmp_path, StopAt(), objective=second, resume=True)
    assert len(small_run(tmp_path, StopAt(), objective=first, resume=True)[1]) == 3


def test_another_class_of_optimiser_is_refused(tmp_path):
    with pytest.raises(vl.TrainingInterrupted):
        small_run(tmp_path, StopAt(2), optimizer=torch.optim.SGD)
    with pytest.raises(ValueError, match="`optimizer_class` must be 'SGD' as in .*, got 'RMSprop'"):
        small_run(tmp_path, StopAt(), optimizer=torch.optim.RMSprop, resume=True)


def test_a_schedule_that_follows_the_length_of_the_run_is_reported(tmp_path, caplog):
    small_run(tmp_path, objective=lambda: vl.Elbo(beta=vl.linear_warmup(12)))
    small_run(tmp_path, objective=lambda: vl.Elbo(beta=vl.linear_warmup(16)), resume=True, max_epochs=4)
    assert "`beta` was 0.916667 at step 12 of" in caplog.text and "and is 0.6875 there in this run" in caplog.text


@pytest.mark.skipif(os.name == "nt", reason="the holder of the lock uses flock")
def test_a_directory_in_which_another_process_trains_is_refused(tmp_path):
    small_run(tmp_path)
    before = sorted(os.listdir(tmp_path / "checkpoints"))
    with subprocess.Popen(
        [sys.executable, PROGRAMS / "holding_the_lock.py", tmp_path], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        for resume in (True, False):
            with pytest.raises(BlockingIOError, match=rf"`output_dir` .* is in use: process {holder.pid} on .* trains"):
                small_run(tmp_path, resume=resume, max_epochs=4)
        assert sorted(os.listdir(tmp_path / "checkpoints")) == before
        holder.kill()
    assert len(small_run(tmp_path, resume=True, max_epochs=4)[1]) == 4  # the lock died with its process


def test_a_directory_in_which_a_thread_trains_is_refused(tmp_path):
    entered, done = threading.Event(), threading.Event()

    def hold():
        with locked(tmp_path), locked(tmp_path):
            entered.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    try:
        with pytest.raises(BlockingIOError, match=f"is in use: process {os.getpid()} on"):
            small_run(tmp_path)
    finally:
        done.set()
        thread.join()
    small_run(tmp_path)


def test_where_locks_do_not_work_a_run_warns_and_starts(tmp_path, monkeypatch, caplog):
    def fails(self, *arguments, **kwargs):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", fails)
    assert len(small_run(tmp_path)[1]) == 3
    assert "cannot be locked ([Errno 37] No locks available): take care" in caplog.text


def test_a_finished_run_has_nothing_left_to_do_and_may_be_prolonged(tmp_path):
    options = {"lr_schedule": "constant"}
    finished = small_run(tmp_path / "run", **options)
    assert small_run(tmp_path / "run", resume=True, start=3, **options) == finished and len(finished[1]) == 3
    longer = small_run(tmp_path / "run", resume=True, start=3, max_epochs=5, **options)
    assert longer == small_run(tmp_path / "straight", max_epochs=5, **options)


def test_a_run_that_stopped_early_stays_stopped(tmp_path, capsys):
    options = {"learning_rate": 1e-30, "max_epochs": 9, "output_dir": tmp_path}
    for resume in (False, True):
        trainer = vl.Trainer(callbacks=[vl.EarlyStopping(patience=2)], **options)
        assert len(trainer.fit(tiny(), images_of(20), images_of(20), resume=resume)) == 3
        assert "ended before the last epoch: no reconstruction + kl below" in capsys.readouterr().err


def test_resume_without_a_checkpoint_starts(tmp_path):
    assert len(small_run(tmp_path / "run", resume=True)[1]) == 3


def test_an_older_checkpoint_without_an_argument_that_is_none_is_resumed(tmp_path, monkeypatch):
    with monkeypatch.context() as older:
        older.setattr(recipe, "describe", lambda model: {k: v for k, v in describe(model).items() if k != "prior"})
        small_run(tmp_path, max_epochs=2)
    assert "prior" in describe(tiny())
    assert len(small_run(tmp_path, resume=True)[1]) == 3


REFUSED = [
    ({"batch_size": 6}, "`batch_size` must be 5 as in .*step_0000000012, got 6"),
    ({"seed": 4}, "`seed` must be 0 as in"),
    ({"learning_rate": 0.1}, "`learning_rate` must be 0.005 as in"),
    ({"train": lambda x: x[:19]}, "`num_images` must be 20 as in .*, got 19"),
    ({"parts": lambda: {"norm": "none"}}, "`model.encoder.norm` must be 'batch' as in .*, got 'none'"),
    ({"resume": False}, r"`output_dir` .* has the checkpoints of a run: resume it with resume=True"),
    ({"directory": None}, "`resume` needs the `output_dir`"),
]


def test_what_cannot_be_resumed_is_refused(finished_run):
    run, _ = finished_run
    before = sorted(os.listdir(run / "checkpoints"))
    for given, match in REFUSED:
        with pytest.raises((ValueError, FileExistsError), match=match):
            small_run(**{"directory": run, "resume": True} | given)
    assert sorted(os.listdir(run / "checkpoints")) == before


def test_keep_last_and_leftovers(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / ".step_0000000001-dead").mkdir(parents=True)
    claim(run, ["checkpoints"])
    small_run(run, vl.Checkpoints(every=3, keep_last=3))
    assert sorted(os.listdir(run / "checkpoints")) == ["step_0000000008", "step_0000000009", "step_0000000012"]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """The directory of a run that nothing stopped, its last weights and its history."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    return directory, small_run(directory)


def rewritten(name, change):
    return lambda path: (path / name).write_bytes(change((path / name).read_bytes()))


TEARS = {
    "short tensors": rewritten("tensors.safetensors", lambda content: content[:-100]),
    "one bit": rewritten(
        "tensors.safetensors", lambda content: content[:-50] + bytes([content[-50] ^ 1]) + content[-49:]
    ),
    "short state": rewritten("state.json", lambda content: content[:200]),
    "missing tensors": lambda path: (path / "tensors.safetensors").unlink(),
    "missing state": lambda path: (path / "state.json").unlink(),
    "foreign": rewritten("state.json", lambda content: json.dumps({"format": "other", "state": {}}).encode()),
    "no object": rewritten("state.json", lambda content: b"[1]"),
    "binary": rewritten("state.json", lambda content: b"\xff\xfe\x00"),
}


def test_a_torn_or_foreign_checkpoint_is_named(finished_run, tmp_path):
    for how, tear in TEARS.items():
        path = tmp_path / how / "step_0000000012"
        shutil.copytree(finished_run[0] / "checkpoints" / path.name, path)
        tear(path)
        with pytest.raises(ModelFileError, match="step_0000000012 is (torn|foreign|torn or foreign)"):
            read_checkpoint(path)


def test_of_a_torn_checkpoint_the_one_before_is_used(finished_run, tmp_path, caplog):
    shutil.copytree(finished_run[0], tmp_path / "run")
    TEARS["one bit"](tmp_path / "run" / "checkpoints" / "step_0000000012")
    assert small_run(tmp_path / "run", resume=True, start=4) == finished_run[1]
    assert "step_0000000012 is" in caplog.text and "The one before it is used" in caplog.text


def test_states_of_every_kind_survive(tmp_path):
    shared = torch.rand(3)
    state = {"a": [1, 2.5, None, "x", float("inf")], "b": {0: shared, 1: {"c": shared.t()}}, "d": torch.tensor(3)}
    write_checkpoint(tmp_path / "one", state)
    read = read_checkpoint(tmp_path / "one")
    assert read["a"] == state["a"] and list(read["b"]) == [0, 1]
    assert torch.equal(read["b"][1]["c"], shared) and read["d"] == 3


def test_a_state_that_could_not_be_read_is_not_written(tmp_path):
    deep = []
    for _ in range(150):
        deep = [deep]
    with pytest.raises(ModelFileError, match="nested too deeply"):
        write_checkpoint(tmp_path / "step_0000000001", {"deep": deep})
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_of_version_0_1_is_read(tmp_path):
    """Its state has no checksum, its tensors have a hash."""
    state = {"step": 3, "a": torch.rand(3), "b": {0: [1, None]}}
    write_checkpoint(tmp_path / "step_0000000003", state)
    path = tmp_path / "step_0000000003" / "state.json"
    content = json.loads(path.read_text())
    old = {"format": "vaelib-checkpoint-1", "sha256": content["tensors_sha256"], "state": content["state"]}
    path.write_text(json.dumps(old))
    read = read_checkpoint(path.parent)
    assert read["step"] == 3 and read["b"] == {0: [1, None]} and torch.equal(read["a"], state["a"])
    for change, match in (
        ({"sha256": None}, "holds no state"),
        ({"state": 3}, "holds no state"),
        ({"state": {"pears": []}}, "holds no state"),
        ({"state": {"pairs": [["a", {"pears": []}]]}}, "torn or foreign: 'pairs'"),
        ({"state": {"pairs": [[1]]}}, "torn or foreign: not enough values"),
        ({"state": {"pairs": [["a", {"tensor": ["a"]}]]}}, "torn or foreign: unhashable"),
        ({"sha256": "0"}, "its SHA-256 is not that of the file that was saved"),
        ({"format": "vaelib-checkpoint-9"}, "must have the format 'vaelib-checkpoint-2', got 'vaelib-checkpoint-9'"),
    ):
        path.write_text(json.dumps(old | change))
        with pytest.raises(ModelFileError, match=match):
            read_checkpoint(path.parent)


@pytest.mark.slow
def test_a_full_disk_is_told_and_earlier_checkpoints_stay(tmp_path):
    """The limit of file sizes stands for the full disk: writing fails half-way in the same place."""
    run = tmp_path / "run"
    process = Fork([str(PROGRAMS / "filling_the_disk.py"), str(run)], environment_of())
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "OSError" in errors
    path, state = newest_checkpoint(run)
    assert path.name == "step_0000000003" and state["step"] == 3
    assert sorted(os.listdir(run / "checkpoints")) == ["step_0000000003"]


def test_a_checkpoint_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "step_1", {"a": torch.zeros(3)})

    def fails(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vaelib._weights.save_file", fails)
    with pytest.raises(OSError, match=r"step_2 could not be written .*No space left.* those before it are untouched"):
        write_checkpoint(tmp_path / "step_2", {"a": torch.zeros(3)})
    assert os.listdir(tmp_path) == ["step_1"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.npy"
    np.save(path, vl.data.shapes(400, image_size=8).images.numpy())
    return path


def arguments(digits, run, *options):
    shape = ["--data", str(digits), "--epochs", "8", "--batch-size", "16", "--latent-dim", "2", "--ema", "0.9"]
    return ["train", *shape, "--checkpoint-every", "7", "--out", str(run), *options]


def program(*words):
    return Fork(["vaelib", *words], environment_of())


@pytest.fixture(scope="module")
def uninterrupted(digits, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    process = program(*arguments(digits, run))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return weights(vl.load(run / "last"))


def wait_for_checkpoint(run, process):
    while process.poll() is None and not list((run / "checkpoints").glob("step_*")):
        time.sleep(0.02)


@pytest.mark.slow
def test_a_signal_finishes_the_step_and_says_how_to_resume(digits, uninterrupted, tmp_path):
    run, number = tmp_path / "run", signal.SIGTERM
    process = program(*arguments(digits, run))
    wait_for_checkpoint(run, process)
    os.kill(process.pid, number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number
    assert f"Stopped by {number.name} after step" in errors
    said = errors.split("Resume with: vaelib ")[1].splitlines()[0]
    resumed = program(*shlex.split(said))
    assert "after 8 epochs" in resumed.communicate()[0]
    assert torch.equal(weights(vl.load(run / "last")), uninterrupted)


def kill_and_resume(digits, run, kills, generator):
    """Runs to its end, killed without warning at ``kills`` random moments; how often a kill hit the training."""

    def begun():
        options = ["--resume"] if (run / "run.json").exists() else []
        process = FORKS.Process(target=main, args=(arguments(digits, run, *options),), daemon=True)
        process.start()
        return process

    hits, started = 0, False
    for _ in range(kills):
        before = newest_checkpoint(run) if started else None
        process = begun()
        process.join(generator.uniform(0.1, 1.0))
        process.kill()
        process.join()
        hits += process.exitcode == -signal.SIGKILL
        after = newest_checkpoint(run)
        started = after is not None
        if before is not None:
            assert after[1]["step"] >= before[1]["step"], "something older than the last checkpoint was lost"
    process = begun()
    process.join()
    assert process.exitcode == 0
    return hits


@pytest.mark.slow
def test_killed_12_times(digits, uninterrupted, tmp_path):
    """Each run is killed up to four times at random moments; when it is done, another begins."""
    hits, generator = 0, random.Random(1)
    while hits < 12:
        hits += kill_and_resume(digits, tmp_path / "run", 4, generator)
        assert torch.equal(weights(vl.load(tmp_path / "run" / "last")), uninterrupted)
        shutil.rmtree(tmp_path / "run")
    print(f"killed {hits} times")


@pytest.mark.slow
def test_a_run_with_a_discriminator_killed_5_times(digits, tmp_path):
    """Each time after another checkpoint; model, average and both networks' moments end bitwise as in one run."""
    more = ["--adversarial", "--image-size", "12", "--epochs", "4"]
    assert main(arguments(digits, tmp_path / "whole", *more)) == 0
    run, generator = tmp_path / "run", random.Random(2)
    for count in range(6):
        resumed = [] if count == 0 else ["--resume"]
        known = {path.name for path in run.glob("checkpoints/step_*")}
        process = FORKS.Process(target=main, args=(arguments(digits, run, *more, *resumed),), daemon=True)
        process.start()
        while count < 5 and process.is_alive() and known >= {path.name for path in run.glob("checkpoints/step_*")}:
            time.sleep(0.01)
        if count < 5:
            process.join(generator.uniform(0, 0.05))
            process.kill()
        process.join()
        assert process.exitcode == (0 if count == 5 else -signal.SIGKILL)
    states = [newest_checkpoint(tmp_path / name)[1] for name in ("run", "whole")]
    for part in ("model", "objective", "optimization", "callbacks"):
        found, expected = ([value for value in tree_leaves(state[part]) if torch.is_tensor(value)] for state in states)
        assert len(found) > 1 and all(map(torch.equal, found, expected))
    for name in ("best", "last"):
        assert torch.equal(*(weights(vl.load(tmp_path / folder / name)) for folder in ("run", "whole")))


def test_a_run_of_an_objective_by_its_old_name_is_resumed(tmp_path):
    class FactorVae(vl.FactorLoss):
        pass

    small_run(tmp_path, max_epochs=2, objective=lambda: FactorVae(2, hidden_features=(4,)))
    assert newest_checkpoint(tmp_path)[1]["recipe"]["objective"] == "FactorVae"
    assert len(small_run(tmp_path, resume=True, objective=lambda: vl.FactorLoss(2, hidden_features=(4,)))[1]) == 3
