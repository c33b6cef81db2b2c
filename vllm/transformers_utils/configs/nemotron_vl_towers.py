# SPDX-License-Identifier: Apache-2.0
"""The vision towers that C-RADIO's configuration may name. Imports nothing."""

# Width, blocks, heads and MLP width of the ViTs that `args.model` may name, by
# timm's names. Others were not tried.
TOWER_DIMS = {
    "vit_small_patch16_224": (384, 12, 6, 1536),
    "vit_base_patch16_224": (768, 12, 12, 3072),
    "vit_large_patch16_224": (1024, 24, 16, 4096),
    "vit_huge_patch16_224": (1280, 32, 16, 5120),
}

# The ViT of C-RADIOv2-H, where a configuration names none or an unknown one.
DEFAULT_VIT = "vit_huge_patch16_224"

# C-RADIO's training options that shape the tower. `args` holds about a hundred
# more, which are kept and ignored.
TOWER_ARGS = ("cpe_max_size", "register_multiple", "teachers", "cls_token_per_teacher")
