"""A model that cannot be exported is refused in one paragraph, with the module at fault; what is written was run."""

import os

import pytest
import torch
from exporting import Call
from torch import nn

import vaelib as vl
from vaelib.errors import ExportError
from vaelib.export import exporter, graphs, proof
from vaelib.runtime import OnnxVAE, metadata as runtime_metadata
from vaelib.runtime.engine import Engine

IMAGE = (1, 8, 8)


class Encoder(nn.Module):
    image_shape, latent_shape = IMAGE, (3,)

    def __init__(self, *layers, size=64):
        super().__init__()
        self.layers, self.linear = nn.Sequential(*layers), nn.Linear(size, 6)

    def forward(self, x):
        return self.linear(self.layers(x).flatten(1)).chunk(2, 1)


class BatchedLSTM(nn.LSTM):
    def forward(self, x):
        return super().forward(x)[0]


class Decoder(nn.Module):
    image_shape, latent_shape = IMAGE, (3,)

    def __init__(self, function=lambda x: x):
        super().__init__()
        self.linear, self.function = nn.Linear(3, 64), Call(function)

    def forward(self, z):
        return self.function(self.linear(z)).unflatten(1, IMAGE)


class Comparing(vl.Bernoulli):
    def log_prob(self, x, recon_params):
        nats = super().log_prob(x, recon_params)
        return nats - nats.mean()


NORM = nn.BatchNorm2d(1, track_running_stats=False)
FLAT_NORM = nn.BatchNorm1d(64, track_running_stats=False)
SEQUENCE = (Call(lambda x: x.view(1, -1, 64)), BatchedLSTM(64, 8, batch_first=True), Call(lambda x: x[0]))
FIRST = r"this model's encoder does not: its `z` .*`encoder.layers.0` \(Call\)"


def vae(*layers, size=64, decode=lambda x: x, likelihood=None):
    return vl.VAE(Encoder(*layers, size=size), Decoder(decode), likelihood=likelihood)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (vae(Call(lambda x: x - x.mean(0))), FIRST),
        (vae(Call(lambda x: x / x.max())), FIRST),
        (vae(Call(lambda x: x.roll(1, 0))), FIRST),
        (vae(nn.Conv2d(1, 1, 1), NORM), r"`encoder.layers.1` \(BatchNorm2d, which has no running statistics"),
        (vae(nn.Flatten(), FLAT_NORM), r"fails at a batch of 1, in `encoder.layers.1` \(BatchNorm1d, which has no"),
        (vae(*SEQUENCE, size=8), "this model's encoder does not: its `z`"),
        (vae(decode=lambda x: x.softmax(0)), r"decoder does not: its `mean` .*`decoder.function` \(Call\)"),
        (vae(likelihood=Comparing()), r"Comparing.log_prob or StandardNormal.kl does not: its `distortion`"),
        (vae(Call(lambda x: x + torch.randn_like(x))), "deterministic in eval mode, but .* gives another `z`"),
        (vae(Call(lambda x: x / 0)), "finite values, but this model's encoder gives NaN or infinity in `z`"),
        (
            vae(Call(lambda x: x[:1])),
            r"one `z` for each image, but this model's encoder gives the shape \(1, 3\) for a batch of 5",
        ),
    ],
)
def test_a_model_that_depends_on_the_batch_is_refused_by_name(model, match, tmp_path):
    with pytest.raises(ExportError, match=match):
        vl.export_onnx(model, tmp_path)
    assert os.listdir(tmp_path) == []


def test_onnxruntime_is_given_the_items_one_by_one_too(monkeypatch):
    """A graph that shifts by the batch's length, as a faulty exporter might write: right at batches of torch's own."""
    sizes = []

    class Session:
        def __init__(self, *_, **__):
            pass

        def run(self, _, inputs):
            sizes.append(len(inputs["image"]))
            return [inputs["image"] + (len(sizes) > 1 and sizes[-2] == 1 and sizes[-1] == 1)]

    monkeypatch.setattr(proof, "session", Session)
    monkeypatch.setattr(proof, "check_contract", lambda *_: None)
    graph = graphs.Graph("encoder", nn.Identity(), {"image": (4,)}, {"mu": "raw"})
    with pytest.raises(ExportError, match="largest of 3 differences in `mu`, by .*; optimisations off, one by one; "):
        proof.compare(b"", graph, third_opinion=False)


