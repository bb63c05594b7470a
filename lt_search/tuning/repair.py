"""`lt-search repair`: a run whose files were damaged becomes one that can be resumed and exported."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import torch

from lt_search.config.hints import resume_command
from lt_search.console import printer
from lt_search.errors import ExitCode, UserError
from lt_search.results.export import FOLDER, read_export, reproduces, sound_weights
from lt_search.results.summary import TrialSummary, summarise
from lt_search.storage.checkpoints import checkpoint_files
from lt_search.storage.journal import Journal, NoTrialsYetError, sole_driver
from lt_search.storage.records import StepReport, read_reports
from lt_search.storage.repair import repair_journal, repair_logs, set_aside_damaged_checkpoints
from lt_search.storage.run_folder import JOURNAL, set_aside
from lt_search.training.inputs import LoadedInputs, RunInputs, TrialJob
from lt_search.training.session import TrialSession
from lt_search.training.tensor_files import resolve_resources
from lt_search.tuning.prepare import load_training_data

if TYPE_CHECKING:
    from rich.console import Console

    from lt_search.config.spec import RunSpec
    from lt_search.storage.files import FolderStore


def repair_run(store: FolderStore, spec: RunSpec, console: Console) -> ExitCode:
    """Moves damaged files of a run to its `set-aside/`, and trains finished trials again whose weights are damaged.

    The value of a finished trial stays as it is in the journal: the weights are used only where they reach it again. Of
    the trials whose weights are gone, only the best one is trained again, since the others may have been removed to
    save space.

    Returns:
        `FAILED` if a trial did not reach its value again.

    Raises:
        UserError: if the run is being driven, its data is not found, or its folder cannot be written.
    """
    say = printer(console)
    with sole_driver(store.root):
        done = repair_journal(store)
        if done and (stale := _stale_export(spec, store)):
            done.append(stale)
        done += repair_logs(store)
        damaged = set_aside_damaged_checkpoints(store)
        done += [f"trial {number}: a damaged checkpoint was set aside" for number in damaged]
        for sentence in done or ["the journal, the logs and the checkpoints are intact"]:
            say(sentence)
        again = _without_weights(spec, store, damaged)
        code = _train_again(spec, store, again, say) if again else ExitCode.DONE
    say(f"resume with: {resume_command(store.root)}")
    return code


def _stale_export(spec: RunSpec, store: FolderStore) -> str:
    """Moves an export away whose trial the journal does not have any more; a sentence about that, if there is one."""
    if not store.exists(FOLDER):
        return ""
    finished: set[int] = set()
    with suppress(NoTrialsYetError):
        finished = {trial.number for trial in summarise(spec, Journal.reader(store.path(JOURNAL))).leaderboard}
    with suppress(UserError):
        if read_export(store.path(FOLDER)).trial in finished:
            return ""
    return f"{FOLDER}/ is not of a finished trial of the journal: moved to {set_aside(store, FOLDER)}"


def _without_weights(spec: RunSpec, store: FolderStore, damaged: list[int]) -> list[TrialSummary]:
    """The finished trials that are to be trained again: those with damaged weights, and the best one without any."""
    try:
        ranked = summarise(spec, Journal.reader(store.path(JOURNAL))).leaderboard
    except NoTrialsYetError:
        return []
    asked = [trial for rank, trial in enumerate(ranked) if rank == 0 or trial.number in damaged]
    return [trial for trial in asked if sound_weights(spec, store, trial) is None]


def _train_again(spec: RunSpec, store: FolderStore, trials: list[TrialSummary], say: Callable[[str], None]) -> ExitCode:
    data = load_training_data(spec.options, spec.data.name)
    inputs = RunInputs.of(spec, data, resolve_resources(spec, say)[1], store.root)
    code = ExitCode.DONE
    for trial in trials:
        say(f"trial {trial.number}: training it again for its weights")
        report = _train(spec, store, inputs, trial)
        if report.failure is not None or report.storage_failure is not None:
            say(f"trial {trial.number} failed: {report.failure or report.storage_failure}")
            code = ExitCode.FAILED
        elif not reproduces(report, trial):
            folder = set_aside(store, *checkpoint_files(store, trial.number))
            say(
                f"trial {trial.number} reaches {report.value} now, and had {trial.value}: with other hardware, data "
                f"or versions. Its new weights are not used; they are in {folder}"
            )
            code = ExitCode.FAILED
        else:
            say(f"trial {trial.number} reaches its value of {trial.value} again, and has its weights back")
    return code


def _train(spec: RunSpec, store: FolderStore, inputs: RunInputs, trial: TrialSummary) -> StepReport:
    """Trains a trial from its last sound checkpoint, as it was trained before, and returns its last report."""
    logged = read_reports(store, trial.number)
    before = logged[-1] if logged else StepReport(trial.number, trial.attempts, 1, 0)
    torch.set_num_threads(before.threads)
    device = torch.device("cuda" if before.device == "cuda" and torch.cuda.is_available() else "cpu")
    job = TrialJob(trial.number, trial.attempts + 1, spec.resolve(trial.params))
    session = TrialSession(job, LoadedInputs(inputs, device))
    while not (report := session.advance()).ended:
        pass
    return report
