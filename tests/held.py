"""Tensors in memory, for what writes checkpoints."""

import numpy as np


class Held:
    """An array as a tensor that is there when it is wanted."""

    def __init__(self, array):
        self.array = array
        self.dtype = array.dtype
        self.shape = array.shape
        self.nbytes = array.nbytes

    def load(self):
        return self.array


def held(arrays):
    """Arrays by their names, as tensors."""
    return {name: Held(np.asarray(array)) for name, array in arrays.items()}
