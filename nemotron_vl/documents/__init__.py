# SPDX-License-Identifier: Apache-2.0
"""From folders to pages, requests and records, without an engine.

The names below are the Python API, which the command ``nemotron-vl read``,
``examples/ray_data.py`` and notebooks use::

    from nemotron_vl import documents

    question = documents.Question("What is the total of this invoice?")
    found = documents.find_documents(["invoices/"])
    options = documents.Options(documents.Drawing(documents.Tiler.from_model(None)))
    async with documents.connect("http://127.0.0.1:8000") as client:
        served = await documents.find_model(client, question)
        with documents.Job(found.documents, options) as job:
            async for record in job.answers(client, served):
                print(record["file"], record["page"], record.get("answer"))
"""

from importlib import import_module
from typing import Any

# Each is imported when it is used: OpenAI's client takes a second.
_PLACES = {
    "Drawing": "pages",
    "Found": "finding",
    "Job": "job",
    "Options": "job",
    "Page": "pages",
    "PageRecords": "records",
    "Question": "requests",
    "Tiler": "..checkpoints.tiler",
    "connect": "client",
    "find_documents": "finding",
    "find_model": "reading",
    "read_records": "results",
    "read_schema": "schemas",
    "read_task": "tasks",
    "record_of": "answers",
}
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = _PLACES[name]
    module = import_module(place if place[0] == "." else f".{place}", __name__)
    return getattr(module, name)
