"""The resolved experiment: what travels to the processes, what is written back, the schema."""

import json
import pickle
import subprocess
import sys
from enum import Enum
from pathlib import Path

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import emulator.config
from emulator.config import ConfigError, json_schema, load_experiment, resolved_yaml, schema
from emulator.config.load import _agreed
from emulator.config.model import Cell, Fabric, Run, from_plain, to_plain
from emulator.config.shape import Choice, Duration, Flag, Integer, Items, Number
from emulator.kvm.params import Kvm, Notify

FULL = """\
# A comment.
pirlab: 1
name: full
question: "Does 012 stay 012, and on stay on?"
cluster: {pcpus: 4, fabric: tcp}
vms:
  web: {vcpus: 2, guest: {0: ring}, pin: {0: 3}}
  db: {vcpus: 2, pin: {0: 2, 1: 0}}
load:
  - {name: timer, from: each-vcpu, to: self, vector: 0xec, rate: 1.5k/s, arrival: poisson}
  - {name: ipi, from: web/*, to: db/*, vector: 0xfb, rate: 0.3/s, count: 9}
  - {name: nic, from: device/nic0, to: db/0, vector: 0x41, rate: 333333.25/s}
  - {name: nvme, from: device/nvme0, via: vt-d, to: db/1, vector: 0x42, rate: 1/s, switch: 5s,
     urgent: true, assigned_at: 1s}
kvm: {rule: kvm-v5.16, halt_poll: 1234ns, pid_scheme: preempt-sn}
run: {warmup: 0s, for: 90s, repeat: 2, seed: 7, watchdog: 1500ms}
expect:
  - {check: lost == 0}
  - {violates: lost-wakeup, when: {kvm.rule: kvm-v5.8, load.ipi.rate: 300e-3/s}}
"""
MATRIX = """\
matrix:
  kvm.rule: [kvm-v5.16, kvm-v5.8]
  cluster.pcpus: [4, 5]
  load.timer.rate: [1k/s, 2k/s, 3k/s]
exclude:
  - {kvm.rule: kvm-v5.8, load.timer.rate: 3000/s}
"""


def test_a_cell_has_every_value_resolved(desk):
    (cell,) = desk.load(FULL).cells
    assert (cell.pcpus, cell.fabric, cell.set) == (4, Fabric.TCP, {})
    assert [(v.name, v.pcpu, v.guest) for v in cell.vcpus] == [
        ("web/0", 3, "ring"),
        ("web/1", 1, "hlt-loop"),
        ("db/0", 2, "hlt-loop"),
        ("db/1", 0, "hlt-loop"),
    ]
    assert (cell.kvm.rule, cell.kvm.halt_poll_ns) == (Notify.KVM_V5_16, 1234)
    assert cell.run == Run(
        warmup_ns=0,
        duration_ns=90_000_000_000,
        repeat=2,
        seed=7,
        watchdog_ns=1_500_000_000,
        drain_ns=2_000_000_000,
    )


def test_a_cell_travels_as_plain_values_and_by_pickle(desk):
    for cell in desk.load(FULL + MATRIX).cells:
        assert from_plain(Cell, msgpack.unpackb(msgpack.packb(to_plain(cell)))) == cell
        assert pickle.loads(pickle.dumps(cell)) == cell  # noqa: S301


def test_a_cell_cannot_be_changed(desk):
    (cell,) = desk.load(FULL).cells
    with pytest.raises(AttributeError):
        cell.pcpus = 5


@pytest.mark.parametrize("more", ["", MATRIX])
def test_a_resolved_config_loads_to_an_equal_experiment(desk, more):
    experiment = desk.load(FULL + more, "run.drain=3s")
    text = resolved_yaml(experiment)
    again = load_experiment(desk.write(text, "resolved.yaml"))
    assert again == experiment
    assert resolved_yaml(again) == text


