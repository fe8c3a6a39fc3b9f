#!/usr/bin/env python3
"""Feeds a stick from a Python program, with the standard library alone.

    stream.py BLOB INPUT_BYTES COUNT [FLAGS FOR ncs2ctl...]

Starts `ncs2ctl run BLOB -`, writes COUNT raw tensors of INPUT_BYTES bytes, each behind its length, and reads an answer
for each: FP16 values in this example. Prints the index of the largest value of every answer.
"""

import os
import struct
import subprocess
import sys
import threading


def write(pipe, count, size):
    """Writes in a thread of its own: whoever only writes and never reads waits for ever once both pipes are full."""
    with pipe:
        for n in range(count):
            tensor = bytes((n * 31 + i) & 0xFF for i in range(size))
            pipe.write(struct.pack("<I", len(tensor)) + tensor)
            pipe.flush()


def read(pipe):
    """One tensor, or None at the end."""
    head = pipe.read(4)
    if not head:
        return None
    (length,) = struct.unpack("<I", head)
    return pipe.read(length)


def main():
    blob, size, count, *flags = sys.argv[1:]
    tool = os.environ.get("NCS2CTL", "ncs2ctl")
    child = subprocess.Popen(
        [tool, *flags, "--quiet", "run", blob, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    writer = threading.Thread(target=write, args=(child.stdin, int(count), int(size)))
    writer.start()
    while (answer := read(child.stdout)) is not None:
        values = struct.unpack(f"<{len(answer) // 2}e", answer)
        print(max(range(len(values)), key=values.__getitem__))
    writer.join()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main())
