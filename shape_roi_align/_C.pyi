from collections.abc import Sequence
from typing import Any

from numpy.typing import ArrayLike, NDArray

def build_info() -> dict[str, str]: ...
def cpu_capability() -> str: ...
def sampling_points(
    box: Sequence[float],
    *,
    height: int,
    width: int,
    output_size: tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> dict[str, dict[str, Any]]: ...
def box_taps(
    box: Sequence[float],
    *,
    height: int,
    width: int,
    output_size: tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    prob_map: ArrayLike | None = None,
    map_aligned: bool | None = None,
    average: bool = True,
) -> dict[str, NDArray[Any]]: ...
