"""Type aliases for arrays passed between modules. Docstrings give their shapes and units."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Pixels: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float32]
Doubles: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.int64]

# (RGB (N, 3, 228, 304), names of the N pictures) -> log depth (N, 1, 55, 74) by name of the net: `nets.Nets`.
Predict: TypeAlias = Callable[[Floats, Sequence[object]], Mapping[str, Floats]]
