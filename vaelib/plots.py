"""Image files: grids, pairs, curves and embeddings, in the format of the suffix (.png, .jpg, .webp, .tif).

matplotlib is loaded where it draws.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaelib._checks import (
    LARGEST_GRID,
    MissingExtraError,
    check_finite,
    check_has_values,
    check_image_path,
    check_int,
    check_shape,
    check_tensor,
    check_type,
)
from vaelib._files import written_whole

__all__ = ["save_curves", "save_embedding", "save_grid", "save_pairs"]

_PADDING = 2  # pixels between the images of a grid, torchvision's own


def save_grid(images: Tensor, path: str | Path, *, columns: int = 8, captions: Sequence[str] = ()) -> None:
    """A grid of images.

    Args:
        images: ``(N, C, H, W)``, clipped to [0, 1] for display; 1 or 3 channels are drawn as they are, of any other
            number the mean.
        path: The file; its suffix, such as ``.png`` or ``.jpg``, is its format.
        columns: Images per row.
        captions: Text to the left of the rows, from the first on.

    Raises:
        ValueError: If ``images`` are no batch, or not finite.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     save_grid(torch.rand(20, 1, 8, 8), f"{directory}/grid.png", columns=10)
    """
    from PIL import Image
    from torchvision.utils import make_grid

    check_tensor("images", images)
    check_has_values("images", images)
    check_shape("images", images.shape, ("N", "C", "H", "W"))
    check_finite("images", images)
    columns = check_int("columns", columns)
    check_type("captions", captions, tuple | list, "a sequence of strings")
    for caption in captions:
        check_type("captions", caption, str, "a sequence of strings")
    kind = check_image_path(path)
    pixels = len(images) * images.shape[2] * images.shape[3]
    if not 0 < pixels <= LARGEST_GRID:
        raise ValueError(f"`images` must have between 1 and {LARGEST_GRID} pixels in all, got {pixels}.")
    shown = images if images.shape[1] in (1, 3) else images.mean(1, keepdim=True)
    grid = make_grid(shown.clamp(0, 1), nrow=columns).mul(255).add_(0.5).to(torch.uint8).permute(1, 2, 0)
    drawn = _captioned(Image.fromarray(grid.cpu().numpy()), captions, images.shape[2] + _PADDING)
    with written_whole(path) as temporary:
        drawn.save(temporary, format=kind, quality=95)


def save_pairs(originals: Tensor, reconstructions: Tensor, path: str | Path, *, columns: int = 10) -> None:
    """Rows of originals, each with the row of their reconstructions below it.

    Args:
        originals: ``(N, C, H, W)`` in [0, 1].
        reconstructions: The same shape.
        path: The file; its suffix, such as ``.png`` or ``.jpg``, is its format.
        columns: Images per row.

    Raises:
        ValueError: If the shapes differ.

    Examples:
        >>> import tempfile, vaelib as vl
        >>> x = torch.rand(20, 1, 8, 8)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     save_pairs(x, vl.conv_vae((1, 8, 8), 2).reconstruct(x), f"{directory}/pairs.png")
    """
    for name, images in (("originals", originals), ("reconstructions", reconstructions)):
        check_tensor(name, images)
        check_has_values(name, images)
    check_shape("originals", originals.shape, ("N", "C", "H", "W"))
    check_shape("reconstructions", reconstructions.shape, originals.shape)
    columns = check_int("columns", columns)
    check_image_path(path)
    if len(originals) == 0:
        raise ValueError("`originals` must hold at least one image, got none.")
    columns = min(columns, len(originals))
    missing = -len(originals) % columns
    filled = [
        torch.nn.functional.pad(images.cpu(), (0, 0) * 3 + (0, missing)) for images in (originals, reconstructions)
    ]
    rows = [row for pair in zip(*(images.split(columns) for images in filled), strict=True) for row in pair]
    save_grid(torch.cat(rows), path, columns=columns)


def save_curves(curves: Mapping[str, Sequence[float]], path: str | Path, *, ylabel: str = "nats per image") -> None:
    """Lines over epochs.

    Args:
        curves: Label to one value per epoch.
        path: The file; its suffix, such as ``.png`` or ``.jpg``, is its format.
        ylabel: Label of the vertical axis.

    Raises:
        MissingExtraError: If matplotlib is not installed.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     save_curves({"train": [50.0, 40.0], "val": [52.0, 45.0]}, f"{directory}/curves.png")
    """
    check_type("curves", curves, Mapping, "a mapping from labels to values")
    for label, values in curves.items():
        check_type(f"curves[{label!r}]", values, Collection, "one number per epoch")
    check_type("ylabel", ylabel, str)
    check_image_path(path)
    figure, axes = _figure((6.4, 4.0))
    for label, values in curves.items():
        axes.plot(range(1, len(values) + 1), values, label=label, marker="o", markersize=3)
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    _save(figure, path)


def save_embedding(points: Tensor, labels: Tensor | None, path: str | Path, *, class_names: Sequence[str] = ()) -> None:
    """Latents as points in a plane, coloured by label; more than two dimensions by their two principal components.

    Args:
        points: ``(N, D)`` with D >= 1.
        labels: ``(N,)`` integers, or None.
        path: The file; its suffix, such as ``.png`` or ``.jpg``, is its format.
        class_names: Names of the classes, by their number, such as :attr:`ImageDataset.class_names`; shown beside the
            colours.

    Raises:
        ValueError: If shapes disagree.
        MissingExtraError: If matplotlib is not installed.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     save_embedding(torch.randn(50, 5), torch.arange(50) % 3, f"{directory}/map.png")
    """
    check_tensor("points", points)
    check_shape("points", points.shape, ("N", "D"))
    check_finite("points", points)
    if labels is not None:
        check_tensor("labels", labels, floating=False)
        check_shape("labels", labels.shape, (len(points),))
    check_type("class_names", class_names, tuple | list, "a sequence of strings")
    for name in class_names:
        check_type("class_names", name, str, "a sequence of strings")
    check_image_path(path)
    figure, axes = _figure((6.4, 6.0))
    plane = principal_plane(points.cpu())
    colours = None if labels is None else labels.cpu()
    drawn = axes.scatter(*plane.T.numpy(), c=colours, cmap="tab10" if labels is not None else None, s=4, linewidths=0)
    if labels is not None:
        bar = figure.colorbar(drawn, ax=axes, label="label")
        if class_names:
            bar.set_ticks(range(len(class_names)), labels=class_names)
    axes.set(xlabel="first component", ylabel="second component")
    _save(figure, path)


def principal_plane(points: Tensor) -> Tensor:
    """``(N, D)`` to ``(N, 2)``: the two directions of largest variance, missing ones as zeros."""
    rank = min(6, *points.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the decomposition is a randomised one
        left, scales, _ = torch.pca_lowrank(points.double(), q=rank, niter=4)
    plane = (left * scales)[:, :2]
    return torch.nn.functional.pad(plane, (0, 2 - plane.shape[1]))


def _captioned(grid: Any, captions: Sequence[str], height: int) -> Any:
    """The grid with a caption to the left of each of its rows, which are ``height`` pixels apart."""
    from PIL import Image, ImageDraw

    if not captions:
        return grid
    pen = ImageDraw.Draw(grid)
    margin = 8 + max(int(pen.textlength(caption)) for caption in captions)
    wide = Image.new("RGB", (grid.width + margin, grid.height))
    wide.paste(grid, (margin, 0))
    pen = ImageDraw.Draw(wide)
    for row, caption in enumerate(captions):
        pen.text((4, _PADDING + row * height + height // 2), caption, anchor="lm")
    return wide


def _figure(size: tuple[float, float]) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("Drawing curves and embeddings", "plots") from error
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()


def _save(figure: Any, path: str | Path) -> None:
    kind = check_image_path(path)
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=150, format=kind)
