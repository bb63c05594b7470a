"""Drives a search through Ray Tune, from the first trial that is handed out to the last one that is heard."""

from __future__ import annotations

import logging
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from lt_search.errors import ExitCode
from lt_search.results.retention import Housekeeping
from lt_search.results.summary import summarise
from lt_search.results.tensorboard import TensorBoardLog
from lt_search.storage.addresses import compute_kind
from lt_search.storage.files import FolderStore
from lt_search.tuning.cluster import TrialResources, at_a_time, resources_there
from lt_search.tuning.controller import Referee
from lt_search.tuning.progress import LiveStatus, log_line

if TYPE_CHECKING:
    from rich.console import Console

    from lt_search.config.options import RunOptions
    from lt_search.config.spec import RunSpec
    from lt_search.storage.journal import Journal
    from lt_search.training.inputs import RunInputs

RAY_LOG = "ray.log"

IDLE_SECONDS = 0.2
"""Between two looks whether the stage 1 that all are waiting for is there."""

WORKER_RESTARTS = 2
"""How often a trial whose worker process died is handed to a new one. Errors of a trainer are never retried."""


@dataclass
class StopReason:
    """Why a search ends before all its trials have; empty while it goes on."""

    text: str = ""
    code: ExitCode = ExitCode.DONE
    """Exit code of a search that ends for this reason."""


def carry_out(
    spec: RunSpec,
    journal: Journal,
    store: FolderStore,
    inputs: RunInputs,
    each: TrialResources,
    how: RunOptions,
    console: Console,
) -> StopReason:
    """Trains the trials that are still to come, and says why it ended before all of them, if it did."""
    stop = StopReason()
    board = TensorBoardLog(store, spec.stage_lengths[0])
    deadline = None if how.time_budget is None else time.monotonic() + how.time_budget

    def limit() -> int:
        return at_a_time(resources_there(), each, how.max_concurrent)

    def warn(text: str) -> None:
        log_line(store, f"warning: {text}")
        console.print(f"warning: {text}", highlight=False, markup=False, soft_wrap=True)

    def on_end() -> None:
        keeper.trial_ended()

    shared = FolderStore(Path(inputs.stage_storage)) if inputs.stage_storage is not None else None
    referee = Referee(
        spec,
        journal,
        store,
        on_report=board.write,
        on_end=on_end,
        stage_storage=shared,
        compute=compute_kind(each.device, each.cpus),
        warn=warn,
        log=partial(log_line, store),
    )

    def should_stop() -> bool:
        if not stop.text and deadline is not None and time.monotonic() > deadline:
            stop.text = "the time budget is used up"
        if not stop.text and referee.storage_failure is not None:
            stop.text, stop.code = f"the storage cannot be written: {referee.storage_failure}", ExitCode.FAILED
        reason = referee.hopeless()
        if not stop.text and reason is not None:
            stop.text, stop.code = f"trials failed, and none got further. The first one:\n{reason}", ExitCode.FAILED
        return bool(stop.text)

    live = LiveStatus(spec, store, lambda: summarise(spec, journal), referee.progress, limit, console)
    keeper = Housekeeping(spec, journal, store, board, how.keep_gb, live.trial_ended)

    def tick() -> None:
        referee.gate.renew()
        live.tick()

    try:
        with live, _signals(stop), _ray_log(store):
            _tune(referee, inputs, each, limit, should_stop, tick, how)
    finally:
        referee.gate.close()
        board.close_all()
        keeper.tidy()
    return stop


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


def _tune(
    referee: Referee,
    inputs: RunInputs,
    each: TrialResources,
    limit: Callable[[], int],
    should_stop: Callable[[], bool],
    tick: Callable[[], None],
    how: RunOptions,
) -> None:
    from ray import tune

    from lt_search.tuning.adapters import OnEveryStep, RefereeScheduler, RefereeSearcher, WhenToStop
    from lt_search.tuning.worker import StagedTrial

    def idle() -> None:
        tick()
        time.sleep(IDLE_SECONDS)

    trainable = tune.with_parameters(StagedTrial, inputs=inputs, threads=each.cpus, device=each.device)
    scratch = tempfile.mkdtemp(prefix="lt-search-ray-")
    try:
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": each.cpus, "gpu": each.gpus}),
            tune_config=tune.TuneConfig(
                num_samples=-1,
                search_alg=RefereeSearcher(referee, limit, should_stop, idle),
                scheduler=RefereeScheduler(referee),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=scratch,
                stop=WhenToStop(should_stop),
                callbacks=[OnEveryStep(tick)],
                failure_config=tune.FailureConfig(max_failures=WORKER_RESTARTS),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                verbose=0,
            ),
        ).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
