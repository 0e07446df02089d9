/*
 * The init of the tests' Linux guests: does what its first argument says, then ends the machine as the second says
 * (poweroff, reboot, halt). Every line that a test looks for begins with "init: ".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/input.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

/* Ends the machine when all that was said is out: the driver of the serial port sends it when it has time. */
static void end(int how)
{
	fflush(stdout);
	tcdrain(STDOUT_FILENO);
	reboot(how);
	_exit(1);
}

static void die(const char *what)
{
	printf("init: failed: %s: %s\n", what, strerror(errno));
	end(RB_POWER_OFF);
}

static void use_cpu(int cpu)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof set, &set))
		die("sched_setaffinity");
}

/* Counts, so that a test sees it go on after a restore. */
static void tick(void)
{
	for (int i = 1; i <= 20; i++) {
		printf("tick %d\n", i);
		fflush(stdout);
		usleep(100000);
	}
}

/* Waits for a press of the power button, which is the only input device. */
static void button(void)
{
	struct input_event event;
	int fd = open("/dev/input/event0", O_RDONLY);
	if (fd < 0)
		die("/dev/input/event0");
	puts("init: listening");
	fflush(stdout);
	do {
		if (read(fd, &event, sizeof event) != sizeof event)
			die("read");
	} while (event.type != EV_KEY || event.code != KEY_POWER || !event.value);
	puts("init: the power button was pressed");
}

/* Waits for what the kernel makes of Ctrl-Alt-Del when init wants to decide. */
static void keys(void)
{
	sigset_t set;
	int signal = 0;
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	reboot(RB_DISABLE_CAD);
	puts("init: listening");
	fflush(stdout);
	sigwait(&set, &signal);
	puts("init: Ctrl-Alt-Del was pressed");
}

static void show(const char *path)
{
	char line[512];
	FILE *file = fopen(path, "r");
	if (!file)
		die(path);
	while (fgets(line, sizeof line, file))
		printf("init: %s", line);
	fclose(file);
}

/* The kernel's log, or what of it has `part` in it. */
static void show_log(const char *part)
{
	static char log[1 << 18];
	int bytes = klogctl(3, log, sizeof log - 1);
	if (bytes < 0)
		die("klogctl");
	log[bytes] = 0;
	for (char *line = strtok(log, "\n"); line; line = strtok(NULL, "\n"))
		if (strstr(line, part))
			printf("init: log: %s\n", line);
}

static unsigned sum(const uint8_t *bytes, size_t length)
{
	uint8_t sum = 0;
	while (length--)
		sum += *bytes++;
	return sum;
}

static uint64_t number(const uint8_t *bytes, int length)
{
	uint64_t value = 0;
	memcpy(&value, bytes, length);
	return value;
}

/* Memory from 0x9f000 to 0xfffff: all boot tables lie in it. */
#define TABLES 0x9f000
static const uint8_t *tables;

static const uint8_t *acpi_table(uint64_t address)
{
	const uint8_t *table = tables + address - TABLES;
	printf("init: table %.4s sum %u\n", table, sum(table, number(table + 4, 4)));
	return table;
}

/* Looks at the checksum of each table, found as a kernel finds it. */
static void check_tables(void)
{
	int fd = open("/dev/mem", O_RDONLY);
	tables = mmap(NULL, 0x100000 - TABLES, PROT_READ, MAP_SHARED, fd, TABLES);
	if (fd < 0 || tables == MAP_FAILED)
		die("/dev/mem");
	const uint8_t *root = tables + 0xe0000 - TABLES;
	printf("init: table %.8s sum %u\n", root, sum(root, 20) | sum(root, number(root + 20, 4)));
	const uint8_t *list = acpi_table(number(root + 24, 8));
	for (uint64_t at = 36; at < number(list + 4, 4); at += 8) {
		const uint8_t *table = acpi_table(number(list + at, 8));
		if (!memcmp(table, "FACP", 4))
			acpi_table(number(table + 140, 8));
	}
	const uint8_t *pointer = tables + 0x9fc00 - TABLES;
	printf("init: table %.4s sum %u\n", pointer, sum(pointer, 16));
	const uint8_t *mp = tables + number(pointer + 4, 4) - TABLES;
	printf("init: table %.4s sum %u\n", mp, sum(mp, number(mp + 4, 2)));
}

