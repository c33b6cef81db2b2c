"""Videos in the engine answer as in the reference, however they are passed.

One engine with chunked prefill and a tile cache serves all tests of the module. The
reference gets frames and has code of its own to make pixels and tokens of them.
"""

import types
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

from nemotron_vl.verify.reference import Reference
from support.chat import text_part
from support.clips import LOSSY, VIDEO, decoded, encoded, noise, numbers, url_part
from support.tiny import TILE, TILE_TOKENS
from support.video_mutations import MUTATIONS

GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, logprobs=9)
ASK = "<img></img>\nRead the text."


@pytest.fixture(scope="module")
def reference(tiny) -> Reference:
    return Reference.load(tiny)


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return tmp_path_factory.mktemp("media").resolve()


@pytest.fixture(scope="module")
def llm(make_llm, tiny, media):
    return make_llm(
        tiny,
        dtype="float32",
        hf_overrides=VIDEO,
        limit_mm_per_prompt={"image": 3, "video": 2},
        media_io_kwargs={"video": {"num_frames": 24}},
        allowed_local_media_path=str(media),
        block_size=32,
        max_num_batched_tokens=64,  # fewer than a video of 24 frames has
        additional_config={"nemotron_vl": {"tile_cache_mb": 1}},
    )


def request(text: str, videos=(), images=(), **more) -> dict:
    data = {"video": list(videos), "image": list(images)}
    given = {name: items for name, items in data.items() if items}
    return {"prompt": text, "multi_modal_data": given, **more}


def generate(llm, *requests, **options):
    return llm.generate(list(requests), GREEDY, use_tqdm=False, **options)


def tokens(output) -> tuple[list[int], list[int]]:
    return output.prompt_token_ids, list(output.outputs[0].token_ids)


def check(output, reference, text, videos=(), images=()) -> None:
    """Prompt ids, greedy tokens and the first token's odds equal the reference's."""
    ids, answer, logprobs = reference.answer(text, list(images), 16, videos)
    assert output.prompt_token_ids == ids
    assert list(output.outputs[0].token_ids) == answer
    for token, found in output.outputs[0].logprobs[0].items():
        assert abs(found.logprob - logprobs[token].item()) < 1e-3


CLIPS = {
    "numbers": numbers("12", "345", "67", "890"),
    "noise": noise(24),
    "one frame": noise(1, 64, 64),
    "tall": noise(3, 20, 300),
    "still": numbers("77") * 6,
}


@pytest.mark.parametrize("name", CLIPS)
def test_a_lossless_file_equals_the_reference(llm, reference, name):
    frames = CLIPS[name]
    (output,) = generate(llm, request(ASK, [encoded(frames)]))
    check(output, reference, ASK, [frames])


@pytest.mark.parametrize(("codec", "suffix"), LOSSY)
def test_a_lossy_file_equals_its_decoded_frames(llm, reference, codec, suffix):
    data = encoded(CLIPS["numbers"], codec, suffix)
    (output,) = generate(llm, request(ASK, [data]))
    check(output, reference, ASK, [decoded(data, suffix)])


def test_frames_are_taken_evenly(llm, reference):
    frames = noise(100, 32, 32)
    taken = [frames[i] for i in np.linspace(0, 99, 24, dtype=int)]
    file, array = generate(
        llm,
        request(ASK, [encoded(frames)]),
        request(ASK, [np.stack([np.asarray(frame) for frame in frames])]),
    )
    check(file, reference, ASK, [taken])
    check(array, reference, ASK, [taken])


def test_all_forms_of_a_video_answer_alike(llm, media):
    frames = CLIPS["numbers"]
    array = np.stack([np.asarray(frame) for frame in frames])
    data = encoded(frames)
    (media / "clip.mkv").write_bytes(data)
    forms = [
        data,
        media / "clip.mkv",
        array,
        array.transpose(0, 3, 1, 2),
        torch.from_numpy(array),
        frames,
        [np.asarray(frame) for frame in frames],
        (array, {"fps": 3}),
    ]
    listed = [request(ASK, [form]) for form in forms]
    single = [{"prompt": ASK, "multi_modal_data": {"video": form}} for form in forms]
    found = [tokens(output) for output in generate(llm, *listed, *single)]
    assert found == [found[0]] * len(found)


