"""The shadow tables against their definition, under random guests.

Whatever an entry lets the CPU do, the guest's tables have allowed at some time since the guest last flushed that address (INVLPG,
or a load of the page-table pointer): that is what a TLB may do, and no more. A page is written only after its D bit was set,
tables are never writable, and no frame is writable and executable. The CPU here is a model with a TLB that forgets nothing by itself.
"""

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from tests.unit.mmu.plain_machine import PlainMachine
from tests.unit.mmu.reference import NX, Absent, D, Found, P, Paging, U, W, access, translate
from vmm.cpu_state import Cpu
from vmm.faults import GuestPageFault
from vmm.machine import FRAME
from vmm.memory import EXECUTED, MIXED, TABLE, GuestMemory
from vmm.mmu.host import HostSpace
from vmm.mmu.shadow import ShadowMmu
from vmm.mmu.tables import DeviceAccess, StepOver
from vmm.mmu.walk import GuestPaging

EXAMPLES = 60
FRAMES = 24
DIRECTORIES, TABLES, POINTERS = (2, 3), (4, 5, 6), (18, 19)
WINDOW = 7  # with PAE, the directory of the last GiB
_BITS = st.integers(0, 0x7F)
_FRAME = 0x000FFFFFFFFFF000
_TARGETS = (*TABLES, *DIRECTORIES, 8, 8, 9, 9, 10, 11, 12, 13, 0x100)  # 0x100 lies outside RAM


@dataclass(frozen=True)
class Rights:
    """What the guest's tables said of a page at one time."""

    gfn: int
    user: bool
    writable: bool
    executable: bool
    dirty: bool


