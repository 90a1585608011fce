"""What a model is given in addition to the image: ``Labels`` and ``Vector``."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vaelib._checks import check_finite, check_float, check_int, check_shape, check_type, shown
from vaelib.functional.draws import uniform

__all__ = ["Condition", "Labels", "Vector"]


class Condition(nn.Module):
    """A condition as numbers, ``(B, embedding_size)``, that join image and latent; see :meth:`VAE.given`.

    Args:
        embedding_size: E, numbers per image.
        dropout: Probability in [0, 1] with which a row is replaced by the learned null embedding in training mode; 0
            for a condition without one.

    Examples:
        >>> class Angle(Condition):  # one of your own; @vaelib.register lets `save` know it
        ...     def __init__(self, dropout=0.0):
        ...         super().__init__(2, dropout)
        ...
        ...     def check(self, condition):
        ...         return torch.as_tensor(condition, dtype=torch.float32).reshape(-1)
        ...
        ...     def numbers(self, values):
        ...         return torch.stack([values.sin(), values.cos()], dim=1)
        >>> Angle().embed(0.0)
        tensor([[0., 1.]])

    References:
        Sohn et al. (2015), Learning structured output representation using deep conditional generative models.
    """

    def __init__(self, embedding_size: int, dropout: float) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.dropout = check_float("dropout", dropout, 0.0, 1.0)
        self.null = nn.Parameter(torch.zeros(embedding_size)) if dropout > 0 else None

    def check(self, condition: Any) -> Tensor:
        """What a person writes as a tensor of one row per image; an error names the rule and the value."""
        raise NotImplementedError

    def numbers(self, values: Tensor) -> Tensor:
        """What :meth:`check` gave as numbers, ``(B, embedding_size)``."""
        raise NotImplementedError

    def embed(self, condition: Any) -> Tensor:
        """A condition as numbers, ``(B, embedding_size)``; None is the null embedding, one row.

        Raises:
            ValueError: If ``condition`` is None and ``dropout`` is 0, or a value breaks a rule of :meth:`check`.
            TypeError: If it is of the wrong kind.
        """
        if condition is not None:
            return self.numbers(self.check(condition))
        if self.null is None:
            raise ValueError(
                "`condition` must be given, got None: without `dropout` a condition has no null embedding."
            )
        return self.null[None]

    def dropped(self, embedding: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The same with rows replaced by the null embedding, each with probability ``dropout``."""
        if self.null is None:
            return embedding
        return torch.where(uniform((len(embedding), 1), self.null, generator) < self.dropout, self.null, embedding)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.embedding_size}, dropout={self.dropout}"

    def looks_at(self, values: Tensor) -> bool:
        """Whether values are read: not in a training step on a device, which would wait for them."""
        return not torch.compiler.is_compiling() and (values.device.type == "cpu" or not self.training)


