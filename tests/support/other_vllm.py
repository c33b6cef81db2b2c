"""A copy of the installed vLLM with changes."""

from importlib.util import find_spec
from pathlib import Path

from support.python_path import with_folders


def other_vllm(folder: Path, changes: dict[str, tuple[str, str]]) -> dict[str, str]:
    """Environment of a process that finds a changed copy of the installed vLLM.

    Args:
        changes: For files of the copy, a text and what replaces it. All other files
            are links to the installed ones.
    """
    installed = Path(find_spec("vllm").submodule_search_locations[0])
    copy = folder / "vllm"
    for file, (old, new) in changes.items():
        for part in reversed(Path(file).parents):
            if not (copy / part).is_dir() or (copy / part).is_symlink():
                (copy / part).unlink(missing_ok=True)
                (copy / part).mkdir()
                for inner in (installed / part).iterdir():
                    # The copy's own byte code must not replace the installed one's.
                    if inner.name != "__pycache__":
                        (copy / part / inner.name).symlink_to(inner)
        text = (installed / file).read_text()
        assert old in text
        (copy / file).unlink()
        (copy / file).write_text(text.replace(old, new))
    return with_folders(folder)
