"""vCPUs on pCPUs, and what `from`, `to`, `via` and `on` mean."""

import pytest

from emulator.config import resolve
from emulator.config.model import Arrival, Via


def machine(more, pcpus=4):
    return (
        f"pirlab: 1\nname: m\ncluster: {{pcpus: {pcpus}}}\n"
        f"vms:\n  web: {{vcpus: 2}}\n  db: {{vcpus: 2}}\n{more}"
    )


def loads(desk, *entries):
    """(source, targets) of each resolved load, by vCPU and device names."""
    text = machine("load:\n" + "".join(f"  - {{{entry}, vector: 0x41}}\n" for entry in entries))
    (cell,) = desk.load(text).cells
    names = [vcpu.name for vcpu in cell.vcpus]
    return [
        (
            cell.devices[load.device] if load.vcpu is None else names[load.vcpu],
            " ".join(names[target] for target in load.targets),
            load.via,
        )
        for load in cell.loads
    ]


def load_error(desk, entry):
    return desk.error(machine(f"load:\n  - {{name: t, vector: 0x41, rate: 1/s, {entry}}}\n"))


# -- vCPUs ----------------------------------------------------------------------------------------


def test_vcpus_go_round_the_pcpus_in_the_order_of_the_file(desk):
    (cell,) = desk.load(machine("")).cells
    assert [(vcpu.name, vcpu.index, vcpu.pcpu) for vcpu in cell.vcpus] == [
        ("web/0", 0, 0),
        ("web/1", 1, 1),
        ("db/0", 2, 2),
        ("db/1", 3, 3),
    ]


def test_spread_is_the_default_said_aloud(desk):
    assert desk.load(machine(""), "vms.db.pin=spread") == desk.load(machine(""))


def test_vcpus_that_pin_does_not_name_go_round(desk):
    (cell,) = desk.load(machine(""), "vms.web.pin={0: 1, 1: 0}", "vms.db.pin={1: 3}").cells
    assert [vcpu.pcpu for vcpu in cell.vcpus] == [1, 0, 2, 3]


def test_each_vcpu_may_run_its_own_guest(desk):
    (cell,) = desk.load(machine(""), "vms.web.guest={1: ring}", "vms.db.guest=spin").cells
    assert [vcpu.guest for vcpu in cell.vcpus] == ["hlt-loop", "ring", "spin", "spin"]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("vms.db.pin={2: 0}", "vms.db.pin.2: no such vCPU, got 2; allowed: 0..1 (vcpus: 2)"),
        ("vms.db.pin={-1: 0}", "vms.db.pin.-1: no such vCPU, got -1; allowed: 0..1 (vcpus: 2)"),
        (
            "vms.db.pin={0: 4}",
            "vms.db.pin.0: no such pCPU, got 4; allowed: 0..3 (cluster.pcpus: 4)",
        ),
        ("vms.db.pin={0: a}", "vms.db.pin.0: must be an integer, got 'a'"),
        ("vms.db.pin={a: 0}", "vms.db.pin.a: this key must be an integer, got 'a'"),
        (
            "vms.db.pin=[0, 1]",
            "vms.db.pin: must be a mapping or a word, got a list; allowed: spread",
        ),
        ("vms.db.pin=pack", "vms.db.pin: unknown value, got 'pack'; allowed: spread"),
        ("vms.db.guest={2: ring}", "vms.db.guest.2: no such vCPU, got 2; allowed: 0..1 (vcpus: 2)"),
        ("vms.db.guest=rings", "vms.db.guest: unknown value, got 'rings'; did you mean 'ring'?"),
        (
            "vms.device={vcpus: 1}",
            "vms.device: this key must be a name of letters, digits, - and _",
        ),
        ("vms.a b={vcpus: 1}", "vms.a b: this key must be a name of letters, digits, - and _"),
        ("cluster.pcpus=257", "cluster.pcpus: out of range, got 257; allowed: 1..256"),
    ],
)
def test_a_wrong_placement_is_told(desk, override, problem):
    assert f"-s {override}: {problem}" in desk.error(machine(""), override)


def test_a_second_vcpu_on_a_pcpu_is_refused_where_there_is_a_limit(desk, monkeypatch):
    monkeypatch.setattr(resolve, "MAX_VCPUS_PER_PCPU", 1)
    message = desk.error(machine(""), "vms.db.pin={1: 0}")
    assert (
        "vms.db.pin.1: db/1 would share pCPU 0 with web/0; allowed: 1 vCPU on each pCPU" in message
    )


