"""Pages a second of `nemotron-vl read`, of `vllm run-batch` and of plain loops with
OpenAI's client, and the CPU time of the clients.

The same pages of text, drawn at the same size, go to the embedded checkpoint, which
answers with up to 16 tokens. Rounds of all sides take turns. `run-batch` has an engine
of its own; writing its requests (`read --batch`) counts. The start of programs and
engines does not count, and nothing is cached. A loop draws a page, writes a PNG and
sends it; with eight threads, one draws at a time. Then a server that answers at once
shows what the clients can do.

A ratio is the pages a second of `read` over those of another side, as median and range
of the rounds. "share" is the client's part of the CPU time of client and server.
"""

import base64
import contextlib
import io
import json
import multiprocessing
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import openai
import psutil
import pypdfium2
from options import make_parser
from timing import order

from nemotron_vl.checkpoints.embedded import tiny_checkpoint
from nemotron_vl.checkpoints.tiler import Tiler
from nemotron_vl.server import serving_process

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))
from mail.sheets import HEIGHT, WIDTH, Sheet, pdf

PROGRAMS = Path(sys.executable).parent
NAME, QUESTION, TOKENS = "page", "Read the text.", 16
LINES, CHARACTERS = 58, 92  # of a page
THREADS = 8
SCALE = Tiler.from_model(None).filling_scale(WIDTH, HEIGHT)  # as `read` draws
OPTIONS = (
    f"--served-model-name={NAME}",
    "--enforce-eager",
    "--max-model-len=4096",
    f"--max-num-seqs={THREADS}",
    "--mm-processor-cache-gb=0",
    "--no-enable-prefix-caching",
)


Took = dict[str, float]  # pages a second; CPU time of the client a page; its share


class Documents(NamedTuple):
    """A PDF, and where results go."""

    file: Path
    pages: int
    folder: Path


