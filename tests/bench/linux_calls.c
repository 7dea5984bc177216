/* linux_calls.c: an init that does the same thing many times, several things in turn, and says on the console when each is done. */
typedef unsigned int u32;

enum { EXIT = 1, FORK = 2, WRITE = 4, OPEN = 5, WAITPID = 7, GETPPID = 64, DUP = 41, REBOOT = 88, MMAP = 90, MUNMAP = 91, YIELD = 158 };
enum { PAGE = 4096, READ_WRITE = 3, PRIVATE_ANONYMOUS = 0x22 };

static int call(int number, int a, int b, int c, int d)
{
    int result;
    asm volatile("int $0x80" : "=a"(result) : "0"(number), "b"(a), "c"(b), "d"(c), "S"(d) : "memory");
    return result;
}

static void done(const char *what)
{
    u32 length = 0;
    while (what[length])
        length++;
    call(WRITE, 1, (int)what, (int)length, 0);
}

static void fork_and_wait(void)
{
    int child = call(FORK, 0, 0, 0, 0);
    if (!child)
        call(EXIT, 0, 0, 0, 0);
    call(WAITPID, child, 0, 0, 0);
}

static void yield_to_each_other(int times)
{
    int child = call(FORK, 0, 0, 0, 0);
    for (int i = 0; i < times; i++)
        call(YIELD, 0, 0, 0, 0);
    if (!child)
        call(EXIT, 0, 0, 0, 0);
    call(WAITPID, child, 0, 0, 0);
}

static void touch(int pages)
{
    u32 arguments[6] = {0, (u32)pages * PAGE, READ_WRITE, PRIVATE_ANONYMOUS, (u32)-1, 0};
    volatile char *memory = (volatile char *)call(MMAP, (int)arguments, 0, 0, 0);
    for (int i = 0; i < pages; i++)
        memory[i * PAGE] = 1;
    call(MUNMAP, (int)memory, pages * PAGE, 0, 0);
}

__attribute__((force_align_arg_pointer)) void _start(void)
{
    call(OPEN, (int)"/dev/console", 2, 0, 0);
    call(DUP, 0, 0, 0, 0);
    fork_and_wait(); /* what it needs is translated */
    yield_to_each_other(100);
    touch(100);
    done("done boot\n");
    for (int i = 0; i < 10000; i++)
        call(GETPPID, 0, 0, 0, 0);
    done("done getppid\n");
    for (int i = 0; i < 100; i++)
        fork_and_wait();
    done("done fork\n");
    yield_to_each_other(1000);
    done("done yield\n");
    touch(4000);
    done("done touch\n");
    call(REBOOT, (int)0xfee1dead, 672274793, 0x1234567, 0);
}