def test_a_resolved_config_shows_defaults_and_what_was_derived(desk):
    text = resolved_yaml(desk.load(FULL))
    assert "pin: {0: 3, 1: 1}" in text
    assert "vector: 0xec, rate: 1.5k/s, via: tsc-deadline, arrival: poisson" in text
    assert "on: pcpu/2" in text
    assert "halt_poll: 1234ns" in text
    assert "watchdog: 1500ms, drain: 2s" in text
    assert "matrix" not in text


def test_a_resolved_matrix_leaves_to_the_cells_what_depends_on_them(desk):
    text = "pirlab: 1\nname: m\ncluster: {pcpus: 2}\nvms: {a: {vcpus: 1}, b: {vcpus: 1}}\n"
    text += "load: [{name: n, from: device/d, to: 'b/*', vector: 0x41, rate: 1/s}]\n"
    text += "matrix: {vms.a.vcpus: [1, 2], cluster.pcpus: [3]}\n"
    experiment = desk.load(text)
    resolved = resolved_yaml(experiment)
    assert "a:\n    pin: {0: 0}" in resolved
    assert "on: pcpu" not in resolved
    assert [cell.loads[0].on_pcpus for cell in experiment.cells] == [(1,), (2,)]
    assert load_experiment(desk.write(resolved, "r.yaml")) == experiment


def test_cells_agree_on_a_list_wholly_or_not_at_all():
    assert _agreed([{"a": [1, 2], "b": [3]}, {"a": [1, 5], "b": [3]}]) == {"b": [3]}
    assert _agreed([{"a": [{"b": 1, "c": 2}]}, {"a": [{"b": 1, "c": 3}]}]) == {"a": [{"b": 1}]}


def test_the_source_is_kept_as_written(desk):
    experiment = desk.load(FULL, "run.seed=1")
    assert experiment.source == FULL
    assert experiment.base_source is None
    assert experiment.overrides == ("run.seed=1",)


