import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from lt_search.metrics.class_groups import class_groups
from lt_search.pruning.probe_audit import Correlation, ProbeAudit
from lt_search.pruning.rungs import Decision, Rung
from lt_search.results.report.content import ClassScore, Cost, ReportData, Score, Winner
from lt_search.results.report.page import render
from lt_search.results.summary import RungSummary, RunSummary, TrialSummary
from lt_search.storage.records import StepReport
from lt_search.storage.schema import RungEntry

RUNGS = (Rung(1, 2), Rung(1, 6), Rung(2, 2), Rung(2, 5))
STAGE_LENGTH = {1: 16, 2: 10}
VOID = {"meta", "br", "hr", "img", "input", "link"}


def step(stage: int, step: int, value: float, head: float | None = None) -> StepReport:
    return StepReport(0, 1, stage, step, value=value, scalars={} if head is None else {"mAP": head})


def trial(
    number: int,
    state: str,
    params: Mapping[str, Any],
    value: float | None = None,
    standard_error: float | None = None,
    note: str = "",
) -> TrialSummary:
    return TrialSummary(number, state, value, standard_error, params, {}, note)


def with_trials(data: ReportData, trials: Sequence[TrialSummary]) -> ReportData:
    return replace(data, summary=replace(data.summary, trials=tuple(trials)))


def synthetic(n_trials: int, n_classes: int = 10, seed: int = 0) -> ReportData:
    """A search that looks like a real one: values rise, rungs stop the worst, some trials fail or are still running."""
    rng = np.random.default_rng(seed)
    trials, histories = list[TrialSummary](), dict[int, list[StepReport]]()
    for number in range(n_trials):
        params: dict[str, object] = {
            "stage1.lr": float(10 ** rng.uniform(-4.5, -2)),
            "stage1.weight_decay": float(10 ** rng.uniform(-5, -2)),
            "stage1.loss": str(rng.choice(["bce", "asl", "focal"])),
            "stage2.alpha": float(rng.uniform(0, 1)),
            "stage2.q": float(rng.uniform(0.1, 1)),
            "stage2.virtual_images": int(rng.choice([500, 1000, 5000, 20000])),
            "stage2.diagonal": bool(rng.random() < 0.5),
            "stage2.reweight_power": float(rng.uniform(0, 1)),
        }
        if params["stage1.loss"] == "focal":
            params["stage1.gamma"] = float(rng.uniform(0, 5))
        quality = 0.85 - 0.04 * (math.log10(float(str(params["stage1.lr"]))) + 3.2) ** 2
        quality += 0.05 * float(str(params["stage2.alpha"])) + 0.02 * rng.normal() + 0.01 * min(1, number / 20)
        history, rungs, state, note, value = list[StepReport](), dict[Rung, RungEntry](), "finished", "", None
        for stage, length in STAGE_LENGTH.items():
            for done in range(1, length + 1):
                value = quality - 0.35 * math.exp(-done / 3) * (stage == 1) + 0.02 * (stage - 1) * (1 - 1 / done)
                value += 0.004 * rng.normal()
                head = value - 0.06 if stage == 1 else None
                history.append(step(stage, done, value, head))
                if (rung := Rung(stage, done)) in RUNGS:
                    peers = [trial.rungs[rung].value for trial in trials if rung in trial.rungs]
                    stopped = len(peers) >= 3 and value + 0.012 < float(np.quantile(peers, 0.6))
                    decision = Decision.STOP if stopped else Decision.CONTINUE
                    rungs[rung] = RungEntry(str(number), value, 0.012, decision, len(peers), None, counts=True)
                    state = "pruned" if stopped else state
                if rng.random() < 0.002:
                    state, note = "failed", "ValueError: loss is NaN\n  in stage2_step <script>alert(1)</script> & co"
                    history.append(step(stage, done, math.nan))
                if state == "finished" and number >= n_trials - 2 and n_trials > 5 and len(history) > 9:
                    state = "running"
                if state != "finished":
                    break
            if state != "finished":
                break
        finished = state == "finished"
        histories[number] = history
        trials.append(
            TrialSummary(
                number=number,
                state=state,
                params=params,
                value=history[-1].value if finished else None,
                standard_error=0.012 if finished else None,
                seconds={"stage1": 9.0 * len(history)},
                note=note,
                rungs=rungs,
            )
        )
    reached = [[trial.rungs[rung] for trial in trials if rung in trial.rungs] for rung in RUNGS]
    counts = [(len(entries), sum(entry.decision is Decision.STOP for entry in entries)) for entries in reached]
    data = ReportData(
        title="ldrnet-digits-ml-0001",
        facts={
            "space": "ldrnet (budget small)",
            "data set": "digits-ml: 2,000 images, 10 classes, multi-label",
            "split": "train 1,400 / val 200 / test 400, seed 0, hash 5f1c9a7e",
            "seed": "0",
            "trainer": "ldrnet, code version 1",
            "versions": "lt-search 0.1.0, torch 2.15.0, ray 2.60.0, optuna 5.0.0",
            "started": "2026-11-21 03:33",
            "ended": "2026-11-21 03:41",
        },
        metric="mAP",
        metric_title="mean average precision",
        summary=RunSummary(
            target=n_trials,
            trials=tuple(trials),
            rungs=tuple(RungSummary(rung, *count) for rung, count in zip(RUNGS, counts, strict=True)),
        ),
        history=histories,
        winner=None,
        importances=dict(zip(trials[0].params, IMPORTANCES, strict=False)) if trials else {},
        cost=Cost(spent=9.0 * sum(map(len, histories.values())), saved_by_pruning=9.0 * 16 * n_trials / 2),
        default_trial=0,
        log_parameters=frozenset({"stage1.lr", "stage1.weight_decay", "stage2.virtual_images"}),
        notes=["This run used bundled data: mosaics of handwritten digits, not medical images."],
    )
    best = data.summary.leaderboard[:1]
    return replace(data, winner=winner_of(best[0], n_classes, rng)) if best else data


