"""microheart_vm.py life|fill|job: microheart 0.3.0 by its Python API, with the home that MICROHEART_HOME names."""
import os
import subprocess
import sys
import time

from microheart import MicroVM, assets, pool
from microheart.state import Registry

# Seconds; the client's own are for hardware KVM.
PATIENCE = 600
MEMORY_MIB = 64
POOL = "warm"
HOST = "10.0.0.1"

DISK = assets.cache_dir() / "alpine.ext4"
KEY = assets.cache_dir() / "vm_key"


def run(vm, *argv):
    """Runs a command; again where ssh was not answered within its 3 s."""
    deadline = time.monotonic() + PATIENCE
    while True:
        result = vm.run(argv, timeout=PATIENCE)
        if result.returncode != 255 or time.monotonic() > deadline:
            return result


def reboot(vm):
    """Reboots the guest; gives the exit status of the monitor, which is a child of ours."""
    pid = vm.pid()
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            vm.ssh("reboot", check=False, timeout=10)
        except subprocess.TimeoutExpired:
            pass
        for _ in range(100):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.1)
    return None


def life():
    """One machine, from its start to a reboot."""
    vm = MicroVM("life", DISK, KEY, mem_mib=MEMORY_MIB)
    try:
        vm.start(wait=PATIENCE)
        print("address", vm.guest_ip, vm.tap)
        print("memory", vm.machine_config()["mem_size_mib"])
        result = run(vm, "sh", "-c", 'echo "$(uname -n): $1"; echo error >&2; exit 7', "sh", "a  b")
        print("command", repr(result.stdout), repr(result.stderr), result.returncode)
        print("host", run(vm, "ping", "-c", "1", "-W", "60", HOST).returncode)
        rules = subprocess.run(["iptables", "-w", "-t", "nat", "-S"], capture_output=True, text=True, check=True)
        print("rules", rules.stdout.count("MASQUERADE"))
        print("reboot", reboot(vm), vm.running())
        print("console", "reboot: machine restart" in vm.tail())
    finally:
        vm.clean()
    print("done")


def fill():
    """A pool of two machines, which outlive this process."""
    registry = Registry()
    registry.pool_create(POOL, 2, 1, MEMORY_MIB)
    for _name, error in pool.refill(registry, POOL, DISK, KEY, wait=PATIENCE):
        print("machine", error)
    print("done")


def job():
    """A command in a machine of the pool, which is destroyed then."""
    registry = Registry()
    vm = MicroVM(pool.lease(registry, POOL, DISK, KEY), DISK, KEY, registry=registry)
    try:
        print("state", vm.rec["state"])
        print("name", run(vm, "uname", "-n").stdout.strip() == vm.name)
    finally:
        vm.clean()
    print("done")


{"life": life, "fill": fill, "job": job}[sys.argv[1]]()
