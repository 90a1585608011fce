"""The training loop and its callbacks.

A callback is any object with some of four methods, each given the :class:`Run`: ``on_start(run)`` before the first
step, ``on_step(run)`` after each step, ``on_epoch(run)`` when an epoch's record is the last of ``run.history``, and
``on_end(run)`` after the last one. Other methods named ``on_...`` are an error. If it keeps something,
``state_dict()`` and ``load_state_dict(state)`` let a resumed run continue exactly: plain values and tensors, in dicts
and lists.
"""

from vaelib.training.callbacks import EMA, EarlyStopping, Trackers
from vaelib.training.checkpoints import Checkpoints
from vaelib.training.history import EpochRecord
from vaelib.training.images import CollapseWarning, Pictures
from vaelib.training.processes import TrainingInterrupted
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
