# SPDX-License-Identifier: Apache-2.0
"""Images of a user's files, and drawn ones."""
