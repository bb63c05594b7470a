"""The command line. Heavy packages are imported by the command that needs them, so that `--help` is quick."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lt_search.config.durations import parse_duration
from lt_search.errors import ExitCode, MachineError, Problems, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from lt_search.config.options import RunOptions, SpecOptions

T = TypeVar("T")

_DATASETS = (
    "digits-lt[:FACTOR], digits-ml[:IMAGES], isic2019[:lt-FACTOR|:balanced-FACTOR], isic-archive-lt[:lists|:patient], "
    "skin7[:fold-N], hyper-kvasir[:lists|:official-FOLDS-N], nih-cxr14[:official|:chexnet|:patient], "
    "cxr-lt-2023[:official|:subject], odir5k[:eyes], or a CSV file"
)
_DATA_ROOT = "the folder of a data set as downloaded; where a CSV's image paths start (default: its folder)"
_EXTRA_DATA = (
    "further training data, once for each; =DIR is its root, as --data-root is of --dataset. Classes that it lacks are "
    "unknown in its images, for trainers that take that, such as cxr"
)
_SPLIT_SEED = "of the split, where the data gives none (default: 0)"


class _Arguments:
    """Reads option values, collecting what is wrong with all of them."""

    def __init__(self, namespace: argparse.Namespace) -> None:
        self._namespace = namespace
        self.problems = Problems()

    def text(self, name: str) -> Any:
        """An option as given; None if it was not."""
        return getattr(self._namespace, name)

    def read(self, name: str, reader: Callable[[str], T]) -> T | None:
        """An option as `reader` reads it; None if it was not given or is wrong."""
        text = getattr(self._namespace, name)
        if text is None:
            return None
        try:
            return reader(text)
        except ValueError as error:
            self.problems.add(f"--{name.replace('_', '-')}", str(error))
            return None


def _within(kind: Callable[[str], float], low: float, high: float) -> Callable[[str], Any]:
    """Reads a number of a kind (`int` or `float`) that lies within bounds."""

    def read(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            raise ValueError(f"{text!r} is no {'whole ' if kind is int else ''}number") from None
        if not low <= number <= high:
            raise ValueError(f"{number:g} is outside {low:g} to {high:g}")
        return number

    return read


def _gpus(text: str) -> str:
    if text == "auto":
        return text
    number = _within(float, 0, 64)(text)
    if number > 1 and not number.is_integer():
        raise ValueError(f"{text} is neither a share of one GPU nor a whole number of them")
    return text


def build_parser() -> argparse.ArgumentParser:
    """The parser of `lt-search`."""
    parser = argparse.ArgumentParser(
        prog="lt-search",
        description="Hyperparameter search for two-stage, long-tailed medical image classification.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    search = commands.add_parser("search", help="start or go on with a search (what run_search.py does)")
    _add_search_options(search)

    status = commands.add_parser("status", help="how a run stands, also while it runs")
    _add_run(status)
    export = commands.add_parser("export", help="write a run's best configuration and model to its best/")
    _add_run(export)
    report = commands.add_parser("report", help="write a run's report.html")
    _add_run(report)

    evaluate = commands.add_parser("evaluate", help="score an exported model again, on val or on test")
    evaluate.add_argument("folder", help="a run's best/ or posthoc/")
    evaluate.add_argument("--split", choices=("val", "test"), default="val")
    evaluate.add_argument("--dataset", metavar="NAME|FILE.csv", help="where the data is now, if it has moved")
    evaluate.add_argument("--data-root", metavar="DIR")

    posthoc = commands.add_parser(
        "posthoc",
        help="tune what needs no training on a run's validation predictions: views, ensemble, tau, thresholds",
    )
    _add_run(posthoc)
    posthoc.add_argument("--settings", metavar="N", help="settings to try at most (default: 300)")
    posthoc.add_argument("--models", metavar="N", help="best trials that may join an ensemble (default: 5)")
    posthoc.add_argument("--views", metavar="N", help="views of an image, 1 to 8 (default: 8)")
    posthoc.add_argument("--dataset", metavar="NAME|FILE.csv", help="where the data is now, if it has moved")
    posthoc.add_argument("--data-root", metavar="DIR")

    spaces = commands.add_parser("spaces", help="list search spaces, or show one with all its trainer's fields")
    spaces.add_argument("name", nargs="?", metavar="NAME|FILE.yaml")

    data = commands.add_parser("data", help="look at a data set")
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="what is there, and everything that is wrong with it")
    embed = actions.add_parser("embed-labels", help="its label names as tensors of a text encoder, in a file")
    for action in (check, embed):
        action.add_argument("--dataset", required=True, metavar="NAME|FILE.csv", help=_DATASETS)
        action.add_argument("--data-root", metavar="DIR", help=_DATA_ROOT)
        action.add_argument("--split-seed", metavar="N", help=_SPLIT_SEED)
    check.add_argument("--extra-data", action="append", metavar="NAME|FILE.csv[=DIR]", help=_EXTRA_DATA)
    embed.add_argument("--model", required=True, metavar="NAME|DIR", help="on the Hugging Face hub, or a folder")
    embed.add_argument("--revision", metavar="WORD", help="branch, tag or commit of the hub (default: main)")
    embed.add_argument("--pooling", metavar="cls|eos|mean", help="how a label's tokens become one embedding")
    embed.add_argument("--output", required=True, metavar="FILE.safetensors")

    store = commands.add_parser("store", help="the stage 1s that trials and runs share")
    actions = store.add_subparsers(dest="action", required=True, metavar="ACTION")
    listed = actions.add_parser("list", help="what is there: cost, size, who trained it")
    verify = actions.add_parser("verify", help="read all of it and name what is damaged")
    prune = actions.add_parser("prune", help="remove what was used least lately; what a running search uses stays")
    prune.add_argument("--keep-gb", required=True, metavar="N", help="GB that may stay")
    for action in (listed, verify, prune):
        action.add_argument("--storage", default="runs", metavar="DIR", help="where runs are (default: runs)")
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="name or folder of a run")
    parser.add_argument("--storage", default="runs", metavar="DIR", help="where runs are (default: runs)")


def _add_search_options(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what is searched (kept in the run; decides its results)")
    what.add_argument("--space", metavar="NAME|FILE.yaml", help="the search space; `lt-search spaces` lists them")
    what.add_argument("--dataset", metavar="NAME|FILE.csv", help=f"default: bundled images; {_DATASETS}")
    what.add_argument("--data-root", metavar="DIR", help=_DATA_ROOT)
    what.add_argument("--extra-data", action="append", metavar="NAME|FILE.csv[=DIR]", help=_EXTRA_DATA)
    what.add_argument("--image-size", metavar="N", help="side in pixels to which images are decoded")
    what.add_argument("--budget", metavar="auto|small|full", help="auto takes it from data and device, and says so")
    what.add_argument(
        "--metric", metavar="NAME", help="objective, such as mAP; default: the data set's own, else the space's"
    )
    what.add_argument("--set", action="append", metavar="NAME=VALUE", help="fix a parameter or any config field")
    what.add_argument("--search", action="append", metavar="NAME=RANGE", help="search one more, or another range")
    what.add_argument("--sampler", metavar="staged|tpe|random", help="how trials are proposed (default: staged)")
    what.add_argument("--seed", metavar="N", help="of training and proposals (default: 0)")
    what.add_argument("--split-seed", metavar="N", help=_SPLIT_SEED)
    what.add_argument("--no-prune", action="store_true", help="train every trial to its end, for comparisons")
    what.add_argument("--no-reuse", action="store_true", help="train stage 1 in every trial, for comparisons")
    what.add_argument(
        "--cost-ratio",
        metavar="F",
        help="stage-1 over stage-2 cost, for proposals that no clock decides (default: measured)",
    )
    what.add_argument("--row", metavar="NAME", help="one row of a space that compares several; default: all in turn")
    how = parser.add_argument_group("how it is carried out")
    how.add_argument("--trials", metavar="N", help="trials in all; with --resume it extends a run")
    how.add_argument("--time-budget", metavar="2h", help="stop after this time; the run stays resumable")
    how.add_argument("--max-concurrent", metavar="N", help="trials at once; default: as many as fit")
    how.add_argument("--cpus-per-trial", metavar="N", help="CPU cores a trial takes (default: 1)")
    how.add_argument("--gpus-per-trial", metavar="auto|F", help="GPUs a trial takes; 0.5 lets two share one")
    how.add_argument("--address", metavar="auto|HOST:PORT", help="a running Ray cluster; default: this machine")
    how.add_argument("--storage", metavar="DIR", help="where runs are kept (default: runs)")
    how.add_argument("--keep-gb", metavar="F", help="disk for models of finished trials (default: 10)")
    how.add_argument("--name", metavar="NAME", help="of the run; default: the space's name and a number")
    how.add_argument("--resume", metavar="NAME", help="go on with a run")
    how.add_argument("--plan", action="store_true", help="measure one trial and say what the search would take")


def _search(namespace: argparse.Namespace, console: Console) -> int:
    what, how = _search_options(namespace)
    from lt_search.tuning.comparison import compare, is_comparison
    from lt_search.tuning.search import search

    return (compare if is_comparison(what, how) else search)(what, how, console)


def _search_options(namespace: argparse.Namespace) -> tuple[SpecOptions, RunOptions]:
    arguments = _Arguments(namespace)
    given: dict[str, Any] = {
        "dataset": _absolute(arguments.text("dataset"), (".csv",)),
        "data_root": _absolute(arguments.text("data_root")),
        "extra_data": _extra_data(arguments.text("extra_data")),
        "image_size": arguments.read("image_size", _within(int, 8, 4096)),
        "budget": arguments.read("budget", _word("auto", "small", "full")),
        "metric": arguments.text("metric"),
        "seed": arguments.read("seed", _within(int, 0, 2**31 - 1)),
        "split_seed": arguments.read("split_seed", _within(int, 0, 2**31 - 1)),
        "set": tuple(arguments.text("set") or ()) or None,
        "search": tuple(arguments.text("search") or ()) or None,
        "sampler": arguments.read("sampler", _word("staged", "tpe", "random")),
        "prune": False if arguments.text("no_prune") else None,
        "reuse": False if arguments.text("no_reuse") else None,
        "cost_ratio": arguments.read("cost_ratio", _within(float, 1e-6, 1e6)),
        "row": arguments.text("row"),
    }
    how = {
        "storage": arguments.text("storage"),
        "name": arguments.text("name"),
        "resume": arguments.text("resume"),
        "trials": arguments.read("trials", _within(int, 1, 1_000_000)),
        "time_budget": arguments.read("time_budget", parse_duration),
        "max_concurrent": arguments.read("max_concurrent", _within(int, 1, 100_000)),
        "address": arguments.text("address"),
        "gpus_per_trial": arguments.read("gpus_per_trial", _gpus),
        "cpus_per_trial": arguments.read("cpus_per_trial", _within(int, 1, 1024)),
        "keep_gb": arguments.read("keep_gb", _within(float, 0, 1e6)),
        "plan": arguments.text("plan") or None,
    }
    given = {name: value for name, value in given.items() if value is not None}
    how = {name: value for name, value in how.items() if value is not None}
    space = _absolute(arguments.text("space"), (".yaml", ".yml"))
    problems = arguments.problems
    if "resume" in how:
        if "name" in how:
            problems.add("--name", "goes with a new run, and --resume names an old one", "give one of the two")
    elif space is None:
        problems.add("--space", "is missing", "name a space; `lt-search spaces` lists them")
    problems.raise_if_any()

    from lt_search.config.options import RunOptions, SpecOptions

    return SpecOptions(space or "", **given), RunOptions(**how)


def _absolute(text: str | None, suffixes: tuple[str, ...] = ()) -> str | None:
    """A path that means the same from every folder; names (without one of the suffixes) stay as they are."""
    if text is None or (suffixes and not text.lower().endswith(suffixes)):
        return text
    return str(Path(text).expanduser().absolute())


def _extra_data(texts: Sequence[str] | None) -> tuple[str, ...] | None:
    """Further training data, with paths that mean the same from every folder; None where there is none."""
    if not texts:
        return None
    from lt_search.data.registry import split_root

    split = [split_root(text) for text in texts]
    return tuple("=".join(filter(None, (_absolute(data, (".csv",)), _absolute(root)))) for data, root in split)


def _word(*words: str) -> Callable[[str], Any]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is not one of {', '.join(words)}")
        return text

    return read


def _status(namespace: argparse.Namespace, console: Console) -> int:
    from lt_search.results.summary import summarise
    from lt_search.storage.files import FolderStore
    from lt_search.storage.journal import Journal, NoTrialsYetError, is_driven
    from lt_search.storage.records import last_step
    from lt_search.storage.run_folder import COMPARISON, JOURNAL, open_run
    from lt_search.tuning.comparison import comparison_folder, show_ranking
    from lt_search.tuning.progress import render_leaderboard, render_status

    compared = comparison_folder(namespace.storage, namespace.run)
    if compared.exists(COMPARISON):
        show_ranking(compared, console)
        return ExitCode.DONE
    storage = FolderStore(Path(namespace.storage))
    store, spec = open_run(storage, namespace.run, "RUN")
    try:
        summary = summarise(spec, Journal.reader(store.path(JOURNAL)), driven=is_driven(store.root))
    except NoTrialsYetError:
        console.print(f"{store.root.name} has no trials yet", markup=False)
        return ExitCode.DONE
    running = {trial.number: last_step(store, trial.number) for trial in summary.unfinished}
    console.print(render_status(spec, summary, running, None, max(1, len(running))))
    if summary.leaderboard:
        console.print(render_leaderboard(spec, summary))
    for trial in summary.of_state("failed"):
        console.print(f"trial {trial.number} failed: {trial.note.splitlines()[0]}", highlight=False, markup=False)
    return ExitCode.DONE


def _export(namespace: argparse.Namespace, console: Console) -> int:
    from lt_search.results.export import export_best
    from lt_search.results.summary import summarise
    from lt_search.storage.files import FolderStore
    from lt_search.storage.journal import Journal
    from lt_search.storage.run_folder import JOURNAL, open_run

    store, spec = open_run(FolderStore(Path(namespace.storage)), namespace.run, "RUN")
    folder = export_best(spec, store, summarise(spec, Journal.reader(store.path(JOURNAL))))
    console.print(f"exported to {folder}", highlight=False, markup=False, soft_wrap=True)
    return ExitCode.DONE


def _report(namespace: argparse.Namespace, console: Console) -> int:
    from lt_search.results.report.collect import REPORT, write_report
    from lt_search.storage.files import FolderStore
    from lt_search.storage.journal import Journal
    from lt_search.storage.run_folder import JOURNAL, open_run

    store, spec = open_run(FolderStore(Path(namespace.storage)), namespace.run, "RUN")
    write_report(spec, Journal.reader(store.path(JOURNAL)), store)
    console.print(f"wrote {store.path(REPORT)}", highlight=False, markup=False, soft_wrap=True)
    return ExitCode.DONE


def _evaluate(namespace: argparse.Namespace, console: Console) -> int:
    from lt_search.results.evaluate import evaluate_export

    return evaluate_export(
        Path(namespace.folder),
        namespace.split,
        console,
        dataset=namespace.dataset,
        data_root=namespace.data_root,
    )


def _posthoc(namespace: argparse.Namespace, console: Console) -> int:
    arguments = _Arguments(namespace)
    settings = arguments.read("settings", _within(int, 1, 1_000_000))
    models = arguments.read("models", _within(int, 1, 100))
    views = arguments.read("views", _within(int, 1, 8))
    arguments.problems.raise_if_any()
    from lt_search.results.posthoc.command import tune_run
    from lt_search.storage.files import FolderStore

    return tune_run(
        namespace.run,
        FolderStore(Path(namespace.storage)),
        console,
        trials=settings or 300,
        models=models or 5,
        views=views or 8,
        dataset=namespace.dataset,
        data_root=namespace.data_root,
    )


def _spaces(namespace: argparse.Namespace, console: Console) -> int:
    from lt_search.config.listing import list_spaces, show_space

    console.print(show_space(namespace.name) if namespace.name else list_spaces())
    return ExitCode.DONE


def _data(namespace: argparse.Namespace, console: Console) -> int:
    arguments = _Arguments(namespace)
    split_seed = arguments.read("split_seed", _within(int, 0, 2**31 - 1)) or 0
    embed = _embedding(arguments) if namespace.action == "embed-labels" else None
    arguments.problems.raise_if_any()
    from lt_search.data.check import describe
    from lt_search.data.registry import load_dataset

    root = Path(namespace.data_root) if namespace.data_root else None
    dataset = load_dataset(namespace.dataset, root, split_seed)
    if embed is not None:
        console.print(embed(dataset.classes), highlight=False, markup=False, soft_wrap=True)
        return ExitCode.DONE
    if extra := _extra_data(namespace.extra_data):
        from lt_search.data.extra import add_extra_data  # needs torch, which a plain look at data does without

        dataset = add_extra_data(dataset, extra, split_seed)
    found = describe(dataset, progress=console.is_terminal)
    console.print(found.render(), highlight=False, markup=False, soft_wrap=True)
    return ExitCode.DONE if found.sound else ExitCode.BAD_INPUT


def _store(namespace: argparse.Namespace, console: Console) -> int:
    arguments = _Arguments(namespace)
    keep_gb = arguments.read("keep_gb", _within(float, 0, 1e9)) if namespace.action == "prune" else None
    from lt_search.storage.maintenance import list_stages, prune_stages, stage_storage, verify_stages

    storage = arguments.problems.collect(lambda: stage_storage(namespace.storage))
    arguments.problems.raise_if_any()
    assert storage is not None
    if keep_gb is not None:
        return prune_stages(storage, keep_gb, console)
    return (list_stages if namespace.action == "list" else verify_stages)(storage, console)


def _embedding(arguments: _Arguments) -> Callable[[Sequence[str]], str]:
    """Reads the options of `embed-labels`; what it returns writes the file, and says what is in it."""
    model, revision = arguments.text("model"), arguments.text("revision")
    pooling = arguments.read("pooling", _word("cls", "eos", "mean"))
    output = arguments.read("output", _tensor_file)
    if revision is not None and Path(model).is_dir():
        arguments.problems.add("--revision", f"the folder {model} has no revisions", "leave the option out")
    source = model if revision is None else f"{model}@{revision}"

    def write(labels: Sequence[str]) -> str:
        from lt_search.training.tensor_files import write_label_embeddings

        assert output is not None
        return write_label_embeddings(source, labels, pooling, output)

    return write


def _tensor_file(text: str) -> Path:
    path = Path(text).expanduser()
    if path.suffix != ".safetensors":
        raise ValueError(f"{text!r} does not end with .safetensors")
    return path


_COMMANDS: dict[str, Callable[[argparse.Namespace, Any], int]] = {
    "search": _search,
    "status": _status,
    "export": _export,
    "report": _report,
    "evaluate": _evaluate,
    "posthoc": _posthoc,
    "spaces": _spaces,
    "data": _data,
    "store": _store,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0 done, 1 failed, 2 the input is wrong, 130 interrupted."""
    namespace = build_parser().parse_args(argv)
    from rich.console import Console

    try:
        return _COMMANDS[namespace.command](namespace, Console(emoji=False))
    except UserError as error:
        count = len(error.problems)
        head = "one thing is wrong" if count == 1 else f"{count} things are wrong"
        sys.stderr.write(f"lt-search: {head} with the input\n")
        for problem in error.problems:
            sys.stderr.write(f"  {problem}\n")
        return ExitCode.BAD_INPUT
    except MachineError as error:
        sys.stderr.write(f"lt-search: {error}\n")
        return ExitCode.FAILED
    except KeyboardInterrupt:
        sys.stderr.write("lt-search: interrupted\n")
        return ExitCode.INTERRUPTED


def entry_point() -> None:
    """The console script `lt-search`."""
    sys.exit(main())
