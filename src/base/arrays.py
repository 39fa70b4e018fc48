"""The kinds of arrays that go from room to room; their shapes and units stand in the docstrings."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Pixels: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float32]
Doubles: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.int64]

# RGB (N, 3, 228, 304) -> log depth (N, 1, 55, 74) by the name of the net.
Predict: TypeAlias = Callable[[Floats], Mapping[str, Floats]]
