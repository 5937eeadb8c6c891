#!/usr/bin/env python3
"""Mounts on the first access, as systemd's automount units do.

    automounter.py DIR COMMAND...

Puts the kernel's autofs over DIR and runs COMMAND whenever somebody goes there while nothing is mounted; whoever goes there
waits until it has ended. Processes of its own group do not wait (autofs(5), "oz mode"), as with systemd, which starts
mount(8) in its own group. Prints a line for each thing that it does. Ends with its namespace.
"""

import ctypes
import fcntl
import os
import struct
import subprocess
import sys

# linux/auto_fs.h
READY, FAIL = 0x9360, 0x9361
MISSING_DIRECT = 5
# struct autofs_v5_packet, up to its name: version, kind, token.
HEAD, LONGEST = struct.Struct("iiI"), 4096


def main():
    place, command = sys.argv[1], sys.argv[2:]
    os.setpgid(0, 0)
    requests, kernel = os.pipe2(os.O_CLOEXEC)
    options = f"fd={kernel},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"automounter", place.encode(), b"autofs", 0, options.encode()) != 0:
        sys.exit(f"cannot mount autofs: {os.strerror(ctypes.get_errno())}")
    os.close(kernel)
    # Of the placeholder itself, below all that will be mounted over it.
    placeholder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    print("armed", flush=True)
    while True:
        _, kind, token = HEAD.unpack_from(os.read(requests, LONGEST))
        if kind != MISSING_DIRECT:
            sys.exit(f"a request of kind {kind}")
        done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False)
        fcntl.ioctl(placeholder, FAIL if done.returncode else READY, token)
        print(f"mounted: {done.returncode}", flush=True)


main()
