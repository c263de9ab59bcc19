"""The museum: what has gone wrong in this protocol, and what would.

Each exhibit is a switch at the place in the text where the mistake was, or an axis of `params.Kvm`
set as history had it; `checker/exhibits.py` shows that the checker finds it with the switch on and
not with it off.  What cannot be told in this text says so in `why_not`.

Titles and commits: the kernel's history and the kvm mailing list.  "Invariant" names what breaks:

    I1  work in PIR is announced       I6  requests are seen before entry
    I2  no post is lost                I7  VIRR and RVI are written by their owner
    I3  no entry over unseen work      I8  nobody is woken for what it cannot take
    I4  no sleep over work             I9  SVI is the highest vector in service
    I5  list, NV and NDST agree        I10 work moves to VIRR at its owner's only
                                       I11 only fixed edge interrupts are posted
                                       I13 one notification for each 0 -> 1 of ON
                                       I15 a vCPU's own thread elides, and syncs after
"""

from dataclasses import dataclass
from typing import Final

from emulator.kvm.params import Bug


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibit:
    """One bug.  `commit` is the fix; an id that starts with a letter other than B is a mutant."""

    id: str
    title: str
    introduced: str
    commit: str
    invariant: str
    switch: Bug | None = None
    why_not: str = ""


_NESTED: Final = "nested VMX is not in this text"
_APICV: Final = "APICv is never inhibited in the model; configs/apicv-inhibit shows it live"
_AVIC: Final = "AMD AVIC is not in this text"

HISTORY: Final = (
    Exhibit(
        id="B01",
        title="wake-up lost to an interrupt of the vCPU's own pCPU (rule kvm-v5.8)",
        introduced="379a3c8ee444",
        commit="fdba608f15e2",
        invariant="I2, I4",
    ),
    Exhibit(
        id="B02",
        title="fastpath loop tests requests before syncing (re-entry order sync-last)",
        introduced="379a3c8ee444",
        commit="de7cd3f6761f",
        invariant="I6",
        why_not=f"what it loses is an L2 guest's EVENT request; {_NESTED}",
    ),
    Exhibit(
        id="B03",
        title="IN_GUEST_MODE stored before interrupts are off",
        introduced="a20ed54d6e47",
        commit="b95234c84004",
        invariant="I3",
        switch=Bug.B03,
    ),
    Exhibit(
        id="B04",
        title="PIR synced before IN_GUEST_MODE is stored",
        introduced="a20ed54d6e47",
        commit="b95234c84004",
        invariant="I3",
        switch=Bug.B04,
    ),
    Exhibit(
        id="B05",
        title="SN cleared, ON not recomputed from PIR",
        introduced="28b835d60fcc",
        commit="c112b5f50232",
        invariant="I1, I2",
        switch=Bug.B05,
    ),
    Exhibit(
        id="B06",
        title="NDST rewritten for a blocked vCPU",
        introduced="c112b5f50232",
        commit="do not change PID.NDST when loading a blocked vCPU (v5.4)",
        invariant="I5",
        switch=Bug.B06,
    ),
    Exhibit(
        id="B07",
        title="pending test looks at ON only",
        introduced="28b835d60fcc",
        commit="consider PID.PIR to determine if vCPU has pending interrupts (v5.4)",
        invariant="I1",
        why_not="its caller, directed yield, is not in this text",
    ),
    Exhibit(
        id="B08",
        title="vCPU put on the wake-up list twice after a device was unplugged",
        introduced="bf9f6ac8d749",
        commit="8b306e2f3c41, 31afb2ea2b10",
        invariant="I5",
        switch=Bug.B08,
    ),
    Exhibit(
        id="B09",
        title="device assigned while the vCPU is blocked",
        introduced="bf9f6ac8d749",
        commit="a2486020a82e",
        invariant="I4",
        switch=Bug.B09,
    ),
    Exhibit(
        id="B10",
        title="condition tested again at load: the vCPU stays on the list, NV stays 0xf1",
        introduced="bf9f6ac8d749",
        commit="53b7ca1a3593",
        invariant="I5",
        switch=Bug.B10,
    ),
    Exhibit(
        id="B11",
        title="PIR ignored while APICv is inhibited",
        introduced="",
        commit="7e1901f6c86c, 37c4dbf337c5",
        invariant="I2",
        switch=Bug.B11,
        why_not=_APICV,
    ),
    Exhibit(
        id="B12",
        title="control word read twice in the update loop: ON written back as 0",
        introduced="28b835d60fcc",
        commit="cfb0e1306a37",
        invariant="I1",
        switch=Bug.B12,
    ),
    Exhibit(
        id="B13",
        title="nested post without a full barrier",
        introduced="705699a13994",
        commit="83c98007d9fb",
        invariant="I3",
        why_not=_NESTED,
    ),
    Exhibit(
        id="B14",
        title="L1's event not re-evaluated on entry to L2",
        introduced="",
        commit="f27a85c4988d",
        invariant="I6",
        why_not=_NESTED,
    ),
    Exhibit(
        id="B15",
        title="RVI leaks into another vCPU's VMCS",
        introduced="d73eb57b80b9",
        commit="17e433b54393",
        invariant="I7",
        why_not="its caller, directed yield, is not in this text",
    ),
    Exhibit(
        id="B16",
        title="wake-up armed though the guest has interrupts off",
        introduced="bf9f6ac8d749",
        commit="1831fa44df74",
        invariant="I8",
        switch=Bug.B16,
    ),
    Exhibit(
        id="B17",
        title="AVIC inhibition races with delivery",
        introduced="",
        commit="66fa226c131f, 30811174f0db",
        invariant="I3",
        why_not=_AVIC,
    ),
    Exhibit(
        id="B18",
        title="AVIC: preempted between the blocking hook and the wait",
        introduced="",
        commit="18869f26df1a",
        invariant="I4",
        why_not=_AVIC,
    ),
    Exhibit(
        id="B19",
        title="descriptor purged after the APIC's state was loaded",
        introduced="",
        commit="fix lapic timer interrupt lost after loading a snapshot (v6.7)",
        invariant="I2",
        why_not="saving and restoring a VM is not in this text",
    ),
    Exhibit(
        id="B20",
        title="SVI stale when APICv becomes active",
        introduced="",
        commit="b2849bec936b",
        invariant="I9",
        switch=Bug.B20,
        why_not="APICv is never inhibited in the model, nor has it an in-service register",
    ),
    Exhibit(
        id="B21",
        title="nested vector wrongly reflected under IPI virtualization",
        introduced="d588bb9be1da",
        commit="44518120c4ca",
        invariant="I6",
        why_not=_NESTED,
    ),
    Exhibit(
        id="B22",
        title="notification sent to a pCPU that the vCPU has left (scheme preempt-sn)",
        introduced="d76fb40637fc",
        commit="6737557442e5",
        invariant="I10",
    ),
    Exhibit(
        id="B23",
        title="locking of the wake-up list",
        introduced="bf9f6ac8d749",
        commit="raw spinlock (v5.17), c0b8dcabb2cd, 6bad6ecc63b7",
        invariant="deadlock",
        why_not="list operations are single steps: there is no lock order to get wrong",
    ),
    Exhibit(
        id="B24",
        title="SMI, NMI and the like posted as fixed vectors",
        introduced="",
        commit="disable posted interrupts for odd IRQs (v5.5)",
        invariant="I11",
        why_not="the text posts fixed vectors only",
    ),
    Exhibit(
        id="B25",
        title="host affinity change overwrites an IRTE that posts to a vCPU",
        introduced="posted MSI (v6.10)",
        commit="two iommu/vt-d fixes (March 2025)",
        invariant="I2",
        why_not="remapping entries do not change in this text",
    ),
)

