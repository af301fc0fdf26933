"""Training dynamics: what happened inside a network on the way, measured from checkpoints and fixed probe batches.

gradients: which exit drives the backbone, and where exits disagree. representation: how many dimensions activations
fill, and how alike they are. connectivity: what lies between trained networks. information: of the input and of the
label in a representation. landscape: the loss around a network. Nothing here is called by the training loop, and no
model is changed.
"""

from .activations import Batches, probe_batches, stage_activations
from .connectivity import barrier, bezier, distance, linear_path, plane
from .gradients import gradient_conflict, gradient_dominance, gradient_tables
from .information import information_sweep, mutual_information, stage_information
from .label_information import usable_information
from .landscape import landscape
from .representation import effective_rank, linear_cka, numerical_rank, stable_rank, stage_ranks, stage_similarity

__all__ = [
    "Batches", "barrier", "bezier", "distance", "effective_rank", "gradient_conflict", "gradient_dominance",
    "gradient_tables", "information_sweep", "landscape", "linear_cka", "linear_path", "mutual_information",
    "numerical_rank", "plane", "probe_batches", "stable_rank", "stage_activations", "stage_information", "stage_ranks",
    "stage_similarity", "usable_information",
]  # fmt: skip
