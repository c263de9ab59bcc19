"""One `pirlab run`, from the resolved experiment to its summary on disk.

    experiment -> run directory -> for each cell: cluster -> facts -> summary -> files

The only place that knows both how a run is made (`machine`) and how it is read (`measure`,
`report`).  Before: `config`.  Next: `cli` prints.
"""

import json
import os
import platform
import secrets
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from emulator import __version__
from emulator.config import evaluate, resolved_yaml
from emulator.config.model import Cell, Expectation, Experiment, Order
from emulator.live_path import write_order_header
from emulator.machine.cluster import Cluster, RunResult
from emulator.machine.errors import RunBroken
from emulator.measure.facts import LoadFacts, RunFacts, write_facts
from emulator.measure.histogram import write_hlog
from emulator.measure.records import read_events
from emulator.measure.stages import latencies
from emulator.measure.summary import judge, matrix, summarise
from emulator.report.matrix import matrix_text
from emulator.report.text import run_text

OK: Final = 0
EXPECT_FAILED: Final = 1
USAGE: Final = 2
BROKEN: Final = 3
CANNOT: Final = 4
VIOLATED: Final = 5
INTERRUPTED: Final = 130

NAMED_PACKAGES: Final = ("pyzmq", "msgpack", "atomicshm", "numpy")


class OutError(Exception):
    """The folder for run directories cannot be used (exit code 2)."""


