"""Reading the training data once inside a Trainer, shared by all processes.

Imports ``scaling`` and the rooms above it; knows nothing of the callback and the mixins.
"""

from .data_fingerprint import identify_data
from .data_sample import DataSample
from .gathered_statistics import merge_all
from .pass_loaders import Limits, Stream, length, pass_loaders, training_batches
from .process_group import fit_processes
from .processes import FitProcesses, ProcessesDisagreeError
from .random_states import RandomStates, preserve_rng
from .sampled_pass import SampledPass
from .statistics_cache import StatisticsCache
from .training_loader import LoaderRecord, TrainingLoader, flat_loaders

__all__ = [
    "DataSample",
    "FitProcesses",
    "Limits",
    "LoaderRecord",
    "ProcessesDisagreeError",
    "RandomStates",
    "SampledPass",
    "StatisticsCache",
    "Stream",
    "TrainingLoader",
    "fit_processes",
    "flat_loaders",
    "identify_data",
    "length",
    "merge_all",
    "pass_loaders",
    "preserve_rng",
    "training_batches",
]
