/* The first program of a guest whose kernel knows one CPU only: Linux then leaves all queue pairs
 * but one alone. Turns them on, as `ethtool -L eth0 combined N` does, and becomes /init. Without a
 * C library. */

enum { OPEN = 2, CLOSE = 3, IOCTL = 16, SOCKET = 41, EXECVE = 59, WRITE = 1 };
enum { AF_INET = 2, SOCK_DGRAM = 2, SIOCETHTOOL = 0x8946, WRITE_ONLY = 1 };
enum { ETHTOOL_GCHANNELS = 0x3c, ETHTOOL_SCHANNELS = 0x3d };

struct ethtool_channels {
    unsigned command;
    unsigned max_rx, max_tx, max_other, max_combined;
    unsigned rx, tx, other, combined;
};

struct ifreq {
    char name[16];
    void *data;
    char padding[16];
};

static long call(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c)
                     : "rcx", "r11", "memory");
    return result;
}

static long turn_on(void) {
    struct ethtool_channels channels = {.command = ETHTOOL_GCHANNELS};
    struct ifreq request = {.name = "eth0", .data = &channels};
    long socket = call(SOCKET, AF_INET, SOCK_DGRAM, 0);
    long status = call(IOCTL, socket, SIOCETHTOOL, (long)&request);
    if (status == 0) {
        channels.command = ETHTOOL_SCHANNELS;
        channels.combined = channels.max_combined;
        status = call(IOCTL, socket, SIOCETHTOOL, (long)&request);
    }
    call(CLOSE, socket, 0, 0);
    return status;
}

int start(void) {
    static const char failed[] = "PLOVER-GUEST: eth0 has one queue pair\n";
    char *arguments[] = {"/init", 0}, *environment[] = {0};
    if (turn_on() != 0) {
        long console = call(OPEN, (long)"/dev/console", WRITE_ONLY, 0);
        call(WRITE, console, (long)failed, sizeof failed - 1);
        call(CLOSE, console, 0, 0);
    }
    return call(EXECVE, (long)"/init", (long)arguments, (long)environment);
}

__asm__(".globl _start\n"
        "_start: xor %ebp, %ebp\n"
        "        and $-16, %rsp\n"
        "        call start\n"
        "        mov %eax, %edi\n"
        "        mov $60, %eax\n"
        "        syscall\n");
