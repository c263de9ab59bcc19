"""Whole kernels: what each release set the axes of `params.Kvm` to.

A preset says what the kernel did by default on a host with APICv, not which hardware there is
(`senders`) nor a module parameter that somebody must set (`exitless_timer`).  Where an axis had no
meaning yet it stands at the value that changes nothing: before v5.8 no exit re-enters, so the
re-entry order is the sound one.
"""

from dataclasses import replace
from typing import Final

from emulator.kvm.params import (
    EntryOrder,
    FastpathIcr,
    Kvm,
    Notify,
    PidScheme,
    ReentryOrder,
    Timer,
)

_V3_10: Final = Kvm(
    rule=Notify.KVM_V3_10,
    pid_scheme=PidScheme.NONE,
    entry_order=EntryOrder.V2013,
    halt_poll_ns=0,  # halt polling came with v4.0
    fastpath_icr=FastpathIcr.NONE,
    fastpath_tscdeadline=False,
    fastpath_preemption_timer=False,
    timer=Timer.HRTIMER,
)
_V4_11: Final = replace(
    _V3_10,
    rule=Notify.KVM_V4_11,
    pid_scheme=PidScheme.PRE_BLOCK,  # bf9f6ac8d749
    entry_order=EntryOrder.V2017,
    halt_poll_ns=Kvm().halt_poll_ns,
    timer=Timer.PREEMPTION,  # ce7a058a2117
)
_V5_8: Final = replace(
    _V4_11,
    rule=Notify.KVM_V5_8,
    reentry_order=ReentryOrder.SYNC_LAST,  # until de7cd3f6761f (v5.15)
    fastpath_icr=FastpathIcr.EXIT,
    fastpath_tscdeadline=True,
    fastpath_preemption_timer=True,
)
_V5_16: Final = replace(_V5_8, rule=Notify.KVM_V5_16, reentry_order=ReentryOrder.SYNC_FIRST)
_V5_17: Final = replace(_V5_16, rule=Notify.KVM_V5_17, pid_scheme=PidScheme.PREEMPT_SN)
_V5_18: Final = replace(_V5_17, rule=Notify.KVM_V5_18)
_V6_17: Final = replace(
    _V5_18,
    pid_scheme=PidScheme.SN_ON_PUT,
    fastpath_icr=FastpathIcr.REENTER,
    fastpath_hlt=True,
)

PRESETS: Final = {
    "kvm-v3.10": _V3_10,
    "kvm-v4.11": _V4_11,
    "kvm-v5.8": _V5_8,
    "kvm-v5.16": _V5_16,
    "kvm-v5.17": _V5_17,
    "kvm-v5.18": _V5_18,
    "kvm-v6.17": _V6_17,
}

SCHEME_OF_RULE: Final = {
    Notify.KVM_V3_10: PidScheme.PRE_BLOCK,  # knew no hardware sender: the nearest that did
    Notify.KVM_V4_11: PidScheme.PRE_BLOCK,
    Notify.KVM_V5_8: PidScheme.PRE_BLOCK,
    Notify.KVM_V5_16: PidScheme.PRE_BLOCK,
    Notify.KVM_V5_17: PidScheme.PREEMPT_SN,
    Notify.KVM_V5_18: PidScheme.PREEMPT_SN,
}
"""The put/load scheme of a rule's own release, for a host with a hardware sender."""
