// The init of a guest that uses all ports of the console: "streams" for one run, "session" for one that is saved.
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static int errors;

static void say_all(int fd, const void *text, size_t bytes) {
    const char *at = text;
    while (bytes > 0) {
        ssize_t written = write(fd, at, bytes);
        if (written < 0) {
            dprintf(errors, "write: %m\n");
            _exit(1);
        }
        at += written;
        bytes -= written;
    }
}

static void say(int fd, const char *text) { say_all(fd, text, strlen(text)); }

// Opens the port with this name, found as programs find it.
static int port(const char *wanted, int flags) {
    DIR *ports = opendir("/sys/class/virtio-ports");
    for (struct dirent *entry; ports && (entry = readdir(ports));) {
        char path[300], name[64] = "";
        snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
        int fd = open(path, O_RDONLY);
        if (fd < 0) continue;
        ssize_t bytes = read(fd, name, sizeof name - 1);
        close(fd);
        if (bytes <= 0) continue;
        name[strcspn(name, "\n")] = 0;
        if (strcmp(name, wanted)) continue;
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        closedir(ports);
        return open(path, flags);
    }
    return -1;
}

// As `random` in linux_console.rs.
static void say_random(int fd, unsigned long long seed, size_t bytes) {
    static unsigned char block[32768];
    while (bytes > 0) {
        size_t length = bytes < sizeof block ? bytes : sizeof block;
        for (size_t i = 0; i < length; i++) {
            seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
            block[i] = seed >> 56;
        }
        // Pieces of no round size.
        size_t first = length > 1001 ? 1001 : length;
        say_all(fd, block, first);
        say_all(fd, block + first, length - first);
        bytes -= length;
    }
}

static void streams(int in, int out) {
    if (fork() == 0) {
        say_random(out, 1, 3 << 20);
        _exit(0);
    }
    // The child waits for a reader by now; this port does not.
    usleep(500000);
    say(errors, "beat\n");
    wait(NULL);
    static char buffer[65536];
    ssize_t bytes;
    while ((bytes = read(in, buffer, sizeof buffer)) > 0) say_all(out, buffer, bytes);
    say(out, bytes == 0 ? "after the end\n" : "an error\n");
    int serial = open("/dev/ttyS0", O_WRONLY | O_NOCTTY);
    say(serial, "from the serial port\n");
    tcdrain(serial);
    say_random(out, 2, 512 << 10);
    reboot(RB_POWER_OFF);
}

static void say_size(int signal) {
    (void)signal;
    struct winsize size = {0};
    ioctl(0, TIOCGWINSZ, &size);
    char text[64];
    snprintf(text, sizeof text, "size %dx%d\n", size.ws_col, size.ws_row);
    say(1, text);
}

static void at_terminal(int ready) {
    setsid();
    int fd = open("/dev/hvc0", O_RDWR);
    for (int i = 0; i < 3; i++) dup2(fd, i);
    // The handler runs in the middle of `read`, which goes on.
    signal(SIGWINCH, say_size);
    signal(SIGINT, SIG_IGN);
    say(ready, "r");
    char line[256];
    for (;;) {
        ssize_t bytes = read(0, line, sizeof line - 1);
        if (bytes <= 0) {
            usleep(50000);
            continue;
        }
        line[bytes] = 0;
        line[strcspn(line, "\n")] = 0;
        if (!strcmp(line, "quit")) reboot(RB_POWER_OFF);
        if (!strcmp(line, "size")) say_size(0);
        printf("typed <%s>\n", line);
        fflush(stdout);
    }
}

static void session(int in, int out) {
    int agent = port("lightv.agent", O_RDONLY);
    if (agent < 0) say(errors, "no agent port\n");
    int ready[2];
    char word;
    if (pipe(ready) < 0 || fork() == 0) at_terminal(ready[1]);
    if (read(ready[0], &word, 1) != 1) say(errors, "no terminal\n");
    if (fork() == 0) {
        char line[256];
        for (;;) {
            ssize_t bytes = read(agent, line, sizeof line - 6);
            if (bytes <= 0) _exit(1);
            char text[300];
            int length = snprintf(text, sizeof text, "got %.*s", (int)bytes, line);
            say_all(errors, text, length);
            if (bytes == 10 && !memcmp(line, "signal 15\n", 10) && access("/end-at-term", F_OK) == 0)
                reboot(RB_POWER_OFF);
        }
    }
    int is_said = 0;
    for (;;) {
        char buffer[256], text[300];
        ssize_t bytes = read(in, buffer, sizeof buffer);
        if (bytes <= 0) {
            if (!is_said++) say(out, "end of input\n");
            usleep(20000);
            continue;
        }
        if (!memcmp(buffer, "polite", 6)) close(open("/end-at-term", O_CREAT | O_WRONLY, 0600));
        int length = snprintf(text, sizeof text, "input %.*s", (int)bytes, buffer);
        say_all(out, text, length);
    }
}

int main(int argc, char **argv) {
    mount("none", "/dev", "devtmpfs", 0, NULL);
    mkdir("/sys", 0755);
    mount("none", "/sys", "sysfs", 0, NULL);
    // Ports come by messages after the device.
    int out = -1;
    for (int i = 0; i < 500 && (errors = port("lightv.stderr", O_WRONLY)) < 0; i++) usleep(10000);
    for (int i = 0; i < 500 && (out = port("lightv.stdio", O_WRONLY)) < 0; i++) usleep(10000);
    int in = -1;
    for (int i = 0; i < 500 && (in = port("lightv.stdin", O_RDONLY)) < 0; i++) usleep(10000);
    say(errors, "begin\n");
    if (argc > 1 && !strcmp(argv[1], "session"))
        session(in, out);
    else
        streams(in, out);
    return 1;
}
