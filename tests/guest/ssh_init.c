/*
 * The init of a guest that microheart starts (tests/tests/microheart.rs): address and host name are on the kernel's
 * command line, port 22 is tinysshd's, SIGTERM (what `reboot` sends) restarts the machine.
 *
 * The client waits 3 s for the server's first line. On software KVM on a busy host a server takes longer to load, so
 * servers are started before anyone connects, each with a socket of its own, and bytes are passed on.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define SERVERS 2
#define PORT 22

struct server {
	pid_t pid;
	int fd;
};

static void restart(int signal)
{
	(void)signal;
	sync();
	reboot(RB_AUTOBOOT);
}

static void check(int result, const char *what)
{
	if (result >= 0)
		return;
	dprintf(STDOUT_FILENO, "init: failed: %s: %s\n", what, strerror(errno));
	restart(0);
}

static struct sockaddr inet(const char *address)
{
	struct sockaddr_in inet = { .sin_family = AF_INET };
	struct sockaddr any;
	inet.sin_addr.s_addr = inet_addr(address);
	memcpy(&any, &inet, sizeof any);
	return any;
}

/* `microheart.ip=ADDRESS/30 microheart.gw=ADDRESS microheart.name=NAME`. */
static void set_network(void)
{
	char line[4096] = "", ip[16] = "", gateway[16] = "", name[64] = "";
	struct ifreq eth0 = { .ifr_name = "eth0" };
	struct rtentry route = { .rt_flags = RTF_UP | RTF_GATEWAY };
	int file = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
	int any = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	check(read(file, line, sizeof line - 1), "/proc/cmdline");
	for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n")) {
		sscanf(word, "microheart.ip=%15[0-9.]/30", ip);
		sscanf(word, "microheart.gw=%15s", gateway);
		sscanf(word, "microheart.name=%63s", name);
	}
	check(sethostname(name, strlen(name)), "host name");
	eth0.ifr_addr = inet(ip);
	check(ioctl(any, SIOCSIFADDR, &eth0), "address");
	eth0.ifr_netmask = inet("255.255.255.252");
	check(ioctl(any, SIOCSIFNETMASK, &eth0), "netmask");
	eth0.ifr_flags = IFF_UP;
	check(ioctl(any, SIOCSIFFLAGS, &eth0), "eth0");
	route.rt_dst = route.rt_genmask = inet("0.0.0.0");
	route.rt_gateway = inet(gateway);
	check(ioctl(any, SIOCADDRT, &route), "route");
}

/* Its buffers would be locked, and so filled, before they are used: page faults are dear here. */
static void forbid_mlock(void)
{
	struct rlimit none = { 0, 0 };
	check(prctl(PR_CAPBSET_DROP, CAP_IPC_LOCK), "capability");
	check(setrlimit(RLIMIT_MEMLOCK, &none), "limit");
}

static void start(struct server *server)
{
	int ends[2];
	check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), "socketpair");
	server->fd = ends[0];
	server->pid = vfork();
	check(server->pid, "vfork");
	if (server->pid == 0) {
		dup2(ends[1], STDIN_FILENO);
		dup2(ends[1], STDOUT_FILENO);
		/* -P: no post-quantum exchange, which reads hundreds of random numbers by a system call each. */
		execl("/usr/sbin/tinysshd", "tinysshd", "-v", "-P", "/etc/tinyssh", (char *)NULL);
		_exit(127);
	}
	close(ends[1]);
}

static void replace(struct server *server)
{
	kill(server->pid, SIGKILL);
	close(server->fd);
	waitpid(server->pid, NULL, 0);
	/* What the server has started is ours now. */
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
	start(server);
}

/* Whether there may be more. */
static int pass_on(int from, int to)
{
	char bytes[4096];
	ssize_t size = read(from, bytes, sizeof bytes), done = 0;
	while (done < size) {
		ssize_t now = write(to, bytes + done, size - done);
		if (now <= 0)
			return 0;
		done += now;
	}
	return size > 0;
}

static void serve(int client, struct server *server)
{
	struct pollfd ends[2] = { { client, POLLIN, 0 }, { server->fd, POLLIN, 0 } };
	int is_open = 1;
	while (is_open && poll(ends, 2, -1) > 0) {
		if (ends[0].revents)
			is_open = pass_on(client, server->fd);
		if (is_open && ends[1].revents)
			is_open = pass_on(server->fd, client);
	}
	close(client);
}

static int listen_at(int port)
{
	struct sockaddr_in here = { .sin_family = AF_INET, .sin_port = htons(port) };
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	check(bind(listener, (struct sockaddr *)&here, sizeof here), "bind");
	check(listen(listener, SERVERS), "listen");
	return listener;
}

/* One client at a time: the next one waits. A server that waits in vain ends by itself, after a minute. */
int main(void)
{
	struct server servers[SERVERS];
	struct pollfd polled[1 + SERVERS];
	check(mount("proc", "/proc", "proc", 0, NULL), "/proc");
	signal(SIGTERM, restart);
	signal(SIGPIPE, SIG_IGN);
	setenv("PATH", "/bin", 1);
	set_network();
	forbid_mlock();
	for (int i = 0; i < SERVERS; i++)
		start(&servers[i]);
	polled[SERVERS] = (struct pollfd){ listen_at(PORT), POLLIN, 0 };
	for (int next = 0;;) {
		for (int i = 0; i < SERVERS; i++)
			polled[i] = (struct pollfd){ servers[i].fd, 0, 0 };
		if (poll(polled, 1 + SERVERS, -1) <= 0)
			continue;
		for (int i = 0; i < SERVERS; i++)
			if (polled[i].revents)
				replace(&servers[i]);
		if (!polled[SERVERS].revents)
			continue;
		int client = accept4(polled[SERVERS].fd, NULL, NULL, SOCK_CLOEXEC);
		if (client < 0)
			continue;
		serve(client, &servers[next]);
		replace(&servers[next]);
		next = (next + 1) % SERVERS;
	}
}
