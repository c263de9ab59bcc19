"""Group interleaving: micro-steps of senders, a target and host software on real descriptors.

A step is [actor, sentence].  Sentences are read clause by clause (`CLAUSES`); a clause that makes a
protocol step makes it with the actor's own text (`stepped`): `posted.process_posted_interrupts` for
T, the sender's rule for S, S1, S2.  A schedule that the text refuses is made by hand instead, on
the bare descriptor, and then the case must expect a loss: it documents a wrong order.
The guest has IF = 0 until the steps are over, so VIRR shows all that has arrived.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from emulator.conformance.agents import Agent, agent_of, post_text
from emulator.conformance.bench import Bench, descriptor_of, merged, vmcs_of
from emulator.conformance.document import Case
from emulator.conformance.race_words import CLAUSES, SEPARATOR
from emulator.conformance.stepped import SteppedText
from emulator.conformance.words import MismatchError, NotUnderstoodError, vectors_in
from emulator.hardware import pi_desc
from emulator.hardware.bare import BareCpu
from emulator.hardware.cpu import NOTIFICATION
from emulator.hardware.posted import process_posted_interrupts

_ON_STEP: Final = "pi_test_and_set_on"
TRAILING: Final = ("raise_rvi", "evaluate_pending_virtual_interrupts")


class RefusedError(Exception):
    """The protocol text does not make the step that the schedule wants next."""


@dataclass(slots=True)
class Sender:
    """One sending actor, with the post that it is at."""

    agent: Agent
    vcpu: int = 0
    vector: int = 0
    text: SteppedText | None = None
    sent: int = 0  # notifications of this post


@dataclass(slots=True)
class Target:
    """T: posted-interrupt processing in progress, if any."""

    text: SteppedText | None = None
    cleared: bool = False
    harvested: bool = False


@dataclass(slots=True)
class Ledger:
    """What the expectations ask about besides state."""

    posted: set[tuple[int, int]] = field(default_factory=set)  # (vcpu, vector)
    sent_by: dict[str, int] = field(default_factory=dict)
    after_post: bytearray | None = None
    lost_when_sn_cleared: list[int] | None = None
    alternatives: int = 1


class Race(Bench):
    """The state of one schedule.

    `by_text`: steps are made by protocol text, which may refuse.  `choice` picks among the
    alternatives of a sentence with "or".
    """

    def __init__(self, case: Case, *, by_text: bool, choice: int = 0) -> None:
        setup = dict(case.setup)
        pids = {key[4:]: setup.pop(key) for key in list(setup) if re.fullmatch(r"pid_\w+", key)}
        setup["controls"] = {
            "process_posted_interrupts": 1,
            "acknowledge_interrupt_on_exit": 1,
        } | setup.get("controls", {})
        setup["guest"] = {"if": 0} | setup.get("guest", {})
        state = merged(case.defaults, setup)
        super().__init__(state)
        base = state["pid"]
        self.names = list(pids) or [""]
        self.descriptors = [descriptor_of(base | pids.get(name, {})) for name in self.names]
        self.vmcss = [vmcs_of(state) for _ in self.names]
        self.descriptor, self.vmcs = self.descriptors[0], self.vmcss[0]
        self.cpu = BareCpu(self.descriptors, self.processor, lapics=[self.lapic])
        self.by_text = by_text
        self.choice = choice
        self.senders: dict[str, Sender] = {}
        self.target = Target()
        self.stays_in_root = False
        self.ledger = Ledger()

    def run(self, steps: list[Any]) -> None:
        """All sentences, then what T has still to do without being told."""
        for step in steps:
            match step:
                case [str(actor), str(sentence)]:
                    self._sentence(actor, sentence)
                case _:
                    raise NotUnderstoodError(f"step {step!r} is not [actor, sentence]")
        self.finish_target()

    def _sentence(self, actor: str, sentence: str) -> None:
        before = len(self.cpu.sent)
        position = 0
        while position < len(sentence):
            skipped = SEPARATOR.match(sentence, position)
            position = skipped.end() if skipped else position
            if position == len(sentence):
                break
            position = self._clause(actor, sentence, position)
        if actor != "T":
            sent = len(self.cpu.sent) - before
            sender = self.senders.get(actor)
            for name in {actor.lower(), sender.agent.value if sender else ""}:
                self.ledger.sent_by[name] = self.ledger.sent_by.get(name, 0) + sent
            if sender is not None:
                self.ledger.after_post = bytearray(self.descriptors[sender.vcpu])

    def _clause(self, actor: str, sentence: str, position: int) -> int:
        for pattern, name in CLAUSES:
            found = pattern.match(sentence, position)
            if found:
                if actor == "T" and name not in ("in_root", "in_non_root"):
                    self.enter()
                method: Callable[..., None] = getattr(self, name)
                method(actor, **found.groupdict())
                return found.end()
        raise NotUnderstoodError(f"unknown words {sentence[position:]!r} in {sentence!r}")

    # -- senders --------------------------------------------------------------------------------

    def vcpu_named(self, suffix: str | None) -> int:
        """The index of the vCPU that "_A" names; without a suffix there is only one."""
        name = (suffix or "").lstrip("_")
        if name not in self.names:
            raise NotUnderstoodError(f"no descriptor {name!r}")
        return self.names.index(name)

    def _begin(self, actor: str, agent: Agent, vcpu: int, vector: int) -> Sender:
        old = self.senders.get(actor)
        if self.by_text and old and old.text and old.text.next_step:
            raise RefusedError(f"{actor} is still at {old.text.next_step}")
        control = pi_desc.unpack_control(pi_desc.read_control(self.descriptors[vcpu]))
        text = post_text(agent, vcpu, vector, control.nv, control.ndst)
        sender = Sender(agent, vcpu, vector, SteppedText(text, self.cpu) if self.by_text else None)
        self.senders[actor] = sender
        self.ledger.posted.add((vcpu, vector))
        return sender

    def set_pir(
        self, actor: str, suffix: str | None, vector: str, was: str | None, stop: str | None
    ) -> None:
        agent = Agent.SOFTWARE if re.fullmatch(r"S\d*|H", actor) else agent_of(actor)
        sender = self._begin(actor, agent, self.vcpu_named(suffix), int(vector, 0))
        old = self._sender_step(actor, "pi_test_and_set_pir", sender.vcpu, sender.vector)
        self._agree(f"{actor}: PIR[{vector}] was", was, old)
        if stop:
            self._must_have_ended(actor)

    def set_on(self, actor: str, suffix: str | None) -> None:
        self._agree(f"{actor}: ON was", "0", self._sender_on(actor, suffix))

    def on_already(self, actor: str, suffix: str | None) -> None:
        self._agree(f"{actor}: ON was", "1", self._sender_on(actor, suffix))

    def _sender_on(self, actor: str, suffix: str | None) -> bool:
        sender = self._sender(actor)
        if suffix and self.vcpu_named(suffix) != sender.vcpu:
            raise NotUnderstoodError(f"{actor} posts to {self.names[sender.vcpu]}, not {suffix}")
        software = sender.agent in (Agent.SOFTWARE, Agent.SUITE)
        if software:
            return bool(self._sender_step(actor, _ON_STEP, sender.vcpu))
        urgent = sender.agent is Agent.IOMMU_URGENT
        before = self._sender_step(actor, f"{_ON_STEP}_unless_sn", sender.vcpu, urgent)
        return bool(before.on)

    def send(self, actor: str, suffix: str | None) -> None:
        vcpu = self._sender(actor).vcpu
        control = pi_desc.unpack_control(pi_desc.read_control(self.descriptors[vcpu]))
        self._sender_step(actor, "send_ipi", control.ndst, control.nv, vcpu)
        self._sender(actor).sent += 1

    def no_nv(self, actor: str) -> None:
        self._must_have_ended(actor)
        self._agree(f"{actor}: notifications", "0", self._sender(actor).sent)

    def whole_post(
        self, actor: str, agent: str, vector: str, sn: str | None, urg: str | None
    ) -> None:
        sender = self._begin(actor, agent_of(agent, urg and int(urg)), 0, int(vector, 0))
        control = pi_desc.unpack_control(pi_desc.read_control(self.descriptors[0]))
        self._agree("SN", sn, control.sn)
        before = len(self.cpu.sent)
        post_text(sender.agent, 0, sender.vector, control.nv, control.ndst)(self.cpu)
        sender.text = None
        sender.sent = len(self.cpu.sent) - before

    def _sender(self, actor: str) -> Sender:
        if actor not in self.senders:
            raise NotUnderstoodError(f"{actor} has posted nothing")
        return self.senders[actor]

    def _sender_step(self, actor: str, name: str, *args: int) -> Any:
        text = self._sender(actor).text
        if not self.by_text or text is None:
            return getattr(self.cpu, name)(*args)
        return self._text_step(actor, text, name)

    def _must_have_ended(self, actor: str) -> None:
        text = self._sender(actor).text
        if text is not None and text.next_step is not None:
            raise RefusedError(f"{actor} goes on with {text.next_step}")

    # -- the target -----------------------------------------------------------------------------

    def enter(self) -> None:
        """T is in non-root operation, unless a sentence says that it is in root operation."""
        if self.processor.in_root and not self.stays_in_root:
            self.processor.vm_entry(self.vmcs)

    def in_non_root(self, actor: str, vcpu: str | None) -> None:
        index = self.vcpu_named(vcpu)
        if not self.processor.in_root and index != self.cpu.current:
            raise NotUnderstoodError(f"{actor} is in non-root operation with another vCPU")
        self.cpu.current = index
        self.vmcs, self.descriptor = self.vmcss[index], self.descriptors[index]
        self.enter()

    def in_root(self, actor: str) -> None:
        if not self.processor.in_root:
            raise NotUnderstoodError(f"{actor} is in non-root operation already")
        self.stays_in_root = True

    def host_takes(self, actor: str) -> None:
        if not self.lapic.pending():
            raise MismatchError(f"{actor}: nothing pending for the host")
        self.lapic.acknowledge()

    def vm_entry_clause(self, actor: str) -> None:
        self.stays_in_root = False
        self.enter()

    def ack(self, actor: str) -> None:
        if self.stays_in_root:
            self.host_takes(actor)
            return
        self.finish_target()
        if self.target.text is not None and self.target.text.next_step is not None:
            raise RefusedError(f"T is still at {self.target.text.next_step}")
        if self.processor.boundary() != NOTIFICATION:
            raise MismatchError("T: no notification is presented")
        self.pi_processings += 1
        self.target = Target(
            SteppedText(process_posted_interrupts, self.cpu) if self.by_text else None
        )

    def clear_on(self, actor: str, suffix: str | None) -> None:
        self._target_step("pi_clear_on", suffix)
        self.target.cleared = True

    def eoi(self, actor: str) -> None:
        self._target_step("lapic_eoi", None)

    def harvest(self, actor: str, suffix: str | None, empty: str | None) -> None:
        if self.processor.in_root:
            self.fold(actor)
            return
        highest = self._target_step("pi_harvest", suffix)
        self.target.harvested = True
        if empty and highest != -1:
            raise MismatchError(f"T: PIR was not empty: {highest:#x}")
        if not self.by_text:
            self.cpu.raise_rvi(highest)
            self.cpu.evaluate_pending_virtual_interrupts()

    def rvi_max(self, actor: str) -> None:
        if self.by_text:
            self._target_step("raise_rvi", None)

    def evaluate(self, actor: str) -> None:
        if self.by_text:
            self._target_step("evaluate_pending_virtual_interrupts", None)

    def _target_step(self, name: str, suffix: str | None) -> Any:
        vcpu = self.cpu.current
        if suffix and self.vcpu_named(suffix) != vcpu:
            raise MismatchError(f"T uses the descriptor of {self.names[vcpu]!r}, not of {suffix}")
        if not self.by_text or self.processor.in_root:  # in root operation it is software's
            return getattr(self.cpu, name)(*(() if name == "lapic_eoi" else (vcpu,)))
        if self.target.text is None:
            raise RefusedError(f"T has acknowledged nothing, cannot {name}")
        return self._text_step("T", self.target.text, name)

    def finish_target(self) -> None:
        """The steps after the harvest, which sentences mostly leave out."""
        text = self.target.text
        while text is not None and text.next_step in TRAILING:
            text.step()

    def _text_step(self, actor: str, text: SteppedText, name: str) -> Any:
        if text.next_step != name:
            raise RefusedError(f"{actor}'s text goes on with {text.next_step}, not with {name}")
        return text.step()

    # -- host software, and looks ---------------------------------------------------------------

    def clear_sn(self, actor: str, suffix: str | None) -> None:
        descriptor = self.descriptors[self.vcpu_named(suffix)]
        word = pi_desc.read_control(descriptor)
        self._agree("SN before it is cleared", "1", word & pi_desc.SN != 0)
        pi_desc.write_control(descriptor, word & ~pi_desc.SN)
        self.ledger.lost_when_sn_cleared = self.lost()

    def sees_pir(self, actor: str, suffix: str | None) -> None:
        if not pi_desc.read_pir(self.descriptors[self.vcpu_named(suffix)]):
            raise MismatchError(f"{actor}: PIR is empty")

    def announce(self, actor: str, fold: str | None) -> None:
        """Set ON and send NV to oneself, "or" fold PIR into VIRR: two ways, both are run."""
        self.ledger.alternatives = 2 if fold else 1
        if self.choice == 1:
            self.sync_pir_to_rvi()
            return
        control = pi_desc.unpack_control(pi_desc.read_control(self.descriptor))
        self._agree("ON", "0", self.cpu.pi_test_and_set_on(self.cpu.current))
        self.cpu.send_ipi(0, control.nv, self.cpu.current)

    def fold(self, actor: str) -> None:
        self.sync_pir_to_rvi()

    def look_pir(self, actor: str, suffix: str | None, vector: str, bit: str) -> None:
        pir = pi_desc.read_pir(self.descriptors[self.vcpu_named(suffix)])
        self._agree(f"PIR[{vector}]", bit, pir >> int(vector, 0) & 1)

    def look_on(self, actor: str, suffix: str | None, bit: str) -> None:
        sender = self.senders.get(actor)
        if sender and sender.text and (sender.text.next_step or "").startswith(_ON_STEP):
            self._sender_on(actor, suffix)  # the step that leaves ON as it is
        word = pi_desc.read_control(self.descriptors[self.vcpu_named(suffix)])
        self._agree("ON", bit, word & pi_desc.ON)

    def _agree(self, what: str, said: str | None, is_: int) -> None:
        """A sentence's own claim, where it makes one, about what a step found."""
        if said is not None and int(said) != int(is_):
            raise MismatchError(f"{what} {int(is_)}, the step says {said}")

    # -- what has come of it --------------------------------------------------------------------

    def lost(self) -> list[int]:
        """Vectors in PIR that nobody will ever look at unless something else happens.

        Somebody will: a sender between PIR and ON, T between ON-clear and harvest, a notification
        pending in the local APIC, or whoever clears SN.  With ON = 1 and T elsewhere or out, the
        vCPU's next load or entry.
        """
        lost = set()
        harvesting = self.target.cleared and not self.target.harvested
        for vcpu, descriptor in enumerate(self.descriptors):
            control = pi_desc.unpack_control(pi_desc.read_control(descriptor))
            busy = any(
                s.vcpu == vcpu and s.text is not None and s.text.next_step is not None
                for s in self.senders.values()
            )
            here = vcpu == self.cpu.current
            coming = here and (harvesting or self.lapic.irr >> self.vmcs.nv & 1)
            elsewhere = control.on and (not here or self.processor.in_root)
            if not (busy or coming or elsewhere or control.sn):
                lost |= set(vectors_in(pi_desc.read_pir(descriptor)))
        return sorted(lost)

    def open_interrupts(self) -> None:
        """The guest's IF opens: all that has arrived is delivered, handlers included."""
        self.stays_in_root = False
        self.enter()
        self.boundary()
        if not self.processor.in_root:
            self.vmcs.guest.interrupt_flag = True
            self.boundary()
            self.run_handlers()
