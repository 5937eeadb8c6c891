#!/usr/bin/env python3
"""File handles, as NFS servers use them: name_to_handle_at(2) and open_by_handle_at(2).

    handles.py take PATH            prints the handle of PATH
    handles.py read MOUNT HANDLE    opens it, wherever it is now; writes what is in the file, or the names in the directory
    handles.py path MOUNT HANDLE    prints the path that the kernel finds for it

Ends with the number of the error, if there is one.
"""

import ctypes
import os
import shutil
import sys

AT_FDCWD = -100


class Handle(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint), ("kind", ctypes.c_int), ("bytes", ctypes.c_ubyte * 128)]


libc = ctypes.CDLL(None, use_errno=True)


def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "by handle")
    return result


def take(path):
    handle, mount = Handle(length=128), ctypes.c_int()
    checked(libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), 0))
    return f"{handle.kind}:{bytes(handle.bytes[:handle.length]).hex()}"


def opened(mount, text):
    kind, data = text.split(":")
    data = bytes.fromhex(data)
    handle = Handle(len(data), int(kind), (ctypes.c_ubyte * 128)(*data))
    place = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    return checked(libc.open_by_handle_at(place, ctypes.byref(handle), os.O_RDONLY))


def main():
    what, where = sys.argv[1:3]
    if what == "take":
        print(take(where))
        return
    file = opened(where, sys.argv[3])
    if what == "path":
        print(os.readlink(f"/proc/self/fd/{file}"))
    elif os.path.isdir(f"/proc/self/fd/{file}"):
        print(*sorted(os.listdir(file)), sep="\n")
    else:
        with os.fdopen(file, "rb") as content:
            shutil.copyfileobj(content, sys.stdout.buffer, 1 << 20)


try:
    main()
except OSError as error:
    print(f"handles.py: {error}", file=sys.stderr)
    sys.exit(error.errno)
