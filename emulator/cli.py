"""The commands: parse, call, print, exit.

One JSON object on stdout with --json, everything else on stderr.  Exit codes: 0 ok, 1 an `expect`
failed or a claim is broken, 2 usage or config, 3 the run broke, 4 this host cannot do it, 5 an
invariant was violated, 130 interrupted.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click

from emulator import __version__, proof
from emulator.config import ConfigError, json_schema, load_experiment, resolved_yaml
from emulator.machine.errors import HostError

EXIT_USAGE = 2
EXIT_CANNOT = 4
EXIT_INTERRUPTED = 130


def fail(text: str, code: int) -> None:
    click.echo(f"pirlab: {text}", err=True)
    sys.exit(code)


@contextmanager
def sentences() -> Iterator[None]:
    """Every foreseeable mistake ends as a sentence and an exit code, never as a traceback."""
    try:
        yield
    except ConfigError as error:
        fail(str(error), EXIT_USAGE)
    except HostError as error:
        fail(str(error), EXIT_CANNOT)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1))


class UsageSentence(click.UsageError):
    """A usage mistake, told as every other one is: a sentence on stderr, exit 2."""

    def show(self, file: IO[Any] | None = None) -> None:
        where = self.ctx.command_path if self.ctx else "pirlab"
        text = self.format_message().rstrip(".")
        click.echo(f"{where}: {text} (see `{where} --help`)", file=file, err=file is None)


class Commands(click.Group):
    """The commands, without click's four lines for a usage mistake."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise UsageSentence(error.format_message(), error.ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise UsageSentence(error.format_message(), error.ctx) from error
        except KeyboardInterrupt:
            fail("interrupted", EXIT_INTERRUPTED)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pirlab")
def main() -> None:
    """pirlab: a posted-interrupt laboratory."""


override = click.option(
    "-s", "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE",
    help="Override a key of the config; the value is YAML.",
)  # fmt: skip


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@override
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True,
              help="Where run directories are made.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
@click.option("--quiet", is_flag=True, help="No progress and no report.")
def run(config: Path, overrides: tuple[str, ...], out: Path, as_json: bool, quiet: bool) -> None:
    """Launch the cluster that CONFIG describes, load it, stop it, verify, report."""
    from emulator.progress import Line
    from emulator.report.text import show
    from emulator.session import OutError, run_experiment

    with sentences():
        experiment = load_experiment(config, overrides)
        try:
            with Line(experiment.name, quiet=quiet) as line:
                outcome = run_experiment(experiment, out, line.announce, line.progress)
        except OutError as error:
            fail(str(error), EXIT_USAGE)
            return
    if as_json:
        print_json(outcome.summary)
    elif not quiet:
        show(outcome.text, sys.stdout)
    if not quiet:
        click.echo(f"run directory: {outcome.summary['run_dir']}", err=True)
    if outcome.reason:
        click.echo(f"pirlab: the run broke: {outcome.reason}", err=True)
    sys.exit(outcome.code)


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@override
def validate(config: Path, overrides: tuple[str, ...]) -> None:
    """Check CONFIG and say what it would run."""
    with sentences():
        experiment = load_experiment(config, overrides)
    cells = len(experiment.cells)
    first = experiment.cells[0]
    click.echo(
        f"{config}: ok: {experiment.name}, {cells} run{'s' if cells > 1 else ''}, "
        f"{first.pcpus} pCPUs, {len(first.vcpus)} vCPUs, {len(first.loads)} loads"
    )


@main.command("config")
@click.argument("config", type=click.Path(path_type=Path))
@override
def config_(config: Path, overrides: tuple[str, ...]) -> None:
    """Print CONFIG with every default, unit and pattern resolved; it loads to the same."""
    with sentences():
        click.echo(resolved_yaml(load_experiment(config, overrides)), nl=False)


@main.command()
def schema() -> None:
    """Print the JSON Schema of a config, for editors."""
    print_json(json_schema())


@main.command()
@click.argument("run_directory", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--format", "form", default="text", show_default=True,
              type=click.Choice(["text", "json", "interrupts", "exits"]),
              help="interrupts: as /proc/interrupts; exits: as perf kvm stat report.")  # fmt: skip
def report(run_directory: Path, form: str) -> None:
    """Report on a saved run again, from its files alone."""
    from emulator import saved
    from emulator.report.text import show

    with sentences():
        try:
            match form:
                case "interrupts":
                    click.echo(saved.interrupts(run_directory), nl=False)
                case "exits":
                    click.echo(saved.exits(run_directory), nl=False)
                case "json":
                    print_json(saved.reread(run_directory)[0])
                case _:
                    show(saved.reread(run_directory)[1], sys.stdout)
        except saved.RunError as error:
            fail(str(error), EXIT_USAGE)


@main.command()
@click.argument("first", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("second", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compare(first: Path, second: Path, as_json: bool) -> None:
    """Compare two saved runs metric by metric, with intervals."""
    from emulator import saved
    from emulator.report.comparison import comparison_text

    with sentences():
        try:
            comparison = saved.compare(first, second)
        except saved.RunError as error:
            fail(str(error), EXIT_USAGE)
            return
    if as_json:
        print_json(comparison)
    else:
        click.echo(comparison_text(comparison), nl=False)


@main.command()
def clean() -> None:
    """Remove the sockets and shared memory of runs whose launcher and nursery were both killed."""
    from emulator.machine.host import abandoned

    for path in abandoned():
        shutil.rmtree(path, ignore_errors=True)
        click.echo(f"removed {path}")


for command in proof.COMMANDS:
    main.add_command(command)

if __name__ == "__main__":
    main()