IMPORTANCES = (0.41, 0.02, 0.05, 0.3, 0.08, 0.04, 0.01, 0.09)


def winner_of(trial: TrialSummary, n_classes: int, rng: np.random.Generator) -> Winner:
    counts = [int(1500 * 0.8**index) + 3 for index in range(n_classes)]
    groups = class_groups(counts)
    group_of = {index: name for name, members in groups.items() for index in members}
    scores = [
        Score(min(1.0, 0.97 - 0.4 * i / n_classes + 0.03 * rng.normal()), 0.01 + 0.06 * i / n_classes)
        for i in range(n_classes)
    ]
    return Winner(
        trial=trial.number,
        overall=Score(trial.value or 0.0, trial.standard_error),
        groups={
            name: Score(float(np.mean([scores[i].value for i in members])), 0.02)
            for name, members in groups.items()
            if members
        },
        classes=[
            ClassScore(f"finding {i}", group_of[i], counts[i], None if n_classes > 20 and i == 24 else scores[i])
            for i in range(n_classes)
        ],
        class_title="average precision",
    )


class Page(HTMLParser):
    """Checks that tags close in order, and collects ids and links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.stack += [] if tag in VOID else [tag]
        for name, value in attrs:
            self.ids += [value or ""] if name == "id" else []
            self.links += [value or ""] if name in {"href", "xlink:href", "src"} else []
            assert not name.startswith("on"), f"{tag} runs a script on {name}"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.stack.pop() == tag


def section(page: str, name: str) -> str:
    found = re.search(rf'<section id="{name}">(.*?)</section>', page, re.DOTALL)
    assert found
    return found[1]


def rows_of(table: str) -> list[str]:
    return re.findall("<tr>(.*?)</tr>", table, re.DOTALL)


@pytest.mark.parametrize(("n_trials", "n_classes"), [(0, 2), (1, 2), (2, 3), (30, 10), (200, 26)])
def test_any_size_of_run_gives_a_whole_page_that_requests_nothing(n_trials: int, n_classes: int) -> None:
    page = render(synthetic(n_trials, n_classes))
    parsed = Page(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert set(parsed.links) <= {f"#{name}" for name in parsed.ids}
    assert set(re.findall(r"url\((.*?)\)", page)) <= {f"#{name}" for name in parsed.ids}
    assert not parsed.tags & {"script", "link", "img", "iframe", "object", "image"}
    assert not re.search(r"https?:|//|@import|\bnan\b", page)
    assert len(page) < 2_000_000


def test_a_page_is_a_pure_function_of_its_data() -> None:
    assert render(synthetic(3)) == render(synthetic(3))


def test_figures_label_their_axes() -> None:
    page = render(synthetic(30))
    plots = re.findall(r'<svg role="img" aria-label="([^"]+)"', page)
    assert len(plots) == len(set(plots)) == 9
    assert page.count("<figcaption>") == 9
    for name, axis in {
        "history": "mAP (validation, up is better)",
        "rungs": "stage 2, step 5",
        "importance": "importance for mAP (share, sums to 1)",
        "coordinates": "(final)",
        "classes": "average precision (validation, right is better)",
        "curves": "step of stage 1 (epoch)",
        "cost": "minutes, summed over trials",
    }.items():
        assert axis in section(page, name)


def test_only_finished_trials_are_ranked() -> None:
    data = synthetic(0)
    rows = [
        trial(0, "finished", {"a": 0.1}, value=0.5, standard_error=0.01),
        trial(1, "pruned", {"a": 0.2}),
        trial(2, "finished", {"a": 0.3}, value=0.7),
        trial(3, "failed", {"a": 0.4}, note="diverged"),
    ]
    history = {1: [step(1, 2, 0.99)], 3: [step(2, 1, math.nan)]}
    page = render(replace(with_trials(data, rows), history=history))
    board = section(page, "leaderboard")
    assert re.findall(r"\d\.\d{4}[^<]*", board) == ["0.7000", "0.5000 ± 0.0100"]
    assert "paper's values" in board
    assert "+0.2000 against the paper's values" in page
    assert "2 finished, 1 pruned, 1 failed" in page
    assert "diverged" in section(page, "trials") and "0.9900" in section(page, "trials")


def test_a_run_without_a_finished_trial_says_so() -> None:
    rows = [trial(0, "running", {"a": 1}), trial(1, "failed", {})]
    page = render(replace(with_trials(synthetic(0), rows), history={0: [step(1, 1, 0.4)]}))
    assert "No trial has finished yet" in section(page, "leaderboard")
    assert "no trial has finished yet" in section(page, "history")
    assert "1 failed, 1 running" in page
    assert "No trial has a value of stage 2 yet" in section(page, "curves")


def test_untrusted_text_is_escaped() -> None:
    evil = "<script>alert('x')</script>&$\\alpha$ \x00\x1b\ud800 \u8f6e"
    data = synthetic(12)
    assert data.winner is not None
    classes = [replace(score, name=f"{evil} {score.name}") for score in data.winner.classes]
    trials = [
        replace(trial, params={**trial.params, evil: f"{evil}{trial.number % 2}"}) for trial in data.summary.trials
    ]
    trials[3] = replace(trials[3], state="failed", value=None, note=evil)
    page = render(
        replace(
            with_trials(data, trials),
            title=evil,
            facts={evil: evil},
            notes=[evil],
            winner=replace(data.winner, classes=classes),
            importances={evil: 1.0},
        )
    )
    Page(page)
    page.encode()
    assert "<script" not in page and "\x00" not in page and "\x1b" not in page
    assert "&lt;script&gt;" in page and "$\\alpha$" in page and "\u8f6e" in page


def test_unknown_values_are_dashes() -> None:
    data = synthetic(4)
    assert data.winner is not None
    unknown = [replace(score, score=None) for score in data.winner.classes[:1]]
    unknown += [replace(score, score=Score(0.5, math.nan)) for score in data.winner.classes[1:]]
    trials = [
        replace(
            trial,
            standard_error=None,
            seconds={},
            rungs={rung: replace(entry, standard_error=None) for rung, entry in trial.rungs.items()},
        )
        for trial in data.summary.trials
    ]
    page = render(
        replace(
            with_trials(data, trials),
            winner=replace(data.winner, classes=unknown, groups={}),
            importances={},
            default_trial=None,
        )
    )
    assert "Not scored, for want of images in this split: finding 0." in page
    assert ">0.5000</td>" in section(page, "classes")
    assert "Needs several finished trials" in section(page, "importance")
    without = render(replace(data, winner=replace(data.winner, classes=[])))
    assert "no per-class values" in section(without, "classes")


def test_parallel_coordinates_keep_the_most_important_parameters() -> None:
    rows = [
        trial(number, "finished", {f"p{i}": number * 0.1 + i for i in range(14)}, value=0.5 + 0.1 * number)
        for number in range(3)
    ]
    rows[0] = replace(rows[0], params={**rows[0].params, "p0": None})
    importances = {f"p{i}": (14 - i) / 105 for i in range(14)}
    drawn = section(render(replace(with_trials(synthetic(0), rows), importances=importances)), "coordinates")
    assert re.findall(r">(p\d+)<", drawn) == [f"p{i}" for i in range(10)]
    assert "4 parameters are left out" in drawn


def test_the_probe_audit_compares_the_probe_with_the_stage_1_head() -> None:
    seen = (
        ProbeAudit(Rung(1, 2), 21, Correlation(0.1, -0.2, 0.4), Correlation(0.31, 0.0, 0.56)),
        ProbeAudit(Rung(1, 6), 12, Correlation(0.81, 0.62, 0.91), None),
        ProbeAudit(Rung(1, 9), 3, None, None),
    )
    data = synthetic(30)
    page = render(replace(data, summary=replace(data.summary, probe_audit=seen)))
    cells = [re.findall("<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows_of(section(page, "rungs"))[1:]]
    assert cells == [
        ["stage 1 step 2", "21", "0.10 [-0.20, 0.40]", "0.31 [0.00, 0.56]"],
        ["stage 1 step 6", "12", "0.81 [0.62, 0.91]", "–"],
        ["stage 1 step 9", "3", "too few", "too few"],
    ]
    assert "Spearman's rank correlation" in section(page, "rungs")
    assert "<table>" not in section(render(synthetic(30)), "rungs"), "a run without stage-1 rungs"


def test_a_long_table_keeps_its_rest_behind_a_click() -> None:
    rows = [trial(number, "pruned", {}) for number in range(30)]
    short = section(render(with_trials(synthetic(0), rows[:25])), "trials")
    assert len(rows_of(short)) == 1 + 25 and "<details>" not in short
    shown, rest = section(render(with_trials(synthetic(0), rows)), "trials").split("<details>")
    assert "<summary>5 more trials</summary>" in rest
    assert rows_of(shown) == rows_of(short)
    assert [re.findall('<td class="number">(\\d+)</td>', row)[0] for row in rows_of(rest)[1:]] == [
        "25",
        "26",
        "27",
        "28",
        "29",
    ]


def test_interrupted_trials_are_counted_and_drawn() -> None:
    rows = [trial(0, "interrupted", {"a": 1})]
    page = render(replace(with_trials(synthetic(0), rows), history={0: [step(1, 1, 0.4)]}))
    assert "1 interrupted" in page
    assert '<span class="badge interrupted">interrupted</span>' in section(page, "trials")
    assert "interrupted (1)" in section(page, "history") and "interrupted" in section(page, "curves")


def test_a_winner_whose_scores_cannot_be_read_is_reported() -> None:
    data = synthetic(4)
    best = data.summary.leaderboard[0].number
    scores = section(render(replace(data, winner=None)), "classes")
    assert f"The last step of trial {best} can be read from neither its log nor its checkpoint." in scores


def test_inactive_parameters_are_off() -> None:
    rows = [
        trial(0, "finished", {"loss": "bce", "lr": 0.1}, value=0.5),
        trial(1, "finished", {"loss": "triplet", "lr": 0.1, "margin": 0.3}, value=0.6),
        trial(2, "pruned", {"loss": "triplet", "lr": 0.1, "margin": 0.1}),
    ]
    page = render(with_trials(synthetic(0), rows))
    assert ">off<" in section(page, "coordinates")
    assert "The same in all trials: lr." in section(page, "leaderboard")


def test_saved_time_names_reuse_only_where_it_is_on() -> None:
    data = replace(synthetic(0), cost=Cost(spent=3600, saved_by_pruning=1800))
    page = render(data)
    assert "saved by reuse" not in page and "33% of the total" in page
    reused = render(replace(data, cost=Cost(spent=3600, saved_by_pruning=1800, saved_by_reuse=1800)))
    assert "saved by reuse: 30 min" in reused and "50% of the total" in reused


def test_matplotlib_is_imported_late() -> None:
    code = "import sys, lt_search.results.report.page; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
