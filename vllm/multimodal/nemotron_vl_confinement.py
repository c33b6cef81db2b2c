# SPDX-License-Identifier: Apache-2.0
"""Limits of the processes that decode files of strangers.

The decoders are scripts and load this file from beside them, so it imports nothing of
this package.
"""

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

# A decoder gets these of the server's variables, and none with a secret.
_INHERITED = ("LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH")

# From linux/prctl.h, linux/sched.h and linux/capability.h
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None)


def command(script: Path, *arguments: object) -> list[str]:
    """What starts a decoder, which `leave_server` then ends with this process.

    Args:
        script: The decoder.
        arguments: Arguments of the decoder.
    """
    # -P: the files beside the script are no modules.
    words = [script, os.getpid(), *arguments]
    return [sys.executable, "-P", *map(str, words)]


def environment() -> dict[str, str]:
    """Variables of a decoder: where libraries and modules are."""
    return {name: os.environ[name] for name in _INHERITED if name in os.environ}


def leave_server(server: int) -> bool:
    """End with the server, and enter a network namespace without interfaces.

    A user namespace of its own also keeps the process from the server's memory. The
    kernel forbids such calls to processes with several threads, and in many containers.

    Args:
        server: Its process id.

    Returns:
        Whether the process has left the server's network.
    """
    offline = any(
        _libc.unshare(flags) == 0
        for flags in (_CLONE_NEWUSER | _CLONE_NEWNET, _CLONE_NEWNET)
    )
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != server:  # it ended before the call
        sys.exit(1)
    return offline


def give_up_rights(memory: int, cpu_seconds: tuple[int, int]) -> None:
    """Bound this process; from here on, it can open nothing, nor change that.

    Args:
        memory: In bytes.
        cpu_seconds: CPU time after which it gets SIGXCPU, and after which SIGKILL.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, cpu_seconds)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # Root could raise the limits again.
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _libc.capset(header, (ctypes.c_uint32 * 6)())
