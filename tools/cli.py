"""The `vmm` command: its subcommands and options, exit statuses, and how errors reach a person.

Knows the command line and nothing behind it: each command loads what it needs when it runs, so that `vmm kernels` starts no CPU.
Everything of ours goes to standard error, except what a command was asked to print.
"""

from __future__ import annotations

import copy
import gc
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from tools.vms.cli import add_commands
from vmm.errors import InputError

BAD_INPUT, OUR_FAULT, BROKEN_PIPE = 2, 70, 141
_START_UP = 200_000  # objects: more than any command loads before it begins its work

app = typer.Typer(name="vmm", add_completion=False, no_args_is_help=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback()
def _vmm() -> None:
    """A virtual machine monitor for x86 on a Unicorn CPU."""


@app.command(
    epilog="Exit status: 0 the guest reported 0 (port F4h), powered off, or was ended by Ctrl-A x; 1 it reported anything else; 2 bad usage or input;"
    " 3 it died or stopped for good; 70 a fault of ours; 124 time-out; 130 Ctrl-C."
)
def run(
    kernels: Annotated[
        list[str] | None, typer.Argument(metavar="KERNEL...", help="A bundled kernel's name (vmm kernels) or a file; several share a CPU.")
    ] = None,
    backend: Annotated[
        str, typer.Option(metavar="auto|bt|hw|pv|trap|step|native", help="How guest code is run; of several kernels: bt,hw,...")
    ] = "auto",
    mmu: Annotated[str | None, typer.Option(metavar="shadow|nested|direct", help="How guest memory is mapped.")] = None,
    ring: Annotated[str | None, typer.Option(metavar="1|3", help="CPL of the guest's kernel; default 1.")] = None,
    stubs: Annotated[
        str | None, typer.Option(metavar="cache|trap", help="Emulate sensitive instructions in the cache (the default), or trap each.")
    ] = None,
    user: Annotated[str | None, typer.Option(metavar="direct|translate", help="How the guest's user code is run.")] = None,
    memory: Annotated[str | None, typer.Option("-m", metavar="MIB", help="Guest memory; also 512M, 1G. Default: 128, or as bundled.")] = None,
    append: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="The kernel's command line; of several kernels: 2:TEXT.")] = None,
    initrd: Annotated[list[str] | None, typer.Option(metavar="FILE", help="Boot modules, as in QEMU, or Linux's RAM disk.")] = None,
    module: Annotated[list[str] | None, typer.Option(metavar='"FILE ARGS"', help="A boot module; repeatable.")] = None,
    address: Annotated[str | None, typer.Option(metavar="ADDR", help="Load a flat binary there and start it there.")] = None,
    disk: Annotated[list[str] | None, typer.Option(metavar="FILE", help="A raw disk image, up to four times.")] = None,
    net: Annotated[str | None, typer.Option(metavar="NAME", help="An NE2000 adapter (port 300h, line 9) on a network of that name.")] = None,
    share: Annotated[str | None, typer.Option(metavar="N,N,...", help="Of several kernels: their parts of the CPU's time, such as 3,1.")] = None,
    console: Annotated[str, typer.Option(metavar="stdio|pty", help="Of several kernels: labelled lines here, or a terminal each.")] = "stdio",
    restore: Annotated[str | None, typer.Option(metavar="FILE", help="Instead of KERNEL: go on from a snapshot.")] = None,
    bios: Annotated[str | None, typer.Option(metavar="FILE", help="Start in this BIOS, which boots a disk, instead of a KERNEL.")] = None,
    icount: Annotated[bool, typer.Option("--icount", help="Virtual time is the number of instructions: every run is the same.")] = False,
    timeout: Annotated[str | None, typer.Option(metavar="S", help="End the run after so many seconds, with status 124.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print exits, callouts and counts at the end.")] = False,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write the same as JSON (docs/JSON.md).")] = None,
    cache_size: Annotated[str | None, typer.Option(metavar="SIZE", help="Room for translated code, such as 256K; default 16M.")] = None,
    no_adapt: Annotated[bool, typer.Option("--no-adapt", help="Each access that faults does so always: nothing is translated again.")] = False,
    table_stores: Annotated[
        str | None, typer.Option(metavar="all|lowest", help="Under pv: page tables into which stores are emulated; Xen: the lowest.")
    ] = None,
    exit_on: Annotated[
        str | None, typer.Option(metavar="WHAT,...", help="Exits beside the least that hw needs: cr3, invlpg, io:0x60, msr:0x1b, exception:14 ...")
    ] = None,
    mistakes: Annotated[
        str | None, typer.Option("--break", metavar="WHAT,...", help="Make a mistake (docs/EXERCISES.md): no-invalidate, no-trace, popf, raw-ptp.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="With --backend trap: which instructions slipped, and what came of it.")] = False,
    no_reboot: Annotated[bool, typer.Option("--no-reboot", help="A reset by the guest ends the run, with status 0.")] = False,
    qemu_exit: Annotated[bool, typer.Option("--qemu-exit", help="A reported value V makes the status (V << 1) | 1, as in QEMU.")] = False,
    vga: Annotated[bool, typer.Option("--vga", help="Show the VGA text screen live on standard error.")] = False,
    log: Annotated[str | None, typer.Option("-d", metavar="int,exec,mmu,io,bios", help="Log events, blocks, fills, devices, SeaBIOS.")] = None,
    log_file: Annotated[str | None, typer.Option("-D", metavar="FILE", help="Log there and not to standard error.")] = None,
) -> None:
    """Boot KERNEL, or what the disks hold. Its serial line is standard output and input; Ctrl-A x ends the run, Ctrl-A h helps."""
    from tools import options
    from tools.run import Wishes, run_kernel
    from tools.session import Request
    from tools.technique import Technique, backend_of_snapshot, options_of

    if bios is not None:
        for_kernels = {"KERNEL": kernels, "--append": append, "--initrd": initrd, "--module": module, "--address": address, "--restore": restore}
        options.refuse(for_kernels, "with --bios the guest is what a disk holds")
        kernels = [bios]
    elif restore is not None:
        settled = {"KERNEL": kernels, "-m": memory, "--append": append, "--initrd": initrd, "--module": module, "--address": address, "--disk": disk}
        options.refuse(settled, "with --restore it is the snapshot's")
        kernels, backend = [""], backend_of_snapshot(restore) if backend == "auto" else backend
    elif not kernels:
        raise InputError("missing argument 'KERNEL...' (see vmm --help)")
    count = len(kernels)
    if explain and (backend != "trap" or disk or count > 1):
        raise InputError("--explain: goes with --backend trap, with one kernel, and without --disk, since the guest is run twice")
    ptys = options.choice("--console", console, ("stdio", "pty")) == "pty"
    if count > 1:
        options.refuse({"--cache-size": cache_size, "--exit-on": exit_on, "--break": mistakes, "--table-stores": table_stores})
        options.refuse({"--qemu-exit": qemu_exit, "--vga": vga, "-d": log, "-D": log_file})
    elif share or ptys:
        raise InputError("--share and --console: go with several kernels")
    each = {option: options.for_each(option, text, count) for option, text in (
        ("--backend", backend), ("--mmu", mmu), ("--ring", ring), ("--stubs", stubs), ("--user", user), ("-m", memory),
        ("--net", net),
    )}  # fmt: skip
    of_one = {option: options.for_one(option, texts or (), count) for option, texts in (
        ("--append", append), ("--initrd", initrd), ("--module", module), ("--disk", disk),
    )}  # fmt: skip
    requests = []
    for n, kernel in enumerate(kernels):
        size = each["-m"][n]
        technique = Technique(
            kernel=kernel,
            bios=bios,
            backend=each["--backend"][n] or "auto",
            mmu=each["--mmu"][n],
            ring=each["--ring"][n],
            stubs=each["--stubs"][n],
            user=each["--user"][n],
            cache_size=cache_size,
            exit_on=exit_on,
            break_=mistakes,
            no_adapt="" if no_adapt else None,
            table_stores=table_stores,
        )
        requests.append(
            Request(
                kernel=kernel,
                bios=bios is not None,
                memory_mib=None if size is None else options.memory(size),
                append=next(reversed(of_one["--append"][n]), None),
                initrd=next(reversed(of_one["--initrd"][n]), None),
                modules=tuple(of_one["--module"][n]),
                address=None if address is None else options.address(address),
                disks=options.disks(of_one["--disk"][n]),
                options=options_of(technique),
                timeout=None if timeout is None else options.seconds(timeout),
                reboot=not no_reboot,
                icount=icount,
                restore=restore,
                network=each["--net"][n],
            )
        )
    wishes = Wishes(
        statistics=stats,
        record=None if json is None else options.writable(json),
        like_qemu=qemu_exit,
        vga=vga,
        logs=frozenset() if log is None else options.logs(log),
        log_file=None if log_file is None else options.writable(log_file),
        explain=explain,
    )
    if count > 1:
        from tools.together import parts_of, run_together

        raise typer.Exit(run_together(parts_of(kernels, requests, share), wishes, ptys=ptys))
    raise typer.Exit(run_kernel(requests[0], wishes))


@app.command(epilog="Exit status: 0 the dump was written, however the run ended; 2 bad usage or input; 70 a fault of ours; 130 Ctrl-C ended the run.")
def dump(
    kernel: Annotated[str, typer.Argument(metavar="KERNEL", help="A bundled kernel's name (vmm kernels) or a file.")],
    at: Annotated[str | None, typer.Option(metavar="ADDR|SYMBOL", help="Only the blocks with this instruction; also SYMBOL+OFFSET.")] = None,
    blocks: Annotated[
        str | None, typer.Option(metavar="N", help="At most so many: with --at also those that it leads to, with --hot the hottest.")
    ] = None,
    hot: Annotated[bool, typer.Option("--hot", help="Count how often each instruction is carried out.")] = False,
    static: Annotated[
        bool, typer.Option("--static/--run", help="Translate the file as it is loaded, or (the default) see what a run translates.")
    ] = False,
    form: Annotated[str, typer.Option("--format", metavar="text|json|html", help="docs/DUMP.md has the JSON form.")] = "text",
    output: Annotated[str | None, typer.Option("-o", metavar="FILE", help="Write there and not to standard output.")] = None,
    backend: Annotated[str, typer.Option(metavar="auto|bt", help="How guest code is run.")] = "auto",
    ring: Annotated[str | None, typer.Option(metavar="1|3", help="CPL of the guest's kernel; default 1.")] = None,
    stubs: Annotated[str | None, typer.Option(metavar="cache|trap", help="Emulate sensitive instructions in the cache, or trap each.")] = None,
    user: Annotated[str | None, typer.Option(metavar="direct|translate", help="How the guest's user code is run.")] = None,
    memory: Annotated[str | None, typer.Option("-m", metavar="MIB", help="Guest memory; also 512M, 1G. Default: 128, or as bundled.")] = None,
    append: Annotated[str | None, typer.Option(metavar="TEXT", help="The kernel's command line.")] = None,
    initrd: Annotated[str | None, typer.Option(metavar="FILE", help="Boot modules, as in QEMU.")] = None,
    module: Annotated[list[str] | None, typer.Option(metavar='"FILE ARGS"', help="A boot module; repeatable.")] = None,
    address: Annotated[str | None, typer.Option(metavar="ADDR", help="Load a flat binary there and start it there.")] = None,
    disk: Annotated[list[str] | None, typer.Option(metavar="FILE", help="A raw disk image, up to four times.")] = None,
    timeout: Annotated[str, typer.Option(metavar="S", help="End the run after so many seconds.")] = "10",
    cache_size: Annotated[str | None, typer.Option(metavar="SIZE", help="Room for translated code, such as 256K; default 16M.")] = None,
    no_adapt: Annotated[bool, typer.Option("--no-adapt", help="Each access that faults does so always: nothing is translated again.")] = False,
) -> None:
    """Show guest code beside its translation, after a run of KERNEL or without one. What the guest prints is not shown."""
    from tools import options
    from tools.dump.command import Wanted, dump_kernel
    from tools.session import Request
    from tools.technique import Technique, options_of

    wanted = Wanted(
        at=at,
        blocks=None if blocks is None else options.count("--blocks", blocks),
        hot=hot,
        static=static,
        form=options.choice("--format", form, ("text", "json", "html")),
        output=None if output is None else options.writable(output),
    )
    request = Request(
        kernel=kernel,
        memory_mib=None if memory is None else options.memory(memory),
        append=append,
        initrd=initrd,
        modules=tuple(module or ()),
        address=None if address is None else options.address(address),
        disks=options.disks(disk or ()),
        options=options_of(Technique(backend=backend, ring=ring, stubs=stubs, user=user, cache_size=cache_size, no_adapt="" if no_adapt else None)),
        timeout=options.seconds(timeout),
    )
    raise typer.Exit(dump_kernel(request, wanted))


@app.command(
    epilog="Exit status: 0 compared, though a cell may say why it did not run; 1 something is worse than --against; 2 bad usage or input;"
    " 70 a fault of ours; 130 Ctrl-C, 143 SIGTERM, after which what was measured is shown."
)
def compare(
    kernel: Annotated[list[str] | None, typer.Argument(metavar="[KERNEL]...", help="Of nano, work, mach, xv6, linux; default: all.")] = None,
    backends: Annotated[str | None, typer.Option(metavar="WAY,...", help="Ways of running them, such as bt,hw,qemu; default: all.")] = None,
    rows: Annotated[str | None, typer.Option(metavar="ROW,...", help="Only these rows, such as syscall,forkwait.")] = None,
    short: Annotated[bool, typer.Option("--short", help="A few rows and ways, in less than a minute.")] = False,
    rounds: Annotated[str, typer.Option(metavar="N", help="How often each cell is measured.")] = "3",
    timeout: Annotated[str, typer.Option(metavar="S", help="Seconds for one run of one cell.")] = "30",
    limit: Annotated[str, typer.Option(metavar="S", help="Seconds for everything; what would take longer is measured fewer times.")] = "540",
    jobs: Annotated[str | None, typer.Option(metavar="N", help="Rows at a time; default: as many as there are processors.")] = None,
    icount: Annotated[bool, typer.Option("--icount", help="Virtual time is the number of instructions: exits are the same in every run.")] = False,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write everything as JSON (docs/COMPARISON.md).")] = None,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Write a page with charts, beside published results.")] = None,
    save: Annotated[str | None, typer.Option(metavar="NAME", help="Keep the results under a name.")] = None,
    against: Annotated[str | None, typer.Option(metavar="NAME", help="Say what has changed since; status 1 when something is worse.")] = None,
    explain: Annotated[str | None, typer.Option(metavar="ROW", help="Show a row's translated blocks, VMCS controls and hypercalls instead.")] = None,
    cluster: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Spread the rows over a dask.distributed scheduler's workers.")] = None,
) -> None:
    """Run the same guests in every way, and show time, exits and modelled cycles of each row side by side."""
    from tools import options
    from tools.compare.command import Request, explain_row
    from tools.compare.command import compare as carry_out

    if explain is not None:
        explain_row(tuple(kernel or ()), explain, backends)
        return
    request = Request(
        kernels=tuple(kernel or ()),
        ways=backends,
        rows=rows,
        short=short,
        rounds=options.count("--rounds", rounds),
        timeout=options.seconds(timeout),
        limit=options.seconds(limit, "--limit"),
        processes=len(os.sched_getaffinity(0)) if jobs is None else options.count("--jobs", jobs),
        icount=icount,
        json=None if json is None else options.writable(json),
        html=None if html is None else options.writable(html),
        save=save,
        against=against,
        cluster=cluster,
    )
    raise typer.Exit(carry_out(request))


