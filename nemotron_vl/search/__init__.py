# SPDX-License-Identifier: Apache-2.0
"""Pages of documents are embedded, found for a question, ranked and asked about."""
