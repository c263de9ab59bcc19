"""`-s key.path=value`, `extends:`, `matrix:` and `exclude:`."""

import pytest

LOADS = """\
load:
  - {name: timer, from: each-vcpu, to: self, vector: 0xec, rate: 2k/s}
  - {name: ipi, from: db/0, to: db/1, vector: 0xfb, rate: 1k/s}
"""
MATRIX = """\
matrix:
  kvm.rule: [kvm-v5.16, kvm-v5.18]
  run.seed: [1, 2, 3]
"""


def rules(experiment):
    return [(cell.kvm.rule.value, cell.run.seed) for cell in experiment.cells]


def with_base(desk, more):
    return desk.write("pirlab: 1\nname: m\ncluster: {pcpus: 2}\nvms: {db: {vcpus: 2}}\n" + more)


# -- overrides ------------------------------------------------------------------------------------


def test_the_value_of_an_override_is_yaml(desk):
    cell = desk.cell("", "kvm={rule: kvm-v5.8, halt_poll: 10us}", "run.seed=0x10", "vms.db.vcpus=1")
    assert (cell.kvm.rule.value, cell.kvm.halt_poll_ns, cell.run.seed) == ("kvm-v5.8", 10_000, 16)
    assert len(cell.vcpus) == 1


def test_later_overrides_win(desk):
    assert desk.cell("", "run.seed=1", "run.seed=2").run.seed == 2


@pytest.mark.parametrize("path", ["load.ipi.rate", "load.1.rate"])
def test_an_element_of_a_list_is_named_or_counted(desk, path):
    cell = desk.cell(LOADS, f"{path}=7/s")
    assert [load.rate_per_s for load in cell.loads] == [2000.0, 2000.0, 7.0]


def test_a_key_that_is_an_integer_is_found(desk):
    cell = desk.cell("", "vms.db.pin={0: 0, 1: 1}", "vms.db.pin.0=1", "vms.db.pin.1=0")
    assert [vcpu.pcpu for vcpu in cell.vcpus] == [1, 0]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("kvm.rle=kvm-v5.8", "kvm.rle: unknown key; did you mean 'rule'? allowed: preset, rule,"),
        ("kwm.rule=kvm-v5.8", "kwm: unknown key; did you mean 'kvm'? allowed: pirlab, name,"),
        ("kvm.rule=kvm-v5.9", "kvm.rule: unknown value, got 'kvm-v5.9'; did you mean 'kvm-v5.8'?"),
        ("kvm.rule", "must be key.path=value"),
        ("=5", "must be key.path=value"),
        ("kvm..rule=5", "must be key.path=value"),
        ("kvm=[", "not YAML: while parsing a flow node"),
        ("kvm.rule.x=5", "kvm.rule: has nothing below it, so no 'x'"),
        ("load.timr.rate=1/s", "load.timr: no such element; did you mean 'timer'? allowed: timer,"),
        ("load.2.rate=1/s", "load.2: no such element; allowed: timer, ipi"),
        ("run.for=", "run.for: must be a duration with its unit"),
        ("run.for=5", "run.for: must be a duration with its unit, such as 500ms (ns, us, ms, s"),
        ("extends=other.yaml", "extends: cannot be overridden; name the other file instead"),
        ("a" + ".a" * 5000 + "=1", "a: more than 24 parts in a dotted path"),
    ],
)
def test_a_wrong_override_is_told_as_it_was_typed(desk, override, problem):
    message = desk.error_with(LOADS + "kvm: {rule: kvm-v5.18}\n", override)
    assert message.startswith(f"-s {override}: {problem}")
    assert "\n" not in message


def test_mistakes_of_file_and_overrides_come_together(desk):
    message = desk.error_with("kvm: {rle: 1}\n", "run.seed=x", "run.fro=1s")
    assert message.count("\n\n") == 2
    assert "-s run.seed=x: " in message
    assert "-s run.fro=1s: " in message
    assert "c.yaml:6:7: " in message


def test_an_override_can_mend_the_file(desk):
    assert desk.cell("kvm: {rule: nonsense}\n", "kvm.rule=kvm-v5.8").kvm.rule.value == "kvm-v5.8"


# -- the matrix -----------------------------------------------------------------------------------


def test_a_matrix_is_every_combination_in_the_order_of_the_file(desk):
    experiment = desk.load(desk_text(MATRIX))
    assert experiment.matrix
    assert rules(experiment) == [(r, s) for r in ("kvm-v5.16", "kvm-v5.18") for s in (1, 2, 3)]
    assert experiment.cells[1].set == {"kvm.rule": "kvm-v5.16", "run.seed": 2}
    assert experiment.cells[1].label == "kvm.rule=kvm-v5.16, run.seed=2"