def main() -> None:
    args = make_parser(__doc__).parse_args()
    few, many, rounds = (16, 40, 1) if args.quick else (24, 60, 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        documents = [draw(folder, pages) for pages in (1, few, many)]
        with free_server() as url:
            read(url, documents[0])  # reads the programs from the disk
            _, start = clients_took(read, url, documents[0])
            free = [
                ask_all(url, documents[2], start, number) for number in range(rounds)
            ]
        figures = {"answers at once": summarise(free)}
        print_found("a server that answers at once", figures["answers at once"])
        found = [one_round(documents[1], start, number) for number in range(rounds)]
    figures["embedded checkpoint"] = summarise(found)
    print_found("embedded checkpoint", figures["embedded checkpoint"])
    print(f"\nstart of `read` and one page: {start:.2f} s of CPU time")
    if args.json:
        print(json.dumps(figures | {"start_cpu_s": start}))


def draw(folder: Path, pages: int) -> Documents:
    """A PDF of full pages of words."""
    chosen, words = random.Random(pages), str(__doc__).split()
    sheets = []
    for _ in range(pages):
        sheets.append(Sheet())
        lines = (" ".join(chosen.choices(words, k=30)) for _ in range(LINES))
        sheets[-1].texts(50, 50, *(line[:CHARACTERS] for line in lines), size=8.5)
    file = folder / f"{pages}.pdf"
    file.write_bytes(pdf(*sheets))
    return Documents(file, pages, folder)


def one_round(documents: Documents, start: float, number: int) -> dict[str, Took]:
    """All sides, with the embedded checkpoint."""
    found = {}
    for side in order(["server", "run-batch"], number):
        if side == "run-batch":
            found[side] = {"pages_per_s": run_batch(documents)}
            continue
        log = documents.folder / "server.log"
        with serving_process(tiny_checkpoint(), *OPTIONS, log=log) as (process, url):
            loop(url, documents._replace(pages=2), threads=1)  # warms up
            server = psutil.Process(process.pid)
            found |= ask_all(url, documents, start, number, server)
    return found


def ask_all(
    url: str,
    documents: Documents,
    start: float,
    number: int,
    server: psutil.Process | None = None,
) -> dict[str, Took]:
    """All sides that ask a server, in the order of a round."""
    sides: dict[str, Callable] = {
        "read": read,
        "loop": partial(loop, threads=1),
        f"{THREADS} threads": partial(loop, threads=THREADS),
    }
    found = {}
    for side in order(sides, number):
        before = cpu_of(server)
        rate, cpu = clients_took(sides[side], url, documents)
        pages = documents.pages
        if side == "read":  # each start takes the same
            cpu, pages = cpu - start, pages - 1
        found[side] = {"pages_per_s": rate, "cpu_ms": 1000 * cpu / pages}
        if server:
            found[side]["share"] = cpu / (cpu + cpu_of(server) - before)
    return found


def cpu_of(server: psutil.Process | None) -> float:
    """CPU seconds of a server with its processes."""
    processes = [server, *server.children(recursive=True)] if server else []
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def clients_took(call: Callable, *arguments: object) -> tuple[float, float]:
    """What a call returns, and its CPU seconds, with the processes that it starts."""

    def seconds() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + usage.ru_utime + usage.ru_stime

    before = seconds()
    result = call(*arguments)
    return result, seconds() - before


def command(documents: Documents, *options: str) -> str:
    """What `nemotron-vl read` prints."""
    program = [PROGRAMS / "nemotron-vl", "read", documents.file, f"--model={NAME}"]
    program += [f"--question={QUESTION}", f"--max-tokens={TOKENS}", *options]
    return subprocess.run(program, check=True, capture_output=True, text=True).stdout


def read(url: str, documents: Documents) -> float:
    """Pages a second, as the command says them."""
    out = documents.folder / "answers.jsonl"
    out.unlink(missing_ok=True)
    options = (f"--url={url}", f"--out={out}", f"--at-once={THREADS}")
    (rate,) = re.findall(r" at ([\d.]+) pages/s", command(documents, *options))
    return float(rate)


def run_batch(documents: Documents) -> float:
    """Pages a second of writing requests and answering them."""
    batch, log = documents.folder / "batch.jsonl", documents.folder / "batch.log"
    seconds = []
    one = documents._replace(file=documents.file.with_name("1.pdf"))
    for written in (one, documents):
        started = time.perf_counter()
        command(written, f"--batch={batch}")
        seconds.append(time.perf_counter() - started)
    program = [PROGRAMS / "vllm", "run-batch", "-i", batch, "--model"]
    program += [tiny_checkpoint(), "-o", documents.folder / "out.jsonl", *OPTIONS]
    with log.open("w") as output:
        subprocess.run(program, check=True, stdout=output, stderr=output)
    # The bar begins when the requests are read.
    *_, (rate, unit) = re.findall(r"100% .*, *([\d.]+)(req/s|s/req)", log.read_text())
    of_page = 1 / float(rate) if unit == "req/s" else float(rate)
    return 1 / ((seconds[1] - seconds[0]) / (documents.pages - 1) + of_page)


def loop(url: str, documents: Documents, threads: int) -> float:
    """Pages a second of what one would write without this project."""
    lock = threading.Lock()  # PDFium is not thread-safe
    started = time.perf_counter()

    def ask(index: int) -> None:
        with lock:
            image = document[index].render(scale=SCALE).to_pil()
        file = io.BytesIO()
        image.save(file, "PNG")
        data = base64.b64encode(file.getvalue()).decode()
        image_url = {"url": f"data:image/png;base64,{data}"}
        content = [
            {"type": "image_url", "image_url": image_url},
            {"type": "text", "text": QUESTION},
        ]
        messages = [{"role": "user", "content": content}]
        client.chat.completions.create(
            model=NAME, messages=messages, max_tokens=TOKENS, temperature=0
        )

    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client,
        contextlib.closing(pypdfium2.PdfDocument(documents.file)) as document,
        ThreadPoolExecutor(threads) as pool,
    ):
        for _ in pool.map(ask, range(documents.pages)):
            pass
    return documents.pages / (time.perf_counter() - started)


class Answers(BaseHTTPRequestHandler):
    """The models, and the same answer to each request, which it does not parse."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send({"object": "list", "data": [{"id": NAME, "object": "model"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"role": "assistant", "content": "12.50"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        self._send({"object": "chat.completion", "choices": [choice]})

    def _send(self, answer: dict) -> None:
        data = json.dumps({"id": "1", "created": 0, "model": NAME, **answer}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def free_server() -> Iterator[str]:
    """A server in a process of its own that answers at once."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        context = multiprocessing.get_context("fork")
        process = context.Process(target=server.serve_forever, daemon=True)
        process.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            process.kill()
            process.join()


def summarise(rounds: list[dict[str, Took]]) -> dict[str, dict[str, float]]:
    """Medians of each side, and how many times faster `read` is."""
    rate = "pages_per_s"
    found: dict[str, dict[str, float]] = {}
    for side in sorted(rounds[0]):
        took = [turn[side] for turn in rounds]
        ratios = [turn["read"][rate] / turn[side][rate] for turn in rounds]
        found[side] = {
            **{key: statistics.median(t[key] for t in took) for key in took[0]},
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
    return found


def print_found(title: str, found: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}\nside       pages/s  ratio (range)     CPU ms/page  share")
    for side, row in found.items():
        ratio = f"{row['ratio']:.2f} ({row['ratio_min']:.2f}-{row['ratio_max']:.2f})"
        cpu = f"{row['cpu_ms']:11.0f}" if "cpu_ms" in row else ""
        share = f"{row['share']:6.0%}" if "share" in row else ""
        print(f"{side:<9} {row['pages_per_s']:8.2f}  {ratio:<16}  {cpu} {share}")


if __name__ == "__main__":
    main()
