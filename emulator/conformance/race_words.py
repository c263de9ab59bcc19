"""The sentences of group interleaving: each clause, and the method of `races.Race` that makes it.

Order matters: the first pattern that matches at a position is taken.
"""

import re
from typing import Final

_V = r"(?P<vector>0x[0-9a-fA-F]+|\d+)"
_OF = r"(?P<suffix>_\w+)?"
_VMM = r"(?:(?:the )?(?:software|VMM|KVM|host|hypervisor) )?"
_FOLD = r"(?:folds?|moves?|copies|harvests?) PIR into V?IRR(?:/RVI)?(?: before (?:VM )?entry)?"
_AGENT = r"IOMMU|VT-d|device|IPI virtualization|software"
_SN_URG = r"(?: ?SN=(?P<sn>[01]))?(?:, ?URG=(?P<urg>[01]))?"

SEPARATOR: Final = re.compile(r"(?:[\s,;:.]|\band\b|\bthen\b)+")

CLAUSES: Final = [
    (re.compile(pattern, re.IGNORECASE), name)
    for pattern, name in (
        # host software
        (rf"{_VMM}clears SN{_OF}", "clear_sn"),
        (rf"{_VMM}sees PIR{_OF} (?:is )?non-?empty", "sees_pir"),
        (rf"sets? ON and sends? a self-IPI with NV(?P<fold>,? or {_FOLD})?", "announce"),
        (rf"{_VMM}{_FOLD}", "fold"),
        # a sender's whole post
        (rf"(?P<agent>{_AGENT}) posts? {_V}(?: with)?{_SN_URG}", "whole_post"),
        # a sender, step by step
        (
            rf"sets? PIR{_OF}\[{_V}\](?: \(was (?P<was>[01])(?P<stop>:? ?,? ?stops?)?\))?",
            "set_pir",
        ),
        (rf"PIR{_OF}\[{_V}\] ?= ?(?P<bit>[01])", "look_pir"),
        (rf"ON{_OF} (?:is )?already 1", "on_already"),
        (rf"ON{_OF} (?:stays|is|still) (?P<bit>[01])", "look_on"),
        (rf"(?:sets? )?ON{_OF} ?(?:0 ?-> ?1|:?= ?1)", "set_on"),
        (rf"sends? NV(?: to the CPU in NDST{_OF})?", "send"),
        (r"(?:no NV|nothing sent|sends? nothing)(?: sent)?", "no_nv"),
        # the target
        (
            r"is in non-root(?: mode| operation)?(?: with vCPU (?P<vcpu>\w+) current)?",
            "in_non_root",
        ),
        (r"(?:is )?in root(?: mode| operation)?", "in_root"),
        (r"(?:the )?host(?:'s)? (?:IDT )?takes NV(?: through (?:its|the host) IDT)?", "host_takes"),
        (r"NV (?:is )?taken (?:through|by) (?:its|the host|the host's|host) IDT", "host_takes"),
        (r"VM[- ]?entry|enters(?: non-root(?: mode| operation)?)?", "vm_entry_clause"),
        (r"ack(?:nowledges?)? NV", "ack"),
        (rf"{_VMM}clears? ON{_OF}", "clear_on"),
        (r"(?:physical |host )?EOIs?", "eoi"),
        (rf"{_VMM}harvests? PIR{_OF}(?P<empty> \(empty\))?", "harvest"),
        (r"RVI ?:?= ?max(?:\([^)]*\))?", "rvi_max"),
        (r"evaluat(?:es?|ion)", "evaluate"),
    )
]
