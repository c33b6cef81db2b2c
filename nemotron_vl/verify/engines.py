# SPDX-License-Identifier: Apache-2.0
"""The ways in which vLLM runs during a verification, and which a machine allows."""

import contextlib
import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import torch

from ..checkpoints.files import headers_of_folder, read_json
from .comparison import OPTIONS
from .stages import ENGINES, Engine

if TYPE_CHECKING:
    from vllm import LLM

_CONTEXT = 8192  # tokens: 13 tiles of the published checkpoint take 3330
_FULL = 0.85  # of the memory, for weights


class Run(NamedTuple):
    """An engine in a dtype."""

    dtype: str
    engine: str


class Plan(NamedTuple):
    """What runs, and what does not with the reason for it."""

    runs: list[Run]
    not_run: list[str]
    served: Run | None  # it also reads and is measured

    @classmethod
    def make(
        cls,
        checkpoint: Path,
        dtypes: Sequence[str],
        engines: Sequence[str] | None,
        device: str,
    ) -> "Plan":
        """Runs that the machine allows.

        Args:
            checkpoint: Folder.
            dtypes: Dtypes of the runs.
            engines: Those that were asked for, or ``None`` for all that fit.
            device: ``"cpu"`` or ``"cuda"``.

        Raises:
            ValueError: The machine does not allow an engine that was asked for.
        """
        runs, not_run = [], []
        reasons = {dtype: _too_large(checkpoint, dtype, device) for dtype in dtypes}
        not_run += [f"{dtype}: {why}" for dtype, why in reasons.items() if why]
        fitting = [dtype for dtype in dtypes if not reasons[dtype]]
        config = read_json(str(checkpoint), "config.json")
        own = config.get("torch_dtype") or config.get("dtype")
        served_dtype = min(fitting, key=[own, "bfloat16", *dtypes].index, default="")
        for dtype in fitting:
            for name in engines or ENGINES:
                # One dtype is enough to compare the engines.
                if not engines and name != "eager" and dtype != served_dtype:
                    continue
                reason = _missing(ENGINES[name], device, engines is not None)
                if reason and engines:
                    raise ValueError(f"--engines {name} {reason}.")
                if reason:
                    not_run.append(f"{dtype}, {name}: {reason}")
                else:
                    runs.append(Run(dtype, name))
        order = ("compiled", "eager")
        served = [Run(served_dtype, name) for name in order]
        chosen = [run for run in (*served, *runs) if run in runs]
        return cls(runs, not_run, chosen[0] if chosen else None)


def _missing(engine: Engine, device: str, asked: bool) -> str | None:
    if engine.asked and device == "cpu" and not asked:
        return "takes minutes on a CPU, so it runs there only with --engines"
    found = torch.cuda.device_count() if device == "cuda" else 0
    if found < engine.devices:
        return f"needs {engine.devices} GPU(s), and there are {found}"
    return None


def _too_large(checkpoint: Path, dtype: str, device: str) -> str | None:
    values = sum(
        torch.Size(header.shape).numel()
        for header in headers_of_folder(checkpoint).values()
    )
    needed = values * getattr(torch, dtype).itemsize / 1e9
    owner, there = "machine", psutil.virtual_memory().total / 1e9
    if device == "cuda":
        owner, there = "GPU", torch.cuda.get_device_properties(0).total_memory / 1e9
    if needed <= _FULL * there:
        return None
    return f"its weights take {needed:.1f} GB, and the {owner} has {there:.1f} GB"


@contextlib.contextmanager
def running_engine(checkpoint: Path, run: Run) -> Iterator["LLM"]:
    """An engine of this process, while the block runs."""
    from vllm import LLM

    options = engine_options(checkpoint, run)
    llm = LLM(str(checkpoint), **options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def engine_options(checkpoint: Path, run: Run) -> dict[str, Any]:
    """Options of vLLM for a run."""
    text = read_json(str(checkpoint), "config.json")["llm_config"]
    return {
        "dtype": run.dtype,
        "max_model_len": min(_CONTEXT, text.get("max_position_embeddings", _CONTEXT)),
        "max_num_seqs": 16,
        "limit_mm_per_prompt": {"image": 2},
        **OPTIONS,
        **ENGINES[run.engine].options,
    }
