"""A guest that computes: it never halts, and sends its IPIs when they are due."""

from emulator.guest.program import assemble

PROGRAM = assemble(
    "spin",
    "runs all the time, with PAUSE in its loop",
    """
            arm
            sti
    loop:   work idle
            send
            jmp loop
    idle:   pause
            jmp loop

    timer:  eoi
            arm
            iret
    irq:    eoi
            iret
    """,
)