/* FNV-1a with 64 bits, of a whole file. */
static void hash(const char *path)
{
	struct stat status;
	int fd = open(path, O_RDONLY);
	if (fd < 0 || fstat(fd, &status))
		die(path);
	const uint8_t *bytes = mmap(NULL, status.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
	if (bytes == MAP_FAILED)
		die("mmap");
	uint64_t hash = 0xcbf29ce484222325;
	for (off_t i = 0; i < status.st_size; i++)
		hash = (hash ^ bytes[i]) * 0x100000001b3;
	printf("init: %ld bytes, hash %016lx\n", (long)status.st_size, (unsigned long)hash);
}

/* Random bytes, if the kernel's pool is ready. */
static void show_random(void)
{
	uint8_t bytes[16];
	if (getrandom(bytes, sizeof bytes, GRND_NONBLOCK) != sizeof bytes)
		die("getrandom");
	printf("init: random ");
	for (unsigned i = 0; i < sizeof bytes; i++)
		printf("%02x", bytes[i]);
	puts("");
}

/* On each CPU a process that computes, sleeps and says so, for ever. */
static void loops(int cpus)
{
	for (int cpu = 0; cpu < cpus; cpu++) {
		if (fork())
			continue;
		use_cpu(cpu);
		for (unsigned round = 1;; round++) {
			for (volatile unsigned i = 0; i < 20000000; i++)
				;
			usleep(20000);
			if (sched_getcpu() != cpu)
				die("another CPU");
			char line[64];
			/* One write a line, so that lines of two CPUs do not mix. */
			int bytes = snprintf(line, sizeof line, "init: cpu %d round %u\n", cpu, round);
			if (write(1, line, bytes) != bytes)
				die("write");
		}
	}
	for (;;)
		pause();
}

/* The virtio devices, with the drivers that have taken them. */
static void show_devices(void)
{
	struct dirent *entry;
	mkdir("/sys", 0755);
	mount("sys", "/sys", "sysfs", 0, NULL);
	DIR *folder = opendir("/sys/bus/virtio/devices");
	if (!folder)
		die("/sys/bus/virtio/devices");
	while ((entry = readdir(folder))) {
		char path[512], driver[512] = "";
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "/sys/bus/virtio/devices/%s/driver", entry->d_name);
		if (readlink(path, driver, sizeof driver - 1) > 0)
			printf("init: device %s\n", strrchr(driver, '/') + 1);
	}
}

/* Queues of the disk; and each CPU writes a block of it, by its own queue, and reads it back. */
static void show_queues(void)
{
	static char block[4096] __attribute__((aligned(4096)));
	struct dirent *entry;
	int queues = 0, blocks = 0;
	DIR *folder = opendir("/sys/block/vda/mq");
	while (folder && (entry = readdir(folder)))
		queues += entry->d_name[0] != '.';
	mkdir("/disks", 0755);
	mount("dev", "/disks", "devtmpfs", 0, NULL);
	int fd = open("/disks/vda", O_RDWR | O_DIRECT);
	for (int cpu = 0; cpu < sysconf(_SC_NPROCESSORS_ONLN); cpu++) {
		off_t at = (off_t)cpu * sizeof block;
		use_cpu(cpu);
		memset(block, 'A' + cpu, sizeof block);
		if (pwrite(fd, block, sizeof block, at) != sizeof block)
			die("pwrite");
		memset(block, 0, sizeof block);
		if (pread(fd, block, sizeof block, at) != sizeof block)
			die("pread");
		blocks += block[0] == 'A' + cpu && block[sizeof block - 1] == 'A' + cpu;
	}
	printf("init: queues %d blocks %d\n", queues, blocks);
}

/* Asks about eth0, or sets something. */
static void ask(unsigned long request, struct ifreq *question)
{
	static int any = -1;
	if (any < 0)
		any = socket(AF_INET, SOCK_DGRAM, 0);
	strcpy(question->ifr_name, "eth0");
	if (ioctl(any, request, question))
		die("ioctl");
}

