"""The spec of a run: everything that decides its results, as kept in `run.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

from lt_search.config.parameters import Parameter, SearchedParameter
from lt_search.config.values import flatten, unflatten
from lt_search.errors import Problem, UserError
from lt_search.metrics.evaluate import metrics_for
from lt_search.pruning.rungs import Rung
from trainers.hashing import content_hash
from trainers.registry import UnknownTrainer, find_trainer

if TYPE_CHECKING:
    from trainers.base import Task, TrainerConfig, TwoStageTrainer


class ExtraFacts(BaseModel):
    """Further training data of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    fingerprint: str
    """Of its images, and of their labels in the columns of the run's classes."""
    images: int
    """That join training."""
    unknown: list[str]
    """Classes that are not annotated in it."""
    left_out: list[str]
    """Its labels that match no class."""


def extra_key(number: int) -> str:
    """The key in `DataFacts.pixels` of further training data, counted from 1."""
    return f"extra {number}"


class DataFacts(BaseModel):
    """The data of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    fingerprint: str
    split_hash: str
    split_origin: str
    image_size: int
    """Side in pixels to which images are decoded."""
    task: str
    classes: list[str]
    train_counts: list[int]
    """Training images per class, without those of further training data; they decide which are head and tail."""
    images: dict[str, int]
    """Images per split, without those of further training data."""
    pixels: dict[str, str] = {}
    """Checksum of the decoded images of each split, and of further training data as `extra 1` and so on; fingerprints
    see names, labels and sizes only."""
    extra: list[ExtraFacts] = []
    """Further training data."""

    @property
    def training_images(self) -> int:
        """Number of all training images."""
        return self.images["train"] + sum(extra.images for extra in self.extra)


class RunSpec(BaseModel):
    """Everything that decides the results of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    options: dict[str, Any]
    """`SpecOptions` as given."""
    trainer: str
    metric: str
    budget: str
    seed: int
    sampler: str
    prune: bool
    reuse: bool = True
    """Whether trials share stage-1 artefacts."""
    cost_ratio: float | None = None
    """Stage-1 cost over stage-2 cost in proposals; None: measured."""
    data: DataFacts
    config: dict[str, Any]
    """The whole base config, nested; searched parameters have their first trial's values."""
    search: dict[str, SearchedParameter]
    eta: int
    rungs: dict[str, list[int]]
    """Steps at which trials are compared, by `stage1` / `stage2`."""
    resources: dict[str, str] = {}
    """Content hash of every tensor file that the configs need."""
    notes: list[str] = []
    """Choices that were made for the user, in words."""

    @model_validator(mode="after")
    def _as_asked_for(self) -> Self:
        """Refuses a field that was changed after the options had decided it."""
        for name in ("metric", "seed", "sampler", "prune", "reuse", "cost_ratio"):
            asked, kept = self.options.get(name), getattr(self, name)
            if name in self.options and asked != kept and not (name == "metric" and asked is None):
                raise ValueError(f"{name} is {kept!r}, but the run was started with {asked!r}: it was changed since")
        return self

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The searched parameters by name."""
        return {name: entry.named(name) for name, entry in self.search.items()}

    @property
    def stage_lengths(self) -> tuple[int, int]:
        """Steps of stage 1 and of stage 2."""
        return self.config["stage1"]["epochs"], self.config["stage2"]["rounds"]

    @property
    def rung_list(self) -> tuple[Rung, ...]:
        """All rungs in the order a trial meets them."""
        return tuple(Rung(stage, step) for stage in (1, 2) for step in self.rungs[f"stage{stage}"])

    def first_values(self) -> dict[str, Any]:
        """The searched parameters' values in the first trial: the paper's, where the space does not say otherwise."""
        flat = flatten(self.config)
        return {name: flat[name] for name in self.search}

    def resolve(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The full nested config of a trial that drew `values` (flat)."""
        return unflatten({**flatten(self.config), **values})


DIGEST = "spec_digest"
"""Key among the provenance of `run.yaml` for the digest of all its other fields."""


def spec_digest(content: Mapping[str, Any]) -> str:
    """The digest of a run's spec as kept in `run.yaml`, provenance left out."""
    return content_hash(content)


def check_digest(content: Mapping[str, Any], provenance: object, place: str) -> None:
    """Raises `UserError` if a kept spec is not the one that the run was started with.

    Runs of earlier versions have no digest; in those, only the fields that their options decide are checked.
    """
    digest = provenance.get(DIGEST) if isinstance(provenance, Mapping) else None
    if digest is not None and digest != spec_digest(content):
        what = "was changed after the run was started, so its trials were trained with another spec"
        raise UserError(Problem(place, what, "bring the original back from a copy, or start a new run"))


def trainer_type(name: str) -> type[TwoStageTrainer[Any]]:
    """The trainer of a name or a `module:Class`.

    Raises:
        UserError: if there is none that can be used.
    """
    try:
        return find_trainer(name)
    except UnknownTrainer as error:
        raise UserError(Problem("trainer", str(error), error.fix)) from error


def tasks_of(trainer: type[TwoStageTrainer[Any]], metric: str) -> list[Task]:
    """The tasks of a space: those of its trainer; of several, those that its metric applies to."""
    measured = [task for task in sorted(trainer.tasks) if metric in {found.name for found in metrics_for(task)}]
    return measured or sorted(trainer.tasks)


def parse_config(config_type: type[TrainerConfig], nested: Mapping[str, Any]) -> TrainerConfig:
    """A trainer's config from nested plain values.

    Raises:
        ValidationError: if a field is unknown or out of its bounds.
    """
    return config_type.model_validate(unflatten(flatten(nested)))
