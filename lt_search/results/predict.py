"""Predictions of an exported model on a split of its data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from lt_search.config.spec import parse_config, trainer_type
from lt_search.config.validation import validation_problems
from lt_search.data.decoded import open_images, pixels_checksum
from lt_search.errors import Problem, UserError
from lt_search.results.export import BEST, EXPORT_AGAIN, read_model
from lt_search.training.inputs import LoadedInputs, RunInputs

if TYPE_CHECKING:
    from lt_search.data.table import Dataset, Part
    from lt_search.results.export import Export
    from trainers.base import Images, TwoStageTrainer


def predict(export: Export, data: Dataset, part: Part) -> torch.Tensor:
    """Logits (N, C) of the exported model on one split of its data."""
    return load_model(export, data).predict_logits(split_images(export, part))


def load_model(export: Export, data: Dataset) -> TwoStageTrainer[Any]:
    """The exported model as a trainer that predicts.

    Raises:
        UserError: if its file is damaged, or its trainer refuses its settings.
    """
    spec = export.spec
    try:
        parse_config(trainer_type(spec.trainer).config_type, spec.config)
    except ValidationError as error:
        raise UserError(*validation_problems(error, str(export.folder / BEST))) from error
    torch.set_num_threads(export.threads)  # another number could change the last bits of a sum
    model = read_model(export)
    loaded = LoadedInputs(RunInputs.of(spec, data, {}, export.folder), torch.device(_device(export)))
    try:
        return loaded.load_trainer(spec.config, model)
    except torch.cuda.OutOfMemoryError:  # a RuntimeError, too, but the file is intact
        raise
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise UserError(Problem(str(export.model_file), f"is damaged: {error}", EXPORT_AGAIN)) from error


def split_images(export: Export, part: Part) -> Images:
    """The images (N, channels, S, S) of a split, at the size of the run.

    Raises:
        UserError: if they are no longer those of the run.
    """
    spec = export.spec
    images = open_images(part, spec.data.image_size)
    if spec.data.pixels.get(part.name) != pixels_checksum(part, spec.data.image_size):
        raise UserError(Problem("--dataset", f"the images of {part.name} have changed since the search", ""))
    return images


def _device(export: Export) -> str:
    """The kind of device that the search used, if it is available."""
    return "cuda" if export.device == "cuda" and torch.cuda.is_available() else "cpu"
