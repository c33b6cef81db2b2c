"""Image files of many parts, each of which is legal.

Scans, segments, chunks, strips, blocks, entries: each of `KINDS` makes a file of about
so many parts and pixels. `fuzz_structure.py` and `benchmarks/hostile.py` measure them.
"""

from collections.abc import Callable

from . import jpeg, others, png, tiff

KINDS: dict[str, Callable[[int, int], bytes]] = {
    name: build
    for module in (jpeg, png, tiff, others)
    for name, build in vars(module).items()
    if getattr(build, "__module__", None) == module.__name__ and name[0] != "_"
}
