"""`nemotron-vl demo` serves the embedded checkpoint and checks its answers."""

import base64
import contextlib
import io
import struct
import zlib
from types import SimpleNamespace

import openai
import pytest
from PIL import Image

from nemotron_vl.checkpoints.embedded import TINY
from nemotron_vl.checkpoints.questions import COUNT, draw_questions, untrained
from nemotron_vl.commands import demo
from nemotron_vl.images.drawn import draw_text
from nemotron_vl.main import main
from support.servers import forked_servers


def test_the_images_that_the_seed_draws(tmp_path, capsys):
    """As many answers are right as the embedded checkpoint is known to give."""
    status = main(["demo", "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    right = int(lines[-1].split()[0])
    assert lines[-1] == f"{right} of {COUNT} answers about images are right.", lines
    assert right >= TINY.least_right
    assert status == 0
    marks = [line[0] for line in lines if line[0] in "✓✗"]
    assert len(marks) == COUNT + 3  # three frames
    for name in ("image_01", "counter"):
        assert (tmp_path / f"{name}_tiles.png").exists()
    assert (tmp_path / "counter.mp4").exists()


@forked_servers()
def test_what_a_user_types_or_draws(tmp_path, capsys):
    file = tmp_path / "mine.png"
    draw_text("4711-08").save(file)
    arguments = ["--text", "HELLO", "--image", str(file), "--out", str(tmp_path)]
    assert main(["demo", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    (typed,) = (n for n, line in enumerate(lines) if line.startswith("✗ text_1 "))
    assert "truth 'HELLO'" in lines[typed]
    assert "never seen 'E' 'H' 'L' 'O'." in lines[typed + 1]
    assert lines[typed + 2].startswith(f"? {file} ")
    assert [line for line in lines if str(TINY) in line] == lines[typed + 3 : -1]


class Server:
    """Stands for the server and its client, and has no model.

    Args:
        answers: In the order of the requests. Exceptions are raised.
    """

    def __init__(self, monkeypatch, *answers):
        self.answers = list(answers)
        self.contents = []
        completions = SimpleNamespace(create=self.create)
        client = SimpleNamespace(chat=SimpleNamespace(completions=completions))
        monkeypatch.setattr(openai, "OpenAI", lambda **options: client)
        monkeypatch.setattr(demo, "serving", self.serving)

    @contextlib.contextmanager
    def serving(self, model, *options, log):
        log.write_text("started")
        yield "http://127.0.0.1:1"

    def create(self, *, messages, **options):
        self.contents.append(messages[0]["content"])
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        message = SimpleNamespace(content=answer)
        return SimpleNamespace(choices=[SimpleNamespace(message=message)])

    def images(self):
        """The image of each request."""
        urls = [content[0]["image_url"]["url"] for content in self.contents]
        data = [base64.b64decode(url.partition(",")[2]) for url in urls]
        return [Image.open(io.BytesIO(png)) for png in data]


@pytest.mark.parametrize(
    ("right_images", "right_frames", "status"),
    [
        (COUNT, 3, 0),
        (TINY.least_right, 2, 0),
        (TINY.least_right - 1, 3, 1),
        (COUNT, 1, 1),
    ],
)
def test_few_right_answers_give_a_status(
    right_images, right_frames, status, tmp_path, capsys, monkeypatch
):
    images = [question.truth for question in draw_questions(5)]
    images[right_images:] = ["wrong"] * (COUNT - right_images)
    frames = demo._count(5)
    frames[right_frames:] = ["wrong"] * (3 - right_frames)
    server = Server(monkeypatch, *images, *frames)
    assert main(["demo", "--seed", "5", "--out", str(tmp_path)]) == status
    assert not server.answers
    told = capsys.readouterr().out
    assert f"{right_images} of {COUNT} answers about images are right." in told
    assert f"{right_frames} of 3 frames of the video are read." in told
    assert ("were expected" in told) == bool(status)


def test_given_files_stay_as_they_are(tmp_path, monkeypatch):
    """Even those that an earlier run wrote, or that a link names."""
    names = ["text_1.png", "given_1_tiles.png", "_given_1_tiles.png", "server.log"]
    given = [tmp_path / name for name in names]
    for file in given:
        draw_text("4711").convert("RGBA").save(file, "PNG")
    elsewhere = tmp_path / "elsewhere.png"
    draw_text("4711").save(elsewhere)
    (tmp_path / "text_1_tiles.png").symlink_to(elsewhere)
    given.append(elsewhere)
    before = [file.read_bytes() for file in given]
    Server(monkeypatch, *["4711"] * 6)
    monkeypatch.chdir(tmp_path)
    images = [f"--image={file.name}" for file in given]
    assert main(["demo", "--text=12", *images, "--out", str(tmp_path)]) == 0
    assert [file.read_bytes() for file in given] == before
    assert (tmp_path / "_server.log").read_text() == "started"
    for name in ("_text_1.png", "_text_1_tiles.png", "__given_1_tiles.png"):
        assert (tmp_path / name).exists()


def test_images_of_one_name_are_all_read(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = ["a/x.png", "b/x.png", "b/x.bmp", "text_1.png", "text_1_tiles.png"]
    for number, name in enumerate(files):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20 + number, 30)).save(file)
    server = Server(monkeypatch, *"012345")
    images = [f"--image={file}" for file in files]
    assert main(["demo", "--text", "0", *images]) == 0
    sizes = [image.size for image in server.images()]
    assert sizes == [draw_text("0").size, *((20 + n, 30) for n in range(5))]
    lines = capsys.readouterr().out.splitlines()
    asked = [line for line in lines if " tiles, " in line]
    for answer, file, line in zip("12345", files, asked[1:], strict=True):
        assert line.startswith(f"? {file} (") and line.endswith(repr(answer))
    out = tmp_path / "nemotron-vl-demo"
    assert len(list(out.glob("given_*_tiles.png"))) == len(files)
    assert sum(str(TINY) in line for line in lines) == 1


@pytest.mark.parametrize(
    ("typed", "drawn"),
    {"12\n": "12", " 12 \n3\r\n ": "12\n3", "12\\n3": "12\n3"}.items(),
)
def test_space_at_the_ends_of_a_text_is_not_compared(
    typed, drawn, tmp_path, capsys, monkeypatch
):
    server = Server(monkeypatch, drawn.replace("\n", " \n"))
    assert main(["demo", "--text", typed, "--out", str(tmp_path)]) == 0
    assert "✓ text_1 " in capsys.readouterr().out
    (image,) = server.images()
    assert image.tobytes() == draw_text(*drawn.split("\n")).tobytes()


@pytest.mark.parametrize("text", ["", "  ", "\n", " \\n\t"])
def test_a_text_without_characters_is_refused(text, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--text", text])
    assert ended.value.code == 2
    assert "argument --text: a text needs a character" in capsys.readouterr().err


def test_the_seed_draws_the_questions():
    one, again, other = (list(draw_questions(seed)) for seed in (3, 3, 4))
    assert [q.truth for q in one] == [q.truth for q in again]
    assert [q.truth for q in one] != [q.truth for q in other]
    assert len(one) == COUNT
    for a, b in zip(one, again, strict=True):
        for name, image in a.images.items():
            assert image.tobytes() == b.images[name].tobytes()
        assert untrained(a.truth) is None


@pytest.mark.parametrize(
    ("text", "told"),
    {
        "4711-08": None,
        "12A": "'A'",
        "123\n4\n5\n6": "3 lines at most, this has 4",
        "12\n\n3": "empty lines",
        "1" * (TINY.longest + 1): f"this has {TINY.longest + 1}",
    }.items(),
)
def test_what_the_checkpoint_was_not_trained_for(text, told):
    found = untrained(text)
    assert found is None if told is None else told in found


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def _png_of(side: int) -> bytes:
    """The beginning of a PNG of this width and height, without pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"")


def test_a_file_that_is_no_image_is_refused(tmp_path, capsys):
    whole = io.BytesIO()
    Image.effect_noise((200, 200), 50).save(whole, "PNG")
    contents = {
        "notes.txt": b"4711",
        "empty.png": b"",
        "truncated.png": whole.getvalue()[:9000],
        "bomb.png": _png_of(100_000),
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    out = tmp_path / "out"
    for name in [*contents, "missing.png", "."]:
        file = tmp_path / name
        assert main(["demo", "--image", str(file), "--out", str(out)]) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"nemotron-vl: {file}: "), told
        assert "parameter=" not in told
    assert not out.exists()


def test_a_refused_request_names_the_image(tmp_path, capsys, monkeypatch):
    cause = "The prompt is longer than the model's context."
    response = SimpleNamespace(status_code=400, headers={}, request=None)
    refused = openai.BadRequestError(
        "Error code: 400", response=response, body={"message": cause}
    )
    lost = openai.APIConnectionError(request=None)
    file = tmp_path / "long.png"
    draw_text("4711").save(file)
    for refusal, told in ((refused, cause), (lost, "Connection error.")):
        Server(monkeypatch, refusal)
        assert main(["demo", "--image", str(file), "--out", str(tmp_path)]) == 2
        assert f"nemotron-vl: {file}: {told}" in capsys.readouterr().err


def test_an_unknown_model_is_named(tmp_path, capsys):
    assert main(["demo", "--model", "nowhere/no-model", "--out", str(tmp_path)]) == 2
    assert "nowhere/no-model" in capsys.readouterr().err


def test_a_server_that_does_not_start_is_reported(tmp_path, capsys, monkeypatch):
    def serving(*args, **kwargs):
        raise RuntimeError("vllm ended with status 1; the end of server.log: ...")

    monkeypatch.setattr(demo, "serving", serving)
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "nemotron-vl: vllm ended with status 1" in capsys.readouterr().err
