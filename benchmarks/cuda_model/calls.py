"""The launches of a backward pass."""

from __future__ import annotations

from cases import Case
from cuda_model.counts import Work, map_and_box_gradient, map_bytes, passes_over
from cuda_model.kernels import BOX, NOW, Design, ceil_div, copies_features, make_box_grid
from cuda_model.tiles import gather_feature_gradient, tiles_of, touched_tiles


def backward(
    case: Case, channels_last: bool, element_size: int, design: Design = NOW
) -> list[Work]:
    """backward_cuda, asked for the gradients of features and maps."""
    bins = case.output_size**2
    grad = case.num_rois * case.channels * bins * element_size
    tiles = tiles_of(case, channels_last, element_size, design)
    works = [] if channels_last else [passes_over("transpose of the gradient", grad, grad)]
    if not tiles.look_at_boxes(case.num_rois, case.channels, design):
        words = tiles.count // case.num_images * ceil_div(case.num_rois, 32)
        works += [
            passes_over("zeros of boxes and bits", case.num_rois * BOX + 4 * words),
            touched_tiles(case, channels_last, element_size, design),
        ]
    works += [
        gather_feature_gradient(case, channels_last, element_size, design),
        *gradient_of_maps(case, channels_last, element_size, design),
    ]
    shares = make_box_grid(case.num_rois, case.channels, case.channels, bins).shares
    if shares > 1:
        works.append(passes_over("sum_shares", shares * map_bytes(case), map_bytes(case)))
    return works


def gradient_of_maps(
    case: Case, channels_last: bool, element_size: int, design: Design = NOW
) -> list[Work]:
    """map_and_box_gradients, before sum_shares: on features as they are or on copies."""
    pixels = case.num_images * sum(height * width for height, width, _ in case.levels)
    if channels_last or not copies_features(
        case.channels, pixels, case.num_rois, case.output_size**2
    ):
        return [map_and_box_gradient(case, channels_last, element_size, design)]
    features = pixels * case.channels * element_size
    return [
        passes_over("transpose of the features", features, features),
        map_and_box_gradient(case, True, element_size, design),
    ]


def seconds(works: list[Work]) -> float:
    return sum(work.seconds() for work in works)
