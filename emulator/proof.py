"""The commands that prove: conformance, check, museum, explain, replay, litmus.

As in `cli.py`: parse, call, print, exit.  What they call is heavy only while it runs, so it is
imported in the command.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import click

from emulator.kvm.params import Bug, Notify

RULES = click.Choice([rule.value for rule in Notify])
BUGS = click.Choice([bug.value for bug in Bug])
NO_BUG = Bug.NOTHING.value
ROUNDS_MAX = 10_000_000  # of litmus: minutes, and a byte each in both processes
EXIT_BROKEN = 1
EXIT_USAGE = 2
EXIT_RUN_BROKE = 3
EXIT_CANNOT = 4


def refuse(text: str, code: int = EXIT_USAGE) -> NoReturn:
    click.echo(f"pirlab: {text}", err=True)
    sys.exit(code)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1))


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--live", is_flag=True, help="The posted-interrupt cases, over two real processes.")
@as_json
def conformance(file: Path, live: bool, as_json: bool) -> None:
    """Run FILE of golden cases (format apicv-golden-cases/1) against the processor model."""
    from emulator.conformance import ConformanceError, format_text, run_file
    from emulator.machine.errors import HostError, RunBroken
    from emulator.suite import run_live

    try:
        result = run_live(file) if live else run_file(file)
    except ConformanceError as error:
        refuse(str(error))
    except RunBroken as error:
        refuse(str(error), EXIT_RUN_BROKE)
    except HostError as error:
        refuse(str(error), EXIT_CANNOT)
    if as_json:
        print_json(result.as_json())
    else:
        click.echo(format_text(result))
    sys.exit(EXIT_BROKEN if result.failed or result.skipped else 0)


@click.command()
@click.argument("scenario", required=False, metavar="[SCENARIO | CONFIG.yaml | RUN]")
@click.option("--list", "list_", is_flag=True, help="The scenarios there are, a question each.")
@click.option("--rule", type=RULES, help="The notification rule, instead of the scenario's.")
@click.option("--bug", "bugs", type=BUGS, multiple=True, help="Turn a museum switch on.")
@click.option("--memory", type=click.Choice(["sc", "tso"]), help="The memory model.")
@click.option("--lines", is_flag=True, help="Each step's place in the source.")
@click.option("--state", is_flag=True, help="The descriptor and the mode after each step.")
@click.option("--fold", is_flag=True, help="Leave out steps that commute with their neighbours.")
@click.option("--save", type=click.Path(path_type=Path), help="Save the counterexample.")
@as_json
def check(
    scenario: str | None, list_: bool, rule: str | None, bugs: tuple[str, ...], memory: str | None,
    lines: bool, state: bool, fold: bool, save: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Explore every interleaving of SCENARIO; show the shortest way to a broken claim (exit 1).

    CONFIG.yaml stands for the scenario that a live config corresponds to, for each of its cells.
    RUN, the directory of a run with `record: {order: total}`: is what happened a path of the model,
    or of the model under another --rule or --bug (`none`: without the run's own)?
    """
    from emulator.checker import MemoryModel, TooManyStatesError, list_scenarios, render
    from emulator.checker import check as explore

    if list_:
        scenarios = list_scenarios()
        if as_json:
            print_json({"schema": "pirlab-scenarios/1", "scenarios": scenarios})
            return
        for known in scenarios:
            click.echo(f"{known['name']:<28} {known['question']}")
            click.echo(f"{'':<28} {known['bounds']}; {known['memory']}; {known['profile']}")
        return
    if scenario is None:
        refuse("check needs a SCENARIO; `pirlab check --list` names them")
    if Path(scenario).is_dir():
        if save or lines or state or fold or memory:
            refuse(
                "--memory, --save, --lines, --state and --fold go with a SCENARIO, not with a RUN"
            )
        sys.exit(check_live_run(scenario, rule, bugs, as_json=as_json))
    if scenario.endswith((".yaml", ".yml")):
        if save or lines or state or fold:
            refuse("--save, --lines, --state and --fold go with a SCENARIO, not with a config")
        sys.exit(check_config(scenario, rule, bugs, memory, as_json=as_json))
    try:
        verdict = explore(
            scenario,
            rule=Notify(rule) if rule else None,
            bugs=[Bug(bug) for bug in bugs if bug != NO_BUG],
            memory=MemoryModel(memory) if memory else None,
        )
        if save and verdict.counterexample:
            verdict.counterexample.save(save)
    except (ValueError, TooManyStatesError) as error:
        refuse(str(error))
    except OSError as error:
        refuse(f"{save}: cannot be written: {error.strerror}")
    found = verdict.counterexample
    if as_json:
        print_json(verdict.to_json())
    else:
        click.echo(verdict.to_text())
        if found:
            click.echo("\n" + render(found, lines=lines, state=state, fold=fold))
    sys.exit(0 if verdict.judgement.value == "holds" else EXIT_BROKEN)


def check_config(
    path: str, rule: str | None, bugs: tuple[str, ...], memory: str | None, *, as_json: bool
) -> int:
    """`check` of a live config: the scenario of each cell, each different one once.  Exit code."""
    from emulator.checker import MemoryModel, TooManyStatesError, render
    from emulator.checker import check as explore
    from emulator.config import ConfigError, load_experiment
    from emulator.live_scenario import NoScenarioError, scenario_of

    told, code = [], 0
    try:
        for one in dict.fromkeys(scenario_of(cell) for cell in load_experiment(path).cells):
            verdict = explore(
                one.scenario,
                rule=Notify(rule) if rule else None,
                bugs=[Bug(bug) for bug in bugs if bug != NO_BUG],
                memory=MemoryModel(memory) if memory else None,
            )
            code = code if verdict.judgement.value == "holds" else EXIT_BROKEN
            told.append(one.to_json(verdict))
            if not as_json:
                click.echo(verdict.to_text())
                for what in one.left_out:
                    click.echo(f"left out: {what}")
                shown = render(verdict.counterexample) + "\n" if verdict.counterexample else ""
                click.echo(shown)
    except (ConfigError, NoScenarioError, TooManyStatesError) as error:
        refuse(str(error))
    if as_json:
        print_json({"schema": "pirlab-check-config/1", "config": path, "checks": told})
    return code