_MUTANTS: Final = (
    (Bug.SEND_REVERSED, "the sender sets ON before PIR", "I2"),
    (Bug.MODE_BEFORE_ON, "the sender reads the mode before it sets ON", "I3"),
    (Bug.NO_GATE, "the sender ignores that ON was set", "I13"),
    (Bug.NO_WAKE, "the sender does not wake a vCPU that is not in guest mode", "I4"),
    (Bug.SYNC_REVERSED, "the receiver reads PIR before it clears ON", "I2"),
    (Bug.NO_ENTRY_FENCE, "no barrier between the mode store and the load of ON", "I3"),
    (Bug.WAKE_WITHOUT_STATE, "the last check comes before the task state is set", "I4"),
    (Bug.STATE_WITHOUT_FENCE, "no barrier between the task state and the last check", "I4"),
    (Bug.STALE_RUNNING, "the running-vCPU pointer is not cleared at sched-out", "I3"),
    (Bug.LIST_WRONG_CPU, "load takes the vCPU off the wrong pCPU's list", "I5"),
    (Bug.ARM_WITHOUT_ON_TEST, "the wake-up vector is armed and ON not looked at", "I4"),
    (Bug.STALE_NDST, "NDST is not refreshed on migration", "I3"),
    # Neither loses a post: what is elided too much is synced all the same.  But the argument for
    # eliding says who may, and these two are what it rules out.
    (Bug.ELIDE_EXITING, "EXITING_GUEST_MODE is treated like IN_GUEST_MODE", "I15"),
    (Bug.LATE_OUTSIDE, "interrupts come on again before the mode leaves IN_GUEST_MODE", "I15"),
)

MUTANTS: Final = (
    *(
        Exhibit(
            id=bug.value, title=title, introduced="", commit="", invariant=invariant, switch=bug
        )
        for bug, title, invariant in _MUTANTS
    ),
    Exhibit(
        id="fifo-lapic",
        title="notifications are queued instead of coalesced",
        introduced="",
        commit="",
        invariant="none",
        why_not=(
            "a fault of the local APIC, not of this text: tests/hardware/test_hardware_lapic; a "
            "second notification would find ON = 0, or arrive in root mode, which needs nothing"
        ),
    ),
)
