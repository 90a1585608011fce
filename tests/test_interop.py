"""Autoencoders of diffusers, from its directories and back, without importing it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import vaelib as vl
from vaelib.errors import ModelFileError

IMAGE = (3, 16, 16)
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


def small(**options):
    return vl.autoencoder_kl(IMAGE, 2, **{"width": 8, "norm": "group", "groups": 4, "residual_blocks": 1, **options})


@pytest.fixture
def written(tmp_path):
    """A directory with a small AutoencoderKL."""
    vl.to_diffusers(small(), tmp_path / "vae")
    return tmp_path / "vae"


def edited(directory, **keys):
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({**config, **keys}))
    return directory


def tiny():
    return vl.VAE(
        vl.networks.TinyEncoder(IMAGE, 3, width=4, blocks=(1, 2)),
        vl.networks.TinyDecoder(IMAGE, 3, width=8, blocks=(1, 0), upsample="bilinear"),
        latent=vl.PointLatent((3, 8, 8)),
        likelihood=vl.Laplace(0.5),
    )


MODELS = [
    tiny,
    lambda: small(),
    lambda: small(attention=True, quant_conv=True),
    lambda: small(quant_conv=True, latent=vl.VectorQuantizer((3, 8, 8), 16)),
]


@pytest.mark.parametrize("make", MODELS)
def test_there_and_back_is_the_same_model(tmp_path, make):
    vae, x = make().eval(), torch.rand(2, *IMAGE)
    vae.scaling = vl.LatentScaling(0.0, 0.7)
    vl.to_diffusers(vae, tmp_path / "vae")
    again = vl.from_diffusers(tmp_path / "vae", image_size=16)
    assert not again.training
    assert torch.equal(again.embed(x), vae.embed(x))
    assert torch.equal(again.decode(vae.embed(x)), vae.decode(vae.embed(x)))
    assert (again.scaling.shift, again.scaling.scale) == (0.0, 0.7)
    vl.to_diffusers(again, tmp_path / "again")
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "vae" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    vl.save(again, tmp_path / "saved")
    saved = vl.load(tmp_path / "saved")
    assert torch.equal(saved.reconstruct(x), again.reconstruct(x))
    assert saved.scaling.scale == 0.7


def test_distortion_is_the_loss_of_latent_diffusion(written):
    vae, x = vl.from_diffusers(written), torch.rand(2, *IMAGE)
    y = vae.decode(vae.embed(x))
    loss = ((2 * x - 1) - (2 * y - 1)).abs().flatten(1).sum(1)
    torch.testing.assert_close(-vae.likelihood.log_prob(x, y), loss)


def test_a_scaling_by_channel_becomes_means_and_deviations(tmp_path):
    vae = small()
    vae.scaling = vl.LatentScaling((0.1, -0.2, 0.0, 3.0), (1.0, 2.0, 4.0, 0.5))
    vl.to_diffusers(vae, tmp_path / "vae")
    config = json.loads((tmp_path / "vae" / CONFIG).read_text())
    assert config["scaling_factor"] == 1.0
    assert config["latents_mean"] == [0.1, -0.2, 0.0, 3.0]
    assert config["latents_std"] == [1.0, 0.5, 0.25, 2.0]
    edited(tmp_path / "vae", scaling_factor=0.5)
    again = vl.from_diffusers(tmp_path / "vae").scaling
    assert tuple(again.shift) == (0.1, -0.2, 0.0, 3.0)
    assert tuple(again.scale) == (0.5, 1.0, 2.0, 0.25)


def test_without_a_scaling_the_factor_is_one(written):
    assert json.loads((written / CONFIG).read_text())["scaling_factor"] == 1.0


def test_the_image_size_is_the_configs_or_the_one_asked_for(written):
    assert vl.from_diffusers(written).image_shape == IMAGE
    assert vl.from_diffusers(edited(written, sample_size=[8, 24])).image_shape == (3, 8, 24)
    assert vl.from_diffusers(written, image_size=32).image_shape == (3, 32, 32)
    assert vl.from_diffusers(written, image_size=(32, 8)).latent_shape == (4, 16, 4)


def test_settings_are_kept_where_they_are_asked_for(written, tmp_path):
    edited(written, force_upcast=False, sample_size=64)
    vae = vl.from_diffusers(written, image_size=16)
    vl.to_diffusers(vae, tmp_path / "plain")
    assert "force_upcast" not in json.loads((tmp_path / "plain" / CONFIG).read_text())
    vl.to_diffusers(vae, tmp_path / "like", like=written)
    config = json.loads((tmp_path / "like" / CONFIG).read_text())
    assert (config["force_upcast"], config["sample_size"]) == (False, 64)


def test_attention_of_old_files_is_read(tmp_path):
    vl.to_diffusers(small(attention=True).eval(), tmp_path / "vae")
    path = tmp_path / "vae" / WEIGHTS
    old = {}
    for name, tensor in load_file(path).items():
        for today, before in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
            name = name.replace(f".{today}.", f".{before}.")
        old[name] = tensor
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in old
    x, vae = torch.rand(1, *IMAGE), vl.from_diffusers(tmp_path / "vae")
    save_file(old, path)
    assert torch.equal(vl.from_diffusers(tmp_path / "vae").embed(x), vae.embed(x))


def sharded(directory, tensors, count=2, variant=""):
    """The weights in shards with their index, as diffusers writes large models and their variants, such as `.fp16`."""
    stem = f"diffusion_pytorch_model{variant}"
    files = [f"{stem}-{number + 1:05}-of-{count:05}.safetensors" for number in range(count)]
    place = {name: files[number % count] for number, name in enumerate(tensors)}
    for file in files:
        save_file({name: tensor for name, tensor in tensors.items() if place[name] == file}, directory / file)
    (directory / f"{WEIGHTS}.index{variant}.json").write_text(json.dumps({"weight_map": place}))


def test_shards_halves_and_variants_are_read(written):
    x, vae = torch.rand(1, *IMAGE), vl.from_diffusers(written)
    tensors = load_file(written / WEIGHTS)
    (written / WEIGHTS).unlink()
    sharded(written, {name: tensor + 1 for name, tensor in tensors.items()}, 3)  # of an older model
    sharded(written, tensors)
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    save_file(halves, written / "diffusion_pytorch_model.fp16.safetensors")
    assert torch.equal(vl.from_diffusers(written).reconstruct(x), vae.reconstruct(x))
    (written / f"{WEIGHTS}.index.json").unlink()
    with pytest.raises(ModelFileError, match="shards with their index or one variant, got diffusion_pytorch_model-0"):
        vl.from_diffusers(written)
    for path in written.glob("*-of-*"):
        path.unlink()
    again = vl.from_diffusers(written)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    torch.testing.assert_close(again.reconstruct(x), vae.reconstruct(x), atol=1e-2, rtol=0)
    sharded(written, halves, variant=".fp16")
    with pytest.raises(ModelFileError, match="or one variant, got diffusion_pytorch_model.fp16-0"):
        vl.from_diffusers(written)
    (written / "diffusion_pytorch_model.fp16.safetensors").unlink()
    assert torch.equal(vl.from_diffusers(written).reconstruct(x), again.reconstruct(x))


@pytest.mark.parametrize("place", [None, [], {"a": 3}, {"a": "../other.safetensors"}, {"a": "weights.bin"}])
def test_an_index_names_files_beside_it(written, place):
    (written / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": place}))
    with pytest.raises(ModelFileError, match="must have a `weight_map` of names to safetensors files beside it"):
        vl.from_diffusers(written)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_weights_are_floating_point(written, dtype):
    tensors = load_file(written / WEIGHTS)
    save_file({**tensors, "encoder.conv_in.bias": tensors["encoder.conv_in.bias"].to(dtype)}, written / WEIGHTS)
    with pytest.raises(ModelFileError, match=f"must be floating point, got {dtype} in 'encoder.conv_in.bias'"):
        vl.from_diffusers(written)


def test_nothing_is_written_beside_weights_that_diffusers_would_open(written, tmp_path):
    tensors = load_file(written / WEIGHTS)
    for name in ("shards", "variant", "saved"):
        (tmp_path / name).mkdir()
    sharded(tmp_path / "shards", tensors)
    save_file(tensors, tmp_path / "variant" / "diffusion_pytorch_model.fp16.safetensors")
    config = json.loads((written / CONFIG).read_text())
    (tmp_path / "saved" / CONFIG).write_text(json.dumps({**config, "_diffusers_version": "0.42.1"}))
    for name, found in (("shards", "00001-of-00002"), ("variant", "fp16"), ("saved", CONFIG)):
        before = sorted(path.name for path in (tmp_path / name).iterdir())
        with pytest.raises(FileExistsError, match=f"{found}.*Move them away, or give another directory"):
            vl.to_diffusers(small(), tmp_path / name)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == before


def test_loaded_codes_stay_until_they_are_trained(tmp_path):
    vl.to_diffusers(small(quant_conv=True, latent=vl.VectorQuantizer((3, 8, 8), 16)), tmp_path / "vae")
    vae = vl.from_diffusers(tmp_path / "vae").train()
    before = vae.latent.codebooks[0].weight.clone()
    vae(torch.rand(2, *IMAGE))
    vae.latent.after_step()
    assert torch.equal(vae.latent.codebooks[0].weight, before)


def test_a_directory_of_its_own_is_replaced_and_no_other(written):
    vl.to_diffusers(small(), written)
    weights = load_file(written / WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in weights.items()}, written / WEIGHTS)
    with pytest.raises(FileExistsError, match=f"{WEIGHTS}. Move them away"):
        vl.to_diffusers(small(), written)


KL_ERRORS = [
    ({"new_key": 3}, "`new_key` is no key of AutoencoderKL that vaelib knows, got 3"),
    ({"_class_name": "AutoencoderDC"}, "`_class_name` must be one of AutoencoderKL, .* got 'AutoencoderDC'"),
    ({"out_channels": 4}, "`out_channels` must be `in_channels`, 3, got 4"),
    ({"in_channels": "3"}, "`in_channels` must be an int, got '3'"),
    ({"layers_per_block": "2"}, "`layers_per_block` must be an int, got '2'"),
    ({"norm_num_groups": 3}, r"`norm_num_groups` must divide `block_out_channels`, \[8, 16\], got 3"),
    ({"down_block_types": ["DownBlock2D"] * 2}, r"`down_block_types\[0\]` must be one of .* got 'DownBlock2D'"),
    ({"up_block_types": ["UpDecoderBlock2D"]}, "`up_block_types` must have 2 entries, .* got 1"),
    ({"act_fn": "tanh"}, "`act_fn` must be one of 'silu', .* got 'tanh'"),
    ({"sample_size": 17}, r"`sample_size` must be a multiple of 2, .* got \(17, 17\): give `image_size`"),
    ({"block_out_channels": []}, "`block_out_channels` must have 1 to 16 entries, got 0"),
    ({"block_out_channels": [8] * 20_000}, "`block_out_channels` must have 1 to 16 entries, got 20000"),
    ({"sample_size": 0}, r"`sample_size\[0\]` must be >= 1, got 0"),
    ({"scaling_factor": 0}, "`scaling_factor` must be > 0, got 0"),
    ({"shift_factor": 1.0, "latents_mean": [0] * 4, "latents_std": [1] * 4}, "`shift_factor` must be None where"),
    ({"latents_mean": [0] * 3, "latents_std": [1] * 4}, "`latents_mean` must have 4 entries, got 3"),
    ({"latents_mean": [0] * 4}, "`latents_std` must be a list where .* got None"),
    ({"block_out_channels": [8, 2**12]}, "larger by far than the weights"),
    ({"latent_channels": 5}, r"\'encoder.conv_out.weight\' must have the shape \(10, 16, 3, 3\), got \(8, 16, 3, 3\)"),
    ({"use_quant_conv": True}, "they lack 'quant_conv.bias'"),
    ({"layers_per_block": 2}, "they lack 'decoder.up_blocks.0.resnets.2.conv1.bias'"),
    ({"mid_block_add_attention": True}, "they lack 'decoder.mid_block.attentions.0.group_norm.bias'"),
]


@pytest.mark.parametrize(("keys", "match"), KL_ERRORS)
def test_a_config_of_another_kind_is_an_error_that_names_the_key(written, keys, match):
    with pytest.raises(ModelFileError, match=match):
        vl.from_diffusers(edited(written, **keys))


VQ = {"_class_name": "VQModel", "block_out_channels": [8, 16], "norm_num_groups": 4, "sample_size": 16}
TINY = {"_class_name": "AutoencoderTiny", "encoder_block_out_channels": [8] * 4, "decoder_block_out_channels": [8] * 4}
OTHER_ERRORS = [
    ({**VQ, "norm_type": "layer"}, "`norm_type` must be one of 'group', 'spatial', got 'layer'"),
    ({**VQ, "norm_type": "spatial", "vq_embed_dim": 2}, "`vq_embed_dim` must be `latent_channels`, 3, .* got 2"),
    ({**VQ, "shift_factor": 0.1}, "`shift_factor` is no key of VQModel"),
    ({**TINY, "upsampling_scaling_factor": 4}, "`upsampling_scaling_factor` must be one of 2, got 4"),
    ({**TINY, "encoder_block_out_channels": [8, 8, 8, 16]}, "`encoder_block_out_channels` must be the same at all"),
    (
        {**TINY, "num_encoder_blocks": [1] * 3, "encoder_block_out_channels": [8] * 3},
        "`num_decoder_blocks` must have 3",
    ),
    ({**TINY, "upsample_fn": "bicubic"}, "`upsample` must be one of 'nearest', 'bilinear', got 'bicubic'"),
]


@pytest.mark.parametrize(("config", "match"), OTHER_ERRORS)
def test_the_other_classes_name_the_key_too(written, config, match):
    types = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    (written / CONFIG).write_text(
        json.dumps(config if config["_class_name"] == "AutoencoderTiny" else {**types, **config})
    )
    with pytest.raises(ModelFileError, match=match):
        vl.from_diffusers(written)


def test_what_is_missing_or_more_is_named(written, tmp_path):
    with pytest.raises(FileNotFoundError, match="`directory` must hold config.json; there is none .* folder `vae`"):
        vl.from_diffusers(tmp_path)
    for size in (17, (16, 9)):
        with pytest.raises(ValueError, match="`image_size` must be multiples of 2"):
            vl.from_diffusers(written, image_size=size)
    weights = load_file(written / WEIGHTS)
    save_file({**weights, "more.weight": torch.zeros(1)}, written / WEIGHTS)
    with pytest.raises(ModelFileError, match="they also have 'more.weight'"):
        vl.from_diffusers(written)
    (written / WEIGHTS).rename(written / "diffusion_pytorch_model.bin")
    with pytest.raises(
        FileNotFoundError, match=r"must hold diffusion_.*safetensors, got config.json, .*bin. Weights in a"
    ):
        vl.from_diffusers(written)


def scaled(vae, *scaling):
    vae.scaling = vl.LatentScaling(*scaling)
    return vae


def quantised(**options):
    return small(latent=vl.VectorQuantizer((3, 8, 8), 16, **options), quant_conv=True)


def parts(encoder, decoder, latent):
    return vl.VAE(
        vl.ResidualEncoder(IMAGE, 4, **{"hidden_channels": (8, 8), "groups": 4, **encoder}),
        vl.ResidualDecoder(IMAGE, 4, **{"hidden_channels": (8, 8), "groups": 4, **decoder}),
        latent=latent,
        likelihood=vl.Laplace(),
    )


def reparametrised():
    vae = small()
    torch.nn.utils.parametrizations.weight_norm(vae.encoder.conv_in)
    return vae


def changed(name, **attributes):
    """With another setting of one layer, which no weight tells."""
    vae = small()
    for key, value in attributes.items():
        setattr(vae.get_submodule(name), key, value)
    return vae


def hooked():
    vae = small()
    vae.decoder.conv_out.register_forward_hook(lambda *_: None)
    return vae


UNWRITABLE = [
    (hooked, ValueError, "as they were built, got another 'decoder.conv_out'"),
    (lambda: changed("encoder.norm_out", eps=1e-2), ValueError, "as they were built, got another 'encoder.norm_out'"),
    (lambda: changed("encoder.conv_in", padding_mode="circular"), ValueError, "got another 'encoder.conv_in'"),
    (reparametrised, ValueError, "the layers of its networks as they were built, got another 'encoder.conv_in.para"),
    (lambda: None, TypeError, "`model` must be a VAE, got None"),
    (lambda: vl.conv_vae((1, 8, 8), 2), TypeError, "`model` must be made of ResidualEncoder .* got ConvEncoder, Conv"),
    (lambda: small(latent=vl.FiniteScalarQuantizer((1, 8, 8), (4,))), TypeError, "got .*, FiniteScalarQuantizer"),
    (lambda: small(norm="pixel"), ValueError, "`model.decoder.norm` must be 'group' for diffusers, got 'pixel'"),
    (lambda: quantised(cosine=True), ValueError, "`model.latent.cosine` must be False for diffusers, got True"),
    (
        lambda: small(latent=vl.VectorQuantizer((3, 8, 8), 16)),
        ValueError,
        "`model.encoder.inner_channels` must be given for diffusers' VQModel: quant_conv=True",
    ),
    (
        lambda: small(likelihood=vl.Laplace("per_pixel")),
        ValueError,
        "`model.decoder.param_channels` must be 3 .* got 6",
    ),
    (
        lambda: parts({}, {"residual_blocks": 4}, None),
        ValueError,
        "`model.decoder.residual_blocks` must be 3 for diffusers, got 4",
    ),
    (lambda: scaled(quantised(), 1.0, 1.0), ValueError, "`model.scaling.shift` must be 0.0 for diffusers, got 1.0"),
    (
        lambda: scaled(quantised(), 0.0, (1.0, 2.0, 3.0)),
        ValueError,
        "`model.scaling` must be the same for all channels",
    ),
]


@pytest.mark.parametrize(("make", "error", "match"), UNWRITABLE)
def test_what_diffusers_has_not_is_named(tmp_path, make, error, match):
    with pytest.raises(error, match=match):
        vl.to_diffusers(make(), tmp_path / "vae")
    assert not (tmp_path / "vae").exists()


def test_like_must_be_of_the_same_class(written, tmp_path):
    with pytest.raises(ValueError, match="`like` must hold a model of class VQModel, got AutoencoderKL"):
        vl.to_diffusers(quantised(), tmp_path / "other", like=written)
