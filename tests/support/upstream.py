"""A plugin for pytest that runs vLLM's own tests of these models without the hub.

Their checkpoints are folders of the working directory with the names of the hub. Where
they run remote code, this project's reference answers instead, and photographs stand
for the images that vLLM keeps on a server.
"""

from pathlib import Path
from types import SimpleNamespace

import skimage.data
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForSequenceClassification, AutoProcessor
from vllm.assets.image import ImageAsset
from vllm.plugins import load_general_plugins

from nemotron_vl.verify.reference_retrieval import RetrievalReference

# Some of the tests make no engine, which would do this.
load_general_plugins()

IMAGES = {"stop_sign": "coffee", "cherry_blossom": "chelsea"}


class RemoteCode(RetrievalReference):
    """The functions of the published code that vLLM's tests call, in float32."""

    device = torch.device("cpu")

    def __init__(self, name: str, **_: object) -> None:
        super().__init__(Path(name))

    def to(self, *_: object, **__: object) -> "RemoteCode":
        return self

    def encode_queries(self, queries: list[str]) -> torch.Tensor:
        return torch.stack([self.pooled(f"query: {text}", []) for text in queries])

    def encode_documents(
        self, texts: list[str], images: list[Image.Image] | None = None
    ) -> torch.Tensor:
        # With an image, the test's text is the placeholder, which the published code
        # would keep as text beside that of the image. vLLM's prompt has one.
        return torch.stack(
            [
                self.pooled(f"passage: {text}", [image] if image else [])
                for text, image in zip(
                    texts, images or [None] * len(texts), strict=True
                )
            ]
        )

    def forward(self, examples: list[dict], **_: object) -> SimpleNamespace:
        logits = []
        for example in examples:
            image = example["doc_image"]
            question, text = example["question"], example["doc_text"]
            prompt = f"question:{question} \n \n passage:{text}"
            prompt = f"<image> {prompt}" if image else prompt
            logits.append([self.logit(prompt, [image] if image else [])])
        return SimpleNamespace(logits=torch.tensor(logits))


class RemoteProcessor:
    """Leaves the work to `RemoteCode`."""

    def process_queries_documents_crossencoder(self, examples: list[dict]) -> dict:
        return {"examples": examples}


def _use_for_remote_code(auto: type, build) -> None:
    original = auto.from_pretrained

    def from_pretrained(name, *args, trust_remote_code=False, **options):
        if trust_remote_code:  # vLLM itself passes False
            return build(name)
        return original(name, *args, **options)

    auto.from_pretrained = from_pretrained


for _model in (AutoModel, AutoModelForSequenceClassification):
    _use_for_remote_code(_model, RemoteCode)
_use_for_remote_code(AutoProcessor, lambda name: RemoteProcessor())
ImageAsset.pil_image = property(
    lambda asset: Image.fromarray(getattr(skimage.data, IMAGES[asset.name])())
)
