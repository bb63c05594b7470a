"""The search loop: trains the trials of a run through Ray Tune, until all have ended or something stops the search."""

from __future__ import annotations

import logging
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from lt_search.errors import ExitCode
from lt_search.results.callbacks import CallbackList, SearchCallback
from lt_search.results.retention import Retention
from lt_search.results.summary import summarise
from lt_search.results.tensorboard import TensorBoardLog
from lt_search.storage.addresses import compute_kind
from lt_search.storage.files import FolderStore
from lt_search.tuning.cluster import TrialResources, available_resources, max_parallel_trials
from lt_search.tuning.controller import Controller
from lt_search.tuning.progress import LiveStatus
from lt_search.tuning.run_log import RunLog

if TYPE_CHECKING:
    from rich.console import Console

    from lt_search.config.options import RunOptions
    from lt_search.config.spec import RunSpec
    from lt_search.storage.journal import Journal
    from lt_search.training.inputs import RunInputs, TrialJob

RAY_LOG = "ray.log"

WORKER_RESTARTS = 2
"""How often a trial whose worker process died is handed to a new one. Errors of a trainer are never retried."""

REUSE_ACTORS = True
"""Whether a worker process trains one trial after another; the baseline of a benchmark sets it to False."""


@dataclass
class StopReason:
    """Why a search ends before all its trials have; empty while it goes on."""

    text: str = ""
    code: ExitCode = ExitCode.DONE
    """Exit code of a search that ends for this reason."""


class SearchLoop:
    """A search in progress, as Ray Tune's searcher and stopper see it.

    Args:
        controller: hands out and judges trials.
        callback: its `on_loop_end` is called in each iteration.
        each: what a trial takes.
        options: how the run is carried out.
        log: the run's log.
    """

    def __init__(
        self,
        controller: Controller,
        callback: SearchCallback,
        each: TrialResources,
        options: RunOptions,
        log: RunLog,
    ) -> None:
        self.controller = controller
        self.log = log
        self.stop = StopReason()
        self._callback = callback
        self._each = each
        self._max_concurrent = options.max_concurrent
        self._deadline = None if options.time_budget is None else time.monotonic() + options.time_budget

    def next_job(self, running: int) -> TrialJob | str | None:
        """The next trial to train; None if none may start now, and `FINISHED` if none will start any more.

        Args:
            running: trials that are being trained.
        """
        if self.should_stop():
            return FINISHED
        free = self.slots() - running
        if free <= 0:
            return None
        job = self.controller.next_job(free)
        if job is None and (self.should_stop() or self.controller.exhausted):
            return FINISHED
        return job

    def slots(self) -> int:
        """Trials that may run at once now; asked anew each time, so that nodes which join a cluster get work."""
        return max_parallel_trials(available_resources(), self._each, self._max_concurrent)

    def should_stop(self) -> bool:
        """Whether the search is to end now; the first reason is kept."""
        if not self.stop.text:
            self.stop.text, self.stop.code = self._reason()
        return bool(self.stop.text)

    def _reason(self) -> tuple[str, ExitCode]:
        if self._deadline is not None and time.monotonic() > self._deadline:
            return "the time budget is used up", ExitCode.DONE
        if self.controller.storage_failure is not None:
            return f"the storage cannot be written: {self.controller.storage_failure}", ExitCode.FAILED
        reason = self.controller.hopeless()
        if reason is not None:
            return f"trials failed, and none got further. The first one:\n{reason}", ExitCode.FAILED
        return "", ExitCode.DONE

    def on_loop_end(self) -> None:
        """Called at the end of each iteration of Ray's loop, some ten times a second."""
        self._callback.on_loop_end()


FINISHED = "FINISHED"
"""What `SearchLoop.next_job` returns when the search hands out no more trials; Ray's word for it."""


def carry_out(
    spec: RunSpec,
    journal: Journal,
    store: FolderStore,
    inputs: RunInputs,
    each: TrialResources,
    options: RunOptions,
    console: Console,
) -> StopReason:
    """Trains the trials that are still to come, and says why it ended before all of them, if it did."""
    log, callback = RunLog(store, console), CallbackList()
    controller = Controller(
        spec,
        journal,
        store,
        callback,
        stage_storage=FolderStore(Path(inputs.stage_storage)) if inputs.stage_storage is not None else None,
        compute=compute_kind(each.device, each.cpus),
        log=log,
    )
    loop = SearchLoop(controller, callback, each, options, log)
    status = LiveStatus(spec, log, partial(summarise, spec, journal), controller.progress, loop.slots, console)
    callback.add(TensorBoardLog(store, spec.stage_lengths[0]), Retention(spec, journal, store, options.keep_gb), status)
    try:
        with status, _signals(loop.stop), _ray_log(store):
            _tune(loop, inputs, each)
    finally:
        callback.on_search_end()
    return loop.stop


@contextmanager
def _signals(stop: StopReason) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the search after the steps in hand; a second one ends it at once."""

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        if stop.code == ExitCode.INTERRUPTED:
            raise KeyboardInterrupt
        stop.text, stop.code = f"interrupted by {signal.Signals(number).name}", ExitCode.INTERRUPTED

    before = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _ray_log(store: FolderStore) -> Iterator[None]:
    """Sends Ray's own messages to the run's `ray.log`: what matters of them reaches the user as a trial's failure."""
    logger = logging.getLogger("ray")
    before, handler = list(logger.handlers), logging.FileHandler(store.path(RAY_LOG), delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.handlers = [handler]
    try:
        yield
    finally:
        logger.handlers = before
        handler.close()


def _tune(loop: SearchLoop, inputs: RunInputs, each: TrialResources) -> None:
    from ray import tune

    from lt_search.tuning.adapters import LoopCallback, RungScheduler, StopWithLoop, TrialSearcher
    from lt_search.tuning.worker import StagedTrial

    trainable = tune.with_parameters(StagedTrial, inputs=inputs, threads=each.cpus, device=each.device)
    scratch = tempfile.mkdtemp(prefix="lt-search-ray-")
    try:
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": each.cpus, "gpu": each.gpus}),
            tune_config=tune.TuneConfig(
                num_samples=-1,
                search_alg=TrialSearcher(loop),
                scheduler=RungScheduler(loop.controller),
                reuse_actors=REUSE_ACTORS,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=scratch,
                stop=StopWithLoop(loop),
                callbacks=[LoopCallback(loop)],
                failure_config=tune.FailureConfig(max_failures=WORKER_RESTARTS),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                verbose=0,
            ),
        ).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
