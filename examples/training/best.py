"""The best weights of a training, by scores of the validation part."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path

from torchvision.models.detection import MaskRCNN

from mrrcnn.files import write_text
from mrrcnn.model import save_model

from . import distributed
from .engine import Training

logger = logging.getLogger(__name__)

Score = dict[str, float]  # box_AP and mask_AP in percent


class BestWeights:
    """Scores a training's model now and then; called after each step.

    The sum of box and mask AP decides. ``path`` holds the best weights. A JSON file beside it
    holds their iteration and scores.

    Args:
        every: iterations between scores; there is one at the end, too.
        score: box and mask AP of a model; called in every process, its result is used in the main
            one.
    """

    def __init__(self, path: Path, every: int, score: Callable[[MaskRCNN], Score]):
        self.path = path
        self.record_file = path.with_suffix(".json")
        self.every = every
        self.score = score

    def __call__(self, training: Training) -> None:
        iteration, last = training.iteration, training.schedule.iterations
        if iteration % self.every and iteration != last:
            return
        model: MaskRCNN = training.result  # type: ignore[assignment]
        if distributed.world_size() > 1:  # running statistics differ until the training ends
            model = copy.deepcopy(model)
            distributed.equalize(model)
        score = self.score(model)
        distributed.on_main(lambda: self._keep(model, score, iteration))

    def _keep(self, model: MaskRCNN, score: Score, iteration: int) -> None:
        former = json.loads(self.record_file.read_text()) if self.record_file.exists() else None
        if former is None or _total(score) > _total(former):
            record = json.dumps({"iteration": iteration, **score}) + "\n"
            try:
                save_model(model, self.path)
                write_text(self.record_file, record)
            except OSError as error:  # training goes on, as without a checkpoint
                logger.warning(
                    "the best weights of iteration %d are not kept: %s", iteration, error
                )


def _total(score: Score) -> float:
    return score["box_AP"] + score["mask_AP"]