def test_chat_reads_a_file_and_keeps_the_order_of_parts(llm, reference, media):
    video, image = CLIPS["numbers"], noise(1, 100, 50)[0]
    (media / "order.mkv").write_bytes(encoded(video))
    url = url_part(f"file://{media}/order.mkv")
    part = {"type": "image_pil", "image_pil": image}
    for first, second in ((url, part), (part, url)):
        parts = [text_part("One"), first, text_part("and"), second, text_part("?")]
        messages = [{"role": "user", "content": parts}]
        (output,) = llm.chat(messages, GREEDY, use_tqdm=False)
        places = ["<img></img>", "<image>"][:: 1 if first is url else -1]
        text = (
            "<|start_header_id|>user<|end_header_id|>\n\n"
            f"One\n{places[0]}\nand\n{places[1]}\n?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        )
        check(output, reference, text, [video], [image])


def test_a_template_that_reads_text_only_keeps_the_order_too(llm, reference, media):
    """vLLM would put the image, which is the second part, before the video."""
    video, image = CLIPS["numbers"], noise(1, 100, 50)[0]
    (media / "text.mkv").write_bytes(encoded(video))
    url = url_part(f"file://{media}/text.mkv")
    part = {"type": "image_pil", "image_pil": image}
    messages = [{"role": "user", "content": [url, text_part("and"), part]}]
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (output,) = llm.chat(messages, GREEDY, use_tqdm=False, chat_template=template)
    check(output, reference, "<img></img>\nand\n<image>", [video], [image])


MIXED = [
    ("<image> <img></img> <image>", 1, 2),
    ("<img></img> <image> <img></img>", 2, 1),
    ("<image><img></img>", 1, 1),
    ("<img></img><image>", 1, 1),
    ("<img></img> and <img></img>?", 2, 0),
]


@pytest.mark.parametrize(("text", "videos", "images"), MIXED)
def test_videos_and_images_in_any_order(llm, reference, text, videos, images):
    """Also where an image has as many tiles as a video."""
    clips = [noise(3, 50, 40), CLIPS["numbers"]][:videos]
    shown = [noise(2, 2 * TILE, TILE)[0], noise(1, 300, 80)[0]][:images]
    assert len(reference.to_pixels(shown[0])) == 3 if images else True
    data = [encoded(clip) for clip in clips]
    (output,) = generate(llm, request(text, data, shown))
    check(output, reference, text, clips, shown)


def test_a_video_equals_an_image_of_the_same_tiles(llm):
    """The tiles and the thumbnail of an image, sent as the frames of a video."""
    source = noise(1, 3 * TILE, 2 * TILE)[0]
    corners = [(x, y) for y in (0, TILE) for x in (0, TILE, 2 * TILE)]
    frames = [source.crop((x, y, x + TILE, y + TILE)) for x, y in corners]
    frames.append(source.resize((TILE, TILE), Image.Resampling.BICUBIC))
    image, video = generate(
        llm,
        request("<image>\nRead the text.", images=[source]),
        request(ASK, [encoded(frames)]),
    )
    assert len(image.prompt_token_ids) > 7 * TILE_TOKENS
    assert tokens(image) == tokens(video)


def _counts(model) -> dict:
    return dict(model.tile_reuse.counts)


def encodings(llm) -> Counter:
    (counts,) = llm.apply_model(_counts)
    return Counter(counts)


def test_equal_frames_are_encoded_once_also_across_requests(llm, media):
    still, before = noise(2, 64, 64)[1:] * 10, encodings(llm)
    generate(llm, request(ASK, [encoded(still)]))
    first = encodings(llm) - before
    assert (first["encoded"], first["repeated"]) == (1, 9)
    generate(llm, request("<image> Other.", images=[still[0]]))
    again = encodings(llm) - before - first
    assert again["encoded"] == 0 and again["cached"] == 1


def test_caches_and_uuids_change_no_token(llm, reference):
    video, image = CLIPS["numbers"], noise(3, TILE, TILE)[2]
    data, text = encoded(video), "<image> <img></img> What?"
    expected = reference.answer(text, [image], 16, [video])
    named = {
        "multi_modal_uuids": {"image": ["same"], "video": ["same"]},
        "cache_salt": "me",
    }
    with_uuid = request(text, [data], [image], **named)
    cached = {
        "prompt": text,
        "multi_modal_data": {"image": [None], "video": [None]},
        **named,
    }
    for asked in (request(text, [data], [image]), with_uuid, with_uuid, cached):
        (output,) = generate(llm, asked)
        assert tokens(output) == (expected[0], expected[1])
    llm.reset_prefix_cache()
    (output,) = generate(llm, cached)
    assert tokens(output) == (expected[0], expected[1])


def test_a_prefix_may_end_inside_a_video(llm, reference):
    frames = noise(20, 64, 64)
    data = encoded(frames)
    texts = ["See: <img></img> Read.", "See: <img></img> What is it?"]
    llm.reset_prefix_cache()
    outputs = [generate(llm, request(text, [data]))[0] for text in texts]
    for text, output in zip(texts, outputs, strict=True):
        check(output, reference, text, [frames])
    assert outputs[1].num_cached_tokens > 0


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutation_is_noticed(llm, reference, monkeypatch, mutation):
    frames = noise(4)
    (output,) = generate(llm, request(ASK, [encoded(frames)]))
    check(output, reference, ASK, [frames])
    method, mutant = MUTATIONS[mutation]
    monkeypatch.setattr(reference, method, types.MethodType(mutant, reference))
    with pytest.raises(AssertionError):
        check(output, reference, ASK, [frames])


def test_a_request_may_take_fewer_frames(llm, reference):
    frames = noise(12, 40, 40)
    settings = {"media_io_kwargs": {"video": {"num_frames": 5}}}
    (output,) = generate(llm, request(ASK, [encoded(frames)], **settings))
    taken = [frames[i] for i in np.linspace(0, 11, 5, dtype=int)]
    check(output, reference, ASK, [taken])


ARRAY = np.zeros((2, 8, 8, 3), np.uint8)
BAD = {
    "empty file": ([b""], "it is empty"),
    "junk": ([b"junk" * 99], "none of MP4"),
    "text path": (["clip.mkv"], "not str"),
    "number": ([3], "not int"),
    "dictionary": ({"video_embeds": torch.zeros(1)}, "video_embeds are not supported"),
    "embeddings": ([torch.zeros(4, 256)], "video_embeds are not supported"),
    "floats": ([ARRAY.astype(np.float32)], "must be uint8"),
    "16 bits": ([ARRAY.astype(np.uint16)], "must be uint8"),
    "two channels": ([ARRAY[..., :2]], "1, 3 or 4 channels"),
    "no frames": ([ARRAY[:0]], "has no frames"),
    "empty list": ([[]], "has no frames"),
    "no pixels": ([ARRAY[:, :0]], "no content"),
    "objects": ([np.array([object()])], "an array of shape (1,)"),
    "more than allowed": ([ARRAY] * 3, "At most 2 video"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_video_is_named_and_the_next_one_read(llm, reference, name):
    video, cause = BAD[name]
    many = len(video) if isinstance(video, list) else 1
    bad = {"prompt": "<img></img>" * many, "multi_modal_data": {"video": video}}
    with pytest.raises(VLLMValidationError) as error:
        generate(llm, bad)
    assert cause in str(error.value)
    frames = CLIPS["still"]
    check(generate(llm, request(ASK, [frames]))[0], reference, ASK, [frames])


PLACEHOLDERS = [
    ("<img></img>", 0),
    ("no place", 1),
    ("<img></img><img></img>", 1),
    ("<img> </img>", 1),
]


@pytest.mark.parametrize(("text", "videos"), PLACEHOLDERS)
def test_there_must_be_one_placeholder_for_each_video(llm, text, videos):
    with pytest.raises(VLLMValidationError, match="one for each"):
        generate(llm, request(text, [ARRAY] * videos))


@pytest.mark.parametrize("frames", [0, -1, 25, 10**9, "4", True, 1.5])
def test_a_wrong_number_of_frames_is_named(llm, frames):
    settings = {"media_io_kwargs": {"video": {"num_frames": frames}}}
    with pytest.raises(VLLMValidationError, match="num_frames must be a whole number"):
        generate(llm, request(ASK, [ARRAY], **settings))


def test_without_caches_and_without_images(start_llm, tiny, reference):
    """The tower is loaded for videos alone; images are refused."""
    llm = start_llm(
        tiny,
        dtype="float32",
        hf_overrides=VIDEO,
        limit_mm_per_prompt={"image": 0, "video": 2},
        mm_processor_cache_gb=0,
        enable_prefix_caching=False,
    )
    frames, still = CLIPS["noise"], CLIPS["still"]
    requests = [request(ASK, [encoded(frames)]), request(ASK, [still])] * 2
    for output, video in zip(
        generate(llm, *requests), [frames, still] * 2, strict=True
    ):
        check(output, reference, ASK, [video])
    with pytest.raises(VLLMValidationError, match="At most 0 image"):
        generate(llm, request("<image>", images=still[:1]))
