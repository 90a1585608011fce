"""Two gloo processes on one machine beside one process."""

import json
import time

import pytest
import torch
from launching import PATIENCE, SETTINGS, TORCHRUN, Fork, environment_of, free_port, program, run, start
from torch.utils.data import DataLoader, DistributedSampler
from train import report_of

import vaelib as vl
from vaelib.training.batches import LoaderBatches, Share
from vaelib.training.processes import Interruption


@pytest.fixture(scope="module")
def alone():
    return report_of({**SETTINGS})


def test_two_processes_follow_the_curve_of_one(alone):
    """101 images in steps of 14 and 15, cut in two. Not bitwise: sums over 7 and 7 round otherwise than over 14."""
    pair = run(2, {"ALL_RANKS": "1"})
    assert pair[0]["weights"] == pair[1]["weights"]
    assert pair[0]["images"] == alone["images"] == [101] * 3
    assert pair[0]["train"] == pytest.approx(alone["train"], rel=1e-5)
    assert pair[0]["val"] == pytest.approx(alone["val"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["codes", "labels"])
def test_two_processes_follow_the_curve_of_one_with_codes_and_labels(parts):
    """K-means, running means and restarts of codes are of sums over both; each image's label goes to its process."""
    settings = {"parts": parts, "posterior_mean": parts == "labels"}
    one, two = report_of(SETTINGS | settings), run(2, {"ALL_RANKS": "1"}, **settings)
    assert two[0]["state"] == two[1]["state"]
    for name in ("train", "val", "state"):
        assert two[0][name] == pytest.approx(one[name], rel=1e-4, abs=1e-4)


@pytest.mark.slow
def test_two_processes_follow_the_curve_of_one_with_a_discriminator():
    """The adaptive weight is that of all images, on both; codes by gradients, as nothing is drawn."""
    settings = {"parts": "codes by gradients", "posterior_mean": False, "adversarial": True}
    one, two = report_of(SETTINGS | settings), run(2, {"ALL_RANKS": "1"}, **settings)
    for name in ("state", "objective", "weight"):
        assert two[0][name] == two[1][name]
    for name in ("train", "val", "weight"):
        assert two[0][name] == pytest.approx(one[name], rel=1e-3)
    assert one["weight"][0] > 0


@pytest.mark.slow
def test_accumulation_over_two_processes_too(alone):
    assert run(2, accumulate=3)[0]["train"] == pytest.approx(alone["train"], rel=1e-5)


@pytest.mark.slow
def test_with_draws_and_batch_norm_the_curves_are_close():
    """Each process draws its own noise and normalises by its own images: nats differ as they do between seeds."""
    settings = {"posterior_mean": False, "norm": "batch", "images": 400, "max_epochs": 4}
    one, two = report_of(SETTINGS | settings), run(2, **settings)[0]
    assert two["images"] == one["images"]
    assert two["train"][-1] == pytest.approx(one["train"][-1], rel=0.1)
    assert two["val"][-1] == pytest.approx(one["val"][-1], rel=0.1)


DRAWS = {"posterior_mean": False, "norm": "batch", "lr_schedule": "constant", "parts": "labels dropped"}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An unbroken run with draws of its own in each process."""
    return run(2, output_dir=str(tmp_path_factory.mktemp("straight") / "run"), **DRAWS)[0]


def check_same(resumed, straight):
    for name in ("weights", "train", "val"):
        assert resumed[name] == straight[name]


@pytest.mark.slow
def test_two_processes_write_one_run_and_resume_it(straight, tmp_path):
    directory = tmp_path / "run"
    run(2, output_dir=str(directory), **DRAWS | {"max_epochs": 2})
    assert len(list((directory / "checkpoints").iterdir())) == 2
    check_same(run(2, output_dir=str(directory), resume=True, **DRAWS)[0], straight)
    result = start(1, DRAWS | {"output_dir": str(directory), "resume": True})[0]
    assert "`processes` must be 2 as in" in result.communicate()[1]


@pytest.mark.slow
def test_under_torchrun_a_stop_within_an_epoch_or_at_its_end_resumes_to_the_bit(straight, tmp_path):
    """7 steps an epoch: the processes agree on a stop, which one of them noted, at its end if they did not before."""
    settings = DRAWS | {"output_dir": str(tmp_path / "run")}
    launcher = [TORCHRUN, "--nproc-per-node", "2", "--master-port"]
    for count, (step, end) in enumerate([("2", 7), ("14", 14)]):
        command = [*launcher, str(free_port()), *program(settings | {"resume": count > 0})]
        agent = Fork(command, environment_of(STOPPED=f"1:{step}"))
        _, errors = agent.communicate(PATIENCE)
        newest = int(sorted((tmp_path / "run" / "checkpoints").iterdir())[-1].name.removeprefix("step_"))
        assert end - 6 * (step == "2") <= newest <= end, errors[-3000:]
        assert agent.returncode != 0
        assert f"Stopped by SIGTERM after step {newest} " in errors
    check_same(run(2, **settings, resume=True)[0], straight)


@pytest.mark.slow
def test_a_reason_to_stop_in_one_process_ends_all():
    pair = run(2, {"ALL_RANKS": "1", "REASON": "1:3"})
    assert [len(process["train"]) for process in pair] == [1, 1]


@pytest.mark.slow
def test_a_process_that_dies_ends_the_other():
    processes = start(2, {"max_epochs": 2000}, {"EXITS": "1:20"})
    started = time.monotonic()
    _, errors = processes[0].communicate(timeout=120)
    processes[1].communicate()
    assert processes[1].returncode == 9
    assert processes[0].returncode != 0
    assert "onnection" in errors
    assert time.monotonic() - started < 90


@pytest.mark.slow
def test_a_step_must_reach_every_process():
    process = start(2, {"accumulate": 9})
    errors = [p.communicate(timeout=120)[1] for p in process]
    assert "`batch_size` must give each of 2 processes at least 9 images a step" in errors[0]


@pytest.mark.slow
def test_vaelib_train_under_torchrun(tmp_path):
    arguments = ["--data", "shapes", "--image-size", "8", "--epochs", "1", "--batch-size", "500", "--latent-dim", "2"]
    launcher = [TORCHRUN, "--nproc-per-node", "2", "--master-port", str(free_port())]
    agent = Fork([*launcher, "-m", "vaelib", "train", *arguments, "--out", str(tmp_path / "run")], environment_of())
    out, errors = agent.communicate(PATIENCE)
    assert agent.returncode == 0, errors[-3000:]
    assert out.count("nats per validation image after 1 epochs") == 1
    assert vl.load(tmp_path / "run").image_shape == (1, 8, 8)
    state = json.loads(next((tmp_path / "run" / "checkpoints").iterdir()).joinpath("state.json").read_text())
    assert ["processes", 2] in dict(state["state"]["pairs"])["recipe"]["pairs"]


def test_a_loader_must_be_sharded(monkeypatch):
    batches = [torch.rand(4, 1, 8, 8)] * 2
    with pytest.raises(ValueError, match="a DataLoader with a DistributedSampler for 2 processes, got list"):
        LoaderBatches(batches, Share(0, 2, 1), torch.device("cpu"))
    with pytest.raises(ValueError, match="`accumulate` must be 1 for a loader, which cuts its own batches, got 2"):
        LoaderBatches(batches, Share(0, 1, 2), torch.device("cpu"))


def test_sampler_epochs_advance():
    images = torch.arange(8.0).view(8, 1, 1, 1) / 8
    orders = []
    for rank in range(2):
        sampler = DistributedSampler(images, num_replicas=2, rank=rank, seed=0)
        batches = LoaderBatches(DataLoader(images, 2, sampler=sampler), Share(rank, 2, 1), torch.device("cpu"))
        orders += [torch.cat([piece.batch.x for step in batches.epoch(epoch) for piece in step]) for epoch in (1, 2)]
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(torch.cat([orders[0], orders[2]]).flatten().sort().values, images.flatten())


class Others:
    """What `Interruption` needs of an accelerator, with one other process, whose steps take ``seconds``."""

    num_processes, device = 2, torch.device("cpu")

    def __init__(self, seconds):
        self.other, self.asked = [0.0, seconds], 0

    def gather(self, mine):
        self.asked += 1
        return torch.cat([mine, torch.tensor([self.other])])


@pytest.mark.parametrize(("seconds", "step"), [(1e-3, 210), (0.5, 170), (9.0, 161)])
def test_processes_agree_on_a_stop_within_50_steps_or_5_seconds(seconds, step):
    """The other one's SIGTERM comes after step 160; torchrun kills 30 seconds later."""
    interruption, others, stops = Interruption(enabled=False), Others(seconds), []
    for now in range(101, 400):  # resumed after step 100
        if now == 160:
            others.other[0] = 15.0
        if interruption.agreed(others, now, must_ask=False):
            stops.append(now)
            break
    assert 160 <= stops[0] <= step
    assert others.asked <= 2 + (stops[0] - 100) / min(50, max(1, 5 / seconds)) + 1
