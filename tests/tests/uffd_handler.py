"""uffd_handler.py SOCKET MEMORY [greets]: serves guest memory page by page, as Firecracker's clients do, and says how much. With
`greets` it says first that it tells when all has come, as a fork's memory does, and never does."""
import array
import ctypes
import fcntl
import json
import os
import select
import socket
import struct
import sys

UFFDIO_COPY = 0xC028AA03
PAGE = 4096


def main():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen()
    print("listening", flush=True)
    client, _ = listener.accept()
    if "greets" in sys.argv:
        client.send(b"\x01")
    data, ancillary, _, _ = client.recvmsg(65536, socket.CMSG_LEN(4))
    regions = json.loads(data)
    fds = array.array("i")
    fds.frombytes(ancillary[0][2][:4])
    print("regions", json.dumps(regions), flush=True)
    memory = open(sys.argv[2], "rb")
    served = 0
    poll = select.poll()
    poll.register(fds[0], select.POLLIN)
    while True:
        poll.poll()
        try:
            message = os.read(fds[0], 32)
        except BlockingIOError:
            continue
        if not message:
            return
        assert message[0] == 0x12, message  # UFFD_EVENT_PAGEFAULT
        address = struct.unpack_from("Q", message, 16)[0] & ~(PAGE - 1)
        for region in regions:
            start = region["base_host_virt_addr"]
            if start <= address < start + region["size"]:
                memory.seek(region["offset"] + address - start)
        page = ctypes.create_string_buffer(memory.read(PAGE), PAGE)
        request = struct.pack("QQQQq", address, ctypes.addressof(page), PAGE, 0, 0)
        try:
            fcntl.ioctl(fds[0], UFFDIO_COPY, bytearray(request))
        except FileExistsError:
            continue  # Two vCPUs met at one page.
        except OSError:
            return  # The monitor has ended.
        served += 1
        print("served", served, flush=True)


main()
