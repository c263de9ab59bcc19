"""Guest programs by name.  A new guest is one small file and one line here."""

from typing import Final

from emulator.guest import hlt_loop, ring, spin, vmexit
from emulator.guest.program import Program

PROGRAMS: Final[dict[str, Program]] = {
    "spin": spin.PROGRAM,
    "hlt-loop": hlt_loop.PROGRAM,
    "ring": ring.PROGRAM,
    "ping-pong": ring.PROGRAM,  # a ring of two
    "ipi": vmexit.IPI,
    "ipi-halt": vmexit.IPI_HALT,
    "self-ipi-halt": vmexit.SELF_IPI_HALT,
    "tscdeadline-immed": vmexit.TSCDEADLINE_IMMED,
}
