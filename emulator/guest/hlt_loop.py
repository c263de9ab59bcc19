"""A guest that is idle: `sti; hlt` until an interrupt comes, as an operating system's idle loop.

Its own IPIs are due at known times; like a tickless kernel it arms its timer before it halts.
"""

from emulator.guest.program import assemble

PROGRAM = assemble(
    "hlt-loop",
    "halts whenever it has nothing to do",
    """
    loop:   cli
            work idle
            send
            jmp loop
    idle:   arm
            sti
            hlt
            jmp loop

    timer:
    irq:    eoi
            iret
    """,
)
