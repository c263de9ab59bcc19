"""The virtual APIC: the page, RVI and SVI, and the manual's primitive operations on them.

Pure, and one processor's own: what another CPU could see goes through `cpu` (`hardware/cpu.py`).
VISR, VIRR and VPPR change only by the page's methods and `vppr`, so that a world may keep them
elsewhere.
Before: `hardware/posted` has merged PIR into VIRR.  Next: `hardware/vmx` delivers at a boundary.
SDM vol. 3, 29.1 (state), 29.2 (evaluation and delivery), 29.3 to 29.5 (TPR, EOI, self-IPI).
"""

from typing import Final

VTPR: Final = 0x080
VPPR: Final = 0x0A0
VEOI: Final = 0x0B0
VISR: Final = 0x100  # ..170: eight dwords, 16 bytes apart
VIRR: Final = 0x200  # ..270
VICR_LOW: Final = 0x300
VICR_HIGH: Final = 0x310

PAGE_BYTES: Final = 4096
_REGISTERS = 0x80  # bytes that the eight dwords of VISR or VIRR span
_from_bytes = int.from_bytes


class ApicPage:
    """The 4-KiB virtual-APIC page, over any writable buffer.  SDM 29.1.1.

    `mem` is the page by bytes, `words` the same by little-endian dwords.  A host that is not
    little-endian cannot run this, nor could it run the guests.
    """

    __slots__ = ("_virr", "_visr", "mem", "words")

    def __init__(self, buffer: bytearray | memoryview | None = None) -> None:
        """Lay the page over `buffer`, 4096 bytes; over zeroes of its own without one."""
        view = memoryview(bytearray(PAGE_BYTES) if buffer is None else buffer)
        assert view.nbytes == PAGE_BYTES, f"the virtual-APIC page has 4096 bytes, not {view.nbytes}"
        self.mem = view.cast("B")
        self.words = self.mem.cast("I")
        self._visr = self.mem[VISR : VISR + _REGISTERS]
        self._virr = self.mem[VIRR : VIRR + _REGISTERS]

    @property
    def vppr(self) -> int:
        """The dword at VPPR."""
        return self.words[VPPR >> 2]

    @vppr.setter
    def vppr(self, value: int) -> None:
        self.words[VPPR >> 2] = value

    def set_bit(self, base: int, vector: int) -> None:
        """VISR[vector] or VIRR[vector] := 1.  `base` is VISR or VIRR."""
        self.words[(base >> 2) + (vector >> 5 << 2)] |= 1 << (vector & 31)

    def clear_bit(self, base: int, vector: int) -> None:
        """VISR[vector] or VIRR[vector] := 0."""
        self.words[(base >> 2) + (vector >> 5 << 2)] &= ~(1 << (vector & 31))

    def test_bit(self, base: int, vector: int) -> bool:
        """VISR[vector] or VIRR[vector]."""
        return self.words[(base >> 2) + (vector >> 5 << 2)] >> (vector & 31) & 1 == 1

    def or_bits(self, base: int, bits256: int) -> None:
        """Merge a set of vectors; bit v of `bits256` is vector v."""
        word = base >> 2
        while bits256:
            low = bits256 & 0xFFFF_FFFF
            if low:
                self.words[word] |= low
            bits256 >>= 32
            word += 4

    def bits(self, base: int) -> int:
        """VISR or VIRR as one 256-bit number; bit v is vector v."""
        value = 0
        for i in range(8):
            value |= self.words[(base >> 2) + 4 * i] << 32 * i
        return value

    def top(self, base: int) -> int:
        """The highest vector in VISR or VIRR, 0 if there is none."""
        # Eight dwords, 128 bits apart, and nothing is ever written between them: the top bit of
        # the whole is the top vector's.
        spread = _from_bytes(self._virr if base == VIRR else self._visr, "little")
        if not spread:
            return 0
        position = spread.bit_length() - 1
        return (position >> 7) << 5 | position & 31

    def take(self, vector: int) -> int:
        """VIRR[vector] := 0 and VISR[vector] := 1; the highest vector left in VIRR, 0 if none."""
        self.set_bit(VISR, vector)
        self.clear_bit(VIRR, vector)
        return self.top(VIRR)

    def retire(self, vector: int) -> int:
        """VISR[vector] := 0; the highest vector left in VISR, 0 if none."""
        self.clear_bit(VISR, vector)
        return self.top(VISR)

    def read32(self, offset: int) -> int:
        """One dword; `offset` in bytes, 4-byte aligned."""
        return self.words[offset >> 2]

    def write32(self, offset: int, value: int) -> None:
        """Store bits 31:0 of `value`."""
        self.words[offset >> 2] = value & 0xFFFF_FFFF


