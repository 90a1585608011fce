"""Codes are the same in torch, in ONNX and in any batch, but for near-ties, which are counted."""

import json

import numpy as np
import onnxruntime
import pytest
import torch

import vaelib as vl
from vaelib.errors import ExportError
from vaelib.export import conversion, differences, exporter, parts
from vaelib.export.graphs import Graph
from vaelib.export.proof import compare
from vaelib.export.thresholds import Thresholds
from vaelib.priors.codes import codes_at
from vaelib.runtime import OnnxVAE

IMAGE, MAP = (1, 4, 4), (3, 2, 2)
LATENTS = {
    "vq": lambda: vl.VectorQuantizer(MAP, 16),
    "cosine": lambda: vl.VectorQuantizer(MAP, 16, cosine=True),
    "residual": lambda: vl.ResidualQuantizer(MAP, 8, depth=2),
    "fsq": lambda: vl.FiniteScalarQuantizer(MAP, (5, 4, 3)),
    "bsq": lambda: vl.BinarySphericalQuantizer(MAP),
    "table": lambda: vl.VectorQuantizer(MAP, 11, vl.CodeTable(11, 4)),
    "autoregressive": lambda: vl.FiniteScalarQuantizer(MAP, (3, 2, 2), vl.AutoregressiveCodes(12, 4, 8, 1, 2)),
}


def build(latent, **options):
    torch.manual_seed(0)
    vae = vl.conv_vae(IMAGE, latent=latent, hidden_channels=(4,), norm="none", **options)
    for parameter in vae.parameters():  # the head of a fresh encoder is nearly 0, a fresh prior uniform
        parameter.data.add_(torch.randn_like(parameter))
    return vae.eval()


@pytest.fixture(scope="module", params=["table", pytest.param("autoregressive", marks=pytest.mark.slow)])
def exported(request, tmp_path_factory):
    """A model, its bundle, and the parity."""
    vae, directory = build(LATENTS[request.param]()), tmp_path_factory.mktemp(request.param)
    return vae, directory, vl.export_onnx(vae, directory)


@pytest.mark.parametrize(
    "kind", [k if k in ("vq", "fsq") else pytest.param(k, marks=pytest.mark.slow) for k in LATENTS]
)
def test_codes_are_torchs_at_every_batch(kind):
    """One graph has encoder, quantiser and rate in it; the encoder's has the codes."""
    vae = build(LATENTS[kind]())
    graphs = {part: graph for part, graph in parts.graphs_of(vae).items() if graph.has_file}
    files = conversion.convert(graphs, 18)
    parity = compare(files["encoder"], graphs["encoder"])
    assert parity["codes"].max_abs == 0 and parity["codes"].near_ties == 0
    assert parity["z"].max_abs <= (1e-7 if kind == "cosine" else 0)  # its vectors are made to have length 1
    compare(files["vae"], graphs["vae"])
    encoder, whole = (onnxruntime.InferenceSession(files[part]) for part in ("encoder", "vae"))
    x = torch.rand(64, *IMAGE)
    with torch.no_grad():
        codes, draw = vae.encode(x), vae.draw(vae.observe(x))
    assert len(codes.unique()) > 1
    assert np.array_equal(encoder.run(["codes"], {"image": x.numpy()})[0], codes)
    alone = [encoder.run(["codes"], {"image": image[None].numpy()})[0] for image in x]
    assert np.array_equal(np.concatenate(alone), codes)
    answers = dict(zip(graphs["vae"].outputs, whole.run(None, {"image": x.numpy()}), strict=True))
    torch.testing.assert_close(torch.from_numpy(answers["kl"]), draw.kl.sum(1))  # nats
    torch.testing.assert_close(torch.from_numpy(answers["kl_groups"]), draw.kl)
    torch.testing.assert_close(torch.from_numpy(answers["z"]), draw.z, rtol=0, atol=1e-7)


class Scaled(torch.nn.Module):
    image_shape, latent_shape, num_heads = (1, 3, 5), (15,), 1

    def forward(self, x):
        return 16 * x.flatten(1) - 8