def desk_text(more):
    return "pirlab: 1\nname: m\ncluster: {pcpus: 2}\nvms: {db: {vcpus: 2}}\n" + more


def test_an_empty_matrix_is_a_single_run(desk):
    experiment = desk.load(desk_text(MATRIX), "kvm.rule=kvm-v5.8", "matrix={}")
    assert not experiment.matrix
    assert rules(experiment) == [("kvm-v5.8", 42)]
    assert experiment.cells[0].set == {}


def test_an_override_of_an_axis_fixes_it(desk):
    experiment = desk.load(desk_text(MATRIX), "kvm.rule=kvm-v5.8")
    assert rules(experiment) == [("kvm-v5.8", 1), ("kvm-v5.8", 2), ("kvm-v5.8", 3)]


def test_an_axis_can_be_overridden(desk):
    experiment = desk.load(desk_text(MATRIX), "matrix.kvm.rule=[kvm-v5.8]", "matrix.run.seed=[9]")
    assert rules(experiment) == [("kvm-v5.8", 9)]


def test_an_axis_reaches_into_lists_by_name(desk):
    more = LOADS + "matrix: {load.ipi.rate: [1/s, 2/s], vms.db.pin.0: [0], vms.db.pin.1: [1]}"
    rates = [cell.loads[-1].rate_per_s for cell in desk.load(desk_text(more)).cells]
    assert rates == [1.0, 2.0]


def test_what_an_axis_provides_may_be_missing_elsewhere(desk):
    text = "pirlab: 1\nname: m\ncluster: {}\nvms: {a: {}}\n"
    text += "matrix: {cluster.pcpus: [2], vms.a.vcpus: [1, 2]}\n"
    assert [len(cell.vcpus) for cell in desk.load(text).cells] == [1, 2]


def test_a_wrong_value_of_an_axis_is_told_once_and_in_the_matrix(desk):
    more = "matrix:\n  kvm.rule: [kvm-v5.9, kvm-v5.18]\n  run.seed: [1, 2, 3]\n"
    message = desk.error(desk_text(more))
    assert message.startswith("c.yaml:6:14: kvm.rule: unknown value, got 'kvm-v5.9'; did you mean")
    assert message.count("kvm-v5.9'") == 1
    assert "in the cell" not in message


def test_a_mistake_of_some_cells_only_names_the_first_of_them(desk):
    text = """\
        pirlab: 1
        name: m
        cluster: {pcpus: 2}
        vms:
          db: {vcpus: 2, pin: {1: 1}}
        matrix:
          cluster.pcpus: [2, 1]
          run.seed: [1, 2]
        """
    message = desk.error(text)
    where = "(in the cell cluster.pcpus=1, run.seed=1)"
    first = f"c.yaml:5:27: vms.db.pin.1: no such pCPU, got 1; allowed: 0 (cluster.pcpus: 1) {where}"
    assert message.split("\n")[0] == first


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("matrix: [a]", "5:9: matrix: must be a mapping of dotted paths to lists, got a list"),
        ("matrix: {kvm.rule: kvm-v5.8}", "5:20: matrix: kvm.rule: must be a list of values, got"),
        (
            "matrix: {kvm.rule: []}",
            "5:20: matrix: kvm.rule: must be a list of values, got an empty",
        ),
        ("matrix: {kvm.rle: [1]}", "5:10: kvm.rle: unknown key; did you mean 'rule'?"),
        ("matrix: {name: [a]}", "5:10: matrix: name: cannot be varied; allowed: cluster.*, vms.*"),
        ("matrix: {kvm..rule: [a]}", "5:10: matrix: kvm..rule: cannot be varied"),
        ("matrix: {load.x.rate: [1/s]}", "5:10: matrix: load: has nothing below it"),
        ("matrix: {load.a: [{}]}", "5:10: matrix: load.a: a must stay the same load; vary its"),
        ("matrix: {load.0.name: [a]}", "5:10: matrix: load.0.name: 0 must stay the same load;"),
        (
            "matrix: {kvm: [{}], kvm.rule: [kvm-v5.8]}",
            "5:21: matrix: kvm.rule and kvm set the same",
        ),
        (
            "exclude: {kvm.rule: a}\n" + MATRIX,
            "5:10: exclude: must be a list of mappings, got a map",
        ),
        ("exclude: [a]\n" + MATRIX, "5:11: exclude.0: must be a mapping of dotted paths to values"),
        (
            "exclude: [{kvm.rle: a}]\n" + MATRIX,
            "5:12: exclude.0: kvm.rle: unknown key; did you mean",
        ),
        ("exclude: [{kvm.rule: a}]\n" + MATRIX, "5:22: exclude.0.kvm.rule: unknown value, got 'a'"),
        (
            "exclude: [{kvm.rule.a: a}]\n" + MATRIX,
            "5:12: exclude.0: kvm.rule: has nothing below it",
        ),
        ("exclude: [{run.repeat: 1}]\n" + MATRIX, "exclude: leaves no cell of the matrix"),
    ],
)
def test_a_wrong_matrix_is_told_with_its_place(desk, more, problem):
    text = desk_text(more)
    if "load.x" in more:
        text += "\nload: none\n"
    assert problem in desk.error(text)