Progress = Callable[[str, float, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to: the JSON object, its text, the exit code, why it broke (or "")."""

    summary: dict[str, Any]
    text: str
    code: int
    reason: str


def run_experiment(
    experiment: Experiment, out: Path, announce: Callable[[str], None], progress: Progress
) -> Outcome:
    """Run every cell.  HostError if this host cannot; a run that breaks is an Outcome.

    `announce(text)` is called once a cell begins, `progress` as in `Cluster`.
    """
    directory = new_run_directory(out, experiment)
    cells = [(cell, number) for cell in experiment.cells for number in range(cell.run.repeat)]
    single = len(cells) == 1 and not experiment.matrix
    outcomes: list[Outcome] = []
    for i, (cell, number) in enumerate(cells):
        settings = dict(cell.set)
        if cell.run.repeat > 1:
            settings["run.repeat"] = number
        where = directory if single else directory / f"cell-{i:02}"
        label = ", ".join(f"{key}={value}" for key, value in settings.items())
        announce(label and f"{i + 1}/{len(cells)} {label}")
        outcome = run_cell(cell, experiment, settings, where, progress)
        outcomes.append(outcome)
        if outcome.code in (BROKEN, INTERRUPTED):
            break
    if single:
        return outcomes[0]
    return join(experiment, directory, outcomes)


def join(experiment: Experiment, directory: Path, outcomes: list[Outcome]) -> Outcome:
    """The cells of a matrix as one outcome."""
    whole = matrix(
        [outcome.summary for outcome in outcomes],
        name=experiment.name,
        question=experiment.question,
    )
    codes = [outcome.code for outcome in outcomes]
    code = next((c for c in (INTERRUPTED, BROKEN, VIOLATED, EXPECT_FAILED) if c in codes), OK)
    whole = {**whole, "run_dir": str(directory)}
    text = matrix_text(whole)
    reason = next((outcome.reason for outcome in outcomes if outcome.reason), "")
    try:
        write_results(directory, whole, text)
        last = outcomes[-1].summary["status"]
        (directory / "status").write_text(f"{last}\n", encoding="utf-8")
    except OSError as error:
        code = BROKEN
        reason = reason or f"{directory}: {error.strerror}"
    return Outcome(summary=whole, text=text, code=code, reason=reason)


def run_cell(
    cell: Cell, experiment: Experiment, settings: dict[str, Any], directory: Path,
    progress: Progress,
) -> Outcome:  # fmt: skip
    """One run: the processes, then the analysis of what they left."""
    (directory / "log").mkdir(parents=True, exist_ok=True)
    status = directory / "status"
    status.write_text("running\n", encoding="utf-8")
    if cell.order is Order.TOTAL:
        write_order_header(directory, cell)
    result = execute(cell, directory, progress)
    facts = facts_of(cell, settings, directory, result)
    events = read_events(directory / "events.bin")
    summary = summarise(events, facts)
    summary = judge(summary, [expectation(e, summary) for e in cell.expect])
    text = run_text(summary)
    code = exit_code(summary, cell, matrix=experiment.matrix)
    reason = result.reason
    try:
        if cell.order is Order.TOTAL:
            write_order_header(directory, cell, {"status": result.status, **result.order_end})
        write_facts(directory, facts)
        write_results(directory, summary, text)
        write_hlog(
            directory / "hist.hlog",
            latencies(events, facts),
            start_s=result.started_s,
            length_s=facts.seconds,
        )
        status.write_text(f"{result.status}{reason and ': '}{reason}\n", encoding="utf-8")
    except OSError as error:  # a full disk: what stands on it is kept, and the answer still printed
        code = BROKEN
        reason = reason or f"{directory}: {error.strerror}"
    return Outcome(summary=summary, text=text, code=code, reason=reason)


def execute(cell: Cell, directory: Path, progress: Progress) -> RunResult:
    """Run the cluster to its end, whatever that is.  HostError passes through."""
    cluster = Cluster(cell, directory, progress)

    def interrupt(*_: object) -> None:
        cluster.interrupted = True  # acted upon between two moments of the launcher

    # Both set anew: a shell starts what it runs in the background with SIGINT ignored.
    before = {n: signal.signal(n, interrupt) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        with cluster:
            try:
                cluster.run()
            except KeyboardInterrupt:
                cluster.finish("interrupted")
            except (RunBroken, OSError) as error:
                cluster.salvage(str(error))
    except KeyboardInterrupt:  # before there was anything to stop
        cluster.result.status = "interrupted"
    except RunBroken as error:  # while starting, or while stopping
        cluster.result.reason = str(error)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return cluster.result


def facts_of(cell: Cell, settings: dict[str, Any], directory: Path, result: RunResult) -> RunFacts:
    """What the records do not say."""
    return RunFacts(
        name=cell.name,
        question=cell.question,
        rule=cell.kvm.rule.value,
        seed=cell.run.seed,
        seconds=max(0, result.measure_to_ns - result.measure_from_ns) * 1e-9,
        status=result.status,
        run_dir=str(directory),
        host=host(),
        vcpus=tuple(v.name for v in cell.vcpus),
        pcpus=tuple(f"pcpu/{i}" for i in range(cell.pcpus)),
        loads=tuple(
            LoadFacts(name=f"{load.name}[{load.index}]", parent=load.name,
                      rate_wanted_per_s=load.rate_per_s)
            for load in cell.loads
        ),
        counters=result.counters,
        floor_ns=tuple(result.floor_ns),
        measure_from_ns=result.measure_from_ns,
        measure_to_ns=result.measure_to_ns,
        dropped=result.dropped,
        started_s=result.started_s,
        cell=settings,
    )  # fmt: skip


def expectation(expected: Expectation, summary: dict[str, Any]) -> dict[str, Any]:
    """One `expect:` against a summary."""
    if expected.violates is not None:
        found = [v for v in summary["violations"] if v["invariant"] == expected.violates]
        name = f"violates {expected.violates}"
        return {"check": name, "held": bool(found), "value": len(found)}
    assert expected.check is not None
    outcome = evaluate(expected.check, summary)
    return {"check": expected.check, "held": outcome.held, "value": outcome.value}


def exit_code(summary: dict[str, Any], cell: Cell, *, matrix: bool) -> int:
    """The contract's exit code of one run."""
    if summary["status"] == "interrupted":
        return INTERRUPTED
    if summary["status"] == "died":
        return BROKEN
    foreseen = {e.violates for e in cell.expect} if matrix else set()
    if any(v["invariant"] not in foreseen for v in summary["violations"]):
        return VIOLATED
    return EXPECT_FAILED if any(not e["held"] for e in summary["expect"]) else OK


def host() -> dict[str, Any]:
    """The machine and what runs on it."""
    return {
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {
            "pirlab": __version__,
            **{name: metadata.version(name) for name in NAMED_PACKAGES},
        },
    }


def new_run_directory(out: Path, experiment: Experiment) -> Path:
    """`out`/<utc>-<name>-<id> with the config in it, and `out`/latest.  OutError if it cannot."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    directory = out / f"{stamp}-{experiment.name}-{secrets.token_hex(3)}"
    try:
        directory.mkdir(parents=True)
        (directory / "config.source.yaml").write_text(experiment.source, encoding="utf-8")
        if experiment.base_source is not None:
            (directory / "config.base.yaml").write_text(experiment.base_source, encoding="utf-8")
        (directory / "config.resolved.yaml").write_text(resolved_yaml(experiment), encoding="utf-8")
        (directory / "env.json").write_text(json.dumps(host(), indent=1) + "\n", encoding="utf-8")
        point_latest(out, directory)
    except OSError as error:
        shutil.rmtree(directory, ignore_errors=True)
        raise OutError(f"{directory}: cannot make the run directory: {error.strerror}") from error
    return directory


def point_latest(out: Path, directory: Path) -> None:
    """Make `latest` a link to the newest run; replaced in one step."""
    link = out / "latest"
    if link.exists() and not link.is_symlink():
        return  # somebody's own: leave it
    new = out / f".latest-{secrets.token_hex(3)}"
    new.symlink_to(directory.name)
    new.replace(link)


def write_results(directory: Path, summary: dict[str, Any], text: str) -> None:
    """The summary, for programs and for people."""
    (directory / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    (directory / "report.txt").write_text(text, encoding="utf-8")
