"""A server that embeds, ranks and answers without a model: by the colour of pages."""

import base64
import io

from PIL import Image

from nemotron_vl.search.embedding import trial_page
from support.documents import pdf, solid
from support.fake_server import FakeServer

COLOURS = ("red", "lime", "blue")
DIMENSION = 8


def write_folder(folder) -> None:
    """Seven pages of which each has a colour, two of them equal."""
    folder.mkdir()
    (folder / "report.pdf").write_bytes(pdf(map(solid, COLOURS)))
    (folder / "photos").mkdir()
    for name in ("red", "black", "yellow"):
        solid(name).save(folder / "photos" / f"{name}.png")
    (folder / "copy.png").write_bytes((folder / "photos" / "red.png").read_bytes())


class SearchServer(FakeServer):
    """A question is the name of a colour, and a page that of its middle.

    ``apis`` are those that it has, ``asked`` the requests about pages to embed or rank,
    without the trial page of `index`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.apis = {"embeddings", "rerank", "chat"}
        self.asked: list[dict] = []
        self.dimension = DIMENSION
        self.bias = 0.0  # of another model
        self.bias_of_pages = 0.0  # of another number of tiles
        self.refuses = lambda request: False
        self.at_page = lambda number: None  # called with the number of each page

    def respond(self, request: dict) -> tuple[int, dict]:
        api = "rerank" if "documents" in request else "chat"
        api = "embeddings" if "encoding_format" in request else api
        if api not in self.apis:
            return 404, {"error": {"message": "Not Found"}}
        if api == "chat":
            return super().respond(request)
        (asked,) = request.get("documents") or request["messages"]
        content = asked if isinstance(asked, str) else asked["content"]
        bias = self.bias
        if url := _image_of(content):
            bias += self.bias_of_pages
        if url and _image(url).size != trial_page().size:
            with self._lock:
                self.asked.append(request)
                self.at_page(len(self.asked))
                if self.failures:
                    return self.failures.pop(0), {"error": {"message": "a failure"}}
            if self.refuses(request):
                return 400, {"error": {"message": "The prompt is too long."}}
        if api == "rerank":
            pairs = zip(_vector(request["query"]), _vector(content), strict=True)
            score = sum(one * other for one, other in pairs)
            return 200, {"results": [{"index": 0, "relevance_score": score}]}
        vector = [*_vector(content), 0.1, bias, *[0.0] * self.dimension]
        vector = vector[: self.dimension]
        return 200, {"data": [{"index": 0, "embedding": vector}]}


def _image_of(content) -> str | None:
    """The URL of the first part, if it is an image."""
    return (
        None if isinstance(content, str) else content[0].get("image_url", {}).get("url")
    )


def _image(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def _vector(content) -> list[float]:
    if url := _image_of(content):
        image = _image(url).convert("RGB")
        middle = image.getpixel((image.width // 2, image.height // 2))
        return [level / 255 for level in middle]
    text = content if isinstance(content, str) else content[0]["text"]
    return [float(colour in text) for colour in COLOURS]


def index(server: FakeServer, folder, place, *options: str) -> list[str]:
    """Arguments of the command."""
    return ["index", str(folder), "--to", str(place), "--url", server.url, *options]


def find(server: FakeServer, question: str, place, *options: str) -> list[str]:
    return ["find", question, "--in", str(place), "--url", server.url, *options]
