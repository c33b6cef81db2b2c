# SPDX-License-Identifier: Apache-2.0
"""The commands of ``nemotron-vl``: arguments and printing, one file each."""