@app.command()
def demo(
    what: Annotated[str, typer.Argument(metavar="scribble|linux", help="Which demonstration.")],
    seed: Annotated[str, typer.Option(metavar="N", help="The same number does the same damage.")] = "1",
    every: Annotated[str, typer.Option(metavar="S", help="Seconds of the guest's time between two rounds of damage.")] = "10",
    trials: Annotated[str | None, typer.Option(metavar="N", help="So many guests, with a seed each, and histograms of what came of them.")] = None,
    module: Annotated[str | None, typer.Option(metavar="FILE", help="With linux: scribble.ko does the damage, and not the VMM.")] = None,
    backend: Annotated[str | None, typer.Option(metavar="bt|step|hw", help="How guest code is run: bt or step; linux: hw or bt.")] = None,
) -> None:
    """Show the lecture's demonstrations: a guest with random bytes all over its memory. scribble is bundled, linux Debian's."""
    from tools import options
    from tools.technique import Technique, options_of

    linux = options.choice("vmm demo", what, ("scribble", "linux")) == "linux"
    first, seconds = options.seed(seed), options.seconds(every, "--every")
    if seconds > 600:
        raise InputError(f"--every {every}: must be 600 s at most")
    ways = ("hw", "bt") if linux else ("bt", "step")
    technique = options_of(Technique(backend=options.choice("--backend", backend or ways[0], ways)))
    if linux:
        from tools.demo_linux import show_linux

        if trials is not None:
            raise InputError("--trials: goes with scribble")
        raise typer.Exit(show_linux(first, seconds, technique, module))
    from tools.demo import show_scribble, show_trials

    if module is not None:
        raise InputError("--module: goes with linux")
    if trials is not None:
        show_trials(first, options.count("--trials", trials), seconds, technique)
        raise typer.Exit(0)
    raise typer.Exit(show_scribble(first, seconds, technique))


