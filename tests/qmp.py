#!/usr/bin/python3
"""Executes one command on a QMP socket and prints what it returns, a line an item.

qmp.py SOCKET COMMAND [ARGUMENTS-AS-JSON [KEY...]]     with KEYs: only these members of each item
"""
import json
import socket
import sys

path, command, *rest = sys.argv[1:]
arguments = json.loads(rest[0]) if rest else {}
keys = rest[1:]

with socket.socket(socket.AF_UNIX) as connection:
    connection.settimeout(10)
    connection.connect(path)
    stream = connection.makefile("rw")
    stream.readline()
    for request in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
        stream.write(json.dumps(request) + "\n")
        stream.flush()
        reply = {}
        while "return" not in reply and "error" not in reply:
            reply = json.loads(stream.readline())

if "error" in reply:
    sys.exit(f"{command}: {reply['error']['desc']}")
answer = reply["return"]
if isinstance(answer, list):
    for item in answer:
        print(" ".join(str(item.get(key)) for key in keys) if keys else json.dumps(item))
    if not answer:
        print("(none)")
