"""The training loop."""

from vaelib.training.callbacks import EMA, EarlyStopping, Trackers
from vaelib.training.checkpoints import Checkpoints
from vaelib.training.history import EpochRecord
from vaelib.training.interruption import TrainingInterrupted
from vaelib.training.pictures import CollapseWarning, Pictures
from vaelib.training.run import Run
from vaelib.training.trainer import Trainer

__all__ = [
    "EMA",
    "Checkpoints",
    "CollapseWarning",
    "EarlyStopping",
    "EpochRecord",
    "Pictures",
    "Run",
    "Trackers",
    "Trainer",
    "TrainingInterrupted",
]
