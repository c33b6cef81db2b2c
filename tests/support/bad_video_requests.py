"""Requests with videos that a server refuses, and what each message contains."""

from support.bad_clips import BAD_CLIPS
from support.chat import embeds_part, text_part
from support.clips import encoded, numbers, url_part, video_part
from vllm_nemotron_vl.config.nemotron_vl_video import MOST_BYTES

# What is shown in the clip of a good request
FRAMES = numbers("640-27", "12", "345")


CLIP = video_part(encoded(FRAMES))

# Parts of the message or what makes the data of one, options of the request, and cause
REQUESTS = {
    "three videos": ((CLIP,) * 3, {}, "at most 2 video"),
    "typed": ((text_part("<img></img>"),), {}, "one for each"),
    "typed beside a video": ((CLIP, text_part("<img></img>")), {}, "<img></img>"),
    "embeddings": (
        ({"type": "video_embeds", "video_embeds": embeds_part(b"x")["image_embeds"]},),
        {},
        "video_embeds are not supported",
    ),
    "list of JPEG": (
        (url_part("data:video/jpeg;base64,QQ==,QQ=="),),
        {},
        "list of jpeg images",
    ),
    "no URL": ((url_part(""),), {}, "empty"),
    "not base64": (
        (url_part("data:video/mp4;base64,%%%"),),
        {},
        "cannot be read",
    ),
    "missing file": (
        (url_part("file:///etc/passwd"),),
        {},
        "must be a subpath",
    ),
    "closed port": (
        (url_part("http://localhost:9/a.mp4"),),
        {},
        "could not be fetched",
    ),
    "no content": ((url_part("data:video/mp4;base64,"),), {}, "it is empty"),
    "another recipe": (
        (CLIP,),
        {"mm_processor_kwargs": {"resize": "hf"}},
        "resize='exact'",
    ),
}

# Files below a folder that the server may read
TOO_LARGE = f"at most {MOST_BYTES} are allowed"
FILES = {
    "file://{media}/empty.mkv": "it is empty",
    "file://{media}/large.mkv": TOO_LARGE,
    "FILE://user@{media}/large.mkv": TOO_LARGE,
    "file://{media}/./%6Carge.mkv": TOO_LARGE,
    "file://{media}/" + 300 * "a": "file name too long",
    "file://{media}/loop": "cannot be read",
    "file://{media}/missing": "no such file",
}
REQUESTS |= {
    f"num_frames {value!r}": (
        (CLIP,),
        {"media_io_kwargs": {"video": {"num_frames": value}}},
        "num_frames must be a whole number from 1 to 32",
    )
    for value in (-1, 0, 10**9, "3", 2.5, None)
}
REQUESTS |= {
    f"setting {name}": (
        (CLIP,),
        {"media_io_kwargs": {"video": {name: value}}},
        "the only setting of videos is num_frames",
    )
    for name, value in {
        "fps": 1,
        "video_backend": "opencv",
        "backend": "torchcodec",
        "tile_size": 10**6,
        "resize": "hf",
    }.items()
}
REQUESTS |= {
    name: ((data,), {}, cause)  # which makes the clip
    for name, (data, cause) in BAD_CLIPS.items()
}