class Labels(Condition):
    """One class of ``num_classes`` per image, as zeros and a one: the range of pixels.

    Args:
        num_classes: K, >= 1.
        dropout: Probability in [0, 1] with which the label of an image is replaced by the learned null embedding in
            training mode. With it ``model.given(None)`` is the model without a label.
        names: Names of the classes, which can be written in the place of their numbers; saved with the model.

    Raises:
        ValueError: If an argument is out of its range, or names are not one for each class.

    Examples:
        >>> import vaelib as vl
        >>> vae = vl.conv_vae((1, 8, 8), 2, condition=Labels(3, names=("cat", "dog", "owl")))
        >>> vae.sample(4, condition="owl").shape
        torch.Size([4, 1, 8, 8])
        >>> vae.condition.embed([0, "owl"])
        tensor([[1., 0., 0.],
                [0., 0., 1.]])

    References:
        Sohn et al. (2015), Learning structured output representation using deep conditional generative models;
        ``dropout``: Ho & Salimans (2021), Classifier-free diffusion guidance, https://arxiv.org/abs/2207.12598
    """

    def __init__(self, num_classes: int, dropout: float = 0.0, names: Sequence[str] | None = None) -> None:
        self.num_classes = check_int("num_classes", num_classes)
        super().__init__(self.num_classes, dropout)
        self.names = None if names is None else _checked_names(names, self.num_classes)

    def check(self, condition: Any) -> Tensor:
        """Labels as int64 ``(B,)`` in [0, num_classes).

        Args:
            condition: A number, a name, or a sequence, array or tensor ``(B,)`` of them.

        Raises:
            TypeError: If it holds anything else.
            ValueError: If a number or a name is none of the classes.
        """
        if isinstance(condition, np.ndarray) and condition.ndim == 0:
            condition = condition.item()
        if isinstance(condition, np.ndarray) and condition.dtype.kind in "iu":
            condition = torch.from_numpy(condition.astype(np.int64))
        if not isinstance(condition, Tensor):
            single = isinstance(condition, str | Integral) or not hasattr(condition, "__iter__")
            entries = [condition] if single else list(condition)
            return torch.tensor([self._number(entry) for entry in entries], dtype=torch.long)
        if condition.is_floating_point() or condition.is_complex() or condition.dtype == torch.bool:
            raise TypeError(f"`condition` must be labels of an integer dtype, got dtype {condition.dtype}.")
        labels = condition.long().reshape(1) if condition.ndim == 0 else condition.long()
        check_shape("condition", labels.shape, ("B",))
        if self.looks_at(labels) and len(labels):
            for label in (int(labels.min()), int(labels.max())):
                self._number(label)
        return labels

    def numbers(self, values: Tensor) -> Tensor:
        """One-hot, float32 ``(B, num_classes)``; NaN for a label out of range that :meth:`check` could not look at."""
        found = (values[:, None] == torch.arange(self.num_classes, device=values.device)).float()
        if torch.compiler.is_compiling():  # and exporting: the plain graph
            return found
        return found.masked_fill(((values < 0) | (values >= self.num_classes))[:, None], torch.nan)

    def _number(self, label: Any) -> int:
        if isinstance(label, str):
            names = self.names or ()
            if label in names:
                return names.index(label)
            rule = f"one of {', '.join(map(repr, names))}" if names else "a number: the classes have no names"
            raise ValueError(f"`condition` must be {rule}, got {shown(label)}.")
        if isinstance(label, bool | np.bool_) or not isinstance(label, Integral):
            raise TypeError(f"`condition` must be the number or the name of a class, got {shown(label)}.")
        number = int(label)
        if not 0 <= number < self.num_classes:
            rule = f"in [0, {self.num_classes}), the number of a class"
            raise ValueError(f"`condition` must be {rule}, got {shown(number)}.")
        return number


class Vector(Condition):
    """``size`` numbers per image, such as the factors of a scene; scaled to about [0, 1], the range of pixels.

    Args:
        size: Numbers per image, >= 1.
        dropout: Probability in [0, 1] with which the vector of an image is replaced by the learned null embedding in
            training mode. With it ``model.given(None)`` is the model without a vector.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> import vaelib as vl
        >>> vae = vl.conv_vae((1, 8, 8), 2, condition=Vector(3))
        >>> vae.reconstruct(torch.rand(5, 1, 8, 8), condition=torch.rand(5, 3)).shape
        torch.Size([5, 1, 8, 8])

    References:
        As for :class:`Labels`.
    """

    def __init__(self, size: int, dropout: float = 0.0) -> None:
        self.size = check_int("size", size)
        super().__init__(self.size, dropout)

    def check(self, condition: Any) -> Tensor:
        """Vectors as floating point ``(B, size)``, finite.

        Args:
            condition: A sequence, array or tensor of ``size`` numbers, or ``(B, size)``; of size 1 a number too.

        Raises:
            TypeError: If it holds anything but numbers.
            ValueError: If its shape is another, or a number is not finite.
        """
        if not isinstance(condition, Tensor):
            try:
                array = np.asarray(condition)
            except ValueError as error:  # rows of several lengths
                raise ValueError(f"`condition` must have shape (B, {self.size}), got {shown(condition)}.") from error
            if array.dtype.kind not in "iuf":
                raise TypeError(f"`condition` must be {self.size} numbers an image, got {shown(condition)}.")
            condition = torch.from_numpy(array.astype(np.float32))
        if condition.is_complex() or condition.dtype == torch.bool:
            raise TypeError(f"`condition` must be real numbers, got dtype {condition.dtype}.")
        values = condition if condition.is_floating_point() else condition.float()
        if values.ndim == 1 or (values.ndim == 0 and self.size == 1):
            values = values.reshape(1, -1)
        check_shape("condition", values.shape, ("B", self.size))
        if self.looks_at(values):
            check_finite("condition", values)
        return values

    def numbers(self, values: Tensor) -> Tensor:
        """The vector itself."""
        return values


def _checked_names(names: Any, num_classes: int) -> tuple[str, ...]:
    """One name a class, all different."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"`names` must be a sequence of str, got {shown(names)}.")
    for name in names:
        check_type("names", name, str, "a sequence of str")
    if len({*names}) != num_classes or len(names) != num_classes:
        raise ValueError(f"`names` must be {num_classes} different names, one a class, got {shown(list(names))}.")
    return tuple(names)
