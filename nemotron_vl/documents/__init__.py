# SPDX-License-Identifier: Apache-2.0
"""From files to pages, requests and records, without an engine."""
