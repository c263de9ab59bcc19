"""Every mistake has file, line, column, key, what was found, what is allowed, and a caret."""

import pytest

from emulator.config import errors

LOAD = "load:\n  - {name: t, from: db/0, to: self, vector: 0x41, rate: 1k/s"


def test_a_mistake_is_told_whole(desk):
    assert desk.error_with("kvm: {halt_poll: 0us, rule: kvm-v5.9}\n") == (
        "c.yaml:6:29: kvm.rule: unknown value, got 'kvm-v5.9'; did you mean 'kvm-v5.8'? "
        "allowed: kvm-v3.10, kvm-v4.11, kvm-v5.8, kvm-v5.16, kvm-v5.17, kvm-v5.18\n"
        "    kvm: {halt_poll: 0us, rule: kvm-v5.9}\n"
        "                                ^"
    )


def test_all_mistakes_come_in_one_pass_in_the_order_of_the_file(desk):
    message = desk.error(
        """\
        pirlab: 2
        name: Big
        cluster: {pcpus: 2, fabrik: ipc}
        vms:
          db: {vcpus: 2, pin: {1: 2}}
        load:
          - {name: t, from: db/9, to: self, vector: 0x41, rate: 1000}
        kvm: {halt_poll: 5}
        run: {for: 0s}
        expect:
          - {check: lost = 0}
        """
    )
    places = [paragraph.split(": ")[0] for paragraph in message.split("\n\n")]
    assert places == [
        "c.yaml:1:9",
        "c.yaml:2:7",
        "c.yaml:3:21",
        "c.yaml:5:27",
        "c.yaml:7:21",
        "c.yaml:7:57",
        "c.yaml:8:18",
        "c.yaml:9:12",
        "c.yaml:11:18",
    ]


def test_a_cell_with_one_mistake_reports_nothing_that_follows_from_it(desk):
    message = desk.error(
        """\
        pirlab: 1
        name: a
        cluster: {pcpus: two}
        vms:
          db: {vcpus: 2, pin: {0: 7}}
          web: {vcpus: x}
        load:
          - {name: t, from: web/0, to: web/*, vector: 0x41, rate: 1k/s}
          - {name: u, from: each-vcpu, to: self, vector: 0x41, rate: 1k/s}
          - {name: n, from: device/d, to: web/3, on: pcpu/9, vector: 0x41, rate: 1k/s}
        """
    )
    assert [line.split(": ")[1] for line in message.split("\n") if line.startswith("c.yaml")] == [
        "cluster.pcpus",
        "vms.web.vcpus",
    ]


@pytest.mark.parametrize("pin", ["{0: x}", "{0: 9}", "[]"])
def test_a_wrong_pin_does_not_also_make_a_pcpu_too_full(desk, pin):
    more = f"vms.web={{vcpus: 1, pin: {pin}}}"
    message = desk.error_with("", "cluster.pcpus=3", more, "vms.db.pin={0: 2}")
    assert message.count("-s ") == 1


def test_long_lists_of_mistakes_are_counted(desk):
    count = errors.MISTAKES_MAX + 7
    message = desk.error_with("".join(f"k{i}: 0\n" for i in range(count)))
    assert message.count("unknown key") == errors.MISTAKES_MAX
    assert message.endswith("\n\n... and 7 more")


@pytest.mark.parametrize(
    ("wrong", "right"), [("lod", "load"), ("clutser", "cluster"), ("expects", "expect")]
)
def test_an_unknown_key_gets_a_suggestion(desk, wrong, right):
    message = desk.error_with(f"{wrong}: 1\n")
    assert message.startswith(f"c.yaml:6:1: {wrong}: unknown key; did you mean '{right}'? allowed:")


def test_a_key_unlike_any_other_gets_the_list_only(desk):
    assert "c.yaml:6:1: zzz: unknown key; allowed: pirlab, name," in desk.error_with("zzz: 1\n")


