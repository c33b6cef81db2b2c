"""A second process that receives tensors as vLLM's engine does."""

import contextlib
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import in_tree
import zmq
from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.v1.serial_utils import MsgpackDecoder

from nemotron_vl.checkpoints.random_checkpoint import make_checkpoint

TILE = 512


@contextlib.contextmanager
def engine_process() -> Iterator[tuple[zmq.Socket, dict[str, tuple[Any, dict]]]]:
    """Start it.

    Yields:
        The socket to it, which answers each message with the CPU seconds that it took;
        and for each side a processor of vLLM with its settings.
    """
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(folder, tile_size=TILE, cpe_max_size=TILE)
        config = EngineArgs(folder).create_model_config()
        ours = MULTIMODAL_REGISTRY.create_processor(config)
        processors = {
            "in-tree": (in_tree.create_processor(config), {}),
            "exact": (ours, {"resize": "exact"}),
            "fast": (ours, {"resize": "fast"}),
        }
        address = f"ipc://{folder}/socket"
        context = multiprocessing.get_context("spawn")
        engine = context.Process(target=_receive, args=(address,), daemon=True)
        engine.start()
        with zmq.Context() as sockets, sockets.socket(zmq.PAIR) as socket:
            socket.bind(address)
            socket.recv()  # the other process is ready
            yield socket, processors
            socket.send(b"")
        engine.join()


def features_of(result: dict) -> list[MultiModalFeatureSpec]:
    """What a server sends to its engine of a processor's result."""
    return [
        MultiModalFeatureSpec(data, "image", identifier, position)
        for data, identifier, position in zip(
            result["mm_kwargs"]["image"],
            result["mm_hashes"]["image"],
            result["mm_placeholders"]["image"],
            strict=True,
        )
    ]


def _receive(address: str) -> None:
    """Answer messages until an empty one comes."""
    decoder = MsgpackDecoder(list[MultiModalFeatureSpec])
    with zmq.Context() as sockets, sockets.socket(zmq.PAIR) as socket:
        socket.connect(address)
        socket.send(b"ready")
        while True:
            start = time.process_time()
            frames = socket.recv_multipart(copy=False)
            if not frames[0].buffer.nbytes:
                return
            (feature,) = decoder.decode([frame.buffer for frame in frames])
            if feature.data is not None:  # else the engine's cache has it
                assert feature.data["pixel_values_flat"].data.ndim == 4
            socket.send(str(time.process_time() - start).encode())
