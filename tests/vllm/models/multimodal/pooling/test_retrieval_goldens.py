"""Compare the models that find and rank pages with what other people's code computed.

`tests/support/goldens/retrieval.safetensors` was computed on 2026-12-01, in float32 on
a CPU, from the two random checkpoints of `tests/conftest.py`. Its names begin with:

- ``embed``, ``tower``, ``features``: NVIDIA-NeMo/Automodel at 36044ad (2026-08-22).
- ``rerank``, ``tiles``: the code of nvidia/llama-nemotron-rerank-vl-1b-v2 itself, at
  b8a9987b05, as ProjectScone/ProjectScone at f7a7fe8 has it.
- ``mlx``: mlx-embeddings 0.1.0 with mlx 0.32.4 and mlx-lm 0.32.2, which share no code
  with transformers. It embedded the token ids and tiles of the others.

The first two ran with transformers 5.12.1, and gave the same bits with 4.57.6. In
copies of the checkpoints, `auto_map` named their files, `processor_config.json` had
`num_image_token` 4, `image_size` and `force_image_size` 64, `prompt_template` "v1", and
the tokenizer a token for padding and no `token_type_ids`. ``AutoModel.from_pretrained``
loaded them with ``trust_remote_code`` in float32, with eager attention. They round
pixels to bfloat16, and Automodel cuts other tiles: ``rounded`` is of those, all other
values of ``tiles`` in float32.
"""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cosine_similarity, normalize

import support
from nemotron_vl.verify.errors import relative_error
from nemotron_vl.verify.reference_retrieval import RetrievalReference
from support.chat import png_part, text_part
from support.noise import noise

GOLDENS = load_file(Path(*support.__path__) / "goldens" / "retrieval.safetensors")
DIGESTS = {
    "embed": "88b332e72dcbebcd3f3d27b1c4860014f57833e8d7b58a317b25161a415c3fd0",
    "rerank": "40c54b0cf9432ac46313db677a3ab543bb756073b1be9118e5e915f45112f5b5",
}
IMAGES = {"one tile": noise(64, 64), "seven tiles": noise(300, 200)}
ONE, SEVEN = IMAGES.values()
SHORT, LONG = "The total.", "The total of this invoice is 4711, to be paid in March."
QUESTION = "What is the total?"
CASES: dict[str, tuple[list, str]] = {
    "short text": ([], SHORT),
    "long text": ([], LONG),
    "one tile": ([ONE], ""),
    "seven tiles": ([SEVEN], ""),
    "one tile and text": ([ONE], SHORT),
    "seven tiles and text": ([SEVEN], LONG),
}


def prompts(kind: str) -> dict[str, tuple[str, list]]:
    """What each model is asked, and the images."""
    found = {} if kind == "rerank" else {"question": (f"query: {QUESTION}", [])}
    for name, (images, text) in CASES.items():
        image = "<image> " * len(images)
        both = f"{image}question:{QUESTION} \n \n passage:{text}"
        found[name] = (both if kind == "rerank" else f"passage: {image}{text}", images)
    return found


def test_every_case_has_values():
    of_images = [name for name, (images, _) in CASES.items() if images]
    names = {f"{kind}.{name}.rounded" for kind in DIGESTS for name in of_images}
    assert names == {name for name in GOLDENS if name.endswith("rounded")}


@pytest.fixture(scope="module")
def references(embed_checkpoint, rerank_checkpoint):
    folders = {"embed": embed_checkpoint, "rerank": rerank_checkpoint}
    return {kind: RetrievalReference(folder) for kind, folder in folders.items()}


def near(found: torch.Tensor, name: str) -> bool:
    return relative_error(found, GOLDENS[name]) < 1e-5


@pytest.mark.parametrize("kind", DIGESTS)
def test_the_checkpoint_is_that_of_the_goldens(request, kind):
    """Else all below fail: compute the goldens again."""
    folder = request.getfixturevalue(f"{kind}_checkpoint")
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        values = tensor.flatten().view(torch.uint8).numpy()
        digest.update(name.encode() + values.tobytes())
    assert digest.hexdigest() == DIGESTS[kind]


def test_tiles_and_features_are_theirs(references):
    reference = references["embed"]
    for name, image in IMAGES.items():
        tiles = reference.to_pixels(image)
        assert torch.equal(tiles, GOLDENS[f"tiles.{name}"])
        assert near(reference.encode(tiles), f"features.{name}")
    tower = reference.siglip(GOLDENS["tiles.one tile"] / 127.5 - 1)
    assert near(tower.last_hidden_state, "tower.one tile")


@pytest.mark.parametrize("kind", DIGESTS)
def test_tokens_are_theirs(references, kind):
    reference = references[kind]
    for name, (text, images) in prompts(kind).items():
        tiles = [len(reference.to_pixels(image)) for image in images]
        ids = reference.tokenizer.encode(reference.expand(text, tiles))
        assert ids == GOLDENS[f"{kind}.{name}.ids"].tolist(), name


def test_the_references_values_are_theirs(references):
    states = []
    final = references["embed"].llama.norm
    with final.register_forward_hook(lambda *call: states.append(call[-1][0])):
        for name, request in prompts("embed").items():
            found = references["embed"].pooled(*request)
            assert near(found, f"embed.{name}.pooled"), name
            assert near(normalize(found, dim=0), f"mlx.{name}.normalised"), name
            if name == "one tile and text":
                assert near(states[-1], f"embed.{name}.states")
    for name, request in prompts("rerank").items():
        logit = references["rerank"].logit(*request)
        assert near(torch.tensor([logit]), f"rerank.{name}.logit"), name


def test_embeddings_of_the_engine_are_theirs(make_llm, embed_checkpoint):
    from vllm import PoolingParams

    llm = make_llm(embed_checkpoint, dtype="float32", mm_processor_kwargs=None)
    asked = [
        {"prompt": text, "multi_modal_data": {"image": images} if images else None}
        for text, images in prompts("embed").values()
    ]
    outputs = llm.embed(asked, pooling_params=PoolingParams(use_activation=False))
    for name, output in zip(prompts("embed"), outputs, strict=True):
        found = torch.tensor(output.outputs.embedding)
        assert near(found, f"embed.{name}.pooled"), name
        if (rounded := GOLDENS.get(f"embed.{name}.rounded")) is not None:
            assert 1 - cosine_similarity(found, rounded, dim=0) < 2e-6, name


def test_scores_of_the_engine_are_theirs(make_llm, rerank_checkpoint):
    from vllm import PoolingParams

    llm = make_llm(rerank_checkpoint, dtype="float32", mm_processor_kwargs=None)
    documents = [
        {"content": [*map(png_part, images), *map(text_part, [text] if text else [])]}
        for images, text in CASES.values()
    ]
    raw = PoolingParams(use_activation=False)
    outputs = llm.score(QUESTION, documents, pooling_params=raw)
    for name, output in zip(CASES, outputs, strict=True):
        found = torch.tensor([output.outputs.score])
        assert near(found, f"rerank.{name}.logit"), name
        if (rounded := GOLDENS.get(f"rerank.{name}.rounded")) is not None:
            assert abs(found - rounded) < 2e-4, name