def test_a_matrix_of_too_many_cells_is_refused_at_once(desk):
    seeds = list(range(100))
    more = f"matrix:\n  run.seed: {seeds}\n  run.repeat: {seeds}\n  kvm.rule: [kvm-v5.8]\n"
    message = desk.error(desk_text(more))
    assert message.startswith("c.yaml:6:3: matrix: has 10000 cells; allowed: at most 1000")


def test_exclude_takes_out_the_cells_that_have_all_its_values(desk):
    more = MATRIX + "exclude:\n  - {kvm.rule: kvm-v5.16, run.seed: 2}\n  - {run.seed: 0x3}\n"
    assert rules(desk.load(desk_text(more))) == [
        ("kvm-v5.16", 1),
        ("kvm-v5.18", 1),
        ("kvm-v5.18", 2),
    ]


def test_exclude_compares_what_values_mean_and_knows_defaults(desk):
    more = LOADS + (
        "matrix: {load.ipi.rate: [2000/s, 1/s]}\n"
        "exclude: [{load.ipi.rate: 2k/s, kvm.halt_poll: 0.2ms}]\n"
    )
    (cell,) = desk.load(desk_text(more)).cells
    assert cell.loads[-1].rate_per_s == 1.0


def test_an_excluded_cell_may_be_impossible(desk):
    more = "matrix: {cluster.pcpus: [1, 2]}\nexclude: [{cluster.pcpus: 1}]\n"
    assert [cell.pcpus for cell in desk.load(desk_text(more)).cells] == [2]


def test_without_a_matrix_exclude_takes_nothing_out(desk):
    assert len(desk.load(desk_text("exclude: [{run.repeat: 1}]\n")).cells) == 1


# -- extends --------------------------------------------------------------------------------------


def test_a_config_extends_another_key_by_key(desk):
    (desk.directory / "sub").mkdir()
    desk.write(desk_text(LOADS + "kvm: {rule: kvm-v5.8, halt_poll: 1us}\n"), "base.yaml")
    text = "extends: ../base.yaml\nname: child\nkvm: {halt_poll: 2us}\nload: []\n"
    path = desk.write(text, "sub/child.yaml")
    from emulator.config import load_experiment

    experiment = load_experiment(path, ["run.seed=5"])
    (cell,) = experiment.cells
    assert (cell.name, cell.kvm.rule.value, cell.kvm.halt_poll_ns) == ("child", "kvm-v5.8", 2000)
    assert (cell.loads, cell.run.seed) == ((), 5)
    assert experiment.source == text
    assert experiment.base_source.startswith("pirlab: 1\nname: m")


def test_a_mistake_in_the_extended_file_is_told_there(desk):
    desk.write(desk_text("kvm: {rle: 1}\n"), "base.yaml")
    assert desk.error("extends: base.yaml\nname: child\n").startswith(
        "base.yaml:5:7: kvm.rle: unkn"
    )


def test_a_chain_of_extends_is_a_mistake(desk):
    desk.write(desk_text(""), "a.yaml")
    desk.write("extends: a.yaml\n", "b.yaml")
    message = desk.error("extends: b.yaml\nname: c\n")
    assert "c.yaml:1:10: extends: b.yaml extends another file itself; only one level" in message


def test_a_config_that_extends_itself_is_a_chain(desk):
    assert "extends another file itself" in desk.error("extends: c.yaml\nname: c\n")


def test_extending_what_is_not_there_is_told_at_the_key(desk):
    message = desk.error("extends: nowhere.yaml\nname: c\n")
    assert message.startswith("c.yaml:1:10: extends: nowhere.yaml: there is no such file\n")


def test_extends_must_be_a_file_name(desk):
    assert "c.yaml:1:10: extends: must be a file name, got a list" in desk.error("extends: [a]\n")
