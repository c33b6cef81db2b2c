# SPDX-License-Identifier: Apache-2.0
"""The process that decodes a video file: OpenCV's copy of FFmpeg, and nothing else.

`nemotron_vl_decoding.py` runs this file as a script. A damaged file can end FFmpeg's
process; it must not be the server's. The process cannot open files or connections, its
memory is bounded, and it has no rights beyond that (`_give_up_rights`).

It reads the file from its input, then commands, and writes answers, see `main`. It
imports nothing of this package or of vLLM, so it starts in a tenth of a second.
"""

import io
import json
import os
import sys
import threading

NO_OPENCV, NO_THREADS = 3, 4  # exit status; 1 is that of any other exception

# FFmpeg holds a few frames for each thread.
_THREADS = 2
_MEMORY = 3 << 30
# More than the server waits, for both threads. The kernel sends SIGXCPU at the first
# limit and SIGKILL at the second.
_CPU_SECONDS = 150, 160


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
    sys.path.append(os.path.dirname(__file__))  # -P leaves it out
    import nemotron_vl_confinement as confinement

    sys.path.pop()
    offline = confinement.leave_server(int(sys.argv[1]))
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
    confinement.give_up_rights(_MEMORY, _CPU_SECONDS)
    _write(out, {"offline": offline})
    _write(out, _header(data))
    for line in sys.stdin.buffer:
        _write(out, _walk(data, json.loads(line), out))


if __name__ == "__main__":
    main()