class Guests(RuleBasedStateMachine):
    """A guest that edits its tables, flushes, changes its page-table pointer and accesses memory.

    pae, deprivileged, guest_mode: set by subclasses' makers. guest_mode: the guest's kernel runs as it is, and what it wrote into a directory
    takes effect when it flushes (`--mmu shadow` of hw).
    """

    pae = False
    deprivileged = False
    guest_mode = False

    @initialize(write_protect=st.sampled_from((True, True, False)))
    def start(self, write_protect: bool) -> None:
        plain = self.plain = PlainMachine(400)
        self.tlb: dict[tuple[int, bool], int] = {}
        plain.flush_tlb = self.tlb.clear  # type: ignore[method-assign]
        plain.set_cr3 = lambda value: self.tlb.clear()  # type: ignore[method-assign]
        machine = plain.machine()
        self.memory = GuestMemory(machine, FRAMES * FRAME)
        self.walk = GuestPaging(self.memory)
        self.mmu = ShadowMmu(
            machine,
            self.memory,
            self.walk,
            HostSpace(machine),
            deprivileged=self.deprivileged,
            kernel_executes=self.guest_mode,
            legacy=self.guest_mode,
        )
        self.before: dict[int, int] = {}  # address of a table entry -> what it held before the last write
        self.size, self.write_protect = (8, write_protect) if self.pae else (4, write_protect)
        self.shift = 21 if self.pae else 22
        self.top = 1 << 32 - self.shift  # entries of all directories together
        self.pages = [region << self.shift >> 12 | slot for region in (0, 1) for slot in (0, 1, 2, self.slots() - 1)]
        large = 0x80 | 0x40 | 0x20 | W | P  # the guest's kernel reaches all its memory through the last large page
        for n, gfn in enumerate(DIRECTORIES):
            if self.pae:
                self.memory.write(POINTERS[n] << 12, (gfn << 12 | 1).to_bytes(8, "little"))
                self.memory.write((POINTERS[n] << 12) + 24, (WINDOW << 12 | 1).to_bytes(8, "little"))
                self.memory.write((WINDOW << 12) + 511 * 8, large.to_bytes(8, "little"))
            else:
                self.memory.write((gfn << 12) + 1023 * 4, large.to_bytes(4, "little"))
        self.history: dict[int, set[Rights]] = {page: set() for page in self.pages}
        self.load_pointer(0)
        self.mmu.drop_roots()
        self.load_pointer(0)

    def slots(self) -> int:
        return 4096 // self.size

    # -- the guest's tables, by the plain walk -----------------------------------------------------------------------------------

    def read(self, gpa: int, size: int) -> int:
        return int.from_bytes(self.memory.read(gpa, size), "little")

    def paging(self) -> Paging:
        return Paging(self.walk.cr3, self.pae, True, self.write_protect, self.pae, tuple(self.walk.pdptes))

    def rights(self, page: int) -> Rights | None:
        found = translate(self.read, self.paging(), page << 12)
        if isinstance(found, Absent):
            return None
        return Rights(found.gpa >> 12, found.user, found.writable, found.executable, found.dirty)

    def note(self) -> None:
        """Adds what the tables say now to each page's history."""
        for page in self.pages:
            rights = self.rights(page)
            if rights is not None:
                self.history[page].add(rights)

    def ever(self, page: int, frame: int, write: bool, user: bool, fetch: bool) -> bool:
        """Whether the tables have allowed this access to that frame since the page was last flushed."""
        for held in self.history[page]:
            if held.gfn >= FRAMES or self.memory.frames[held.gfn] << 12 != frame or user and not held.user or fetch and not held.executable:
                continue
            if not write or held.dirty and (held.writable or not user and not self.write_protect):
                return True
        return False

    # -- the CPU -----------------------------------------------------------------------------------------------------------------

    def entry(self, gva: int) -> int:
        """What a walk of the shadow tables finds; 0 when nothing."""
        table, quads = self.mmu.current.cr3, self.plain.quads
        for low in (30, 21, 12) if self.guest_mode else (39, 30, 21, 12):
            found = quads[(table >> 3) + (gva >> low & 511)]
            if not found & P:
                return 0
            table = found & _FRAME
        return found

    def allowed(self, entry: int, write: bool, user: bool, fetch: bool) -> bool:
        low = user or self.deprivileged  # the guest's kernel runs at CPL 3 as well
        return bool(entry & P) and not (low and not entry & U or write and not entry & W or fetch and entry & NX)

    def touch(self, gva: int, write: bool, user: bool, fetch: bool) -> tuple[str, int]:
        """One access as the CPU makes it: ("done" or "step", frame), ("fault", error code) or ("device", gpa)."""
        key = gva >> 12, user
        self.plain.state[Cpu.HFLAGS] = 3 if user or self.deprivileged else 1
        self.mmu.switch(user)
        for _ in range(3):
            for entry in (self.tlb.get(key, 0), self.entry(gva)):
                if self.allowed(entry, write, user, fetch):
                    self.tlb[key] = entry
                    return "done", entry & _FRAME
            self.tlb.pop(key, None)  # a CPU forgets what faulted
            try:
                outcome = self.mmu.fault(gva, write, user, fetch)
            except GuestPageFault as fault:
                return "fault", fault.code
            self.note()
            if isinstance(outcome, DeviceAccess):
                return "device", outcome.gpa
            if isinstance(outcome, StepOver):
                entry = self.entry(gva)
                assert self.allowed(entry, write, user, fetch)
                self.tlb[key] = entry
                return "step", outcome.gfn
        raise AssertionError(f"a fault at {gva:#x} is repaired again and again")

    def store(self, gpa: int, value: int) -> None:
        """The guest's kernel writes a table entry through its own mapping of all memory."""
        window = (1 << 32) - (1 << self.shift)
        kind, where = self.touch(window + gpa, write=True, user=False, fetch=False)
        assert kind in ("done", "step")
        self.before[gpa] = self.read(gpa, self.size)
        at = self.memory.frames[gpa >> 12] << 12 | gpa & 0xFFF
        self.plain.memory[at : at + self.size] = value.to_bytes(self.size, "little")
        if kind == "step" and not self.guest_mode:
            self.mmu.retrace(where)
        self.note()

    def synchronize(self) -> None:
        """What `guest_mode` does at each flush."""
        if self.guest_mode:
            for gfn in list(self.mmu.copies):
                self.mmu.retrace(gfn)
            self.plain.flush_tlb()

    # -- what guests do ------------------------------------------------------------------------------------------------------------

    @rule(which=st.integers(0, 1))
    def load_pointer(self, which: int) -> None:
        """MOV CR3: everything is flushed."""
        cr3 = (POINTERS if self.pae else DIRECTORIES)[which] << 12
        cr0, cr4 = 0x80000001 | self.write_protect << 16, 0x10 | self.pae << 5
        assert self.walk.load(cr0, cr3, cr4, 0x800, reload_pdptes=True)
        self.mmu.load(False)
        self.synchronize()
        self.history = {page: set() for page in self.pages}
        self.note()

    @rule(n=st.integers(0, 7))
    def invalidate(self, n: int) -> None:
        """INVLPG."""
        page = self.pages[n]
        self.mmu.invalidate(page << 12)
        self.synchronize()
        self.history[page] = set()
        self.note()

    @rule(table=st.sampled_from(TABLES), slot=st.sampled_from((0, 1, 2, -1)), gfn=st.sampled_from(_TARGETS), bits=_BITS, nx=st.booleans())
    def edit_table(self, table: int, slot: int, gfn: int, bits: int, nx: bool) -> None:
        """A lowest-level entry, often one that allows something."""
        bits = bits & 0x67 | (P if bits & 8 else 0) | (U | W if bits & 16 else 0)
        self.store((table << 12) + slot % self.slots() * self.size, gfn << 12 | bits | (NX if nx and self.pae else 0))

    @rule(which=st.integers(0, 1), region=st.integers(0, 1), gfn=st.sampled_from((*TABLES, *TABLES, 8)), bits=_BITS, nx=st.integers(0, 5))
    def edit_directory(self, which: int, region: int, gfn: int, bits: int, nx: int) -> None:
        """A directory entry: a table, now and then a large page."""
        value = gfn << 12 | bits & 0x27 | (P | U | W if bits & 24 else 0)
        if bits == 0x77:
            value = 0x80 | bits & 0x67 | P
        self.store((DIRECTORIES[which] << 12) + region * self.size, value | (NX if not nx and self.pae else 0))

    @precondition(lambda self: self.before)
    @rule(data=st.data())
    def restore_entry(self, data: st.DataObject) -> None:
        """An entry gets back what it held before: a page that is mapped for a while only."""
        gpa = data.draw(st.sampled_from(sorted(self.before)))
        self.store(gpa, self.before[gpa])

    @rule(n=st.integers(0, 7), write=st.booleans(), user=st.booleans())
    def access_data(self, n: int, write: bool, user: bool) -> None:
        """A load or a store."""
        self.access(self.pages[n], write, user, False)

    @rule(n=st.integers(0, 7))
    def fetch(self, n: int) -> None:
        """User code runs there. (The kernel's does in guest mode only: else it runs from the translation cache.)"""
        self.access(self.pages[n], False, True, True)

    def access(self, page: int, write: bool, user: bool, fetch: bool) -> None:
        before = translate(self.read, self.paging(), page << 12)
        kind, value = self.touch(page << 12 | 0x10, write, user, fetch)
        if kind == "fault":
            assert value == access(before, self.paging(), write, user, fetch), "a fault that the guest's tables do not have"
        elif kind == "device":
            assert isinstance(before, Found) and before.gpa >> 12 == value >> 12 >= FRAMES
        elif kind == "step":
            if not self.guest_mode:
                self.mmu.retrace(value)
            self.note()
        else:
            assert self.ever(page, value, write, user, fetch), "an access that the guest's tables have not allowed since the last flush"

    # -- what always holds -----------------------------------------------------------------------------------------------------------

    @precondition(lambda self: hasattr(self, "mmu"))
    @invariant()
    def entries_are_allowed(self) -> None:
        """Every present entry of the current root grants what the guest's tables granted."""
        kernel_table = self.deprivileged and not self.mmu.current.user
        for page in self.pages:
            entry = self.entry(page << 12)
            if not entry & P:
                continue
            user = bool(entry & U) and not kernel_table
            assert self.ever(page, entry & _FRAME, False, user, False)
            if entry & W:
                assert self.ever(page, entry & _FRAME, True, user, False)
            if not entry & NX:
                assert self.ever(page, entry & _FRAME, False, user or not self.guest_mode, True)

    @precondition(lambda self: hasattr(self, "mmu"))
    @invariant()
    def uses_of_frames_are_respected(self) -> None:
        """Over all shadow tables: a traced table is writable nowhere, an executed page only when MIXED; X needs the state EXECUTED."""
        for leaf in self.mmu.leaves.values():
            for entry in self.plain.quads[leaf.at : leaf.at + 512]:
                if not entry & P:
                    continue
                gfn = self.memory.frames.index(entry >> 12 & 0xFFFFFF)
                state = self.memory.state[gfn]
                assert not (entry & W and state & TABLE and gfn not in self.mmu.copies), f"table {gfn} is writable"
                assert not (entry & W and state & EXECUTED and not state & MIXED), f"page {gfn} is writable and executed"
                assert entry & NX or state & EXECUTED, f"page {gfn} is executable without having been executed"


