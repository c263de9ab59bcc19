"""A guest's registers, when an interrupt comes between two of its instructions."""

from types import SimpleNamespace

from emulator.guest.program import Guest, assemble
from emulator.hardware.vectors import MSR_TSC_DEADLINE, MSR_X2APIC_ICR, ExitReason

IPI = (MSR_X2APIC_ICR, 1 << 32 | 0xFB, (3, 111))
TIMER_VECTOR = 0xEC

PROGRAM = assemble(
    "interrupted",
    "prepares an IPI; the timer's handler arms the timer again",
    """
    irq: iret
    timer: arm
    iret
    main: work main
    send
    """,
)


def test_a_handler_between_preparing_an_ipi_and_sending_it_leaves_its_cause_alone():
    workload = SimpleNamespace(
        timer_vector=TIMER_VECTOR,
        due_ipi=lambda _now: IPI,
        next_deadline=lambda *, halts: (500, 1),  # noqa: ARG005
        timer_fired=lambda _load: None,
    )
    processor = SimpleNamespace(
        guest=SimpleNamespace(interruptibility=0, interrupt_flag=True),
        vmcs=SimpleNamespace(msr_write_intercepts={MSR_TSC_DEADLINE, MSR_X2APIC_ICR}),
        vm_exit=lambda reason: reason,
    )
    guest = Guest(PROGRAM, workload, processor, SimpleNamespace(rdtsc=lambda: 0))
    guest.pc = 3

    guest.step()
    guest.interrupt(TIMER_VECTOR)
    armed = guest.step()
    assert (armed, guest.cause) == (ExitReason.MSR_WRITE, (1, 500))
    guest.pc += 1  # the VMM has emulated the WRMSR
    guest.step()
    sent = guest.step()

    assert (sent, processor.exit_value, guest.cause) == (ExitReason.MSR_WRITE, IPI[1], IPI[2])
