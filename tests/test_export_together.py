"""All graphs of a model are converted in one pass, where that gives what each by itself gives."""

import collections

import onnx
import pytest
import torch

import vaelib as vl
from vaelib.export import conversion, parts
from vaelib.export.proof import compare

IMAGE = (1, 4, 4)


def build(**options):
    torch.manual_seed(0)
    vae = vl.conv_vae(IMAGE, hidden_channels=(4,), norm="none", condition=vl.Labels(3), **options)
    return vae, {part: graph for part, graph in parts.graphs_of(vae.eval()).items() if graph.has_file}


def operators(content):
    return collections.Counter(node.op_type for node in onnx.load_model_from_string(content).graph.node)


@pytest.mark.slow
def test_in_one_pass_each_graph_has_the_nodes_that_it_has_by_itself(monkeypatch):
    """Codes, their prior and a condition: inputs of one name, and of several sizes."""
    latent = vl.VectorQuantizer((3, 2, 2), 5, vl.CodeTable(5, 4))
    _, graphs = build(latent=latent)
    alone = {part: operators(conversion.to_bytes(graph, 18)) for part, graph in graphs.items()}
    monkeypatch.delattr(conversion, "to_bytes")
    together = conversion.convert(graphs, 18)
    assert {part: operators(content) for part, content in together.items()} == alone
    assert set(together) == {"encoder", "decoder", "vae", "codes", "prior"}


class Telling(vl.GaussianLatent):
    """A latent whose decoder is given more of a draw than its z."""

    def draw(self, features, noise=None, **options):
        draw = super().draw(features, noise, **options)
        return draw._replace(hidden=draw.z + features[0].tanh())


@pytest.mark.slow
def test_a_decoder_that_is_given_more_than_z_is_converted_as_it_is():
    _, graphs = build(latent=Telling((2,)))
    files = conversion.convert(graphs, 18)
    assert compare(files["vae"], graphs["vae"])["reconstruction"].max_rel < 1e-5
