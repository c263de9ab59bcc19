"""What the processor and the IOMMU do.  Pure: no clock, socket, file or shared memory.

One notification's way, with the section of the manual (SDM vol. 3, the edition whose chapter 29 is
APIC virtualization):

    senders.py       a hardware sender sets PIR and ON, and sends NV        VT-d 5.2.3, 30.1.6
    lapic.py         the target's local APIC accepts and presents it        10.8
    vmx.py           the boundary acknowledges it and compares it with NV   29.6 steps 1-2
    posted.py        ON cleared, EOI, PIR into VIRR, RVI, evaluation        29.6 steps 3-7
    apicv.py         the virtual interrupt is recognised and delivered      29.2
    instructions.py  the guest's handler writes EOI                         29.1.4

cpu.py is the seam between protocol text and its worlds, bare.py the smallest of them.  Data:
pi_desc.py (descriptor), vmcs.py (controls, guest state), vectors.py; rules: access.py (which
register accesses are virtual), entry_checks.py; physical side: destinations.py, timer.py.

Left to the implementation by the manual, and chosen here: shadows do not hold back external
interrupts while external-interrupt exiting is on; delivery follows evaluation at the same boundary;
PPR of the physical APIC has TPR's low nibble at equal classes; vectors 0 to 15 in PIR are harvested
like others and, being of class 0, never recognised.
Not modelled: NMI, SMI, INIT and SIPI as events, level-triggered interrupts, user interrupts,
enclaves, faults during delivery.
"""
