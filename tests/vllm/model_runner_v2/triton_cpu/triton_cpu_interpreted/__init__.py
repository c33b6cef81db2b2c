"""A Triton backend named ``cpu`` for ``TRITON_INTERPRET=1``; it compiles nothing.

vLLM uses Triton on a CPU only if there is such a backend. Triton finds it by the
entry point beside this folder, if the folder above is on ``PYTHONPATH``.
"""
