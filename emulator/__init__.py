"""pirlab, the map: read this first.

pirlab runs KVM's posted-interrupt delivery as it stands in the kernel, over real operating-system
processes: one process per physical CPU, PI descriptors in shared memory changed with locked
instructions, notification vectors as ZeroMQ messages.  The protocol is written once, as plain
straight-line Python with the kernel's names; everything that another CPU could see or cause goes
through one object, `cpu`, and one call on `cpu` is one atomic step.  The text that runs in the
cluster is the text that the checker explores: the checker makes generators of it, a pCPU links it
(`machine/linker`: what is constant decided, steps inlined), both by rewriting it mechanically.

    hardware/     what the processor and the IOMMU do; pure.  `cpu.py` is the seam
    kvm/          what the hypervisor does; pure.  `deliver.py` has the patch's one line
    guest/        guest programs, an instruction at a time; pure
    config/       YAML to a frozen, typed experiment; every mistake with its place
    machine/      the real world: memory, fabric, processes, launcher, recorder
    checker/      the pretend world: memory models, every interleaving, counterexamples
    measure/      events to latencies, the account, histograms; imports no world
    report/       text for terminals and mails
    conformance/  golden cases against hardware/
    events.py     the words: kinds of event and their 32 bytes
    order.py      every step of a run in one order, and its 64 bytes
    session.py    one `pirlab run`; saved.py reads it again
    suite.py      golden cases over two real processes
    live_replay.py, live_scenario.py   where checker and machine meet: a schedule on processes
    live_path.py  the other way: is a recorded run a path of the model
    cli.py        the commands; proof.py has those that prove

One interrupt walks through the rooms in a line:

    1  guest/workload, machine/device   vector 0x31 for vCPU 2 falls due          due
    2  kvm/deliver, hardware/senders    PIR bit set; only the first setter goes on  post
    3  kvm/deliver                      ON set; mode read: notify, elide or wake
    4  machine/fabric, processor        the vector crosses to the target's process  arrive
    5  hardware/posted, kvm/sync        ON cleared, PIR to VIRR, RVI              sync
    6  hardware/apicv, vmx              the highest vector above VPPR             deliver
    7  guest/program                    the handler's EOI                         eoi
    8  measure                          each leg and the whole way, from due

Where this departs from the shape first drawn for it, and why:

- `kvm/cpu.py` extends `hardware/cpu.py`: hardware text must not know KVM's types.
- The rules stand in `kvm/params.py` (names) and `kvm/deliver.py` (what they do), not in a file of
  their own: the decision and its cases are read together.
- A pCPU with a vector on its way waits for it at its next step with interrupts on
  (`machine/processor.await_flight`): the wire here is forty times as slow as the CPU.
- Events are kept as tuples until the next PAUSE and packed then (`machine/recorder`).
- Configs are checked by plain code, not pydantic: shorter, and every place is exact.

What is not modelled, and in which direction that errs, is in the README.
"""

__version__ = "0.1.0"