/* What the driver of eth0 has counted under this name. */
static unsigned long long counted(const char *name)
{
	static union {
		struct ethtool_drvinfo info;
		struct ethtool_gstrings names;
		uint64_t space[1024];
	} strings;
	static union {
		struct ethtool_stats stats;
		uint64_t space[256];
	} numbers;
	struct ifreq question = { .ifr_data = (void *)&strings };
	strings.info.cmd = ETHTOOL_GDRVINFO;
	ask(SIOCETHTOOL, &question);
	unsigned count = strings.info.n_stats;
	if (count > 200)
		die("n_stats");
	strings.names = (struct ethtool_gstrings){ ETHTOOL_GSTRINGS, ETH_SS_STATS, count };
	ask(SIOCETHTOOL, &question);
	numbers.stats = (struct ethtool_stats){ ETHTOOL_GSTATS, count };
	question.ifr_data = (void *)&numbers;
	ask(SIOCETHTOOL, &question);
	for (unsigned i = 0; i < count; i++)
		if (!strcmp((char *)strings.names.data + i * ETH_GSTRING_LEN, name))
			return numbers.stats.data[i];
	die(name);
	return 0;
}

/* A datagram to 10.0.0.1 and its answer, by the queues of this CPU. True when the answer says that it is enough. */
static int exchange(void)
{
	struct sockaddr_in host = { AF_INET, htons(7), { inet_addr("10.0.0.1") } };
	struct timeval patience = { 1, 0 };
	char answer[8];
	int link = socket(AF_INET, SOCK_DGRAM, 0);
	setsockopt(link, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	if (link < 0 || connect(link, (void *)&host, sizeof host))
		die("connect");
	ssize_t bytes;
	do {
		if (send(link, "more", 4, 0) != 4)
			die("send");
		bytes = recv(link, answer, sizeof answer, 0);
	} while (bytes < 0);
	close(link);
	return bytes == 3;
}

/* If there is a network card: each CPU exchanges datagrams, again and again; what went by each pair of queues is said after
 * each round. */
static void pairs(int cpus)
{
	struct dirent *entry;
	struct ifreq question = { 0 };
	int is_enough = 0;
	DIR *folder = opendir("/sys/class/net/eth0/queues");
	if (!folder)
		return;
	while ((entry = readdir(folder)))
		if (entry->d_name[0] != '.')
			printf("init: queue %s\n", entry->d_name);
	struct sockaddr_in *address = (void *)&question.ifr_addr;
	*address = (struct sockaddr_in){ AF_INET, 0, { inet_addr("10.0.0.2") } };
	ask(SIOCSIFADDR, &question);
	question.ifr_flags = IFF_UP | IFF_RUNNING;
	ask(SIOCSIFFLAGS, &question);
	for (int round = 1; !is_enough; round++) {
		for (int cpu = 0; cpu < cpus; cpu++) {
			use_cpu(cpu);
			is_enough |= exchange();
		}
		printf("init: round %d", round);
		for (int pair = 0; pair < cpus; pair++) {
			char name[64];
			for (const char *way = "tr"; *way; way++) {
				snprintf(name, sizeof name, "%cx_queue_%d_packets", *way, pair);
				printf(" %llu", counted(name));
			}
		}
		puts("");
		fflush(stdout);
	}
}

static void end_as(const char *how)
{
	if (!strcmp(how, "reboot"))
		end(RB_AUTOBOOT);
	if (!strcmp(how, "halt"))
		end(RB_HALT_SYSTEM);
	end(RB_POWER_OFF);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "nothing";
	cpu_set_t cpus;
	sched_getaffinity(0, sizeof cpus, &cpus);
	mkdir("/proc", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	printf("init: cpus=%d args=%d\n", CPU_COUNT(&cpus), argc - 1);
	fflush(stdout);
	if (!strcmp(what, "panic"))
		return 1;
	if (!strcmp(what, "tick")) {
		tick();
		show_random();
	} else if (!strcmp(what, "button")) {
		button();
	} else if (!strcmp(what, "keys")) {
		keys();
	} else if (!strcmp(what, "devices")) {
		show_random();
		show_devices();
		show_queues();
		show_log("");
		pairs(CPU_COUNT(&cpus));
	} else if (!strcmp(what, "memory")) {
		show_log("BIOS-e820");
		show("/proc/iomem");
		show("/proc/meminfo");
		check_tables();
	} else if (!strcmp(what, "hash")) {
		hash("/file");
	} else if (!strcmp(what, "loops")) {
		loops(CPU_COUNT(&cpus));
	}
	end_as(argc > 2 ? argv[2] : "poweroff");
}
