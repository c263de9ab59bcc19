"""Random guests, senders and physical interrupts, against the manual's rules written down again.

`Oracle` is a second, independent account of one processor: sets instead of pages, the main loop of
SDM table 6-2 and section 29 in as few lines as it takes.  After every rule both must agree in
everything, and the invariants of the protocol must hold.
"""

from collections import Counter
from dataclasses import replace

from hardware_guest import APICV, NV, Guest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from emulator.hardware import instructions as insn
from emulator.hardware import pi_desc
from emulator.hardware.apicv import VIRR, VPPR, VTPR
from emulator.hardware.cpu import NOTIFICATION
from emulator.hardware.posted import process_posted_interrupts
from emulator.hardware.senders import vtd_post

VECTORS = st.sampled_from([0x21, 0x31, 0x35, 0x51, 0x52, 0x80, 0xFF])
EOI_EXIT = 0x52
WITH_WINDOW = replace(APICV, interrupt_window_exiting=True)


class Oracle:
    def __init__(self):
        self.pir, self.virr, self.visr, self.irr, self.isr = set(), set(), set(), set(), set()
        self.on = self.sn = self.recognised = self.window = self.shadow = False
        self.rvi = self.svi = self.vtpr = self.vppr = 0
        self.flag, self.activity, self.root, self.log = True, "ACTIVE", True, []

    def ppr(self):
        self.vppr = self.vtpr if self.vtpr // 16 >= self.svi // 16 else self.svi // 16 * 16

    def evaluate(self):
        self.recognised = not self.window and self.rvi // 16 > self.vppr // 16

    def exit(self, reason):
        self.log.append(("exit", reason))
        self.root, self.recognised = True, False
        self.activity = "ACTIVE" if self.activity == "MWAIT" else self.activity

    def deliver(self):
        self.log.append(("deliver", self.rvi))
        self.svi, self.vppr = self.rvi, self.rvi // 16 * 16
        self.visr |= {self.rvi}
        self.virr -= {self.rvi}
        self.rvi, self.recognised = max(self.virr, default=0), False
        self.flag, self.activity = False, "ACTIVE"

    def harvest(self):
        self.on = False
        self.virr |= self.pir
        self.rvi = max(self.rvi, *self.pir, 0)
        self.pir = set()

    def settle(self):
        while not self.root:
            can_deliver = self.flag and not self.shadow
            if can_deliver and self.window:
                self.exit(7)
            elif can_deliver and self.recognised:
                self.deliver()
            elif max(self.irr, default=0) // 16 > max(self.isr, default=0) // 16:
                vector = max(self.irr)
                self.irr -= {vector}
                if vector == NV:
                    self.activity = "ACTIVE" if self.activity == "MWAIT" else self.activity
                    self.harvest()
                    self.evaluate()
                else:
                    self.isr |= {vector}
                    self.exit(1)
            else:
                return

    def enter(self, window):
        self.root, self.window = False, window
        self.ppr()
        self.evaluate()
        self.settle()

    def eoi(self):
        vector = self.svi
        self.visr -= {vector}
        self.svi = max(self.visr, default=0)
        self.ppr()
        if vector == EOI_EXIT:
            self.exit(45)
        else:
            self.evaluate()

    def tpr(self, value):
        self.vtpr = value
        self.ppr()
        self.evaluate()

    def self_ipi(self, vector):
        self.virr |= {vector}
        self.rvi = max(self.rvi, vector)
        self.evaluate()


class Processor(Guest):
    """The model, with one log for deliveries and exits."""

    def __init__(self):
        super().__init__()
        self.log = []
        self.processings = 0
        self.vmcs.eoi_exit_bitmap = 1 << EOI_EXIT
        self.controls = {False: APICV, True: WITH_WINDOW}

    def interrupt(self, vector):
        self.log.append(("deliver", vector))

    def settle(self):
        while not self.p.in_root:
            outcome = self.p.boundary()
            if outcome is None:
                return
            if outcome == NOTIFICATION:
                self.processings += 1
                process_posted_interrupts(self.cpu)
            else:
                self.log.append(("exit", outcome))

    def execute(self, instruction, *operands):
        outcome = instruction(self.p, *operands)
        if outcome is not None:
            self.log.append(("exit", outcome))
        self.settle()


