"""What a user gets wrong with the proving commands ends as one sentence and exit code 2."""

import copy
import json

import pytest
from click.testing import CliRunner

from emulator.checker import CounterexampleError, check, replay_file
from emulator.checker.exhibits import exhibits, scenarios_of
from emulator.cli import main

ODD = [None, 1.5, "x", [[]], {"a": 1}, True, 10**30]
STEPS_SPOILT = 2  # of each file, besides its header


def pirlab(*args: object):
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="pirlab")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["check"], "check needs a SCENARIO"),
        (["check", "nosuch"], "no scenario 'nosuch'; there are: base, "),
        (["check", "base", "--rule", "kvm-v9"], "'kvm-v9' is not one of 'kvm-v3.10'"),
        (["check", "base", "--bug", "B99"], "'B99' is not one of 'none', 'B03'"),
        (["check", "base", "--memory", "pso"], "'pso' is not one of 'sc', 'tso'"),
        (["check", "base", "extra"], "unexpected extra argument (extra)"),
        (["check", "two-vcpus"], "two-vcpus: too wide to explore"),
        (["check", "local-irq", "--rule", "kvm-v5.8", "--save", "/"], "cannot be written"),
        (["check", "nosuch.yaml"], "there is no such file"),
        (["check", "nosuch.yaml", "--lines"], "go with a SCENARIO, not with a config"),
        (["replay"], "Missing argument 'FILE'"),
        (["replay", "/nosuch"], "/nosuch: cannot be read: No such file or directory"),
        (["replay", "/"], "/: cannot be read: Is a directory"),
        (["replay", "/nosuch", "--live"], "/nosuch: cannot be read"),
        (["replay", "/nosuch", "--rule", "kvm-v5.18"], "--rule goes with --live"),
        (["explain", "kvm-v9"], "'kvm-v9' is not one of"),
        (["explain", "kvm-v5.18", "more"], "unexpected extra argument"),
        (["museum", "B01"], "unexpected extra argument (B01)"),
        (["museum", "--bug", "B01"], "No such option '--bug'"),
        (["litmus", "--rounds", "0"], "0 is not in the range"),
        (["litmus", "--rounds", "many"], "'many' is not a valid integer"),
        (["litmus", "--rounds", str(10**20)], "is not in the range"),
        (["nosuch"], "No such command 'nosuch'"),
        (["--nosuch"], "No such option '--nosuch'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(args, says):
    done = pirlab(*args)

    assert done.exit_code == 2
    assert not done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("pirlab")
    assert says in done.stderr


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "does not say format"),
        (b"[1]\n", "does not say format"),
        (b"\xff\xfe", "it is not text"),
        (b"pirlab: 1\n", "line 1 is not JSON"),
        (
            b'{"format": "pirlab-counterexample/1"}\n',
            "does not say format 'pirlab-counterexample/2'",
        ),
        (b'{"format": "pirlab-counterexample/2"}\n', "it breaks off"),
        (b'{"format": "pirlab-counterexample/2"}\n{"final": {}}\n', "not what the format says"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--live"]])
def test_what_is_no_counterexample_is_refused(tmp_path, content, says, options):
    path = tmp_path / "spoilt.jsonl"
    path.write_bytes(content)
    done = pirlab("replay", path, *options)

    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr


def places(value, so_far=()):
    """The way to every value inside `value`."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in inside:
        yield (*so_far, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*so_far, key))


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_no_value_in_a_file_makes_replay_crash(tmp_path, odd):
    path = tmp_path / "spoilt.jsonl"
    masked = next(scenarios_of(e)[0] for e in exhibits() if e.id == "B22")
    check(masked, stop_at_first=True).counterexample.save(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    told = []

    for *way, last in places(lines[: 1 + STEPS_SPOILT]):
        spoilt = copy.deepcopy(lines)
        inner = spoilt
        for key in way:
            inner = inner[key]
        inner[last] = odd
        path.write_text("".join(json.dumps(line) + "\n" for line in spoilt))
        try:
            replay_file(path)
        except CounterexampleError as error:
            told.append(str(error))

    assert len(told) > 100
    assert not [text for text in told if len(text.splitlines()) != 1]
