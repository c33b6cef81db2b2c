"""Run a command in which the calls about NUMA are refused, as container runtimes do.

Docker's and containerd's default profiles of seccomp refuse them without SYS_NICE.
For x86_64.
"""

import ctypes
import os
import struct
import sys

# Of asm/unistd_64.h
MBIND, SET_MEMPOLICY, GET_MEMPOLICY, MIGRATE_PAGES, MOVE_PAGES = 237, 238, 239, 256, 279
CALLS = (MBIND, SET_MEMPOLICY, GET_MEMPOLICY, MIGRATE_PAGES, MOVE_PAGES)
# Of linux/bpf_common.h, linux/seccomp.h and linux/prctl.h
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | 1  # EPERM
SET_NO_NEW_PRIVS, SET_SECCOMP, FILTER = 38, 22, 2


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]


def refuse() -> None:
    lines = [(LOAD, 0, 0, 0)]  # the number of the call
    for number, call in enumerate(CALLS):
        lines.append((JUMP_IF_EQUAL, len(CALLS) - number, 0, call))
    lines += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)]
    code = b"".join(struct.pack("HBBI", *line) for line in lines)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    program = Program(len(lines), code)
    assert prctl(SET_SECCOMP, FILTER, ctypes.byref(program)) == 0, ctypes.get_errno()


if __name__ == "__main__":
    refuse()
    os.execvp(sys.argv[1], sys.argv[1:])
