"""Datasets: sources, transitions and what is known about them. The only package that imports
Minari or h5py.
"""

from ddice.data.batch import Batch, InitialBatch
from ddice.data.loading import load_dataset
from ddice.data.spec import BoxActions, Normalizer, Spec
from ddice.data.transitions import Transitions

__all__ = [
    "Batch",
    "BoxActions",
    "InitialBatch",
    "Normalizer",
    "Spec",
    "Transitions",
    "load_dataset",
]
