"""A Triton backend named ``cpu`` for ``TRITON_INTERPRET=1``; it compiles nothing.

vLLM takes Triton for usable on a CPU when there is such a backend. It is found by
the entry point beside this folder wherever that is on ``PYTHONPATH``.
"""
