#!/usr/bin/env python3
"""Train a tiny Nemotron VL to read drawn text.

    tools/fonts.sh build/fonts
    python tools/train_tiny.py build/training

Trains the reference model of the tests in two hours on two cores and writes
``build/training/checkpoint``, and its log to ``build/training/training.log``. The same
command with ``--resume`` continues after an interruption.

The schedule follows the time that passes, without starts. A slower machine, or one with
other work, takes fewer steps. The program loads tcmalloc if that is installed: with
glibc's malloc it slows down to half its speed within 15 minutes.
tools/tiny_reader/training.py describes the stages.
"""

import argparse
import ctypes.util
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from nemotron_vl.checkpoints.random_checkpoint import make_checkpoint
from nemotron_vl.verify.reference import Reference
from tiny_reader.batches import Drawer
from tiny_reader.forward import fastest_dtype
from tiny_reader.supply import Supply
from tiny_reader.training import (
    Heads,
    Means,
    Optimizers,
    answer_step,
    fit_heads,
    initialise,
    stage_at,
    tower_step,
)

# Arguments that a resumed training must have in common with its beginning.
SCHEDULE = ("minutes", "learning_rate", "batch_tiles", "seed", "weights")
MOST_LEFT_OUT = 20  # steps in a row


def make_template(folder: Path, seed: int) -> None:
    """Write a checkpoint of the sizes to train, with random weights."""
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    make_checkpoint(
        temporary,
        tower_layers=5,
        layers=4,
        hidden_size=256,
        intermediate_size=768,
        projector_hidden_size=512,
        tile_size=128,
        cpe_max_size=256,
        seed=seed,
        vision_options={
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_attention_heads": 4,
        },
    )
    replace(temporary, folder)


