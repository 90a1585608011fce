"""The training loop."""

from vaelib.training.history import EpochRecord
from vaelib.training.trainer import Trainer

__all__ = ["EpochRecord", "Trainer"]