@pytest.mark.slow
def test_every_number_of_levels_is_the_same_in_a_graph():
    """Channels of 2 to 16 levels in one latent, each at all of them."""
    latent = vl.FiniteScalarQuantizer((15,), range(2, 17))
    vae = vl.VAE(Scaled(), vl.ConvDecoder(15, (1, 3, 5), hidden_channels=(4,)), latent=latent).eval()
    content = conversion.to_bytes(parts.graphs_of(vae)["encoder"], 18)
    x = torch.stack([torch.linspace(0, 1, 801)[torch.randperm(801)] for _ in range(15)], dim=1).view(-1, 1, 3, 5)
    z, codes = onnxruntime.InferenceSession(content).run(["z", "codes"], {"image": x.numpy()})
    assert np.array_equal(z, vae.embed(x)) and np.array_equal(codes, vae.encode(x))
    assert [len(np.unique(channel)) for channel in z.T] == [*range(2, 17)]


def test_a_bundle_of_codes(exported):
    vae, directory, parity = exported
    manifest = json.loads((directory / "manifest.json").read_text())
    latent = vae.latent
    assert manifest["model"]["codes"] == {"num_codes": latent.num_codes, "depth": 1, "shape": [2, 2]}
    assert manifest["model"]["prior"] == type(vae.prior).__name__
    opened = OnnxVAE(directory, threads=1)
    x = torch.rand(70, *IMAGE)
    with torch.no_grad():
        codes = vae.encode(x)
        images = vae.decode_mean(vae.latent.embed(codes)).numpy()
    card = (directory / "README.md").read_text()
    code = [block.split("```")[0] for block in card.split("```python\n")[1:]][1]
    exec(code.replace('InferenceSession("', f'InferenceSession("{directory}/'), names := {})
    assert names["images"].shape == (16, *IMAGE)
    assert "BigInt64Array(4), [1, 4]" in card and "run({ codes })" in card
    for size in (1, 64, 70):
        assert np.array_equal(opened.encode_codes(x[:size].numpy()), codes[:size])
    np.testing.assert_allclose(opened.decode_codes(codes.numpy()), images, atol=1e-6)
    np.testing.assert_allclose(opened.sample(20, seed=3), vae.sample(20, seed=3), atol=1e-6)
    card = (directory / "README.md").read_text()
    assert f"| codes | one of {latent.num_codes} at each of 2 x 2 |" in card
    assert "codes = model.encode_codes(images)" in card and "new = model.sample(16, seed=0)" in card
    assert "Codes are those of torch but for near-ties, where rounding decides between two: at most 0 of those" in card
    assert parity["encoder"]["codes"].near_ties == 0


def test_a_graph_with_another_code_is_refused(monkeypatch, tmp_path):
    """One code of the embedding of many, as a faulty translation of ``argmin`` might give."""
    vae = build(LATENTS["fsq"]())

    def faulty(graphs, opset):
        contents = conversion.convert(graphs, opset)
        [*graphs["encoder"].module.model.encoder.parameters()][-1].data.add_(0.5)  # the bias of its head
        return contents

    monkeypatch.setattr(exporter, "convert", faulty)
    with pytest.raises(ExportError, match=r"The encoder's graph differs from torch.*`codes` at batch .*: inf > "):
        vl.export_onnx(vae, tmp_path)


def test_only_near_ties_may_differ():
    graph = Graph("encoder", torch.nn.Identity(), {"image": (1,)}, {"z": "raw", "codes": "codes"})
    judge = differences.Judge(graph)
    wanted = {"z": torch.tensor([[0.0], [1.0], [2.0]]), "codes": torch.tensor([[0], [1], [2]])}
    other = {"z": torch.tensor([[0.0], [5.0], [2.0]]), "codes": torch.tensor([[0], [5], [2]])}
    near = torch.tensor([[False], [True], [False]])
    allowed = judge.apart(wanted, other, near)
    assert allowed["codes"][:2] == (1.0, pytest.approx(1 / 3)) and allowed["z"].max_abs == 0
    for case in (torch.zeros(3, 1, dtype=torch.bool), None, near.roll(1, 0)):
        refused = judge.apart(wanted, other, case)
        assert refused["codes"].max_rel == float("inf") and refused["z"].max_abs == 4
    assert judge.apart(wanted, {**other, "codes": torch.zeros(3, 2).long()}, near)["codes"].max_rel == float("inf")


