# SPDX-License-Identifier: Apache-2.0
"""Checks whether the installed vLLM has the names that this package imports.

They and the methods in `HOOKS` are compared with what vLLM's source files define. No
module is imported, so a name that has moved raises no error. Attributes, signatures
and behaviour are not checked; ``tools/vllm_contract.py`` in the source tree does that.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# Methods of vLLM's classes that this package overrides or calls.
HOOKS = {
    ("vllm.model_executor.models.internvl", "InternVLChatModel"): (
        "_init_mlp1",
        "_init_vision_model",
        "_parse_and_validate_image_input",
        "_patch_quant_config",
        "extract_feature",
        "pixel_shuffle",
    ),
    ("vllm.model_executor.models.internvl", "BaseInternVLMultiModalProcessor"): (
        "_get_image_fields_config",
        "_get_prompt_repl_image",
    ),
    ("vllm.model_executor.models.internvl", "InternVLMultiModalProcessor"): (
        "_get_prompt_repl_video",
        "_get_video_fields_config",
    ),
    ("vllm.model_executor.models.internvl", "InternVLProcessingInfo"): (
        "get_num_frames_with_most_features",
    ),
    ("vllm.multimodal.parse", "MultiModalDataParser"): (
        "_parse_image_data",
        "_parse_video_data",
    ),
    ("vllm.multimodal.parse", "VideoProcessorItems"): ("get_item_for_hash",),
    ("vllm.multimodal.processing.processor", "BaseMultiModalProcessor"): (
        "_apply_prompt_updates",
    ),
    ("vllm.multimodal.processing.dummy_inputs", "BaseDummyInputsBuilder"): (
        "_get_dummy_images",
        "_get_dummy_videos",
    ),
    ("vllm.renderers.base", "BaseRenderer"): (
        "_process_tokens",
        "_process_tokens_async",
    ),
}

Import = tuple[str, str]  # module and name


def missing(
    vllm: Path, package: Path | None = None, retrieval: bool = True
) -> list[str]:
    """Names that this package needs and a vLLM does not have.

    Args:
        vllm: Folder of vLLM's package.
        package: Folder of this package.
        retrieval: Whether to read the files of the models that find and rank pages,
            too. Their names say so, and the others do without them.

    Returns:
        Such as ``vllm.multimodal.image.open_image``, sorted.
    """
    package = package or Path(__file__).parents[1]
    source = _Source(vllm)
    lacks: set[str] = set()
    for file in package.rglob("*.py"):
        if "retrieval" in file.stem and not retrieval:
            continue
        for choices in imports(ast.parse(file.read_bytes())):
            if not any(all(map(source.has, choice)) for choice in choices):
                lacks |= {".".join(name) for name in choices[0] if not source.has(name)}
    for (module, name), methods in HOOKS.items():
        there = source.methods(module, name)
        lacks |= {f"{module}.{name}.{m}" for m in methods if m not in there}
    return sorted(lacks)


def imports(tree: ast.AST) -> Iterator[list[list[Import]]]:
    """For each import from vLLM, its alternatives. One of them must exist."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Try) and any(map(_is_fallback, node.handlers)):
            bodies = [node.body, *(handler.body for handler in node.handlers)]
            yield [_names(body) for body in bodies]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield [_names([node])]
        else:
            yield from imports(node)


def _is_fallback(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.type, ast.Name) and handler.type.id == "ImportError"


def _names(body: list[ast.stmt]) -> list[Import]:
    found = []
    for node in body:
        if isinstance(node, ast.ImportFrom) and not node.level:
            found += [(node.module or "", alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
    return [name for name in found if name[0].split(".")[0] == "vllm"]


class _Source:
    """vLLM's source files, parsed when they are needed."""

    def __init__(self, vllm: Path) -> None:
        self.top = vllm
        self.tree = cache(self._tree)

    def has(self, name: Import) -> bool:
        """Whether a module exists and defines a name or has a submodule of it."""
        module, attribute = name
        tree = self.tree(module)
        if tree is None or not attribute:
            return tree is not None
        defined = self._defined(tree, module)
        return not defined.isdisjoint({attribute, "__getattr__"}) or (
            self.tree(f"{module}.{attribute}") is not None
        )

    def methods(self, module: str, name: str) -> set[str]:
        """Methods of a class and of its base classes in vLLM."""
        found: set[str] = set()
        tree = self.tree(module)
        for node in tree.body if tree else []:
            if isinstance(node, ast.ClassDef) and node.name == name:
                functions = ast.FunctionDef | ast.AsyncFunctionDef
                found |= {m.name for m in node.body if isinstance(m, functions)}
                for base in map(ast.unparse, node.bases):
                    found |= self.methods(module, base.partition("[")[0])
            elif isinstance(node, ast.ImportFrom):
                names = {alias.asname or alias.name: alias.name for alias in node.names}
                if name not in names:
                    continue
                parents = module.split(".")[: -node.level] if node.level else []
                origin = ".".join([*parents, *filter(None, [node.module])])
                if origin.startswith("vllm.") and origin != module:
                    found |= self.methods(origin, names[name])
        return found

    def _tree(self, module: str) -> ast.Module | None:
        place = self.top.joinpath(*module.split(".")[1:])
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                return ast.parse(file.read_bytes())
        return None

    def _defined(self, tree: ast.Module, module: str) -> set[str]:
        names: set[str] = set()
        todo: list[ast.stmt] = [*tree.body]
        while todo:
            node = todo.pop()
            match node:
                case ast.If() | ast.Try():
                    todo += [n for n in ast.walk(node) if isinstance(n, ast.stmt)][1:]
                case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                    names.add(node.name)
                case ast.ImportFrom(names=[ast.alias(name="*")], level=1):
                    # In the __init__.py of a package: its modules are below it.
                    part = f"{module}.{node.module}"
                    if (inner := self.tree(part)) is not None:
                        names |= self._defined(inner, part)
                case ast.Import() | ast.ImportFrom():
                    names |= {alias.asname or alias.name for alias in node.names}
                case ast.Assign() | ast.AnnAssign():
                    targets = ast.walk(node)
                    names |= {n.id for n in targets if isinstance(n, ast.Name)}
        return names