@pytest.mark.parametrize("pae", (False, True), ids=("32-bit", "PAE"))
@pytest.mark.parametrize("who", ("ring 1", "ring 3", "guest mode"))
def test_shadow_entries_follow_their_definition(pae: bool, who: str) -> None:
    """Random guests, both formats, one table or two."""

    class Chosen(Guests):
        pass

    Chosen.pae, Chosen.deprivileged, Chosen.guest_mode = pae, who == "ring 3", who == "guest mode"
    run_state_machine_as_test(Chosen, settings=settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None))


@pytest.mark.parametrize("pae", (False, True), ids=("32-bit", "PAE"))
def test_a_directory_that_was_written_and_not_flushed(pae: bool) -> None:
    """A fault is repaired by the table to which the directory leads now, in that table's shadow; the former one's is left as it was."""

    class Chosen(Guests):
        guest_mode = True

    Chosen.pae = pae
    guest = Chosen()
    guest.start(write_protect=True)
    guest.edit_directory(which=0, region=0, gfn=4, bits=24, nx=1)
    guest.edit_table(table=4, slot=0, gfn=4, bits=31, nx=False)
    guest.access_data(n=0, write=False, user=False)
    guest.edit_directory(which=0, region=0, gfn=5, bits=23, nx=1)
    guest.edit_table(table=4, slot=1, gfn=4, bits=45, nx=False)
    guest.edit_table(table=5, slot=2, gfn=4, bits=1, nx=False)
    guest.access_data(n=2, write=False, user=False)
    guest.entries_are_allowed()
    guest.access_data(n=1, write=False, user=False)
    guest.entries_are_allowed()


