"""vaelib beside diffusers itself: random models of each kind, bitwise in torch and within 1e-5 in ONNX."""

import json

import numpy as np
import pytest
import torch

import vaelib as vl
from vaelib.export.conversion import convert
from vaelib.export.parts import graphs_of
from vaelib.export.proof import session

diffusers = pytest.importorskip("diffusers")

SIZE = 32
ATTENTION = {
    "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D"] * 2,
}


def kl(*widths, **options):
    types = {
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
    }
    return "AutoencoderKL", {
        "block_out_channels": widths,
        "norm_num_groups": 4,
        "sample_size": SIZE,
        **types,
        **options,
    }


def vq(*widths, **options):
    return "VQModel", kl(*widths, **{"num_vq_embeddings": 16, **options})[1]


def tiny(*blocks, **options):
    widths = {f"{part}_block_out_channels": (8,) * len(blocks) for part in ("encoder", "decoder")}
    counts = {"num_encoder_blocks": blocks, "num_decoder_blocks": blocks[::-1]}
    return "AutoencoderTiny", {**widths, **counts, **options}


KL = {
    "f2": kl(8, 16),
    "f1": kl(8),
    "f4 of two blocks": kl(8, 8, 16, layers_per_block=2),
    "f8": kl(4, 8, 8, 8),
    "f16": kl(4, 4, 8, 8, 8),
    "no attention": kl(8, 16, mid_block_add_attention=False),
    "attention at levels": kl(8, 16, **ATTENTION),
    "one group": kl(6, 10, norm_num_groups=1),
    "odd multipliers": kl(6, 18, 30, norm_num_groups=3),
    "groups of one": kl(8, 16, norm_num_groups=8),
    "no quant_conv": kl(8, 16, use_quant_conv=False, use_post_quant_conv=False),
    "quant_conv before only": kl(8, 16, use_post_quant_conv=False),
    "16 channels": kl(8, 16, latent_channels=16, shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False),
    "grey": kl(8, 16, in_channels=1, out_channels=1),
    "scaled by channel": kl(
        8, 16, latents_mean=[0.1, 0.2, -0.3, 0.4], latents_std=[1.5, 0.5, 2.0, 3.0], scaling_factor=0.5
    ),
    "mish": kl(8, 16, act_fn="mish"),
    "gelu": kl(8, 16, act_fn="GELU"),
    "relu": kl(8, 16, act_fn="relu"),
}
VQ = {
    "plain": vq(8, 16),
    "vectors of two": vq(8, 16, vq_embed_dim=2, latent_channels=4),
    "spatial norm": vq(32, 64, norm_type="spatial"),
    "spatial norm with attention": vq(32, 64, norm_type="spatial", **ATTENTION),
    "no attention": vq(8, 16, mid_block_add_attention=False),
    "lookup": vq(8, 16, lookup_from_codebook=True),
}
TINY = {
    "f8": tiny(1, 1, 1, 1),
    "f2": tiny(1, 2, latent_channels=8),
    "bilinear": tiny(1, 1, 1, upsample_fn="bilinear"),
    "silu": tiny(1, 1, act_fn="silu", scaling_factor=0.5, shift_factor=0.25),
}


def random_model(kind, config):
    """A model of diffusers with nothing at its initial value, so that each weight counts."""
    torch.manual_seed(0)
    model = getattr(diffusers, kind)(**config).eval()
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "norm" in name and ".conv_y." not in name and ".conv_b." not in name:
                values.normal_(1.0, 0.3) if name.endswith("weight") else values.normal_(0.0, 0.3)
            if name == "quantize.embedding.weight":
                values.normal_()
    return model


def both(directory, kind, config):
    theirs = random_model(kind, config)
    theirs.save_pretrained(directory)
    return theirs, vl.from_diffusers(directory, image_size=SIZE)


