"""Self-contained folder of adopted settings and the models that they need: a run's `posthoc/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from pydantic import TypeAdapter, ValidationError

from lt_search.errors import Problem, UserError
from lt_search.results.export import MODEL, Export, file_hash, read_export
from lt_search.results.posthoc.pipeline import Learned, Predictions, combined, stack
from lt_search.results.posthoc.settings import Settings
from lt_search.results.predict import load_model, split_images
from lt_search.storage.run_folder import SETTINGS
from trainers.images.tta import VIEWS
from trainers.losses.softmax import log_prior

if TYPE_CHECKING:
    from lt_search.data.table import Dataset, Part
    from lt_search.storage.files import FolderStore


MODELS = "models"


def model_folder(number: int) -> str:
    """Where the export of a trial lies inside the folder."""
    return f"{MODELS}/{number:04d}"


def predict_views(export: Export, data: Dataset, part: Part, n_views: int, *, own: bool = True) -> Predictions:
    """Predictions of an exported model on a split of its data, on as many of `n_views` views as it supports.

    Args:
        export: the model.
        data: its data.
        part: of the data.
        n_views: views at most.
        own: whether the model's own prediction is needed as well; otherwise it is empty.
    """
    trainer = load_model(export, data)
    images = split_images(export, part)
    views = [trainer.view_logits(images, view) for view in VIEWS[: min(n_views, trainer.n_views)]]
    empty = torch.empty(0, len(part), len(data.classes))
    return Predictions(
        trainer.predict_logits(images) if own else empty.new_empty(0, len(data.classes)),
        torch.stack(views) if views else empty,
        trainer.linear_head(),
    )


@dataclass(frozen=True)
class Package:
    """Adopted settings and their models, read back."""

    export: Export
    """Of the run's best trial; `folder` is the package's, and `reported` the package's own validation metrics."""
    models: Sequence[Export]
    """All models whose predictions are used, best first."""
    settings: Settings
    learned: Learned
    crossed: float
    """The objective on validation patients that the settings were not chosen or learned on."""

    def __str__(self) -> str:
        """Which models, and how."""
        numbers = ", ".join(str(export.trial) for export in self.models)
        return f"trial{'s' if len(self.models) > 1 else ''} {numbers}, tuned after training ({self.settings})"

    def predict(self, data: Dataset, part: Part) -> torch.Tensor:
        """The final logits (N, C), float64."""
        n_views = self.settings.views
        models = [predict_views(export, data, part, n_views, own=n_views == 0) for export in self.models]
        prior = log_prior(torch.tensor(self.export.spec.data.train_counts))
        return combined(stack(models, self.settings, data.task, prior), self.learned, data.task)


def write_package(
    store: FolderStore,
    numbers: Sequence[int],
    settings: Settings,
    learned: Learned,
    scalars: Mapping[str, float],
    **facts: Any,
) -> None:
    """Writes `posthoc.yaml`, last, beside the models' exports, which exist already.

    Args:
        store: the run's `posthoc/`.
        numbers: the trials of the rows of `learned.members`.
        settings: as adopted.
        learned: by them.
        scalars: validation metrics of the final logits, by name.
        facts: further entries of the file, for people.
    """
    used = learned.members.any(1)
    content = {
        "settings": asdict(settings),
        "models": [
            {
                "trial": number,
                "model_hash": file_hash(store.path(f"{model_folder(number)}/{MODEL}")),
                "classes": members.nonzero().squeeze(1).tolist(),
            }
            for number, members, needed in zip(numbers, learned.members, used, strict=True)
            if needed
        ],
        "thresholds": learned.thresholds.tolist(),
        "scalars": dict(scalars),
        **facts,
    }
    store.write(SETTINGS, yaml.safe_dump(content, sort_keys=False))


def read_package(folder: Path) -> Package:
    """Reads what `write_package` wrote.

    Raises:
        UserError: if a part of it is missing, damaged or of another search.
    """
    place, fix = str(folder / SETTINGS), "tune again: lt-search posthoc RUN"
    try:
        content = yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8"))
        settings = TypeAdapter(Settings).validate_python(content["settings"])
        models = [read_export(folder / model_folder(int(model["trial"]))) for model in content["models"]]
        same = [file_hash(export.model_file) for export in models] == [m["model_hash"] for m in content["models"]]
        n_classes = len(models[0].spec.data.classes)
        members = torch.zeros(len(models), n_classes, dtype=torch.bool)
        for row, model in zip(members, content["models"], strict=True):
            row[model["classes"]] = True
        thresholds = torch.tensor(content["thresholds"], dtype=torch.float64)
        scalars = {str(name): float(value) for name, value in content["scalars"].items()}
        crossed = float(content["cross_fitted"])
    except UserError as error:  # an export of a trial, which only tuning writes again
        raise UserError(*(replace(problem, fix=fix) for problem in error.problems)) from error
    except (yaml.YAMLError, ValidationError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(Problem(place, f"cannot be read: {error!r}", fix)) from error
    if not same or thresholds.shape != (n_classes,) or not bool(members.any(0).all()):
        raise UserError(Problem(place, "does not fit the models beside it", fix))
    export = replace(models[0], folder=folder, reported=scalars)
    return Package(export, models, settings, Learned(members, thresholds), crossed)
