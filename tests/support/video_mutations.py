"""Mistakes with the frames of a video: the reference's methods that they replace."""

import torch
from PIL import Image

from nemotron_vl.verify.reference import Reference


def _reversed(self, frames):
    return Reference.frames_to_pixels(self, frames[::-1])


def _bgr(self, frames):
    return Reference.frames_to_pixels(self, frames).flip(1)


def _dropped(self, frames):
    return Reference.frames_to_pixels(self, frames[:-1])


def _with_thumbnail(self, frames):
    pixels = Reference.frames_to_pixels(self, frames)
    return torch.cat([pixels, pixels[:1]])


def _bilinear(self, frames):
    size = self.tile_size, self.tile_size
    small = [frame.resize(size, Image.Resampling.BILINEAR) for frame in frames]
    return Reference.frames_to_pixels(self, small)


def _bracket_for_each_frame(self, frames):
    return "".join(self.image_tokens(1) for _ in range(frames))


MUTATIONS = {
    "order reversed": ("frames_to_pixels", _reversed),
    "BGR": ("frames_to_pixels", _bgr),
    "dropped frame": ("frames_to_pixels", _dropped),
    "thumbnail": ("frames_to_pixels", _with_thumbnail),
    "filter": ("frames_to_pixels", _bilinear),
    "bracket for each frame": ("video_tokens", _bracket_for_each_frame),
}
