/* What a Cortex-M needs to run a program without an operating system: a vector table, memory as C expects it, and an
   end. Input and output go through semihosting: the processor stops at a breakpoint, and the emulator serves the call.

   For the boards MPS2 AN385 (Cortex-M3) and AN386 (Cortex-M4): 4 MiB of code memory at 0, 4 MiB of data memory at
   0x20000000. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/stat.h>

extern uint32_t stack_end[], data_load[], data_begin[], data_end[], bss_begin[], bss_end[], heap_begin[];

int main(void);

enum { SYS_WRITEC = 0x03, SYS_EXIT = 0x18, EXIT_DONE = 0x20026, EXIT_ERROR = 0x20023 };

static int32_t semihosting(int32_t operation, uintptr_t argument)
{
    register int32_t r0 __asm__("r0") = operation;
    register uintptr_t r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void _exit(int status)
{
    semihosting(SYS_EXIT, status == 0 ? EXIT_DONE : EXIT_ERROR);
    for (;;) {
    }
}

int _write(int file, const char *text, int length)
{
    (void)file;
    for (int i = 0; i < length; ++i) {
        semihosting(SYS_WRITEC, (uintptr_t)&text[i]);
    }
    return length;
}

/* The C library asks for memory to buffer what is printed. */
void *_sbrk(ptrdiff_t more)
{
    static char *end = (char *)heap_begin;
    char *before = end;
    end += more;
    return before;
}

int _close(int file) { (void)file; return -1; }
int _read(int file, char *into, int length) { (void)file; (void)into; (void)length; return 0; }
int _lseek(int file, int offset, int from) { (void)file; (void)offset; (void)from; return 0; }
int _isatty(int file) { (void)file; return 1; }
int _fstat(int file, struct stat *about) { (void)file; about->st_mode = S_IFCHR; return 0; }
int _getpid(void) { return 1; }
int _kill(int process, int signal) { (void)process; (void)signal; return -1; }

static void fault(void)
{
    _exit(1);
}

void reset(void)
{
#if defined(__ARM_FP)
    /* Coprocessors 10 and 11 are the floating point unit; it is off at first. */
    *(volatile uint32_t *)0xe000ed88 |= 0xfu << 20;
    __asm__ volatile("dsb\n\tisb");
#endif
    uint32_t *from = data_load;
    for (uint32_t *to = data_begin; to < data_end; ++to) {
        *to = *from++;
    }
    for (uint32_t *to = bss_begin; to < bss_end; ++to) {
        *to = 0;
    }
    int status = main();
    fflush(NULL);
    _exit(status);
}

/* The stack, the reset, and the fourteen exceptions of the processor, which are all errors here. */
__attribute__((section(".vectors"), used)) static void (*const vectors[])(void) = {
    (void (*)(void))stack_end, reset, fault, fault, fault, fault, fault, fault,
    fault, fault, fault, fault, fault, fault, fault, fault,
};