def test_keys_with_x_are_ignored_at_every_level(desk):
    cell = desk.cell(
        """\
        x-notes: {anything: [1, 2]}
        x-rate: &rate 3k/s
        load:
          - {name: t, from: db/0, to: self, vector: 0x41, rate: *rate, x-why: because}
        kvm: {x-a: 1}
        run: {x-b: 2}
        matrix: {x-c: 3}
        expect:
          - {check: lost == 0, when: {x-d: 4}, x-e: 5}
        """,
        "vms.x-spare=1",
        "vms.db.x-f=1",
    )
    assert cell.loads[0].rate_per_s == 3000
    assert len(cell.expect) == 1


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("name: a\ncluster: {pcpus: 1}\nvms: {a: {vcpus: 1}}", "'pirlab' is missing"),
        ("pirlab: 1\ncluster: {pcpus: 1}\nvms: {a: {vcpus: 1}}", "'name' is missing"),
        ("pirlab: 1\nname: a\nvms: {a: {vcpus: 1}}", "'cluster' is missing"),
        ("pirlab: 1\nname: a\ncluster: {}\nvms: {a: {vcpus: 1}}", "cluster: 'pcpus' is missing"),
        ("pirlab: 1\nname: a\ncluster: {pcpus: 1}", "'vms' is missing"),
        ("pirlab: 1\nname: a\ncluster: {pcpus: 1}\nvms: {a: {}}", "vms.a: 'vcpus' is missing"),
        ("pirlab: 1\nname: a\ncluster: {pcpus: 1}\nvms: {}", "vms: must have at least one entry"),
    ],
)
def test_what_must_be_there_is_missed(desk, text, missing):
    assert missing in desk.error(text)


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("question: 5", "6:11: question: must be a text, got 5"),
        ("load: {a: b}", "6:7: load: must be a list, got a mapping"),
        ("load: [a]", "6:8: load.0: must be a mapping, got 'a'; allowed: name, from"),
        ("kvm: fast", "6:6: kvm: must be a mapping, got 'fast'; allowed: preset, rule"),
        ("kvm: {bugs: [nope]}", "6:14: kvm.bugs.0: unknown value, got 'nope'; "),
        ("kvm: {halt_poll: 200}", "6:18: kvm.halt_poll: must be a duration with its unit"),
        ("kvm: {halt_poll: 0.5ns}", "6:18: kvm.halt_poll: must be a whole number of ns, got"),
        ("run: {for: 0s}", "6:12: run.for: must be above 0, got '0s'"),
        ("run: {for: 25h}", "6:12: run.for: must be at most 24h, got '25h'"),
        ("run: {repeat: true}", "6:15: run.repeat: must be an integer, got true; allowed: 1..1000"),
        ("run: {seed: -1}", "6:13: run.seed: out of range, got -1; allowed: 0..4294967295"),
        ("run: {warmup: }", "6:14: run.warmup: must be a duration with its unit"),
        (f"{LOAD}, vector2: 1}}", "load.t.vector2: unknown key; did you mean 'vector'?"),
        (f"{LOAD}, count: 0}}", "load.t.count: out of range, got 0; allowed: 1 or more"),
        (f"{LOAD}, arrival: on}}", "load.t.arrival: unknown value, got 'on'; allowed: even"),
        ("load: [{name: 1}]", "6:15: load.0.name: must be a name of letters"),
        ("load: [{name: device}]", "6:15: load.device.name: must be a name of letters"),
        ("expect: [{check: 5}]", "6:18: expect.0.check: must be a comparison such as lost == 0"),
        ("expect: [{}]", "6:10: expect.0: must have one of check and violates"),
        ("expect: [{check: a > 0, violates: lost-wakeup}]", "must have one of check and violates"),
        ("expect: [{violates: wakeup}]", "did you mean 'lost-wakeup'? allowed: lost-wakeup, lost-"),
        ("expect: [{check: a > 0, when: 5}]", "6:31: expect.0.when: must be a mapping of dotted"),
    ],
)
def test_a_wrong_value_is_told_with_its_place(desk, more, problem):
    assert problem in desk.error_with(more)


@pytest.mark.parametrize("vector", ["0x0f", "15", "256", "0x100", "-1"])
def test_a_vector_that_the_apic_refuses_is_refused(desk, vector):
    message = desk.error_with(LOAD.replace("0x41", vector) + "}")
    assert "load.t.vector: out of range, got" in message
    assert "allowed: 0x10..0xff" in message


def test_an_empty_section_is_as_good_as_none(desk):
    assert desk.cell("load:\nkvm:\nmatrix:\nexclude:\nexpect:\nrun:\n") == desk.cell()


def test_the_caret_stands_below_its_character_after_tabs_and_wide_characters(desk):
    message = desk.error_with('kvm: {x-名前: "\t", rle: 1}\n')
    line, caret = message.split("\n")[1:]
    assert line == '    kvm: {x-名前: "\t", rle: 1}'
    assert caret == " " * 4 + " " * len("kvm: {x-") + " " * 4 + " " * len(': "') + "\t   ^"


def test_a_long_line_is_cut_around_the_caret(desk):
    message = desk.error_with(f"x-long: &a {{a: {'y' * 400}}}\nkvm: {{x-a: {'z' * 300}, rle: 1}}")
    line, caret = message.split("\n")[1:]
    assert len(line) <= 4 + errors.LINE_MAX
    assert line[len(caret) - 1 :].startswith("rle: 1")


def test_a_wrong_value_of_any_length_fits_a_line(desk):
    message = desk.error_with(f"kvm: {{rule: {'z' * 5000}}}\n")
    assert len(message.split("\n")[0]) < 300