@pytest.mark.parametrize("guest_mode", (False, True), ids=("bt", "guest mode"))
def test_a_page_that_is_mapped_between_two_flushes_only(guest_mode: bool) -> None:
    """A table entry was written, used and taken back before the page-table pointer is loaded: nothing of it is left."""
    guests = Guests()
    guests.guest_mode = guest_mode
    guests.start(write_protect=True)
    guests.edit_directory(0, 0, TABLES[0], 0x27, 1)
    guests.store((TABLES[0] << 12) + 4, 9 << 12 | P | W | U)
    assert guests.touch(0x1000, True, True, False)[0] == "done"
    guests.load_pointer(0)
    guests.store(TABLES[0] << 12, 8 << 12 | P | W | U)
    assert guests.touch(0, True, True, False)[0] == "done"
    guests.store(TABLES[0] << 12, 0)
    guests.load_pointer(0)
    assert guests.touch(0, False, True, False)[0] == "fault"


@pytest.mark.parametrize("by_page", (False, True), ids=("CR3", "INVLPG"))
def test_a_table_that_is_there_between_two_flushes_only(by_page: bool) -> None:
    """The same of a directory's entry, and of the table that it led to, which comes back as the table of another region."""
    guests = Guests()
    guests.guest_mode = True
    guests.start(write_protect=True)
    guests.load_pointer(0)
    guests.edit_directory(0, 0, TABLES[0], 0x27, 1)
    for slot in (0, 1):
        guests.store((TABLES[0] << 12) + 4 * slot, 8 << 12 | P | W | U)
        assert guests.touch(slot << 12, True, True, False)[0] == "done"
    for slot in (0, 1):
        guests.store((TABLES[0] << 12) + 4 * slot, 0)
    guests.store(DIRECTORIES[0] << 12, 0)
    if by_page:
        guests.invalidate(0)
        guests.invalidate(1)
    else:
        guests.load_pointer(0)
    assert guests.touch(0x1000, False, True, False)[0] == "fault"
    guests.edit_directory(0, 1, TABLES[0], 0x27, 1)
    assert guests.touch(1 << 22 | 0x1000, False, True, False)[0] == "fault"


def test_dirty_is_exact() -> None:
    """A read maps the page read-only though the guest may write it; the first write sets D; a cleared D with INVLPG starts anew."""
    guests = Guests()
    guests.start(write_protect=True)
    guests.edit_directory(0, 0, TABLES[0], 0x7, 1)
    guests.store(TABLES[0] << 12, 8 << 12 | P | W | U)
    leaf = TABLES[0] << 12
    assert guests.touch(0, False, True, False)[0] == "done"
    assert not guests.entry(0) & W and guests.memory.read32(leaf) & 0x60 == 0x20
    assert guests.touch(0, True, True, False)[0] == "done"
    assert guests.entry(0) & W and guests.memory.read32(leaf) & D
    guests.store(leaf, 8 << 12 | P | W | U)
    guests.invalidate(0)
    assert not guests.entry(0) & W
    assert guests.touch(0, True, False, False)[0] == "done" and guests.memory.read32(leaf) & D