class VirtualApic:
    """One vCPU's virtual APIC as the processor holds it in non-root operation.

    `rvi` and `svi` are live between VM entry and VM exit (outside, the guest interrupt status
    field has them: `vmx.Vmcs.rvi`, `.svi`).  `eoi_exit_bitmap` is 256 bits, bit v for vector v.
    `recognised` is what evaluation decided last; a VM exit forgets it.
    """

    __slots__ = (
        "eoi_exit_bitmap",
        "interrupt_window_exiting",
        "page",
        "recognised",
        "rvi",
        "svi",
        "tpr_threshold",
        "virtual_interrupt_delivery",
    )

    def __init__(self, page: ApicPage) -> None:
        self.page = page
        self.rvi = 0
        self.svi = 0
        self.recognised = False
        self.eoi_exit_bitmap = 0
        self.interrupt_window_exiting = False
        self.virtual_interrupt_delivery = True
        self.tpr_threshold = 0

    def ppr_virtualization(self) -> None:
        """SDM 29.1.3.  On VM entry, TPR and EOI virtualization, and on nothing else."""
        page = self.page
        vtpr = page.words[VTPR >> 2]
        svi = self.svi
        page.vppr = vtpr & 0xFF if vtpr & 0xF0 >= svi & 0xF0 else svi & 0xF0

    def evaluate(self) -> None:
        """Evaluation of pending virtual interrupts, SDM 29.2.1.

        IF and the shadows have no say here: they hold back delivery, not recognition.
        """
        self.recognised = (
            self.rvi & 0xF0 > self.page.vppr & 0xF0 and not self.interrupt_window_exiting
        )

    def ppr_and_evaluation(self) -> None:
        """Both in one call: what VM entry, TPR and EOI virtualization end with."""
        page = self.page
        vtpr = page.words[VTPR >> 2]
        svi_class = self.svi & 0xF0
        vppr = page.vppr = vtpr & 0xFF if vtpr & 0xF0 >= svi_class else svi_class
        self.recognised = self.rvi & 0xF0 > vppr & 0xF0 and not self.interrupt_window_exiting

    def tpr_virtualization(self) -> bool:
        """SDM 29.1.2, after a write of VTPR.  True: exit 43, TPR below threshold (VID = 0 only)."""
        if not self.virtual_interrupt_delivery:
            return self.page.words[VTPR >> 2] >> 4 & 15 < self.tpr_threshold & 15
        self.ppr_and_evaluation()
        return False

    def eoi_virtualization(self) -> int | None:
        """SDM 29.1.4.  The vector that exit 45 must report, None if there is no such exit.

        With the exit there is no evaluation: the next VM entry makes up for it.
        """
        vector = self.svi
        self.svi = self.page.retire(vector)
        if self.eoi_exit_bitmap >> vector & 1:
            self.ppr_virtualization()
            return vector
        self.ppr_and_evaluation()
        return None

    def self_ipi_virtualization(self, vector: int) -> None:
        """SDM 29.1.5.  VPPR stays as it is: nothing that it is made of has changed."""
        self.page.set_bit(VIRR, vector)
        self.raise_rvi(vector)
        self.evaluate()

    def raise_rvi(self, vector: int) -> None:
        """RVI := max(RVI, vector), step 6 of SDM 29.6; -1 (PIR was empty) changes nothing."""
        if vector > self.rvi:  # noqa: PLR1730 -- max() costs twice as much
            self.rvi = vector

    def deliver(self) -> int:
        """Virtual-interrupt delivery, SDM 29.2.2, up to the guest's IDT.  The vector."""
        page = self.page
        vector = self.rvi
        self.svi = vector
        page.vppr = vector & 0xF0
        self.rvi = page.take(vector)
        self.recognised = False
        return vector
