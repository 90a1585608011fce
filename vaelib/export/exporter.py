"""``export_onnx``: from a model to a bundle that is proved, or to an error and no file."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vaelib._checks import ExportError, check_choice, check_float, check_int, check_no_view, check_type
from vaelib.export import manifest
from vaelib.export.card import card, measure
from vaelib.export.conversion import convert, to_bytes, with_metadata
from vaelib.export.differences import EXACT, Parity
from vaelib.export.independence import check_independence
from vaelib.export.lint import lint
from vaelib.export.parts import graphs_of
from vaelib.export.precision import LIMITS, check_calibration, check_headroom, halved, quantized
from vaelib.export.proof import compare, how_proved, prove
from vaelib.export.tiling import tiling_of
from vaelib.vae import VAE

__all__ = ["export_onnx"]


def export_onnx(
    model: VAE,
    directory: str | Path,
    *,
    opset: int = 18,
    dynamic_size: bool = False,
    evaluation: Mapping[str, Any] | None = None,
    benchmark: bool = False,
    strict: bool = False,
    precision: str = "fp32",
    calibration: Tensor | tuple[Tensor, Any] | None = None,
    max_loss: float = 0.5,
) -> dict[str, dict[str, Parity]]:
    """Write a bundle: the model's graphs, a model card and a manifest; or raise and write nothing.

    =======  ===================  ======================================================================
    graph    inputs               outputs
    =======  ===================  ======================================================================
    encoder  ``image``            ``z`` without noise; of a Gaussian posterior ``mu``, ``logvar`` too, of
                                  a quantised latent ``codes``, int64 ``(B, N)``
    decoder  ``z``                ``mean`` (images), ``recon_params`` (raw parameters)
    vae      ``image, noise``     ``reconstruction``, ``z``, ``distortion``, ``kl``, ``kl_groups``
    prior    ``noise``            ``z``: draws of the prior, and their ``codes``; without a file if they
                                  are the noise itself, or uniform codes
    codes    ``codes``            ``z`` of codes
    next     ``codes, position``  ``logits`` of the code at ``position``, by those before it: of a prior
                                  that draws codes one after the other, in the place of ``prior``
    =======  ===================  ======================================================================

    Of a latent without noise ``vae`` has no ``noise``, of one without a prior no nats. The batch axis is free.
    Of a model with a condition, ``condition`` is the last input of encoder, decoder and vae, and of a prior that takes
    one: labels as int64 ``(B,)``, or a vector, float32 ``(B, size)``; the manifest has the names of the classes.
    Noise is an input, so the graphs are deterministic. ``mean`` and ``reconstruction`` are clamped to [0, 1] as in
    ``VAE.reconstruct``, the mean within log p(x|z) is not; ``distortion`` is -log p(x|z), ``kl`` is KL(q(z|x) to p(z)),
    in nats per image, ``(B,)``, at the z that the noise makes; ``kl_groups``, ``(B, G)``, are the parts of ``kl``.
    The manifest says for each graph what it takes and gives, with dtypes and shapes, and has the hash of each file.
    Every graph is compared with torch at batches 1, 2, 3, 7 and 16, by onnxruntime with its optimisations off and on,
    and by ``onnx.reference``; of a network whose layers give more than 2 million numbers an image in smaller batches,
    without the latter, which would take minutes; the model card says which. If batch-norm statistics are still initial,
    the check is repeated with random ones: a wrong fusion would go unnoticed otherwise. An image's result must not
    depend on the batch that it is in, which is checked in torch and in onnxruntime; then ``OnnxVAE`` opens the bundle's
    own bytes, and must give what torch gives, for batches of 1 to 40, cut and whole. Codes must be torch's but for
    near-ties: where two codes differ by less than 8 times torch's own rounding, which is counted. The same weights give
    the same bytes.

    Args:
        model: A VAE or autoencoder on any device, in any mode; it is not changed.
        directory: Made if missing; a bundle that is there is replaced after all graphs are proved.
        opset: ONNX operator set, 18 to 23.
        dynamic_size: Also leave H and W free, for a model with a latent map; they must then be multiples of what
            the manifest calls ``spatial_multiple``. Compared with torch at two sizes, with a latent map of 4 x 4 where
            the model runs at that size: a large first stage is exported soonest this way.
        evaluation: Results for the model card: what ``vaelib evaluate --json`` prints, and any other words and numbers,
            such as ``{"data": "mnist, test"}``.
        benchmark: Also measure the speed on this machine's CPU and write it on the card, which then differs from
            one export to the next.
        strict: Refuse a model for which ``vaelib.export.lint.lint`` has a finding.
        precision: ``"fp32"``; ``"fp16"``, for GPUs: networks in float16, inputs, outputs and nats in float32, within
            5e-3 of images and 1e-2 of the rest, refused where a layer gives more than a quarter of float16's largest
            value, 65,504; or ``"int8"``, for CPUs: convolutions and products in 8 bits but for the last layers,
            refused unless it is measured to be worth it.
        calibration: Images ``(N, C, H, W)`` in [0, 1]. For int8, N >= 64: half calibrate, the others judge. For fp16,
            those on which layers are measured, random ones if None. Of a model with a condition
            ``(images, condition)``.
        max_loss: What int8 may cost, in nats of ELBO per image; 0.5 is less than lies between two seeds of a training.

    Returns:
        Graph name to output name to :class:`Parity`.

    Raises:
        ExportError: A ``ValueError``: if torch cannot express a graph; if an image's result depends on its batch or a
            draw; if ``vaelib.runtime`` would not run a graph; if a graph breaks its contract or differs by more than
            1e-5 of the images' scale, or 1e-4 of an other output's, unless rounding explains it; with ``strict`` also
            if onnxruntime could run another architecture faster; if a layer's values are too large for float16; if int8
            loses more than ``max_loss`` or is not faster;
            if a model with codes is to be of another precision than fp32, or of any size.
        ValueError: If int8 lacks images to calibrate on, or an argument is out of its range.
        TypeError: If ``model`` is no VAE and no autoencoder.
        MissingExtraError: If onnx, onnxscript or onnxruntime is not installed.
        OSError: If the directory cannot be written, or holds files in the place of the bundle's that no manifest in it
            lists or that were changed since, which it names (``FileExistsError``).

    Examples:
        >>> import tempfile, vaelib as vl
        >>> vae = vl.conv_vae((1, 8, 8), latent_dim=2, hidden_channels=(4,))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     parity = export_onnx(vae, f"{directory}/bundle")
        ...     sorted(path.name for path in Path(directory, "bundle").iterdir())
        ['README.md', 'decoder.onnx', 'encoder.onnx', 'manifest.json', 'vae.onnx']
        >>> parity["vae"]["distortion"].max_rel < 1e-4
        True
    """
    check_no_view("model", model)
    check_type("model", model, VAE, "a VAE or an AutoEncoder")
    check_int("opset", opset, 18, 23)
    check_choice("precision", precision, ("fp32", "fp16", "int8"))
    check_float("max_loss", max_loss, 0.0)
    _check_evaluation(evaluation or {})
    _check_codes(model, precision, dynamic_size)
    is_calibrated = precision == "int8" or (precision == "fp16" and calibration is not None)
    images: Any = check_calibration(model, calibration, precision) if is_calibrated else None
    path = manifest.bundle_directory(directory)
    exported = _copied(model)
    metadata = manifest.metadata_of(exported, opset, precision)
    graphs = graphs_of(exported, dynamic_size=dynamic_size)
    if precision == "fp16":
        check_headroom(graphs["vae"], images)
    proofs = {part: graph.for_proof() for part, graph in graphs.items()}
    for graph in proofs.values():
        check_independence(graph)
    written = {part: graph for part, graph in proofs.items() if graph.has_file}
    changed = {}
    if any(norm.num_batches_tracked == 0 for norm in _batch_norms(exported)):
        whole = proofs["vae"]  # it has every fold in it
        changed = {"changed": whole._replace(part="changed", module=_with_random_statistics(whole.module))}
    contents = convert(written if dynamic_size else written | changed, opset)
    parity = {part: compare(contents[part], graph) for part, graph in written.items()}
    for part, graph in changed.items():
        # Of any size it is converted by itself: torch would read sizes in it off the other graphs' inputs.
        content = contents.pop(part) if part in contents else to_bytes(graph, opset)
        compare(content, graph._replace(part="vae"))
    judgement = None
    limits = dict.fromkeys(written, EXACT)
    if precision != "fp32":
        networks = {part: graph for part, graph in written.items() if part != "prior"}
        if precision == "fp16":
            contents |= convert({part: halved(graph) for part, graph in networks.items()}, opset)
        else:
            small, judgement = quantized({part: contents[part] for part in networks}, graphs, images, max_loss)
            contents |= small
        limits |= dict.fromkeys(networks, LIMITS[precision])
        parity |= {
            part: compare(contents[part], graph, limits[part], third_opinion=precision == "fp16")
            for part, graph in networks.items()
        }
    described = manifest.described(
        {**metadata, "tiling": tiling_of(graphs, contents if precision == "fp32" else {})}, proofs, parity
    )
    files = {
        f"{part}.onnx": with_metadata(content, manifest.props_of(part, described)) for part, content in contents.items()
    }
    if strict and (findings := lint(files)):
        raise ExportError(
            f"`strict` refuses what onnxruntime cannot run at its fastest. {' '.join(map(str, findings))}"
        )
    speeds = measure(graphs, files) if benchmark else []
    proved = how_proved(proofs["vae"], precision)
    files[manifest.CARD_NAME] = card(described, parity, evaluation, judgement, speeds, proved).encode()
    prove(described, files, proofs, limits)
    manifest.write_bundle(path, described, files)
    return parity


def _check_codes(model: VAE, precision: str, dynamic_size: bool) -> None:
    """Refuse what a latent of codes cannot have."""
    if not hasattr(model.latent, "num_codes"):
        return
    kind = type(model.latent).__name__
    if precision != "fp32":
        raise ExportError(
            f"`precision` must be 'fp32' for a model with {kind}, got {precision!r}: rounding decides codes, and an"
            " encoder in fewer bits gives other ones than the model."
        )
    if dynamic_size:
        raise ExportError(
            f"`dynamic_size` must be False for a model with {kind}: the number of codes tells no height and width, and"
            " the prior is over as many as in training."
        )


def _check_evaluation(evaluation: Mapping[str, Any]) -> None:
    for name, entry in evaluation.items():
        if isinstance(entry, Mapping) and {"value", "standard_error"} <= entry.keys():
            continue
        if not isinstance(entry, str | int | float):
            raise ValueError(
                f"`evaluation` must hold words, numbers, or estimates with 'value' and 'standard_error', got {name!r}:"
                f" {entry!r:.80}."
            )


def _copied(model: VAE) -> Any:
    """The copy that is exported: on the CPU, in float32 and eval mode, its prior fixed."""
    try:
        exported: Any = copy.deepcopy(model).cpu().float().eval()
    except Exception as error:  # a part of a user's own may raise anything
        hint = ""
        if "weight_norm" in str(error):
            hint = " Take torch.nn.utils.parametrizations.weight_norm, or call remove_weight_norm first."
        reason = str(error).strip().partition("\n")[0].partition(".  ")[0].rstrip(".!")
        raise ExportError(f"`model` must be one that can be copied to the CPU: {reason:.200}.{hint}") from error
    for name, values in exported.state_dict().items():
        if nn.parameter.is_lazy(values):
            raise ExportError(f"`model` must have run once, so that its lazy layers have weights; `{name}` has none.")
        if not isinstance(values, Tensor) or values.layout != torch.strided:
            raise ExportError(
                f"`model` must hold dense tensors, got {getattr(values, 'layout', type(values))} in `{name}`."
            )
    if hasattr(getattr(exported, "prior", None), "fix"):
        exported.prior.fix()
    return exported


def _batch_norms(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]


def _with_random_statistics(model: nn.Module) -> nn.Module:
    """A copy whose batch norms look as if they had been trained."""
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in _batch_norms(changed):
            norm.running_mean.normal_(0.0, 0.5, generator=generator)
            norm.running_var.uniform_(0.5, 2.0, generator=generator)
            if norm.affine:
                norm.weight.uniform_(0.5, 1.5, generator=generator)
                norm.bias.normal_(0.0, 0.5, generator=generator)
    return changed