class Agreement(RuleBasedStateMachine):
    @initialize(
        flag=st.booleans(),
        vtpr=st.sampled_from([0, 0, 0x20, 0x35, 0x70]),
        dormant=st.sets(VECTORS, max_size=2),
    )
    def begin(self, flag, vtpr, dormant):
        """`dormant`: VIRR bits that software has set without RVI."""
        self.o, self.m = Oracle(), Processor()
        self.m.vmcs.guest.interrupt_flag = self.o.flag = flag
        self.o.vtpr, self.o.virr = vtpr, set(dormant)
        self.m.page.write32(VTPR, vtpr)
        self.m.page.or_bits(VIRR, sum(1 << v for v in dormant))
        self.requested, self.sent, self.on_rises = Counter(dormant), 0, 0
        self.enter(window=False, sync=False)

    # -- root mode --------------------------------------------------------------------------------

    @precondition(lambda self: self.o.root)
    @rule(window=st.sampled_from([False, False, False, True]), sync=st.booleans())
    def enter(self, window, sync):
        if sync:
            self.m.p.vmcs = self.m.vmcs
            self.m.cpu.pi_clear_on(0)
            self.m.cpu.pi_harvest(0)
            self.m.vmcs.rvi = self.m.page.top(VIRR)
            self.o.harvest()
            self.o.rvi = max(self.o.virr, default=0)
        self.m.vmcs.controls = self.m.controls[window]
        self.m.vmcs.guest.skip_instruction()
        self.o.shadow = False
        assert self.m.p.vm_entry(self.m.vmcs) is None
        self.m.settle()
        self.o.enter(window)

    @precondition(lambda self: self.o.root and self.o.isr)
    @rule()
    def host_eoi(self):
        self.m.lapic.eoi()
        self.o.isr -= {max(self.o.isr)}

    # -- other agents -----------------------------------------------------------------------------

    @rule(vector=VECTORS, urgent=st.booleans(), hardware=st.booleans())
    def post(self, vector, urgent, hardware):
        before = (self.m.virr, self.m.vapic.rvi, self.m.vapic.svi, self.m.processings)
        sent = len(self.m.cpu.sent)
        new = vector not in self.o.pir
        if hardware:
            vtd_post(self.m.cpu, 0, vector, urgent)
        elif not self.m.cpu.pi_test_and_set_pir(0, vector) and not self.m.cpu.pi_test_and_set_on(0):
            self.m.cpu.send_ipi(0, NV, 0)
        self.o.pir |= {vector}
        notifies = not self.o.on and (urgent or not self.o.sn if hardware else new)
        self.o.on = self.o.on or notifies
        self.on_rises += notifies
        self.requested[vector] += 1
        self.sent += len(self.m.cpu.sent) - sent
        # I7: a sender touches neither VIRR nor RVI nor SVI.
        assert before == (self.m.virr, self.m.vapic.rvi, self.m.vapic.svi, self.m.processings)
        assert self.sent == self.on_rises  # I13

    @rule(vector=st.sampled_from([NV, NV, NV, 0xEC, 0xFD, 0x21, 0x0F]))
    def arrive(self, vector):
        self.m.lapic.accept(vector)
        self.m.settle()
        if vector >= 16:
            self.o.irr |= {vector}
        self.o.settle()

    @rule(vectors=st.lists(VECTORS, min_size=1, max_size=3))
    def post_and_notify(self, vectors):
        for vector in vectors:
            self.post(vector, urgent=False, hardware=False)
        self.arrive(NV)

    @rule()
    def set_sn(self):
        self.m.descriptor[32] |= pi_desc.SN
        self.o.sn = True

    @rule()
    def clear_sn_and_look_at_pir(self):
        self.m.descriptor[32] &= ~pi_desc.SN & 0xFF
        self.o.sn = False
        if pi_desc.read_pir(self.m.descriptor) and not self.m.cpu.pi_test_and_set_on(0):
            self.m.lapic.accept(NV)
            self.m.settle()
            self.o.on = True
            self.o.irr |= {NV}
            self.o.settle()

    # -- the guest --------------------------------------------------------------------------------

    def both(self, instruction, *operands, then=lambda _: None):
        self.m.execute(instruction, *operands)
        self.o.shadow = False
        then(self.o)
        self.o.settle()

    runs = precondition(lambda self: not self.o.root and self.o.activity == "ACTIVE")

    @runs
    @rule()
    def nop(self):
        self.both(insn.nop)

    @runs
    @rule()
    def sti(self):
        def effect(o):
            o.shadow, o.flag = not o.flag, True

        self.both(insn.sti, then=effect)

    @runs
    @rule()
    def cli(self):
        self.both(insn.cli, then=lambda o: setattr(o, "flag", False))

    @runs
    @rule()
    def mov_ss(self):
        self.both(insn.mov_ss, then=lambda o: setattr(o, "shadow", True))

    @runs
    @rule(waiting=st.sampled_from(["HLT", "MWAIT"]))
    def wait(self, waiting):
        instruction = insn.hlt if waiting == "HLT" else insn.mwait
        self.both(instruction, then=lambda o: setattr(o, "activity", waiting))

    @runs
    @rule()
    def handler_ends(self):
        self.both(insn.eoi, then=lambda o: o.eoi())
        if not self.o.root:
            self.both(insn.iret, then=lambda o: setattr(o, "flag", True))

    @runs
    @rule(level=st.integers(0, 15))
    def mov_to_cr8(self, level):
        self.both(insn.mov_to_cr8, level, then=lambda o: o.tpr(level << 4))

    @runs
    @rule(value=st.sampled_from([0, 0x2F, 0x51, 0x8C]))
    def wrmsr_tpr(self, value):
        self.both(insn.wrmsr, 0x808, value, then=lambda o: o.tpr(value))

    @runs
    @rule(vector=VECTORS)
    def self_ipi(self, vector):
        self.requested[vector] += 1
        self.both(insn.wrmsr, 0x83F, vector, then=lambda o: o.self_ipi(vector))

    @runs
    @rule(vectors=st.lists(VECTORS, min_size=1, max_size=3))
    def a_busy_stretch(self, vectors):
        """Interrupts come one after the other, and handlers run to their end."""
        for vector in vectors:
            self.post_and_notify([vector])
            if not self.o.root and self.o.activity == "ACTIVE":
                self.handler_ends()

    @runs
    @rule()
    def vmcall(self):
        shadow = self.o.shadow
        self.both(insn.vmcall, then=lambda o: o.exit(18))
        self.o.shadow = shadow  # a fault-like exit leaves it

    # -- agreement and invariants -----------------------------------------------------------------

    @invariant()
    def both_agree(self):
        o, m = self.o, self.m
        guest, vapic = m.vmcs.guest, m.vapic
        status = m.vmcs if m.p.in_root else vapic
        assert m.log == o.log
        assert (m.p.in_root, guest.interrupt_flag, guest.activity.name) == (
            *(o.root, o.flag, o.activity),
        )
        assert bool(guest.interruptibility) == o.shadow
        assert (status.rvi, status.svi, vapic.recognised) == (o.rvi, o.svi, o.recognised)
        assert (m.page.read32(VTPR), m.page.read32(VPPR)) == (o.vtpr, o.vppr)
        assert (m.virr, m.visr) == (o.virr, o.visr)
        control = pi_desc.unpack_control(pi_desc.read_control(m.descriptor))
        assert (control.on, control.sn) == (o.on, o.sn)
        assert pi_desc.read_pir(m.descriptor) == sum(1 << v for v in o.pir)
        assert m.lapic.irr == sum(1 << v for v in o.irr)
        assert m.lapic.isr == sum(1 << v for v in o.isr)

    @invariant()
    def protocol_holds(self):
        m = self.m
        control = pi_desc.unpack_control(pi_desc.read_control(m.descriptor))
        assert not pi_desc.read_pir(m.descriptor) or control.on or control.sn  # I1
        svi = (m.vmcs if m.p.in_root else m.vapic).svi
        assert svi == max(m.visr, default=0)  # I9
        delivered = Counter(vector for kind, vector in m.log if kind == "deliver")
        assert all(delivered[v] <= self.requested[v] for v in delivered)  # I14
        # I10: nothing reaches VIRR past a notification, an entry's sync or a self-IPI: the oracle
        # knows no other way, and both agree.


TestAgreement = Agreement.TestCase
TestAgreement.settings = settings(
    derandomize=True,
    max_examples=200,
    stateful_step_count=50,
    phases=[Phase.generate],  # add Phase.shrink for a short example: it takes a minute
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
