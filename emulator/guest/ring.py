"""A ring of vCPUs that pass a token: each answers an interrupt with one to the next vCPU.

vCPU 0 starts.  Two vCPUs make a ping-pong.
"""

from emulator.guest.program import assemble

PROGRAM = assemble(
    "ring",
    "passes a token to the next vCPU of its VM, spinning meanwhile",
    """
            arm
            sti
            first loop
            token loop
            send
    loop:   work idle
            send
            jmp loop
    idle:   pause
            jmp loop

    timer:  eoi
            arm
            iret
    irq:    eoi
            token rest
            send
    rest:   iret
    """,
)