def test_near_ties_are_found_and_too_many_are_refused():
    """An encoder that is the identity, and a codebook of which two codes are equally near to grey images."""

    class Passing(torch.nn.Module):
        image_shape, latent_shape = (1, 1, 1), (1,)

        def forward(self, x):
            return x.flatten(1)

    class Decoder(Passing):
        def forward(self, z):
            return z[..., None, None]

    vae = vl.VAE(Passing(), Decoder(), latent=vl.VectorQuantizer((1,), 2)).eval()
    book = vae.latent.codebooks[0].weight
    book.copy_(torch.tensor([[0.0], [1.0]]))
    graph = parts.graphs_of(vae)["encoder"]
    images = torch.tensor([0.1, 0.5, 0.5 + 1e-7, 0.5 - 1e-7, 0.51]).view(5, 1, 1, 1)
    assert differences.near_ties(graph, {"image": images}).flatten().tolist() == [False, True, True, True, False]
    book.copy_(torch.tensor([[0.5], [0.5 + 1e-7]]))
    with pytest.raises(ExportError, match=r"must tell its codes apart, but of 29 codes of random images \d+ are"):
        compare(conversion.to_bytes(graph, 18), graph)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"precision": "fp16"}, "`precision` must be 'fp32' for a model with FiniteScalarQuantizer, got 'fp16': round"),
        ({"precision": "int8"}, "`precision` must be 'fp32' for a model with FiniteScalarQuantizer, got 'int8': round"),
        ({"dynamic_size": True}, "`dynamic_size` must be False for a model with FiniteScalarQuantizer: the number"),
    ],
)
def test_what_codes_cannot_have(options, match, tmp_path):
    with pytest.raises(ExportError, match=match):
        vl.export_onnx(build(LATENTS["fsq"]()), tmp_path, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_codes", [2, 3, 11, 512])
def test_thresholds_give_the_codes_of_the_sums_in_float64(num_codes):
    """At the thresholds themselves and on either side, at random noise, and far out; also of codes that never come."""
    logits = 3 * torch.randn(4, num_codes)
    logits[1, -1], logits[2, 0], logits[3] = -torch.inf, -1e4, 0.0
    table = Thresholds(logits)
    least = table.table.view(4, -1).nan_to_num(0.0)
    far = torch.tensor([[-torch.inf], [-40.0], [40.0], [torch.inf], [0.0]]).expand(5, 4)
    noise = torch.cat([least.T, torch.randn(5000, 4), far])
    for given in (noise, noise.nextafter(torch.tensor(torch.inf)), noise.nextafter(torch.tensor(-torch.inf))):
        assert torch.equal(table(given), codes_at(logits, given.T).T)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vq", "fsq", "bsq", "residual"])
def test_of_250_000_codes_none_differs_outside_near_ties(kind):
    latents = {
        "vq": lambda: vl.VectorQuantizer((8, 7, 7), 512),
        "fsq": lambda: vl.FiniteScalarQuantizer((4, 7, 7), (8, 5, 5, 5)),
        "bsq": lambda: vl.BinarySphericalQuantizer((9, 7, 7)),
        "residual": lambda: vl.ResidualQuantizer((8, 7, 7), 256, depth=2),
    }
    torch.manual_seed(0)
    vae = vl.conv_vae((1, 28, 28), latent=latents[kind](), hidden_channels=(16, 16)).eval()
    graph = parts.graphs_of(vae)["encoder"]
    session = onnxruntime.InferenceSession(conversion.to_bytes(graph, 18))
    images = vl.data.shapes(250_000 // vae.latent.num_positions + 1, image_size=28)
    total = near = others = beyond = 0
    for start in range(0, len(images), 512):
        x = images.batch(slice(start, start + 512))
        with torch.no_grad():
            codes = vae.encode(x)
        found = torch.from_numpy(session.run(["codes"], {"image": x.numpy()})[0])
        tied = differences.near_ties(graph, {"image": x})
        total, near = total + codes.numel(), near + int(tied.sum())
        others, beyond = others + int((found != codes).sum()), beyond + int(((found != codes) & ~tied).sum())
    print(f"{kind}: of {total} codes {others} differ, {beyond} of them outside the {near} near-ties")
    assert total >= 250_000 and beyond == 0 and near < 0.001 * total
