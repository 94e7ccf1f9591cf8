"""Reading the training data once inside a Trainer, by all its processes together.

Loaders and samplers as training has them, random states that are put back, what the processes agree
on, and the file that saves a pass. Knows neither the module nor the callback: it is given a
function that takes a batch apart. Imports ``fitting`` and the rooms above it.
"""

from .data_sample import DataSample
from .prediction_errors import PredictionErrors
from .process_group import fit_processes
from .processes import FitProcesses
from .random_states import RandomStates, preserve_rng
from .statistics_cache import StatisticsCache
from .training_data import TrainingData
from .training_loader import LoaderRecord, flat_loaders

__all__ = [
    "DataSample",
    "FitProcesses",
    "LoaderRecord",
    "PredictionErrors",
    "RandomStates",
    "StatisticsCache",
    "TrainingData",
    "fit_processes",
    "flat_loaders",
    "preserve_rng",
]