def test_vcpus_share_pcpus(desk):
    (cell,) = desk.load(machine("", pcpus=2)).cells
    assert [vcpu.pcpu for vcpu in cell.vcpus] == [0, 1, 0, 1]


# -- loads ----------------------------------------------------------------------------------------


def test_each_vcpu_to_self_is_a_timer_on_every_vcpu(desk):
    assert loads(desk, "name: t, from: each-vcpu, to: self, rate: 1/s") == [
        (name, name, Via.TSC_DEADLINE) for name in ("web/0", "web/1", "db/0", "db/1")
    ]


def test_a_pattern_means_the_others_and_never_the_source(desk):
    assert loads(desk, "name: t, from: web/*, to: '*/[01]', rate: 1/s") == [
        ("web/0", "web/1 db/0 db/1", Via.ICR),
        ("web/1", "web/0 db/0 db/1", Via.ICR),
    ]


def test_a_source_that_a_pattern_leaves_without_target_has_no_load(desk):
    assert loads(desk, "name: t, from: web/*, to: web/0, rate: 1/s") == [
        ("web/1", "web/0", Via.ICR)
    ]


def test_a_vcpu_to_itself_by_name_is_to_self(desk):
    assert loads(desk, "name: t, from: web/0, to: web/0, rate: 1/s") == [
        ("web/0", "web/0", Via.TSC_DEADLINE)
    ]


@pytest.mark.parametrize("via", [Via.SELF_IPI, Via.ICR])
def test_a_vcpu_interrupts_itself_by_other_means_too(desk, via):
    found = loads(desk, f"name: t, from: db/1, to: self, rate: 1/s, via: {via.value}")
    assert found == [("db/1", "db/1", via)]


def test_a_device_interrupts_the_pcpu_of_its_first_target_unless_told(desk):
    rest = "to: db/*, vector: 0x41, rate: 500/s"
    more = (
        "load:\n"
        f"  - {{name: a, from: device/nic1, {rest}}}\n"
        f"  - {{name: b, from: device/nic0, {rest}, on: pcpu/0}}\n"
        f"  - {{name: c, from: device/nic1, {rest}, via: host-irq}}\n"
    )
    (cell,) = desk.load(machine(more)).cells
    assert cell.devices == ("nic1", "nic0")
    assert [(load.device, load.on_pcpus, load.targets) for load in cell.loads] == [
        (0, (2,), (2, 3)),
        (1, (0,), (2, 3)),
        (0, (2,), (2, 3)),
    ]


def test_a_device_interrupts_several_pcpus_in_turn(desk):
    rest = "to: db/0, vector: 0x41, rate: 500/s"
    more = f"load: [{{name: a, from: device/d, {rest}, on: [pcpu/3, pcpu/1]}}]"
    (cell,) = desk.load(machine(more)).cells
    assert cell.loads[0].on_pcpus == (3, 1)


def test_a_posted_entry_interrupts_no_pcpu_unless_it_switches(desk):
    rest = "from: device/d, via: vt-d, to: db/1, vector: 0x41, rate: 500/s"
    more = (
        "load:\n"
        f"  - {{name: a, {rest}}}\n"
        f"  - {{name: b, {rest}, switch: 200ms, urgent: true, assigned_at: 1s}}\n"
    )
    (cell,) = desk.load(machine(more)).cells
    always, switching = cell.loads
    assert (always.via, always.on_pcpus, always.urgent) == (Via.VT_D, (), False)
    assert (always.switch_ns, always.assigned_at_ns) == (None, 0)
    assert (switching.on_pcpus, switching.urgent) == ((3,), True)
    assert (switching.switch_ns, switching.assigned_at_ns) == (200_000_000, 1_000_000_000)


def test_an_expanded_load_keeps_its_name_place_and_properties(desk):
    entry = "{name: b, from: web/*, to: self, vector: 0xec, rate: 2k/s, arrival: poisson, count: 9}"
    text = f"load:\n  - {{name: a, from: db/0, to: db/1, vector: 16, rate: 1/s}}\n  - {entry}"
    (cell,) = desk.load(machine(text)).cells
    assert [(load.index, load.parent, load.name) for load in cell.loads] == [
        (0, 0, "a"),
        (1, 1, "b"),
        (2, 1, "b"),
    ]
    last = cell.loads[2]
    assert (last.vector, last.rate_per_s, last.arrival, last.count) == (
        0xEC,
        2000.0,
        Arrival.POISSON,
        9,
    )
    assert (cell.loads[0].arrival, cell.loads[0].count) == (Arrival.EVEN, None)


