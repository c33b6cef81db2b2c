"""A server starts as confined as the manifests confine it: no container is needed."""

import platform
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import support
from nemotron_vl.server import serving_process
from support.chat import SERVER_OPTIONS

# The root is read-only but for two folders, and there are no capabilities.
CONFINED = """
home=$1 tmp=$2
shift 2
mount -t tmpfs tmpfs "$home"
mount -t tmpfs tmpfs "$tmp"
mount -o remount,ro,bind /
exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all "$@"
"""


@pytest.mark.releases
@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of system calls")
def test_a_server_starts_on_a_read_only_root_without_capabilities(tiny, tmp_path):
    home, tmp = tmp_path / "home", tmp_path / "tmp"
    for folder in (home, tmp):
        folder.mkdir()
    command = ["unshare", "--mount", "bash", "-euc", CONFINED, "bash", home, tmp]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("mounts need root and unshare")
    refused = [*command, "touch", tmp_path / "file"]
    assert subprocess.run(refused, capture_output=True).returncode
    no_numa = Path(*support.__path__) / "no_numa.py"
    prefix = [*map(str, command), sys.executable, str(no_numa)]
    variables = {"HOME": home, "TMPDIR": tmp, "VLLM_CPU_OMP_THREADS_BIND": "auto"}
    with serving_process(
        tiny,
        *SERVER_OPTIONS,
        log=tmp_path / "log.txt",
        env={name: str(value) for name, value in variables.items()},
        prefix=prefix,
    ) as (_, url):
        models = httpx.get(f"{url}/v1/models").json()
        assert models["data"][0]["id"] == "tiny"
