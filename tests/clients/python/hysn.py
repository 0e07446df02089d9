"""hysn.py FIRECRACKER KERNEL: the REST layer of hysn-firecracker-python 1.0.7, in the working directory."""
import os
import socket
import subprocess
import sys
import tempfile
import time

from firecracker.api import Api
from firecracker.exceptions import APIError


def start(program, folder, name):
    path = os.path.join(folder, f"{name}.sock")
    process = subprocess.Popen([program, "--api-sock", path, "--id", name], stdout=subprocess.DEVNULL)
    for _ in range(1000):
        # It is there a moment before it is listened on.
        with socket.socket(socket.AF_UNIX) as client:
            if client.connect_ex(path) == 0:
                break
        time.sleep(0.01)
    return process, Api(path)


def main():
    # The client lower-cases host names, and the socket's path is one to it.
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="lightv-hysn-") as folder:
        drive_machines(folder, *sys.argv[1:3])


def drive_machines(folder, program, kernel):
    first, api = start(program, folder, "first")
    print("version", api.version.get().json()["firecracker_version"])
    api.machine_config.put(vcpu_count=1, mem_size_mib=64)
    api.boot.put(kernel_image_path=kernel, boot_args="app=tick -- 0 20", initrd_path=None)
    with open("disk", "wb") as disk:
        disk.truncate(1 << 20)
    api.drive.put(drive_id="d", path_on_host="disk", is_root_device=False, is_read_only=False)
    api.mmds.put(**{"latest": {"meta-data": {"id": "x"}}})
    print("mmds", api.mmds.get().json()["latest"]["meta-data"]["id"])
    try:
        api.vm.patch(state="Paused")
    except APIError as error:
        print("refused", error)
    api.actions.put(action_type="InstanceStart")
    print("state", api.describe.get().json()["state"])
    print("memory", api.vm_config.get().json()["machine-config"]["mem_size_mib"])
    api.vm.patch(state="Paused")
    api.create_snapshot.put(snapshot_type="Full", snapshot_path="hysn.state", mem_file_path="hysn.mem")
    api.vm.patch(state="Resumed")
    first.terminate()
    first.wait()

    second, api = start(program, folder, "second")
    backend = {"backend_type": "File", "backend_path": "hysn.mem"}
    api.load_snapshot.put(snapshot_path="hysn.state", mem_backend=backend, resume_vm=True)
    print("restored", api.describe.get().json()["state"])
    second.terminate()
    second.wait()
    print("done")


main()
