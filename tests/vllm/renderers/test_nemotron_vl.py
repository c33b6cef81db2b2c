"""Which errors in the loading of an image are the client's, and what is logged."""

import errno
import io
import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import requests
import torch
from PIL import Image
from vllm.config import ECTransferConfig, KVTransferConfig, VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import MediaConnector
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.media.video import VideoMediaIO
from vllm.renderers.hf import HfRenderer

from support.clips import encoded, noise
from vllm_nemotron_vl.config.nemotron_vl_video import LOADER
from vllm_nemotron_vl.multimodal import nemotron_vl_media_errors as media_errors
from vllm_nemotron_vl.multimodal.nemotron_vl_decoding import DecoderUnavailable
from vllm_nemotron_vl.multimodal.nemotron_vl_embeddings import (
    count_embedded,
    images_encoded_elsewhere,
)
from vllm_nemotron_vl.multimodal.nemotron_vl_loading import NemotronVLConnector
from vllm_nemotron_vl.renderers import nemotron_vl as renderer
from vllm_nemotron_vl.renderers.nemotron_vl_embeddings import (
    check_encoder,
    check_images_without_pixels,
    check_no_embeddings,
)
from vllm_nemotron_vl.renderers.nemotron_vl_video import NemotronVLVideoRenderer
from vllm_nemotron_vl.transformers_utils.processors import nemotron_vl_video
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_resampling import png
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_resampling import (
    threads as image_threads,
)

VIDEO_IO = {"video_backend": LOADER, "tile_size": 64, "resize": "fast"}
SECRET = "https://user:pass@bucket.example/scan.png?X-Signature=abc123"


@pytest.fixture
def load(monkeypatch):
    """Load an image through vLLM while Pillow raises an error."""

    def run(error: Exception) -> None:
        def fail(*args, **kwargs):
            raise error

        monkeypatch.setattr(Image, "open", fail)
        file = io.BytesIO()
        Image.new("RGB", (4, 4)).save(file, "PNG")
        with media_errors.media_errors_are_the_clients((MemoryError,)):
            ImageMediaIO().load_bytes(file.getvalue())

    return run


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("can't start new thread"),
        RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
        OSError("out of memory when reading image file"),
        RuntimeError("cannot schedule new futures after shutdown"),
        RuntimeError("cannot schedule new futures after interpreter shutdown"),
    ],
    ids=str,
)
def test_errors_of_the_server_stay_its_own(load, error):
    """With status 400, a client would not try again."""
    with pytest.raises(Exception) as raised:
        load(error)
    assert not isinstance(raised.value, VLLMValidationError)
    assert error in (raised.value, raised.value.__cause__)


@pytest.mark.parametrize("chain", ["__cause__", "__context__"])
def test_a_shortage_behind_another_error_stays_the_servers(load, chain):
    error = ValueError("while it was closed")
    setattr(error, chain, MemoryError())
    with pytest.raises(ValueError, match="while it was closed") as raised:
        load(error)
    assert not isinstance(raised.value, VLLMValidationError)


def test_errors_of_the_file_are_the_clients(load):
    with pytest.raises(
        VLLMValidationError, match="The image cannot be read: .*broken data"
    ) as error:
        load(OSError("broken data"))
    assert error.value.parameter == "image_url"


