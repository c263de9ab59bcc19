"""What the hypervisor does: KVM's text, with the kernel's names.  Pure.

    params     the axes: rule, put/load scheme, orders, fastpaths; `presets` sets them by era
    cpu        the kernel's half of the seam
    deliver    post, then notify, elide or wake: the patch's one line
    wake       wake a vCPU, kick it
    sync       PIR to VIRR in software
    vcpu       the run loop, entry, fastpaths, exit handlers
    timer      the APIC timer: preemption timer, hrtimer, exitless
    block      polling and sleeping
    sched      leaving a pCPU and coming back
    pid        SN, NV and NDST while the vCPU is not running
    irq        host interrupt handlers
    bugs       the museum's switches, by commit

Lay a file beside its kernel counterpart (each names it) and follow it line by line.  Where it
departs from the kernel, and why:

- Only the parts of `vcpu_enter_guest()` that senders can tell are there: no MSR or FPU switching,
  SRCU, nested state or debug registers.
- `KVM_REQ_UNHALT` is the return value of `kvm_vcpu_halt()`: what the kernel later made of it.
- `preempt_schedule()` is one function: where the kernel's preemption comes from is the world's.
- `try_to_wake_up()`, the exchange loops on the descriptor's control word and operations on the
  wake-up list are one step each: others see only the instruction that wins.
- The APIC id of a vCPU is its number; IPIs go to one vCPU.
- Eras are axes, not branches of one tree: a rule of 2013 runs in today's run loop unless the
  entry order, the scheme and the fastpaths of 2013 are chosen too (`kvm.preset`).
"""
