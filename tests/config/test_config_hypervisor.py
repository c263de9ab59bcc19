"""What `kvm:` means: presets, the hardware that loads imply, and what makes no sense."""

import pytest

from emulator.config import load_experiment, resolved_yaml
from emulator.config.model import Via
from emulator.kvm.params import FastpathIcr, Kvm, Notify, PidScheme, ReentryOrder, Senders, Timer
from emulator.kvm.presets import PRESETS

POSTED = "load: [{name: nic, from: device/d, via: vt-d, to: db/0, vector: 0x41, rate: 1/s}]\n"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_every_axis(desk, name):
    assert desk.cell(f"kvm: {{preset: {name}}}").kvm == PRESETS[name]


def test_presets_differ_where_the_releases_did():
    old, now = PRESETS["kvm-v5.8"], PRESETS["kvm-v6.17"]
    assert (old.rule, old.pid_scheme) == (Notify.KVM_V5_8, PidScheme.PRE_BLOCK)
    assert old.reentry_order is ReentryOrder.SYNC_LAST
    assert (now.rule, now.pid_scheme) == (Notify.KVM_V5_18, PidScheme.SN_ON_PUT)
    assert now.fastpath_icr is FastpathIcr.REENTER
    assert now.fastpath_hlt
    assert PRESETS["kvm-v3.10"].timer is Timer.HRTIMER
    assert len(set(PRESETS.values())) == len(PRESETS)


def test_a_preset_says_nothing_of_the_hardware():
    assert {kvm.senders for kvm in PRESETS.values()} == {Senders.NONE}
    assert not any(kvm.exitless_timer for kvm in PRESETS.values())


def test_a_key_beside_a_preset_wins(desk):
    kvm = desk.cell("kvm: {pid_scheme: none, preset: kvm-v5.17}", "kvm.halt_poll=5us").kvm
    assert (kvm.rule, kvm.pid_scheme) == (Notify.KVM_V5_17, PidScheme.NONE)
    assert kvm.halt_poll_ns == 5000


def test_a_key_beside_a_preset_wins_although_it_is_the_default(desk):
    default = Kvm().fastpath_icr.value
    assert PRESETS["kvm-v6.17"].fastpath_icr.value != default
    kvm = desk.cell(f"kvm: {{preset: kvm-v6.17, fastpath_icr: {default}}}").kvm
    assert kvm.fastpath_icr is Kvm().fastpath_icr


def test_the_resolved_config_shows_what_a_preset_means(desk):
    experiment = desk.load(f"{desk_text()}kvm: {{preset: kvm-v5.16}}\n")
    text = resolved_yaml(experiment)
    assert "preset: kvm-v5.16" in text
    assert "rule: kvm-v5.16" in text
    assert "pid_scheme: pre-block" in text
    assert load_experiment(desk.write(text, "r.yaml")) == experiment


def test_a_matrix_varies_the_preset(desk):
    text = f"{desk_text()}matrix: {{kvm.preset: [kvm-v5.8, kvm-v6.17]}}\n"
    text += "exclude: [{kvm.rule: kvm-v5.18}]\n"
    text += "expect: [{check: lost == 0, when: {kvm.timer: hrtimer}}]\n"
    experiment = desk.load(text)
    assert [cell.kvm for cell in experiment.cells] == [PRESETS["kvm-v5.8"]]
    assert not experiment.cells[0].expect
    assert load_experiment(desk.write(resolved_yaml(experiment), "r.yaml")) == experiment


def test_an_unknown_preset_is_told_with_the_known(desk):
    message = desk.error_with("kvm: {preset: kvm-v5.88}\n")
    assert "kvm.preset: unknown value, got 'kvm-v5.88'; did you mean 'kvm-v5.8'?" in message


# -- hardware senders -----------------------------------------------------------------------------


def test_no_hardware_sender_is_there_unless_a_load_or_a_key_says_so(desk):
    kvm = desk.cell().kvm
    assert (kvm.senders, kvm.pid_scheme) == (Senders.NONE, PidScheme.NONE)


def test_a_posted_load_brings_its_iommu(desk):
    cell = desk.cell(POSTED)
    assert cell.loads[0].via is Via.VT_D
    assert cell.kvm.senders is Senders.VT_D


@pytest.mark.parametrize(
    ("rule", "scheme"),
    [
        ("kvm-v3.10", PidScheme.PRE_BLOCK),
        ("kvm-v5.8", PidScheme.PRE_BLOCK),
        ("kvm-v5.16", PidScheme.PRE_BLOCK),
        ("kvm-v5.17", PidScheme.PREEMPT_SN),
        ("kvm-v5.18", PidScheme.PREEMPT_SN),
    ],
)
def test_a_hardware_sender_gets_the_scheme_of_the_rules_era(desk, rule, scheme):
    assert desk.cell(f"{POSTED}kvm: {{rule: {rule}}}").kvm.pid_scheme is scheme
    ipiv = f"kvm: {{rule: {rule}, senders: ipi-virtualization}}"
    assert desk.cell(ipiv).kvm.pid_scheme is scheme


def test_a_scheme_that_is_given_stays(desk):
    assert desk.cell(f"{POSTED}kvm: {{pid_scheme: none}}").kvm.pid_scheme is PidScheme.NONE
    preset = desk.cell(f"{POSTED}kvm: {{preset: kvm-v6.17}}").kvm
    assert preset.pid_scheme is PidScheme.SN_ON_PUT


@pytest.mark.parametrize("senders", ["none", "ipi-virtualization"])
def test_a_posted_load_without_an_iommu_makes_no_sense(desk, senders):
    message = desk.error_with(f"{POSTED}kvm: {{senders: {senders}}}\n")
    assert message.startswith(
        "c.yaml:7:16: kvm.senders: 'nic' goes through an IOMMU that posts (via: vt-d), and "
        f"kvm.senders is '{senders}'; allowed: vt-d, both"
    )


def test_a_derived_sender_survives_being_written_and_read(desk):
    experiment = desk.load(desk_text() + POSTED)
    assert load_experiment(desk.write(resolved_yaml(experiment), "r.yaml")) == experiment


# -- the exitless timer ---------------------------------------------------------------------------


def test_the_first_pcpu_without_a_vcpu_counts_exitless_timers(desk):
    cell = desk.cell("kvm: {exitless_timer: true}", "vms.db.pin={0: 0, 1: 2}", "cluster.pcpus=4")
    assert cell.housekeeping == 1
    assert desk.cell("", "cluster.pcpus=4").housekeeping is None


@pytest.mark.parametrize("more", ["cluster.pcpus=2", "vms.db.pin=float"])
def test_an_exitless_timer_without_a_housekeeping_pcpu_makes_no_sense(desk, more):
    message = desk.error_with("kvm: {exitless_timer: true}\n", more)
    assert "c.yaml:6:23: kvm.exitless_timer: the timers count on a housekeeping pCPU" in message


def desk_text():
    return "pirlab: 1\nname: minimal\ncluster: {pcpus: 2}\nvms: {db: {vcpus: 2}}\n"
