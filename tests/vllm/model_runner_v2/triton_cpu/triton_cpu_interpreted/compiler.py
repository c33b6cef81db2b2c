from triton.backends.compiler import BaseBackend, GPUTarget


class InterpretedBackend(BaseBackend):
    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        return target.backend == "cpu"

    def hash(self) -> str:
        return "interpreted"

    def parse_options(self, options: dict) -> object:
        raise NotImplementedError("kernels are interpreted: set TRITON_INTERPRET=1")

    def add_stages(self, stages: dict, options: object) -> None:
        raise NotImplementedError("kernels are interpreted: set TRITON_INTERPRET=1")

    def load_dialects(self, context) -> None:
        pass

    def get_module_map(self) -> dict:
        return {}