@pytest.fixture(scope="module")
def proved(tmp_path_factory):
    """What the last proof is given; a bundle that fails it is not written."""
    directory, asked = tmp_path_factory.mktemp("proved"), []

    def fail(*given):
        asked.append(given)
        raise ExportError("no")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "prove", fail)
        with pytest.raises(ExportError, match="no"):
            vl.export_onnx(vae(), directory)
    assert os.listdir(directory) == []
    return asked[0]


@pytest.mark.parametrize("part", ["encoder", "decoder", "vae"])
def test_the_proof_runs_through_the_runtime(part, proved, monkeypatch):
    """A runtime that is wrong for cut batches only."""
    proof.prove(*proved)
    run = Engine._run_cut

    def faulty(self, inputs, results, check, plan):
        run(self, inputs, results, check, plan)
        if self._part == part:
            next(iter(results.values()))[-1] += 0.1

    monkeypatch.setattr(Engine, "_run_cut", faulty)
    with pytest.raises(ExportError, match=rf"vaelib.runtime gives another `.*` .* batch of 40 .*{part}.onnx is off"):
        proof.prove(*proved)


def test_a_graph_that_the_runtime_refuses_is_not_run_and_not_written(tmp_path):
    divided = Call(lambda x: (x * 50).long() // (x * 50 + 1).long() + x)
    with pytest.raises(
        ExportError,
        match=r"vaelib.runtime could not run this model's encoder: its operator '(Div|Mod)' divides whole",
    ):
        vl.export_onnx(vae(divided), tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_bundle_that_the_runtime_refuses_is_no_proof(proved, monkeypatch):
    monkeypatch.setitem(runtime_metadata._RULES, "surprise", bool)
    with pytest.raises(
        ExportError, match=r"vaelib.runtime refuses the bundle: manifest.json was not .* no surprise in"
    ):
        proof.prove(*proved)


class ManyOperators(nn.Module):
    """Operators of the standard domain that networks of vaelib do not use themselves."""

    image_shape, latent_shape = IMAGE, (3,)

    def __init__(self):
        super().__init__()
        self.circular = nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")
        self.lstm = nn.LSTM(8, 3, batch_first=True)
        self.linear = nn.LazyLinear(6)

    def forward(self, x):
        return self.linear(torch.cat([feature.flatten(1) for feature in self.features(x)], 1)).chunk(2, 1)

    def features(self, x):
        rows, steps = x.squeeze(1), 10 * x
        patches = torch.nn.functional.unfold(x, 2, stride=2)
        return [
            self.circular(x),
            torch.nn.functional.fold(patches, (8, 8), 2, stride=2),
            torch.einsum("bij,bkj->bik", rows, rows),
            steps.round() + steps.floor(),
            rows.argmax(-1).float(),
            (steps.long() // 3).float(),
            self.lstm(rows)[0],
        ]


class MoreOperators(ManyOperators):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(8, 3, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def features(self, x):
        rows, steps = x.squeeze(1), 10 * x
        return [
            x.cumsum(2) + steps.ceil() + steps.trunc() + steps.remainder(3) + (steps.long() % 4).float(),
            self.gru(rows)[0],
            self.attention(rows, rows, rows, need_weights=False)[0],
            rows.topk(3, -1).values + rows.sort(-1).values[..., :3],
            rows.tril() + torch.linalg.det(rows)[:, None, None] + rows.argmin(1)[:, None],
            rows.gather(2, (rows * 7).long()) + x.roll((1, 2), (2, 3))[:, 0] + x.flip(3)[:, 0],
            torch.atan2(x, 1 - x) + x.sinh() + x.tan() + (x.double() * 2).float() + (x > 0.5).logical_xor(x > 0.2),
        ]


@pytest.mark.parametrize("operators", [ManyOperators, pytest.param(MoreOperators, marks=pytest.mark.slow)])
def test_what_is_exported_is_opened_and_run_with_the_right_numbers(operators, tmp_path):
    encoder = operators()
    encoder(torch.rand(2, *IMAGE))
    vl.export_onnx(vl.VAE(encoder, Decoder()), tmp_path)
    x = torch.rand(40, *IMAGE)
    with torch.no_grad():
        expected = torch.cat([encoder(image[None])[0] for image in x])
    model = OnnxVAE(tmp_path, threads=2)
    for size in (1, 3, 40):
        torch.testing.assert_close(
            torch.from_numpy(model.encode(x[:size].numpy())[0]), expected[:size], atol=1e-4, rtol=1e-4
        )


def with_values(name, value):
    layer = nn.Conv2d(1, 1, 1)
    setattr(layer, name, value)
    return layer


def with_sparse_buffer():
    layer = nn.Conv2d(1, 1, 1)
    layer.register_buffer("table", torch.eye(3).to_sparse())
    return layer


def draws(_):
    yield 1


def looping(x):
    while x.square().sum() > 1e9:
        x = x / 2
    return x


NORMED = "parametrizations.weight_norm, or call remove_weight_norm first"
COPIED = "`model` must be one that can be copied to the CPU: "
INT = (
    "batch axis of 'image' must be free, got a fixed one: this model's encoder takes the length of a batch as a Python"
)
LINEAR = r"fails at a batch of 5, in `encoder.linear` \(Linear\): mat1 and mat2 must have the same dtype"
TORCH = "torch could not export this model's encoder: "
CASES = {
    "old weight norm": (lambda: nn.utils.weight_norm(nn.Conv2d(1, 1, 1)), NORMED),
    "a tensor with a past": (
        lambda: with_values("past", 2 * torch.ones(3, requires_grad=True)),
        f"{COPIED}Only Tensors",
    ),
    "a generator": (lambda: with_values("draws", draws(0)), f"{COPIED}cannot pickle 'generator' object"),
    "no data": (lambda: nn.Conv2d(1, 1, 1, device="meta"), f"{COPIED}Cannot copy out of meta tensor"),
    "lazy": (lambda: nn.LazyConv2d(1, 1), "must have run once, so that .*; `encoder.layers.0.weight` has none"),
    "sparse": (with_sparse_buffer, "must hold dense tensors, got torch.sparse_coo in `encoder.layers.0.table`"),
    "a loop": (lambda: Call(looping), f"{TORCH}.* The code branches on a tensor's values"),
    "length as int": (lambda: Call(lambda x: x.view(int(x.shape[0]), -1)), INT),
    "length in Python": (lambda: Call(lambda x: torch.stack([*x])), INT),
    "no such operator": (
        lambda: Call(lambda x: torch.erfinv(x / 2)),
        f"{TORCH}No ONNX function found for .*ONNX has no such operator",
    ),
    "double": (lambda: Call(lambda x: x.double()), LINEAR),
    "whole numbers": (lambda: Call(lambda x: x.long()), LINEAR),
    "a larger latent": (
        lambda: Call(lambda x: torch.cat([x, x]).view(-1, 128)[:, :64].repeat(2, 1)),
        r"one `z` for each image, but this model's encoder gives the shape \(10, 3\) for a batch of 5",
    ),
}


@pytest.mark.filterwarnings("ignore:.*(weight_norm|WeightNorm).*")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "length in Python" else name for name in CASES]
)
def test_the_message_is_one_paragraph(name, tmp_path, capfd):
    layer, match = CASES[name]
    model = vae(layer())
    capfd.readouterr()
    with pytest.raises(ExportError, match=match) as caught:
        vl.export_onnx(model, tmp_path)
    message = str(caught.value)
    assert len(message) <= 400
    assert not {"\n", "\x1b"} & set(message)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_what_torch_said_is_kept_as_the_cause(tmp_path):
    with pytest.raises(ExportError) as caught:
        vl.export_onnx(vae(Call(looping)), tmp_path)
    assert "torch.export" in str(caught.value.__cause__)


@pytest.mark.slow
def test_hooks_shared_weights_and_spectral_norm_are_exported(tmp_path):
    layer = nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(1, 1, 3, padding="same")), nn.Conv2d(1, 1, 1))
    layer[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    model = vae(layer)
    model.encoder.again = model.encoder.linear
    vl.export_onnx(model, tmp_path)
