/* calls.c: the ways into the kernel, and the ports that a program may be allowed. */
#include "linux.h"

extern const u8 port_80[], port_81[], ports_7f_80[], port_70[], own_cli[], port_string[];

static void entries(void)
{
    static const long numbers[] = {__NR_getpid, __NR_getppid, __NR_getuid32, __NR_gettid};
    u32 same = 0, fast = fast_call_entry != 0;
    for (u32 i = 0; i < 400 && fast; i++)
        same += system_call(numbers[i % 4]) == fast_call(numbers[i % 4]);
    printf("int 80h and the kernel's own entry agree: %u of 400\n", same);
    printf("no such call: %d and %d\n", (int)system_call(5000), (int)fast_call(5000));
    u32 page = (u32)system_call(__NR_mmap2, ALIAS, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    u32 again = (u32)fast_call(__NR_mmap2, ALIAS, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    printf("six arguments: %x and %x, bad memory: %d and %d\n", page, again, (int)system_call(__NR_uname, HOLE), (int)fast_call(__NR_uname, HOLE));
}

/* What INT 80h leaves of the registers: everything but EAX. */
static void kept(void)
{
    u32 a, b, c, d, si, di, flags;
    asm volatile("pushl $0xed7; popf; int $0x80; pushf; popl %6; cld"
                 : "=a"(a), "=b"(b), "=c"(c), "=d"(d), "=S"(si), "=D"(di), "=m"(flags)
                 : "0"(5000), "1"(1), "2"(2), "3"(3), "4"(4), "5"(5)
                 : "memory", "cc");
    printf("kept by int 80h: %d %u %u %u %u %u %x\n", (int)a, b, c, d, si, di, flags & 0xed5);
}

static u64 stamp(void)
{
    u64 now;
    asm volatile("rdtsc" : "=A"(now));
    return now;
}

static void time(void)
{
    struct {
        u32 seconds, nanoseconds;
    } first, before, after;
    u32 back = 0;
    u64 last = stamp();
    system_call(__NR_clock_gettime, 1, &first);
    before = first;
    for (u32 i = 0; i < 200; i++) {
        u64 now = stamp();
        back += now <= last;
        last = now;
        system_call(__NR_clock_gettime, 1, &after);
        back += after.seconds < before.seconds || (after.seconds == before.seconds && after.nanoseconds < before.nanoseconds);
        before = after;
    }
    printf("time goes on: %d, back: %u of 400\n", after.seconds != first.seconds || after.nanoseconds != first.nanoseconds, back);
}

static void try_ports(const char *when)
{
    static const struct {
        const char *what;
        const u8 *code;
    } ways[] = {{"80h", port_80}, {"81h", port_81}, {"7Fh and 80h", ports_7f_80}, {"70h", port_70}, {"a string", port_string}, {"cli", own_cli}};
    for (u32 i = 0; i < sizeof ways / sizeof *ways; i++) {
        attempt(ways[i].code);
        printf("%s, ", when);
        print_caught(ways[i].what, (u32)ways[i].code);
    }
}

static void ports(void)
{
    try_ports("no ports");
    printf("ioperm: %d\n", (int)system_call(__NR_ioperm, 0x80, 1, 1));
    try_ports("port 80h");
    int child = fork();
    if (child == 0) {
        attempt(port_80);
        leave(caught.at.trapno);
    }
    printf("a child's port 80h: trap %d\n", wait_for(child));
    system_call(__NR_ioperm, 0x80, 1, 0);
    try_ports("none again");
    printf("iopl: %d\n", (int)system_call(__NR_iopl, 3));
    try_ports("IOPL 3");
    system_call(__NR_iopl, 0);
}

void calls(void)
{
    entries();
    kept();
    time();
    ports();
}
