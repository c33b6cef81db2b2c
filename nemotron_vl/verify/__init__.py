# SPDX-License-Identifier: Apache-2.0
"""Whether vLLM's answers are those of the published weights."""
