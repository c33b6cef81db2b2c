"""A router keeps the requests of a server that dies."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from nemotron_vl.server import serving_process
from support.chat import EXIT_STATUS, content
from support.served import OPTIONS, routing
from support.servers import forked_servers


def test_a_server_behind_the_router_is_killed_under_load(tiny, requests, tmp_path):
    """Each request gets the right answer or a status that a client may retry."""
    clients, seconds = 4, 12
    with contextlib.ExitStack() as stack:
        servers, urls = [], []

        def start(number: int) -> tuple[subprocess.Popen, str]:
            return stack.enter_context(
                serving_process(
                    tiny,
                    *OPTIONS,
                    "--shutdown-timeout=60",
                    EXIT_STATUS,
                    log=tmp_path / f"server{number}.txt",
                )
            )

        # The first is no fork: its exit status is tested.
        for number, context in enumerate((contextlib.nullcontext(), forked_servers())):
            with context:
                server, url = start(number)
            servers.append(server)
            urls.append(url)
        options = ["--policy=round_robin", "--worker-urls", *urls]
        router = stack.enter_context(routing(*options, log=tmp_path / "router.txt"))

        found: list[tuple[int, str, str, bool]] = []
        end = time.monotonic() + seconds
        killed = threading.Event()

        def client(number: int) -> None:
            address = f"{router}/v1/chat/completions"
            turn = number
            while time.monotonic() < end:
                job = requests[turn % len(requests)]
                turn += 1
                late = killed.is_set()
                response = httpx.post(address, json=job["request"], timeout=30)
                good = response.status_code == 200
                text = content(response) if good else response.text
                found.append((response.status_code, text, job["answer"], late))

        with ThreadPoolExecutor(clients) as threads:
            running_clients = [threads.submit(client, n) for n in range(clients)]
            time.sleep(seconds / 2)
            assert found, "no request was answered before the server was killed"
            os.killpg(servers[1].pid, signal.SIGKILL)
            killed.set()
            for future in running_clients:
                future.result(timeout=60)  # fails if a request hangs

        # The router itself answers 500 if a connection breaks while it sends.
        unexpected = [
            (status, text)
            for status, text, *_ in found
            if status not in (200, 502, 503)
            and not text.startswith("Request failed: error sending request")
        ]
        assert not unexpected
        assert all(text == answer for status, text, answer, _ in found if status == 200)
        late = [status for status, *_, late in found if late]
        assert late.count(200) > 10
        # By then the router sends nothing to the dead server.
        assert set(late[-10:]) == {200}

        # After SIGTERM a server finishes its requests, then exits.
        long = {**requests[0]["request"], "max_tokens": 800, "stream": True}
        address = f"{urls[0]}/v1/chat/completions"
        with httpx.stream("POST", address, json=long, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            servers[0].send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in rest[-2]
        assert servers[0].wait(60) == 0
