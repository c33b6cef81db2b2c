# SPDX-License-Identifier: Apache-2.0
"""The process that decodes a video file: OpenCV's copy of FFmpeg, and nothing else.

`nemotron_vl_decoding.py` runs this file as a script. A damaged file can end FFmpeg's
process; it must not be the server's. The process cannot open files or connections, its
memory is bounded, and it has no rights beyond that (`_give_up_rights`).

It reads the file from its input, then commands, and writes answers, see `main`. It
imports nothing of this package or of vLLM, so it starts in a tenth of a second.
"""

import ctypes
import io
import json
import os
import resource
import signal
import sys
import threading

NO_OPENCV, NO_THREADS = 3, 4  # exit status; 1 is that of any other exception

# FFmpeg holds a few frames for each thread.
_THREADS = 2
_MEMORY = 3 << 30
# More than the server waits, for both threads. The kernel sends SIGXCPU at the first
# limit and SIGKILL at the second.
_CPU_SECONDS = 150, 160

# From linux/prctl.h, linux/sched.h and linux/capability.h
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_CAPABILITY_VERSION_3 = 0x20080522


def _leave_network(libc: ctypes.CDLL) -> bool:
    """Enter a network namespace without interfaces, where the kernel allows it.

    A user namespace of its own also keeps the process from the server's memory. Such
    calls are often forbidden in containers.
    """
    return any(
        libc.unshare(flags) == 0
        for flags in (_CLONE_NEWUSER | _CLONE_NEWNET, _CLONE_NEWNET)
    )


def _end_with_server(libc: ctypes.CDLL, server: int) -> None:
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != server:  # it ended before the call
        sys.exit(1)


def _give_up_rights(libc: ctypes.CDLL) -> None:
    """Bound the process; from here on, it can open nothing, nor change that."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, _CPU_SECONDS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # Root could raise the limits again.
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    libc.capset(header, (ctypes.c_uint32 * 6)())


def _open(file: io.BytesIO):
    import cv2

    # OpenCV does not keep the file alive; the caller must.
    options = [cv2.CAP_PROP_N_THREADS, _THREADS]
    video = cv2.VideoCapture(file, cv2.CAP_FFMPEG, options)  # type: ignore[call-overload]
    return video if video.isOpened() else None


def _header(data: bytes) -> dict:
    import cv2

    file = io.BytesIO(data)
    try:
        if (video := _open(file)) is None:
            return {"closed": True}
    except (cv2.error, MemoryError) as error:
        return {"damaged": f"the header ({_cause(error)})"}
    keys = ("FRAME_COUNT", "FPS", "FRAME_WIDTH", "FRAME_HEIGHT")
    values = [video.get(getattr(cv2, f"CAP_PROP_{key}")) for key in keys]
    video.release()
    return {"header": values}


def _cause(error: Exception) -> str:
    return getattr(error, "err", "") or "it needs too much memory"


def _walk(data: bytes, command: dict, out) -> dict:
    """Decode all frames; write those that are wanted."""
    import cv2

    wanted, most, total = {*command["wanted"]}, command["most"], 0
    file = io.BytesIO(data)
    if (video := _open(file)) is None:
        return {"closed": True}
    try:
        while total <= most and video.grab():
            if total in wanted:
                decoded, frame = video.retrieve()
                if decoded and frame is not None and frame.size:
                    pixels = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                    _write(out, {"frame": total, "shape": pixels.shape})
                    out.write(pixels.data)
            total += 1
    except (cv2.error, MemoryError) as error:
        return {"damaged": f"frame {total} ({_cause(error)})"}
    finally:
        video.release()
    return {"total": total}


def _write(out, answer: dict) -> None:
    out.write(json.dumps(answer).encode() + b"\n")
    out.flush()


def main() -> None:
    """Read a file and answer commands.

    The argument is the process id of the server, whose end ends this process.

    The input is the size of the file as 8 bytes, the file, and a line of JSON for each
    walk: ``wanted`` is a list of frames, ``most`` the most frames to decode.

    The output is lines of JSON: first ``offline``, whether the process has left the
    network; then ``header`` (frames, frames a second, width, height) or ``closed``; for
    each walk ``frame`` and ``shape``, followed by the pixels, for each wanted frame,
    then ``total``, ``closed`` or ``damaged``.
    """
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints
    libc = ctypes.CDLL(None)
    offline = _leave_network(libc)
    _end_with_server(libc, int(sys.argv[1]))
    data = sys.stdin.buffer.read(int.from_bytes(sys.stdin.buffer.read(8)))

    try:
        import cv2
    except ImportError:
        sys.exit(NO_OPENCV)
    try:  # FFmpeg would take a lack of threads for a damaged file
        threading.Thread(target=int).start()
    except RuntimeError:
        sys.exit(NO_THREADS)
    cv2.setNumThreads(1)
    _give_up_rights(libc)
    _write(out, {"offline": offline})
    _write(out, _header(data))
    for line in sys.stdin.buffer:
        _write(out, _walk(data, json.loads(line), out))


if __name__ == "__main__":
    main()