def check_live_run(
    directory: str, rule: str | None, bugs: tuple[str, ...], *, as_json: bool
) -> int:
    """`check` of a recorded run: is each of its cells a path of the model?  Exit code."""
    import gc

    from emulator.live_path import PathError, check_run, verdict_json, verdict_text

    gc.disable()  # a million tuples without a cycle: the collector would only walk them
    try:
        cells = check_run(
            Path(directory),
            rule=Notify(rule) if rule else None,
            bugs=frozenset(Bug(bug) for bug in bugs if bug != NO_BUG) if bugs else None,
        )
    except PathError as error:
        refuse(str(error))
    if as_json:
        print_json(verdict_json(directory, cells))
    else:
        click.echo("\n".join(verdict_text(cell) for cell in cells))
    return 0 if all(cell.is_path for cell in cells) else EXIT_BROKEN


@click.command()
@as_json
def museum(as_json: bool) -> None:
    """Every known bug: found with its switch on, absent with it off."""
    from emulator.checker import museum as visit

    began = time.monotonic()
    result = visit()
    bugs = result["bugs"]
    if as_json:
        print_json(result)
    else:
        click.echo(f"{'id':<22} {'found':<6} {'absent':<7} {'steps':>5} {'states':>9}  what")
        for bug in bugs:
            found = "yes" if bug["found_with"] else "NO"
            absent = "yes" if bug["absent_without"] else "NO"
            click.echo(
                f"{bug['id']:<22} {found:<6} {absent:<7} {bug['depth']:>5} {bug['states']:>9,}  "
                f"{bug['title']} ({bug['commit']})"
            )
        click.echo("\nnot to be told in this model:")
        for one in result["left_out"]:
            click.echo(f"  {one['id']:<6} {one['title']}: {one['why']}")
        click.echo(f"\n{len(bugs)} exhibits, {time.monotonic() - began:.1f} s")
    good = all(bug["found_with"] and bug["absent_without"] for bug in bugs)
    sys.exit(0 if good else EXIT_BROKEN)


@click.command()
@click.argument("rule", type=RULES, default=Notify.KVM_V5_18.value, metavar="[RULE]")
@as_json
def explain(rule: str, as_json: bool) -> None:
    """Why RULE is safe: each premise taken away in turn, and what then happens first."""
    from emulator.checker import explain as answer

    explanation = answer(Notify(rule))
    if as_json:
        print_json(explanation.to_json())
    else:
        click.echo(explanation.to_text())


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--lines", is_flag=True, help="Each step's place in the source.")
@click.option("--state", is_flag=True, help="The descriptor and the mode after each step.")
@click.option("--live", is_flag=True, help="On real pCPU processes, a turn at a time.")
@click.option("--rule", type=RULES, help="With --live: under another rule, as far as it goes.")
def replay(file: Path, lines: bool, state: bool, live: bool, rule: str | None) -> None:
    """Replay a saved counterexample: every step's result must be the model's.

    In the checker, or with --live on processes over ZeroMQ and shared memory; then the gate opens,
    and what is lost must stay lost, what is repaired must recover (else exit 1).
    """
    from emulator.checker import CounterexampleError, render, replay_file

    if live:
        sys.exit(replay_on_processes(file, Notify(rule) if rule else None))
    if rule:
        refuse("--rule goes with --live; `pirlab check SCENARIO --rule` explores another rule")
    try:
        result = replay_file(file)
    except CounterexampleError as error:
        refuse(str(error))
    steps = len(result.counterexample.steps)
    click.echo(render(result.counterexample, lines=lines, state=state))
    click.echo(f"\nreplayed: {steps} steps, every result the model's, and then {result.text}")


def replay_on_processes(file: Path, rule: Notify | None) -> int:
    """`replay --live`; the exit code."""
    from emulator.checker import CounterexampleError
    from emulator.live_replay import replay_live, way_of_file
    from emulator.machine.errors import HostError, RunBroken

    try:
        result = replay_live(way_of_file(file, rule))
    except CounterexampleError as error:
        refuse(str(error))
    except RunBroken as error:
        click.echo(f"pirlab: {error}", err=True)
        return EXIT_RUN_BROKE
    except HostError as error:
        click.echo(f"pirlab: {error}", err=True)
        return EXIT_CANNOT
    click.echo(result.to_text())
    return 0 if result.good else EXIT_BROKEN


@click.command()
@click.option(
    "--rounds", type=click.IntRange(1, ROUNDS_MAX), default=200_000, help="For each variant."
)
@as_json
def litmus(rounds: int, as_json: bool) -> None:
    """The mode/ON pair on this host's hardware, with and without the fence."""
    from emulator.machine.errors import HostError, RunBroken
    from emulator.machine.litmus import run_litmus

    try:
        result = run_litmus(rounds)
    except RunBroken as error:
        click.echo(f"pirlab: {error}", err=True)
        sys.exit(EXIT_RUN_BROKE)
    except HostError as error:
        click.echo(f"pirlab: {error}", err=True)
        sys.exit(EXIT_CANNOT)
    if as_json:
        print_json(result.to_json())
    else:
        click.echo(result.to_text())
    sys.exit(0 if result.good else EXIT_BROKEN)


COMMANDS = (conformance, check, museum, explain, replay, litmus)
