"""vLLM's platform for CUDA, with eight GPUs that do not exist."""

from vllm.platforms.cuda import NonNvmlCudaPlatform
from vllm.platforms.interface import DeviceCapability


class PretendedCuda(NonNvmlCudaPlatform):
    capability = (9, 0)  # an H100's; tests may change it

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
        return DeviceCapability(*cls.capability)

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        return "NVIDIA pretended"

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        return 80 * 10**9

    @classmethod
    def device_count(cls) -> int:
        return 8

    @classmethod
    def is_fully_connected(cls, device_ids: list[int]) -> bool:
        return True
