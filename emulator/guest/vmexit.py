"""Tests of kvm-unit-tests' x86/vmexit.c: one thing, over and over, each time to its end.

What they cost in exits and notifications is known exactly, on any machine: nothing overlaps.
vCPU 0 sends to vCPU 1 and waits for its answer, a word in memory, before it sends again; its loads
say how often at most.
"""

from typing import Final

from emulator.guest.program import Program, assemble

_SENDER: Final = """
            sti
            first target
    loop:   ready idle
            work idle
            send
            jmp loop
    idle:   pause
            jmp loop
"""

IPI: Final[Program] = assemble(
    "ipi",
    "vCPU 0 interrupts vCPU 1, which spins, and waits until it has been",
    f"""
    {_SENDER}
    target: ack
    busy:   pause
            jmp busy

    irq:    eoi
            ack
            iret
    """,
)

# From CLI to HLT no interrupt gets in: each one costs the target exactly one HLT exit.
IPI_HALT: Final[Program] = assemble(
    "ipi-halt",
    "vCPU 0 interrupts vCPU 1, which halts, and waits until it has been",
    f"""
    {_SENDER}
    target: cli
            ack
            sti
            hlt
            jmp target

    irq:    eoi
            iret
    """,
)

SELF_IPI_HALT: Final[Program] = assemble(
    "self-ipi-halt",
    "interrupts itself with interrupts off, then STI; HLT: work is pending at each HLT",
    """
    loop:   cli
            work idle
            send
            sti
            hlt
            jmp loop
    idle:   pause
            jmp loop

    irq:    eoi
            iret
    """,
)

TSCDEADLINE_IMMED: Final[Program] = assemble(
    "tscdeadline-immed",
    "writes TSC deadlines that are past already",
    """
            sti
    loop:   due idle
            arm
            jmp loop
    idle:   pause
            jmp loop

    irq:    eoi
            iret
    """,
)