_RUNS = st.fixed_dictionaries(
    {
        "warmup": st.integers(0, 10**13),
        "for": st.integers(1, 10**13),
        "drain": st.integers(0, 10**13),
    }
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(_RUNS, st.floats(1e-9, 1e9), st.sampled_from(list(Notify)), st.integers(16, 255))
def test_any_quantity_survives_being_written_and_read(desk, run, rate, rule, vector):
    overrides = [f"run.{key}={ns}ns" for key, ns in run.items()]
    overrides += [f"load.ipi.rate={rate!r}/s", f"kvm.rule={rule.value}"]
    overrides += [f"load.ipi.vector={vector}"]
    experiment = desk.load(FULL, *overrides)
    assert experiment.cells[0].run.warmup_ns == run["warmup"]
    assert experiment.cells[0].loads[-3].rate_per_s == rate
    assert load_experiment(desk.write(resolved_yaml(experiment), "r.yaml")) == experiment


# -- the hypervisor's axes ------------------------------------------------------------------------


class _Colour(Enum):
    """The colour of an axis."""

    NONE = "none"
    RED = "red"


@pytest.mark.parametrize(
    ("name", "hint", "default", "shape", "plain"),
    [
        ("a", _Colour, _Colour.RED, Choice(("none", "red")), "red"),
        ("a_ns", int, 5, Duration(), 5),
        ("a", int, 5, Integer(low=0), 5),
        ("a", bool, True, Flag(), True),
        ("a", float, 0.5, Number(), 0.5),
        ("a", frozenset[_Colour], frozenset({_Colour.RED}), Items(Choice(("red",))), ["red"]),
    ],
)
def test_an_axis_of_the_hypervisor_has_the_shape_of_its_type(name, hint, default, shape, plain):
    assert schema._axis(name, hint, default) == (shape, plain)


def test_every_axis_of_the_hypervisor_can_be_set(desk):
    (cell,) = desk.load(FULL).cells
    for field, value in to_plain(cell.kvm).items():
        key = schema.kvm_key(field)
        written = f"{value}ns" if key != field else json.dumps(value)
        assert desk.load(FULL, f"kvm.{key}={written}").cells[0].kvm == cell.kvm
    assert (
        desk.load("pirlab: 1\nname: a\ncluster: {pcpus: 1}\nvms: {a: {vcpus: 1}}").cells[0].kvm
        == Kvm()
    )


# -- the schema -----------------------------------------------------------------------------------


def test_the_schema_file_is_current():
    path = Path(emulator.config.__file__).parent / "pirlab.schema.json"
    assert json.loads(path.read_text()) == json_schema(), (
        "pirlab schema > emulator/config/pirlab.schema.json"
    )


def test_the_schema_knows_every_key_and_word():
    properties = json_schema()["properties"]
    assert set(properties) == set(schema.EXPERIMENT.fields)
    assert properties["kvm"]["properties"]["rule"]["enum"] == [rule.value for rule in Notify]
    assert properties["kvm"]["properties"]["halt_poll"]["default"] == "200us"
    assert properties["run"]["properties"]["for"]["pattern"].endswith("(?:ns|us|µs|ms|s|m|h)$")
    assert properties["load"]["items"]["required"] == ["name", "from", "to", "vector", "rate"]
    assert properties["load"]["items"]["properties"]["vector"]["minimum"] == 16


def test_validating_a_config_is_quick(desk):
    path = desk.write(FULL + MATRIX)
    code = (
        "import time; before = time.perf_counter()\n"
        "from emulator.config import load_experiment\n"
        f"load_experiment({str(path)!r})\n"
        "print(time.perf_counter() - before)"
    )
    runs = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(runs) < 0.3


# -- whatever stands anywhere ---------------------------------------------------------------------

_PATHS = (  # noqa: SIM905 - words to choose from
    "pirlab name question extends cluster cluster.pcpus cluster.fabric vms vms.db vms.db.vcpus "
    "vms.db.pin vms.db.pin.0 vms.web.guest vms.web.guest.0 vms.new load load.0 load.timer.name "
    "load.timer.from load.ipi.to load.nic.on load.nic.via load.ipi.rate load.1.vector "
    "load.nvme.switch load.nvme.urgent load.nvme.assigned_at load.nvme.on load.nvme.via "
    "kvm.preset kvm.senders kvm.exitless_timer kvm.pid_scheme "
    "load.ipi.count kvm kvm.rule kvm.bugs kvm.halt_poll matrix matrix.kvm.rule matrix.load "
    "matrix.vms.db.pin matrix.load.1 matrix.load.ipi.name exclude exclude.0 run run.for run.seed "
    "expect expect.0 expect.0.check expect.1.when expect.1.violates expect.1.when.kvm"
).split()
_VALUES = (  # noqa: SIM905
    "1 0 -1 3 0x41 1.5 .inf .nan 1e999 true ~ '' [] {} [[]] [{}] {a: b} {0: 0} {0: x} {x: 0} [a] "
    "db/0 db/* web/1 self each-vcpu device/x device/ pcpu/1 icr host-irq self-ipi tsc-deadline "
    "[pcpu/0,pcpu/1] [pcpu/0,1] vt-d ipi-virtualization none both pre-block kvm-v6.17 "
    "5s 5/s 1k/s kvm-v5.8 spread ring lost-wakeup db {kvm.rule:} [1,2] [kvm-v5.8,1] "
    "[{kvm.rule:[]}] {kvm.rule:[kvm-v5.8]} {load.0:[{}]} {load.ipi:[~,5]} {vms:[{db:{vcpus:1}}]}"
).split(" ")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.builds("{}={}".format, st.sampled_from(_PATHS), st.sampled_from(_VALUES)),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_stands_anywhere_it_is_a_config_or_a_config_error(desk, overrides):
    try:
        experiment = desk.load(FULL + MATRIX, *overrides)
    except ConfigError as error:
        assert "-s " in str(error) or "exclude" in str(error) or "c.yaml:" in str(error)  # noqa: PT017
    else:
        text = resolved_yaml(experiment)
        assert load_experiment(desk.write(text, "r.yaml")) == experiment
