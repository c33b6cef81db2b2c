# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: their files, sizes and tiles; random ones; the embedded one."""
