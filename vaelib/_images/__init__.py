"""Images in batches, with a condition where a model takes one, from whatever holds them."""

from vaelib._images.batches import Batch, ImageSet, even_parts, one_pass
from vaelib._images.holders import as_batch, as_batches, opened
from vaelib._images.pairs import check_condition

__all__ = ["Batch", "ImageSet", "as_batch", "as_batches", "check_condition", "even_parts", "one_pass", "opened"]