def test_two_loads_may_share_target_and_vector(desk):
    found = loads(
        desk,
        "name: a, from: web/0, to: db/0, rate: 1/s",
        "name: b, from: web/1, to: db/0, rate: 1/s",
    )
    assert len(found) == 2


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("from: db/2, to: self", "no such vCPU, got 'db/2'; did you mean 'db/1'? allowed: web/0,"),
        ("from: de/1, to: self", "no such vCPU, got 'de/1'; did you mean"),
        ("from: db, to: self", "no such vCPU, got 'db'; "),
        ("from: self, to: db/0", "no such vCPU, got 'self'; "),
        ("from: db/01, to: self", "no such vCPU, got 'db/01'; "),
        (
            "from: x*, to: self",
            "matches no vCPU, got 'x*'; allowed: web/0, web/1, db/0, db/1, each-",
        ),
        (
            "from: db/0, to: x/*",
            "matches no vCPU, got 'x/*'; allowed: web/0, web/1, db/0, db/1, self",
        ),
        ("from: '', to: self", "from: must be each-vcpu, a vCPU such as db/0"),
        ("from: device/, to: db/0", "device/NAME must have a name of letters"),
        ("from: device/nic0, to: self", "load.t.to: a device has no self; name a vCPU"),
        ("from: device/nic0, to: db/0, via: icr", "via: does not go from device/nic0 to db/0, got"),
        ("from: db/1, to: db/0, via: tsc-deadline", "got 'tsc-deadline'; allowed: icr"),
        ("from: db/1, to: db/0, via: self-ipi", "got 'self-ipi'; allowed: icr"),
        ("from: db/1, to: self, via: host-irq", "allowed: tsc-deadline, icr, self-ipi"),
        (
            "from: db/1, to: db/0, on: pcpu/0",
            "load.t.on: is for via: host-irq, or with switch, got via: icr",
        ),
        (
            "from: device/d, to: db/0, via: vt-d, on: pcpu/0",
            "load.t.on: is for via: host-irq, or with switch, got via: vt-d",
        ),
        (
            "from: device/d, to: db/0, on: [pcpu/0, pcpu/4]",
            "load.t.on: no such pCPU, got 'pcpu/4'; allowed: pc",
        ),
        ("from: device/d, to: db/0, on: []", "load.t.on: must be a pCPU such as pcpu/0, or a list"),
        ("from: device/d, to: db/0, urgent: true", "urgent: is for via: vt-d, got via: host-irq"),
        ("from: device/d, to: db/0, switch: 1s", "switch: is for via: vt-d, got via: host-irq"),
        ("from: db/0, to: self, assigned_at: 1s", "is for a device, got from: db/0"),
        ("from: db/0, to: db/1, via: vt-d", "via: does not go from db/0 to db/1, got 'vt-d'"),
        (
            "from: device/d, to: db/0, on: pcpu/4",
            "load.t.on: no such pCPU, got 'pcpu/4'; allowed: pc",
        ),
        ("from: device/d, to: db/0, on: 1", "load.t.on: must be a pCPU such as pcpu/0, got 1"),
        ("from: db/0, to: 'db/[0]'", "load.t.to: means the source itself only; write to: self"),
    ],
)
def test_a_load_that_goes_nowhere_is_told(desk, entry, problem):
    assert problem in load_error(desk, entry)


def test_a_vcpu_has_one_tsc_deadline(desk):
    message = desk.error(
        machine(
            "load:\n"
            "  - {name: a, from: db/1, to: self, vector: 0x41, rate: 1/s}\n"
            "  - {name: b, from: each-vcpu, to: self, vector: 0x42, rate: 1/s}\n"
        )
    )
    told = "c.yaml:9:21: load.b.from: the TSC deadline of db/1 is taken by 'a'; use via: icr"
    assert message.split("\n")[0] == told


def test_two_loads_of_one_name_are_refused(desk):
    entry = "{name: a, from: db/1, to: db/0, vector: 0x41, rate: 1/s}"
    message = desk.error(machine(f"load:\n  - {entry}\n  - {entry}\n"))
    assert message.startswith("c.yaml:9:12: load.a.name: must be unique, got 'a' again\n")
