"""The `lt-search` command line. Each command imports its packages when it is called, so that `--help` is quick."""

from __future__ import annotations

import argparse
import errno
import io
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from lt_search.config.command_line import add_options, read_argument, read_options
from lt_search.config.hints import resume_command
from lt_search.config.options import EmbedOptions, PosthocOptions, PruneOptions, RunOptions, SpecOptions
from lt_search.errors import ExitCode, MachineError, Problems, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from lt_search.config.spec import RunSpec
    from lt_search.storage.files import FolderStore

DATA = ("dataset", "data_root", "split_seed")
"""Options that name a data set and its split."""
MOVED_DATA = ("dataset", "data_root")
"""Options that say where the data of a run is now."""
_FILE_SYSTEM_ERRORS = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.EIO,
        errno.ELOOP,
    }
)
"""Errors of a file or a folder that are not bugs: full, read-only, or something else is in its place."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of `lt-search`."""
    parser = argparse.ArgumentParser(
        prog="lt-search",
        description="Hyperparameter search for two-stage, long-tailed medical image classification.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace, Console], int], about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about)
        added.set_defaults(run_command=run)
        return added

    search = add("search", _search, "start or resume a search (what run_search.py does)")
    about = "A search without --dataset takes bundled images."
    add_options(search.add_argument_group("search definition (stored with the run)", about), SpecOptions)
    add_options(search.add_argument_group("execution"), RunOptions)
    _add_run(add("status", _status, "the state of a run, also while it is running"))
    _add_run(add("export", _export, "write a run's best configuration and model to its best/"))
    _add_run(add("report", _report, "write a run's report.html"))
    _add_run(add("repair", _repair, "set a run's damaged files aside, so that it can be resumed and exported"))

    evaluate = add("evaluate", _evaluate, "score an exported model again, on val or on test")
    evaluate.add_argument("FOLDER", help="a run's best/ or posthoc/")
    evaluate.add_argument("--split", choices=("val", "test"), default="val")
    _add_moved_data(evaluate)

    about = "tune test-time views, ensembles, tau and thresholds on validation predictions"
    posthoc = add("posthoc", _posthoc, about)
    _add_run(posthoc)
    add_options(posthoc, PosthocOptions)
    _add_moved_data(posthoc)

    spaces = add("spaces", _spaces, "list search spaces, or check one and show all its trainer's fields")
    spaces.add_argument("SPACE", nargs="?", metavar="NAME|FILE.yaml")

    data = add("data", _check_data, "inspect a data set").add_subparsers(required=True, metavar="ACTION")
    check = data.add_parser("check", help="images, labels and splits of a data set, and every mistake in it")
    check.set_defaults(run_command=_check_data)
    embed = data.add_parser("embed-labels", help="encode its label names with a text encoder, into a file")
    embed.set_defaults(run_command=_embed_labels)
    for action in (check, embed):
        add_options(action, SpecOptions, DATA, required=("dataset",))
    add_options(check, SpecOptions, ("extra_data",))
    add_options(embed, EmbedOptions)

    store = add("store", _list_stages, "the stage-1 artefacts that trials and runs share")
    actions = store.add_subparsers(required=True, metavar="ACTION")
    listed = actions.add_parser("list", help="cost, size and origin of each")
    listed.set_defaults(run_command=_list_stages)
    verify = actions.add_parser("verify", help="read all of them and name the damaged ones")
    verify.set_defaults(run_command=_verify_stages)
    prune = actions.add_parser("prune", help="remove the least recently used; those that a running search uses stay")
    prune.set_defaults(run_command=_prune_stages)
    add_options(prune, PruneOptions)
    for action in (listed, verify, prune):
        add_options(action, RunOptions, ("storage",))
    return parser


def _version() -> str:
    try:
        return version("lt-search")
    except PackageNotFoundError:
        return "(not installed)"


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("RUN", help="name or folder of a run")
    add_options(parser, RunOptions, ("storage",))


def _add_moved_data(parser: argparse.ArgumentParser) -> None:
    helps = {"dataset": "where the data is now, if it has moved", "data_root": "where its images are now"}
    add_options(parser, SpecOptions, MOVED_DATA, helps=helps)


def _open(namespace: argparse.Namespace) -> tuple[FolderStore, RunSpec]:
    """The folder and the spec of the run that was named."""
    from lt_search.storage.run_folder import open_run

    return open_run(*_named(namespace), "RUN")


def _named(namespace: argparse.Namespace) -> tuple[FolderStore, str]:
    """The storage and the name, or path, of a run or a comparison."""
    problems = Problems()
    name, storage = read_argument(namespace, "RUN", problems), _storage(namespace, problems)
    problems.raise_if_any()
    return storage, name


def _storage(namespace: argparse.Namespace, problems: Problems) -> FolderStore:
    from lt_search.storage.files import FolderStore

    given = read_options(namespace, RunOptions, problems, ("storage",))
    return FolderStore(Path(given.get("storage", RunOptions.storage)))


def _search(namespace: argparse.Namespace, console: Console) -> int:
    problems = Problems()
    options = SpecOptions(**read_options(namespace, SpecOptions, problems))
    run_options = RunOptions(**read_options(namespace, RunOptions, problems))
    if namespace.resume is not None and namespace.name is not None:
        problems.add("--name", "is for a new run, and --resume names an existing one", "give one of the two")
    elif namespace.resume is None and namespace.space is None:
        problems.add("--space", "is missing", "name a space; `lt-search spaces` lists them")
    if namespace.resume is not None:
        problems.raise_if_any()
    from lt_search.tuning.comparison import search_or_compare

    return search_or_compare(options, run_options, console, problems)


def _repair(namespace: argparse.Namespace, console: Console) -> int:
    from lt_search.tuning.repair import repair_run

    store, spec = _open(namespace)
    return repair_run(store, spec, console)


def _status(namespace: argparse.Namespace, console: Console) -> int:
    from lt_search.results.summary import summarise
    from lt_search.storage.journal import Journal, NoTrialsYetError, is_driven
    from lt_search.storage.records import last_step
    from lt_search.storage.run_folder import COMPARISON, JOURNAL, open_run
    from lt_search.tuning.comparison import comparison_folder, show_ranking
    from lt_search.tuning.progress import render_leaderboard, render_status

    storage, name = _named(namespace)
    compared = comparison_folder(storage.root, name)
    if compared.exists(COMPARISON):
        show_ranking(compared, console)
        return ExitCode.DONE
    store, spec = open_run(storage, name, "RUN")
    try:
        summary = summarise(spec, Journal.reader(store.path(JOURNAL)), driven=is_driven(store.root))
    except NoTrialsYetError:
        _say(console, f"{store.root.name} has no trials yet")
        return ExitCode.DONE
    unfinished = {trial.number: last_step(store, trial.number) for trial in summary.unfinished}
    console.print(render_status(spec, summary, unfinished, None, max(1, len(unfinished))))
    if summary.leaderboard:
        console.print(render_leaderboard(spec, summary))
    for trial in summary.of_state("failed"):
        _say(console, f"trial {trial.number} failed: {trial.note.splitlines()[0]}")
    if not is_driven(store.root) and summary.ended < summary.target:
        _say(console, f"no search is running; resume it with: {resume_command(store.root)}")
    return ExitCode.DONE


def _export(namespace: argparse.Namespace, console: Console) -> int:
    from lt_search.results.export import export_run

    store, spec = _open(namespace)
    _say(console, f"exported to {export_run(spec, store)}")
    return ExitCode.DONE


def _report(namespace: argparse.Namespace, console: Console) -> int:
    from lt_search.results.report.collect import REPORT, write_report
    from lt_search.storage.journal import Journal
    from lt_search.storage.run_folder import JOURNAL

    store, spec = _open(namespace)
    write_report(spec, Journal.reader(store.path(JOURNAL)), store)
    _say(console, f"wrote {store.path(REPORT)}")
    return ExitCode.DONE


def _evaluate(namespace: argparse.Namespace, console: Console) -> int:
    problems = Problems()
    folder = read_argument(namespace, "FOLDER", problems)
    moved = read_options(namespace, SpecOptions, problems, MOVED_DATA)
    problems.raise_if_any()
    from lt_search.results.evaluate import evaluate_export

    return evaluate_export(Path(folder), namespace.split, console, **moved)


def _posthoc(namespace: argparse.Namespace, console: Console) -> int:
    problems = Problems()
    name, storage = read_argument(namespace, "RUN", problems), _storage(namespace, problems)
    given = PosthocOptions(**read_options(namespace, PosthocOptions, problems))
    moved = read_options(namespace, SpecOptions, problems, MOVED_DATA)
    problems.raise_if_any()
    from lt_search.results.posthoc.command import tune_run

    return tune_run(name, storage, console, trials=given.settings, models=given.models, views=given.views, **moved)


def _spaces(namespace: argparse.Namespace, console: Console) -> int:
    from lt_search.config.listing import list_spaces, show_space

    if namespace.SPACE is None:
        console.print(list_spaces())
        return ExitCode.DONE
    problems = Problems()
    name = read_argument(namespace, "SPACE", problems)
    problems.raise_if_any()
    console.print(show_space(name))
    return ExitCode.DONE


def _check_data(namespace: argparse.Namespace, console: Console) -> int:
    problems = Problems()
    given = SpecOptions(**read_options(namespace, SpecOptions, problems, (*DATA, "extra_data")))
    problems.raise_if_any()
    from lt_search.data.check import describe
    from lt_search.data.registry import dataset_of

    dataset = dataset_of(vars(given))
    if given.extra_data:
        from lt_search.data.extra import add_extra_data  # needs torch, which a check without extra data does not

        dataset = add_extra_data(dataset, given.extra_data, given.split_seed)
    found = describe(dataset, progress=console.is_terminal)
    _say(console, found.render())
    return ExitCode.DONE if found.sound else ExitCode.BAD_INPUT


def _embed_labels(namespace: argparse.Namespace, console: Console) -> int:
    problems = Problems()
    given = SpecOptions(**read_options(namespace, SpecOptions, problems, DATA))
    found = read_options(namespace, EmbedOptions, problems)
    if "revision" in found and Path(namespace.model).is_dir():
        problems.add("--revision", f"the folder {namespace.model} has no revisions", "leave the option out")
    problems.raise_if_any()
    options = EmbedOptions(**found)
    from lt_search.data.registry import dataset_of
    from lt_search.training.tensor_files import write_label_embeddings

    source = options.model if options.revision is None else f"{options.model}@{options.revision}"
    labels = dataset_of(vars(given)).classes
    _say(console, write_label_embeddings(source, labels, options.pooling, Path(options.output)))
    return ExitCode.DONE


def _list_stages(namespace: argparse.Namespace, console: Console) -> int:
    from lt_search.storage.maintenance import list_stages

    return list_stages(_stage_storage(namespace), console)


def _verify_stages(namespace: argparse.Namespace, console: Console) -> int:
    from lt_search.storage.maintenance import verify_stages

    return verify_stages(_stage_storage(namespace), console)


def _stage_storage(namespace: argparse.Namespace) -> FolderStore:
    from lt_search.storage.maintenance import stage_storage

    problems = Problems()
    folder = _storage(namespace, problems)
    problems.raise_if_any()
    return stage_storage(str(folder.root))


def _prune_stages(namespace: argparse.Namespace, console: Console) -> int:
    from lt_search.storage.maintenance import prune_stages, stage_storage

    problems = Problems()
    found = read_options(namespace, PruneOptions, problems)
    folder = _storage(namespace, problems)
    storage = None if problems.has("--storage") else problems.collect(lambda: stage_storage(str(folder.root)))
    problems.raise_if_any()
    assert storage is not None
    return prune_stages(storage, PruneOptions(**found).keep_gb, console)


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0 done, 1 failed, 2 the input is wrong, 130 interrupted."""
    if sys.platform == "win32":
        sys.stderr.write("lt-search: runs on Linux and macOS; on Windows, install and run it inside WSL\n")
        return ExitCode.FAILED
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII terminal shows '?' instead of ending the command
    namespace = build_parser().parse_args(argv)
    from rich.console import Console

    try:
        return int(namespace.run_command(namespace, Console(emoji=False)))
    except (UserError, MachineError, OSError, KeyboardInterrupt) as error:
        code, text = _explain(error)
        if code is None:
            raise
    sys.stderr.write(f"lt-search: {text}\n")
    return code


def _explain(error: BaseException) -> tuple[ExitCode | None, str]:
    """The exit code and the message of an error; no code for one that is a bug."""
    if isinstance(error, UserError):
        count = len(error.problems)
        head = f"invalid input: {count} {'error' if count == 1 else 'errors'}"
        return ExitCode.BAD_INPUT, "\n  ".join([head, *map(str, error.problems)])
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED, "interrupted"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return ExitCode.BAD_INPUT, f"{str(error.filename)[:80]}...: a name or path in the input is too long; shorten it"
    if isinstance(error, OSError) and error.errno in _FILE_SYSTEM_ERRORS:
        fix = "free some space, or use files and folders that you may read and write"
        return ExitCode.FAILED, f"{error.filename or 'the file system'}: {error.strerror}\n    fix: {fix}"
    return (ExitCode.FAILED, str(error)) if isinstance(error, MachineError) else (None, "")


def entry_point() -> None:
    """The console script `lt-search`."""
    sys.exit(main())