def replace(temporary: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def export(model: Reference, template: Path, out: Path) -> None:
    """Write the weights with the names, shapes and types of the ``template``."""
    (file,) = template.glob("*.safetensors")
    state = model.state_dict()
    tensors = {
        name: state[model.own_name(name)].reshape(tensor.shape).to(tensor.dtype)
        for name, tensor in load_file(file).items()
    }
    temporary = out.with_name(f"{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(template, temporary)
    save_file(tensors, temporary / file.name, metadata={"format": "pt"})
    replace(temporary, out)


class Training:
    """A training with its saved state."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.folder: Path = args.folder
        self.budget = 60 * args.minutes
        self.schedule = {name: getattr(args, name) for name in SCHEDULE}
        self.saved = self.folder / "state.pt"
        state: dict[str, Any] = {}
        if args.resume:
            state = self.read_state()
        elif self.saved.exists():
            sys.exit(f"{self.saved} exists: use --resume to continue.")
        elif args.weights:
            self.check_weights()
        template = self.folder / "untrained"
        if not (args.resume and template.exists()):
            make_template(template, args.seed)
        self.model = Reference.load(template).requires_grad_(True)
        if args.weights and not args.resume:
            given = Reference.load(Path(args.weights))
            self.model.load_state_dict(given.state_dict())
        else:
            initialise(self.model.tower)
        self.heads = Heads(self.model.tower.positions.shape[-1])
        before: float = state.get("start_at", 0.0)
        self.start_at: float = before if args.start_at is None else args.start_at
        self.optimizers = Optimizers(
            self.model, self.heads, args.learning_rate, self.start_at
        )
        if args.resume:
            self.model.load_state_dict(state["model"])
            self.heads.load_state_dict(state["heads"])
            self.optimizers.load_state_dict(state["optimizers"])
        self.step: int = state.get("step", 0)
        self.seconds: float = state.get("seconds", 0.0)
        self.left_out: int = state.get("left_out", 0)
        # Seconds of training. ``seconds`` also has what --start-at skipped, and only
        # once what it repeated.
        self.spent: float = state.get("spent", self.seconds)
        if self.start_at != before:
            self.seconds = self.start_at * self.budget

    def check_weights(self) -> None:
        """Refuse a missing checkpoint; begin the log with that of its training."""
        checkpoint = Path(self.args.weights)
        if not (checkpoint / "config.json").exists():
            sys.exit(f"{checkpoint} is not a checkpoint.")
        log = checkpoint.with_name("training.log")
        if log.exists():
            shutil.copy(log, self.folder)

    def read_state(self) -> dict[str, Any]:
        if not self.saved.exists():
            sys.exit(f"{self.saved} is missing: start without --resume.")
        state = torch.load(self.saved)
        other = [
            f"--{name.replace('_', '-')} {value}"
            for name, value in state.get("schedule", {}).items()
            if self.schedule[name] != value
        ]
        if other:
            sys.exit(
                f"{self.saved} is of a training with {', '.join(other)}: use that."
            )
        return state

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "start_at": self.start_at,
            "spent": self.spent,
            "left_out": self.left_out,
            "schedule": self.schedule,
        }
        torch.save(state, self.saved.with_suffix(".tmp"))
        os.replace(self.saved.with_suffix(".tmp"), self.saved)

    def log(self, text: str) -> None:
        print(text, flush=True)
        with (self.folder / "training.log").open("a") as file:
            file.write(text + "\n")

    def leave_out(self, in_a_row: int) -> None:
        """Count a step that changed nothing; end the training after too many."""
        self.left_out += 1
        self.log(f"step {self.step} has no finite loss or gradient and is left out")
        if in_a_row == MOST_LEFT_OUT:
            sys.exit(
                f"{in_a_row} steps in a row had no finite loss or gradient. "
                f"{self.saved} is not of these steps."
            )

    def run(self) -> None:
        args = self.args
        dtype = getattr(torch, args.dtype) if args.dtype else fastest_dtype()
        loaded = "malloc" in Path("/proc/self/maps").read_text()
        self.log(
            f"seed {args.seed}, {args.minutes:g} minutes, {args.threads} threads, "
            f"{dtype}, from step {self.step} and second {self.seconds:.0f}"
            + ("" if loaded else "; slow, for want of libtcmalloc-minimal4")
        )
        drawer = Drawer(self.model, args.fonts / "training", args.batch_tiles)
        if args.weights and not self.step:
            start = time.monotonic()
            hits = fit_heads(self.model, self.heads, drawer, args.seed, dtype)
            self.spent += time.monotonic() - start
            self.log(f"begins with {args.weights}: new heads have hits {hits:.3f}")
        skipped = self.seconds - self.spent
        means, last_save, last_log = Means(), self.seconds, self.seconds
        left_out = 0  # in a row
        with Supply(drawer, args.seed, args.threads) as supply:
            # Starting the processes is not training.
            supply.draw(self.step, stage_at(self.seconds / self.budget))
            start = time.monotonic() - self.seconds
            while self.seconds < self.budget and self.step < args.steps:
                progress = self.seconds / self.budget
                stage = stage_at(progress)
                batch = supply.take(self.step, stage)
                if stage.answers:
                    result = answer_step(self.model, self.heads, batch, dtype)
                    for example, right in zip(batch, result.right, strict=True):
                        means.add(example.kind, right)
                else:
                    result = tower_step(self.model, self.heads, batch, dtype)
                if self.optimizers.step(result.total(), progress):
                    left_out = 0
                    for name, loss in result.losses.items():
                        means.add(name, loss.item())
                else:
                    left_out += 1
                    self.leave_out(left_out)
                self.step += 1
                self.seconds = time.monotonic() - start
                self.spent = self.seconds - skipped
                if self.seconds - last_log > args.log_every:
                    last_log = self.seconds
                    self.log(
                        f"{self.seconds:.0f} of {self.budget:.0f} s, "
                        f"step {self.step}: {means}"
                    )
                if self.seconds - last_save > args.save_every and not left_out:
                    last_save = self.seconds
                    self.save()
        self.save()
        export(self.model, self.folder / "untrained", self.folder / "checkpoint")
        figures = {
            "steps": self.step,
            "seed": args.seed,
            "seconds": round(self.spent),
            "left_out": self.left_out,
            "dtype": str(dtype),
            "batch_tiles": args.batch_tiles,
            "learning_rate": args.learning_rate,
            "weights": args.weights,
        }
        (self.folder / "training.json").write_text(json.dumps(figures, indent=1) + "\n")


def use_tcmalloc() -> None:
    """Start this program again with tcmalloc, if installed, unless it has another."""
    library = ctypes.util.find_library("tcmalloc_minimal")
    preloaded = os.environ.get("LD_PRELOAD", "")
    if library and "malloc" not in preloaded:
        os.environ["LD_PRELOAD"] = f"{library}:{preloaded}".rstrip(":")
        os.execv(sys.executable, sys.orig_argv)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder for all output")
    parser.add_argument("--fonts", type=Path, default=Path("build/fonts"))
    parser.add_argument(
        "--weights", metavar="CHECKPOINT", help="begin with these weights"
    )
    parser.add_argument("--minutes", type=float, default=118)
    parser.add_argument(
        "--start-at",
        type=float,
        metavar="SHARE",
        help="where in the schedule to begin; with --resume and another share than "
        "before, go there. Until a share of 0.3, only the tower learns",
    )
    parser.add_argument("--steps", type=int, default=10**9, help="most steps")
    parser.add_argument("--batch-tiles", type=int, default=96, help="least per step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"))
    parser.add_argument("--save-every", type=float, default=120, metavar="SECONDS")
    parser.add_argument("--log-every", type=float, default=20, metavar="SECONDS")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    Training(args).run()


if __name__ == "__main__":
    use_tcmalloc()
    main()