def images(channels=3, count=3):
    return torch.rand(count, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def decoded(theirs, z, **options):
    """An image in [0, 1] as diffusers' pipelines make it."""
    return theirs.decode(z, **options).sample / 2 + 0.5


def reopened(vae, directory, theirs, **options):
    vl.to_diffusers(vae, directory, **options)
    return type(theirs).from_pretrained(directory, local_files_only=True).eval()


@pytest.mark.parametrize("case", KL)
@torch.no_grad()
def test_autoencoder_kl_is_bitwise_that_of_diffusers_both_ways(tmp_path, case):
    theirs, vae = both(tmp_path / "theirs", *KL[case])
    x = images(vae.image_shape[0])
    mu, logvar = vae.encode(x)
    back = reopened(vae, tmp_path / "back", theirs, like=tmp_path / "theirs")
    for model in (theirs, back):
        posterior = model.encode(2 * x - 1).latent_dist
        assert torch.equal(posterior.mean, mu)
        assert torch.equal(posterior.logvar, logvar)
        assert torch.equal(decoded(model, mu), vae.decode(mu))
        assert torch.equal(decoded(model, mu).clamp(0, 1), vae.reconstruct(x))


@pytest.mark.parametrize("case", VQ)
@torch.no_grad()
def test_vq_model_is_bitwise_that_of_diffusers_both_ways(tmp_path, case):
    """But that diffusers decodes z + (code - z), which rounds, where vaelib decodes the code itself."""
    theirs, vae = both(tmp_path / "theirs", *VQ[case])
    x = images()
    back = reopened(vae, tmp_path / "back", theirs, like=tmp_path / "theirs")
    codes = vae.encode(x)
    quantised = vae.latent.embed(codes).contiguous()
    shape = len(x), *quantised.shape[2:], quantised.shape[1]
    for model in (theirs, back):
        vectors = model.encode(2 * x - 1).latents
        assert torch.equal(vectors, vae.observe(x))
        assert torch.equal(model.quantize(vectors)[2][2].reshape(codes.shape), codes)
        given = (codes, {"shape": shape}) if model.config.lookup_from_codebook else (quantised, {})
        rows = vectors.movedim(1, -1)  # the memory as theirs, which decides how a convolution rounds
        rounded = (rows + (quantised.movedim(1, -1) - rows)).movedim(-1, 1).contiguous()
        assert torch.equal(decoded(model, given[0], force_not_quantize=True, **given[1]), vae.decode(quantised))
        assert torch.equal(decoded(model, vectors), vae.decode(rounded))


@pytest.mark.parametrize("case", TINY)
@torch.no_grad()
def test_autoencoder_tiny_is_bitwise_that_of_diffusers_both_ways(tmp_path, case):
    theirs, vae = both(tmp_path / "theirs", *TINY[case])
    x = images()
    z = vae.encode(x)
    for model in (theirs, reopened(vae, tmp_path / "back", theirs)):
        assert torch.equal(model.encode(2 * x - 1).latents, z)
        assert torch.equal(decoded(model, z), vae.decode(z))
    shift, scale = (
        TINY[case][1].get(key, default) for key, default in (("shift_factor", 0.0), ("scaling_factor", 1.0))
    )
    assert (vae.scaling.shift, vae.scaling.scale) == (shift, scale)


@torch.no_grad()
def test_the_preset_opens_in_diffusers(tmp_path):
    vae = vl.autoencoder_kl((3, SIZE, SIZE), 4, width=8, norm="group", groups=4, attention=True, quant_conv=True).eval()
    vl.to_diffusers(vae, tmp_path / "vae")
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae").eval()
    x = images()
    assert torch.equal(decoded(theirs, theirs.encode(2 * x - 1).latent_dist.mode()).clamp(0, 1), vae.reconstruct(x))


@torch.no_grad()
def test_shards_of_diffusers_are_read(tmp_path):
    theirs = random_model(*KL["f2"])
    theirs.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*-of-*.safetensors"))) > 1
    vae, x = vl.from_diffusers(tmp_path), images()
    assert torch.equal(theirs.encode(2 * x - 1).latent_dist.mode(), vae.embed(x))


@pytest.mark.parametrize(("kind", "config"), [KL["f4 of two blocks"], VQ["plain"], TINY["f2"]])
def test_a_model_trained_here_gives_there_what_it_gives_here(tmp_path, kind, config):
    theirs, vae = both(tmp_path / "theirs", kind, config)
    x, before = images(), vae.reconstruct(images())
    optimizer = torch.optim.Adam(vae.parameters(), 1e-3)
    objective = vl.Elbo(beta=1e-6) if vae.latent.has_prior else vl.Reconstruction()
    objective(vae.train(), x).loss.backward()
    optimizer.step()
    if hasattr(vae.latent, "after_step"):
        vae.latent.after_step()
    vae.eval()
    assert not torch.equal(vae.reconstruct(x), before)
    with torch.no_grad():
        back = reopened(vae, tmp_path / "back", theirs, like=tmp_path / "theirs")
        z = vae.embed(x)
        options = {"force_not_quantize": True} if kind == "VQModel" else {}
        assert torch.equal(decoded(back, z, **options).clamp(0, 1), vae.reconstruct(x))
        if kind == "AutoencoderKL":
            assert torch.equal(back.encode(2 * x - 1).latent_dist.mode(), z)


@pytest.mark.parametrize("case", ["kl", "tiny"])
def test_scaled_latents_are_those_of_the_pipelines(tmp_path, case):
    theirs, vae = both(tmp_path / "theirs", *(KL["16 channels"] if case == "kl" else TINY["silu"]))
    x = images()
    with torch.no_grad():
        encoded = theirs.encode(2 * x - 1)
        z = encoded.latents if case == "tiny" else encoded.latent_dist.mode()
        expected = (z - theirs.config.shift_factor) * theirs.config.scaling_factor
        assert torch.equal(vae.embed(x, scaled=True), expected)
        whole = expected / theirs.config.scaling_factor + theirs.config.shift_factor
        assert torch.equal(vae.decode(expected, scaled=True), decoded(theirs, whole))


def test_the_config_is_written_back_as_it_was(tmp_path):
    for i, (kind, config) in enumerate((KL["f8"], KL["16 channels"], VQ["lookup"], TINY["silu"])):
        theirs, vae = both(tmp_path / f"{i}", kind, {**config, "force_upcast": False})
        vl.to_diffusers(vae, tmp_path / f"{i}-back", like=tmp_path / f"{i}")
        back = type(theirs).from_pretrained(tmp_path / f"{i}-back").config
        ignored = ("_name_or_path", "_use_default_values", "_diffusers_version", "vq_embed_dim")
        kept = {key: value for key, value in json.loads(theirs.to_json_string()).items() if key not in ignored}
        assert kept == {key: json.loads(json.dumps(back[key])) for key in kept}


ALL = {
    **{f"AutoencoderKL {case}": entry for case, entry in KL.items()},
    **{f"VQModel {case}": entry for case, entry in VQ.items()},
    **{f"AutoencoderTiny {case}": entry for case, entry in TINY.items()},
}


def z_of(theirs, x):
    """The latent that diffusers decodes."""
    encoded = theirs.encode(2 * x - 1)
    if isinstance(theirs, diffusers.VQModel):
        vectors = encoded.latents
        codes = theirs.quantize(vectors)[2][2]
        return theirs.quantize.embedding(codes).view(*vectors.movedim(1, -1).shape).movedim(-1, 1).contiguous()
    return encoded.latents if isinstance(theirs, diffusers.AutoencoderTiny) else encoded.latent_dist.mode()


@torch.no_grad()
def apart(theirs, x, embed, decode):
    """How far latents are off, as a share of their scale, and images, of functions of numpy arrays."""
    z = z_of(theirs, x)
    options = {"force_not_quantize": True} if isinstance(theirs, diffusers.VQModel) else {}
    theirs.register_to_config(lookup_from_codebook=False)
    images = decoded(theirs, z, **options)
    scales = [max(1.0, float(values.abs().max())) for values in (z, images)]
    found = embed(x.numpy()), decode(z.numpy())
    return [
        np.abs(ours - values.numpy()).max() / scale
        for ours, values, scale in zip(found, (z, images), scales, strict=True)
    ]


OF_EACH_KIND = [  # one for each operator, and for each number of levels
    *("AutoencoderKL f1", "AutoencoderKL f4 of two blocks", "AutoencoderKL f8", "AutoencoderKL f16"),
    *("AutoencoderKL no attention", "AutoencoderKL attention at levels", "AutoencoderKL odd multipliers"),
    *("AutoencoderKL no quant_conv", "AutoencoderKL mish", "AutoencoderKL gelu", "AutoencoderKL relu"),
    *("VQModel spatial norm with attention", "VQModel vectors of two"),
    *("AutoencoderTiny bilinear", "AutoencoderTiny silu"),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", OF_EACH_KIND)
def test_the_graphs_give_what_diffusers_gives(tmp_path, case):
    theirs, vae = both(tmp_path / "theirs", *ALL[case])
    files = convert({part: graph for part, graph in graphs_of(vae).items() if graph.has_file}, 18)

    def run(part, output):
        opened = session(files[part])
        return lambda values: opened.run([output], {opened.get_inputs()[0].name: values})[0]

    assert max(apart(theirs, images(vae.image_shape[0]), run("encoder", "z"), run("decoder", "recon_params"))) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("case", ["AutoencoderKL f2", "VQModel plain", "AutoencoderTiny f2"])
def test_the_bundle_gives_what_diffusers_gives(tmp_path, case):
    theirs, vae = both(tmp_path / "theirs", *ALL[case])
    vl.export_onnx(vae, tmp_path / "bundle")
    onnx = vl.runtime.OnnxVAE(tmp_path / "bundle")
    assert max(apart(theirs, images(), onnx.embed, onnx.decode_params)) <= 1e-5