@app.command()
def kernels() -> None:
    """List the bundled guests."""
    import guest_kernels

    guests = guest_kernels.kernels("any")
    width = max(map(len, guests))
    for guest in guests.values():
        print(f"{guest.name:<{width}}  {guest.description}")


@app.command()
def new(folder: Annotated[str, typer.Argument(metavar="DIR", help="A new or empty folder.")]) -> None:
    """Write a starter kernel: sources, a Makefile, and a test of its own."""
    from tools.new import write_starter

    for path in write_starter(folder):
        print(path)


add_commands(app)


def _parser(arguments: Sequence[str]) -> typer.Typer:
    """A parser for the command that is named, or for all when none is: making a command's costs up to 2 ms, as much as a short guest's run."""
    named = [command for command in app.registered_commands if command.callback and arguments[:1] == [command.callback.__name__]]
    if not named:
        return app
    alone = copy.copy(app)
    alone.registered_commands = named
    return alone


def status(arguments: Sequence[str] | None = None) -> int:
    """Carries out a command line (the process's own when None) and returns the exit status. Errors are one line on standard error."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        done = _parser(arguments)(args=arguments, prog_name="vmm", standalone_mode=False)
        return done if isinstance(done, int) else 0
    except InputError as error:
        return _complain(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered has nowhere to go
        return BROKEN_PIPE
    except Exception as error:
        if isinstance(error, typer.BadParameter.__mro__[2]):  # what every usage error of typer's parser is; typer does not name it
            return _complain(_one_line(error), BAD_INPUT)
        if os.environ.get("VMM_DEBUG") == "1":
            import traceback

            traceback.print_exc()
        return _complain(f"internal error: {type(error).__name__}: {' '.join(str(error).split())} (VMM_DEBUG=1 shows where)", OUR_FAULT)


def main() -> NoReturn:
    """The entry point of the `vmm` command. The collector is kept from looking through what was loaded: 10 ms at the start, 20 at the end."""
    gc.set_threshold(_START_UP)
    result = status()
    gc.freeze()
    sys.exit(result)


def _complain(line: str, result: int) -> int:
    print(f"vmm: {line}", file=sys.stderr)
    return result


def _one_line(error: Exception) -> str:
    """A usage error of typer's, as one line."""
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    line = " ".join(str(message).split()).rstrip(".")
    return f"{line[:1].lower()}{line[1:]} (see vmm --help)"
