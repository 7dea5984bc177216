"""Guests that run wild beside others, in a process of their own: python -m tests.guests.isolation FIRST COUNT

Each trial, by its seed, puts a guest with wild code, stores, ports or disk commands beside two victims on the same machine. The victims sum up
their memory for ever; every byte of their memory and of their disks has to stay. Prints a line for each trial.
"""

from __future__ import annotations

import hashlib
import random
import struct
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial

from tests.guests.hostile import RANDOM_KINDS, random_code
from tests.guests.hostile_guests import written_guests
from tests.machine.flat import ENTRY, load_flat
from vmm.backends import Options
from vmm.backends.bt import BtOptions
from vmm.backends.hw import HwOptions
from vmm.backends.trap import TrapOptions
from vmm.devices.disk import Disk
from vmm.host import Host, Resident
from vmm.machine import FRAME, Machine
from vmm.vm import Vm

MEMORY_MIB = 8
_DISK = 1 << 20
_SECONDS = 0.05  # of a trial: enough for a guest to do its worst
_ATTACKERS: tuple[Options, ...] = (
    BtOptions(), BtOptions(ring=3), HwOptions(), HwOptions(mmu="shadow"), TrapOptions(), BtOptions(translate_user=True),
)  # fmt: skip
_VICTIMS: tuple[Options, ...] = (BtOptions(), HwOptions())
_PATTERN, _WORDS, _WRONG = 0x200000, 0x8000, 0x1F0000
_DATA = random.Random("victim").randbytes(4 * _WORDS)
_SUM = sum(struct.unpack(f"<{_WORDS}I", _DATA)) & 0xFFFFFFFF
_VICTIM = {
    ENTRY: f"""again: mov esi,{_PATTERN}; mov ecx,{_WORDS}; xor eax,eax; s: add eax,[esi]; add esi,4; dec ecx; jnz s
        cmp eax,{_SUM}; je again; mov [{_WRONG}],eax; jmp again""",
    _PATTERN: _DATA,
}  # fmt: skip


def _stores(chance: random.Random) -> str:
    size = chance.choice((1 << 23, 1 << 24, 1 << 30, 1 << 32))
    return "; ".join(f"mov dword ptr [{chance.randrange(0x110000, size) & ~3}],{chance.getrandbits(31)}" for _ in range(100))


def _ports(chance: random.Random) -> str:
    """Any value to any port but the one that ends the run, with those of the board before all."""
    known = (0x20, 0x21, 0x40, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x92, 0xA0, 0xA1, 0x1F7, 0x3F6, 0x3D4, 0x3F8, 0x3FC, 0x4D0, 0xCF8, 0xCFC)
    acts = []
    for _ in range(150):
        port = chance.choice(known) if chance.random() < 0.7 else chance.randrange(1 << 16)
        width = chance.choice(("al", "ax", "eax"))
        access = chance.choice((f"out dx,{width}", f"in {width},dx"))
        acts.append(f"mov dx,{port if port != 0xF4 else 0xF5}; mov eax,{chance.getrandbits(31)}; {access}")
    return "; ".join(acts)


def _disk_commands(chance: random.Random) -> str:
    """Commands of all kinds at any sector, with a block of data behind each."""
    acts = []
    for _ in range(20):
        command = chance.choice((0x20, 0x24, 0x30, 0x34, 0x39, 0xC4, 0xC5, 0xC6, 0xE7, 0xEA, 0xEC, 0xEF, chance.randrange(256)))
        values = [chance.choice((0, 1, chance.randrange(256))) for _ in range(5)]
        values[4] = chance.choice((0xE0, 0xF0, values[4]))
        acts += [f"mov dx,{0x1F2 + at}; mov al,{value}; out dx,al" for at, value in enumerate(values)]
        acts.append(f"mov dx,0x1f7; mov al,{command}; out dx,al; mov dx,0x1f0; mov ecx,{chance.choice((128, 256, 600))}; mov esi,0x100000; rep outsw")
    return "; ".join(acts)


def attacker(seed: int) -> tuple[str, Options, Mapping[int, str | bytes]]:
    """What the guest of a trial does, under which back-end, and its parts."""
    chance = random.Random(f"isolation {seed}")
    how = chance.choice(("stores", "ports", "disk", "code", "code", "written"))
    options = _ATTACKERS[seed % len(_ATTACKERS)]
    if how == "code":
        return how, options, random_code(chance.choice(RANDOM_KINDS), seed)
    if how == "written":
        return how, options, written_guests()[chance.choice(list(written_guests()))]
    wild = {"stores": _stores, "ports": _ports, "disk": _disk_commands}[how]
    return how, options, {ENTRY: f"cld; {wild(chance)}; x: jmp x"}


def _boot(parts: Mapping[int, str | bytes], options: Options, disk: Disk, machine: Machine) -> Vm:
    vm = Vm(machine, memory_mib=MEMORY_MIB, options=options, disks=[disk])
    load_flat(vm, parts)
    return vm


def digest(resident: Resident, disk: Disk) -> str:
    """Of all memory and the whole disk of a VM."""
    whole = hashlib.sha256()
    for hfn in resident.vm.memory.frames:
        whole.update(resident.vm.machine.memory[hfn * FRAME : (hfn + 1) * FRAME])
    whole.update(disk.read(0, _DISK // 512))
    return whole.hexdigest()


def _new_disk(until: ExitStack, content: bytes) -> Disk:
    file = until.enter_context(tempfile.NamedTemporaryFile())
    file.write(content)
    file.flush()
    disk = Disk(file.name)
    until.callback(disk.close)
    return disk


def run_trials(first: int, count: int) -> int:
    """Runs the trials; returns how many did harm."""
    harmed = 0
    with ExitStack() as until:
        host = Host.for_sizes((options, MEMORY_MIB) for options in (*_VICTIMS, BtOptions()))
        disks = [_new_disk(until, random.Random(f"disk {number}").randbytes(_DISK)) for number in range(2)]
        for number, options in enumerate(_VICTIMS):
            host.add(f"victim{number}", options, MEMORY_MIB, partial(_boot, _VICTIM, options, disks[number]), reboots=False)
        victims = list(host.residents)
        before = [digest(victim, disk) for victim, disk in zip(victims, disks, strict=True)]
        own = _new_disk(until, bytes(_DISK))
        for seed in range(first, first + count):
            how, options, parts = attacker(seed)
            wild = host.add("attacker", options, MEMORY_MIB, partial(_boot, parts, options, own))
            turns = [victim.turns for victim in victims]
            host.run(_SECONDS)
            for _ in range(50):  # a guest that resets the machine all the time may have had all of it
                host.resume()
                if all(victim.turns > turn for victim, turn in zip(victims, turns, strict=True)):
                    break
                host.run(_SECONDS)
            intact = [digest(victim, disk) for victim, disk in zip(victims, disks, strict=True)] == before
            alive = all(victim.vm.stopped is None and victim.turns > turn for victim, turn in zip(victims, turns, strict=True))
            harmed += not (intact and alive)
            verdict = f"{'nothing' if intact else 'HARM'}{'' if alive else ' A VICTIM STOPPED'}"
            print(f"trial {seed}: {how} under {options.backend}: {wild.vm.stopped.reason if wild.vm.stopped else 'runs on'}: {verdict}", flush=True)
            if wild.failure is not None:
                print(f"trial {seed}: a fault of ours: {wild.failure!r}", flush=True)
                harmed += 1
            host.remove(wild)
    return harmed


if __name__ == "__main__":
    sys.exit(min(run_trials(int(sys.argv[1]), int(sys.argv[2])), 100))