@pytest.mark.parametrize("error", [DecoderUnavailable("no"), OSError(errno.EMFILE, "")])
def test_errors_of_the_decoder_of_videos_stay_the_servers(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(nemotron_vl_video, "decode", fail)
    with (
        pytest.raises(type(error)) as raised,
        media_errors.media_errors_are_the_clients(
            NemotronVLVideoRenderer.servers_errors
        ),
    ):
        VideoMediaIO(ImageMediaIO(), **VIDEO_IO).load_bytes(encoded(noise(1)))
    assert raised.value is error


def test_errors_of_a_video_name_it():
    with (
        pytest.raises(VLLMValidationError, match="video cannot be read") as error,
        media_errors.media_errors_are_the_clients(()),
    ):
        MediaConnector(media_io_kwargs={"video": VIDEO_IO}).fetch_video(
            "data:video/mp4;base64,%%%"
        )
    assert error.value.parameter == "video_url"


def test_words_of_others_are_no_error_of_the_server(load):
    error = requests.HTTPError("503 can't start new thread for url: https://h/?sig=1")
    with pytest.raises(VLLMValidationError):
        load(error)


def test_no_secret_is_logged(load, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(
        media_errors.logger, "info", lambda text, *values: lines.append(text % values)
    )
    with pytest.raises(VLLMValidationError):
        load(OSError(f"404, url='{SECRET}' of the scan"))
    (line,) = lines
    assert "https://bucket.example/..." in line and "of the scan" in line
    assert not any(word in line for word in ("user", "pass", "Signature", "abc123"))


@pytest.mark.parametrize(
    ("given", "servers", "threads"),
    [({"image_threads": 30}, 1, 30), ({}, 1, 8), ({}, 3, 5), ({}, 20, 1)],
    ids=str,
)
def test_the_threads_for_images_are_this_servers_share(
    monkeypatch, given, servers, threads
):
    monkeypatch.setattr(HfRenderer, "__init__", lambda *args: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    monkeypatch.setattr(image_threads, "_quota", lambda: math.inf)
    pool = image_threads.Threads()
    monkeypatch.setattr(image_threads, "IMAGE_THREADS", pool)
    config = VllmConfig(additional_config={"nemotron_vl": given})
    config.parallel_config._api_process_count = servers
    config.model_config = SimpleNamespace(multimodal_config=None)
    renderer.NemotronVLRenderer(config, None)
    assert pool.limit == threads
    assert NemotronVLConnector.load is renderer._load_png


def test_the_decoder_of_png_is_compiled_before_requests(monkeypatch):
    """And not before: see test_an_engine_in_the_same_process."""
    called = []
    monkeypatch.setattr(png, "agrees_with_pillow", lambda: called.append("compiled"))
    monkeypatch.setattr(
        HfRenderer, "warmup", lambda self, params: called.append(params)
    )
    ours = renderer.NemotronVLRenderer.__new__(renderer.NemotronVLRenderer)
    ours.warmup("params")
    assert called == ["compiled", "params"]


def test_png_files_are_read_by_the_compiled_decoder(monkeypatch):
    monkeypatch.setattr(png, "load", lambda image, data: (image, data))
    assert renderer._load_png("image", b"data") == ("image", b"data")


TILES_ONLY = {
    "multi_modal_data": {"image": {"image_num_patches": [3]}},
    "multi_modal_uuids": {"image": ["a"]},
}


TRUSTED = {"nemotron_vl": {"trusted_uuids": True}}


def ec_config(role: str) -> ECTransferConfig:
    return ECTransferConfig(ec_connector="ECExampleConnector", ec_role=role)


@pytest.mark.parametrize("role", ["none", "kv_both", "ec_producer", "ec_consumer"])
def test_only_consumers_of_embeddings_take_names(role):
    """vLLM lets such images through to engines that get a KV cache from others."""
    config = VllmConfig(additional_config=TRUSTED)
    if role == "kv_both":
        config.kv_transfer_config = KVTransferConfig(
            kv_connector="ExampleConnector", kv_role=role
        )
        assert config.kv_transfer_config.is_kv_consumer
    elif role != "none":
        config.ec_transfer_config = ec_config(role)
    if role == "ec_consumer":
        check_images_without_pixels(TILES_ONLY, config)
    else:
        with pytest.raises(VLLMValidationError, match="makes it a consumer"):
            check_images_without_pixels(TILES_ONLY, config)


def test_a_consumer_takes_names_only_if_it_trusts_them():
    config = VllmConfig()
    config.ec_transfer_config = ec_config("ec_consumer")
    with pytest.raises(VLLMValidationError, match="trusted_uuids"):
        check_images_without_pixels(TILES_ONLY, config)


@pytest.mark.parametrize(
    "settings",
    [
        {"mm_processor_kwargs": {"max_dynamic_patch": 1}},
        {"media_io_kwargs": {"image": {"rgba_background_color": [0, 0, 0]}}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_names_take_no_settings(settings):
    """vLLM would make another name of them."""
    config = VllmConfig(additional_config=TRUSTED)
    config.ec_transfer_config = ec_config("ec_consumer")
    with pytest.raises(VLLMValidationError, match=next(iter(settings))):
        check_images_without_pixels({**TILES_ONLY, **settings}, config)


@pytest.mark.parametrize(
    ("role", "cache_gb", "prefix_caching", "refused"),
    [
        *(("ec_producer", 0, False, True), ("ec_both", 0, False, True)),
        *(("ec_producer", 0, True, False), ("ec_producer", 1, False, False)),
        ("ec_consumer", 0, False, False),
    ],
)
def test_an_encoder_must_name_embeddings_by_content(
    role, cache_gb, prefix_caching, refused
):
    config = SimpleNamespace(
        ec_transfer_config=ec_config(role),
        model_config=SimpleNamespace(
            multimodal_config=SimpleNamespace(mm_processor_cache_gb=cache_gb)
        ),
        cache_config=SimpleNamespace(enable_prefix_caching=prefix_caching),
    )
    if refused:
        with pytest.raises(ValueError, match="--mm-processor-cache-gb 0"):
            check_encoder(config)
    else:
        check_encoder(config)


@pytest.mark.parametrize(
    "tiles",
    [[3, 1], torch.tensor([3, 1], dtype=torch.uint8), np.array([3, 1], np.int16)],
    ids=lambda tiles: type(tiles).__name__,
)
def test_numbers_of_tiles_are_read(tiles):
    data = {"image_num_patches": tiles}
    assert count_embedded(data) == 2
    items = images_encoded_elsewhere(data, most_tiles=3)
    counts = [items.get(number)["image_num_patches"] for number in range(2)]
    assert counts == [3, 1] and {count.dtype for count in counts} == {torch.int64}


@pytest.mark.parametrize(
    "tiles",
    [
        *([True], [1.0], ["3"], [[1], [2, 3]], [None], {"a": 1}, [1 << 70], [4]),
        *(torch.tensor([1], dtype=dtype) for dtype in (torch.bool, torch.complex64)),
    ],
    ids=str,
)
def test_numbers_of_tiles_are_whole_numbers_that_fit(tiles):
    with pytest.raises(VLLMValidationError, match="image_num_patches must be"):
        images_encoded_elsewhere({"image_num_patches": tiles}, most_tiles=3)


@pytest.mark.parametrize("embeddings", [None, {"image_num_patches": [3]}, "3"], ids=str)
def test_embeddings_are_tensors(embeddings):
    """Else they would hide an image without a name."""
    prompt = {"multi_modal_data": {"image": {"image_embeds": embeddings}}}
    with pytest.raises(VLLMValidationError, match="must be a tensor"):
        check_images_without_pixels(prompt, VllmConfig())


@pytest.mark.parametrize(
    ("image", "refused"),
    [
        ({"image_embeds": torch.zeros(1, 16, 256)}, True),
        ({"image_embeds": [torch.zeros(16, 256)]}, True),
        (torch.zeros(1, 16, 256), True),
        ([torch.zeros(16, 256)], True),
        ({"image_num_patches": [3]}, False),
        ([torch.zeros(3, 9, 9, dtype=torch.uint8)], False),
        ([Image.new("RGB", (9, 9))], False),
        (None, False),
    ],
    ids=["embeds", "list", "tensor", "tensors", "name", "pixels", "image", "none"],
)
def test_embeddings_are_refused_beside_adapters_on_the_encoder(image, refused):
    """vLLM lets them through to readers of an EC or KV connector."""
    prompt = {"multi_modal_data": {"image": image}}
    for adapters in (None, False, True):
        lora = SimpleNamespace(enable_tower_connector_lora=adapters)
        config = SimpleNamespace(lora_config=None if adapters is None else lora)
        if refused and adapters:
            with pytest.raises(VLLMValidationError, match="Send the image"):
                check_no_embeddings(prompt, config)
        else:
            check_no_embeddings(prompt, config)
