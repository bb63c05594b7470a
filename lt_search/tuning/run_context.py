"""Context of a running search: what handing out, judging and ending trials share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lt_search.config.spec import RunSpec
    from lt_search.results.callbacks import SearchCallback
    from lt_search.storage.files import FolderStore
    from lt_search.storage.journal import Journal
    from lt_search.tuning.run_log import RunLog
    from lt_search.tuning.stage1_scheduling import Stage1Scheduler
    from lt_search.tuning.trial_logs import TrialLogs


@dataclass(frozen=True)
class RunContext:
    """The run, its journal and files, and the hooks of its search."""

    spec: RunSpec
    journal: Journal
    """Opened with its sampler; the controller is its only writer."""
    store: FolderStore
    """The run's files."""
    logs: TrialLogs
    """The trials' step logs."""
    stage1: Stage1Scheduler
    """Schedules stage-1 runs that trials share."""
    callback: SearchCallback
    """Called as trials start, report and end."""
    log: RunLog
    """The run's log."""
