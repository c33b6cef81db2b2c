# SPDX-License-Identifier: Apache-2.0
"""The command ``nemotron-vl``, which stands on the contribution to vLLM."""
