#!/usr/bin/env python3
"""gpu.py: what the engine does on the first GPU, beside what the GPU allows and beside transformers.

    python3 test/bench/gpu.py [--rounds 3] [--minutes 25] [--only WORD...] [--cache DIR]

First the ceilings: how fast device memory is read, how fast bfloat16 is multiplied and how fast memory is uploaded
(test/gpu/ceilings.cu). Then models of random weights in the true shapes (make_checkpoint), each in every format:
decoding one sequence, a prompt of 4096 tokens, 64 and 256 sequences. A figure stands beside its share of the ceilings:
the bytes that its steps must read over the bandwidth, their operations over the rate of products. Where transformers is
installed it decodes the same sequences of the same checkpoint in the same run, in turns with the engine.

Models are kept in --cache: 48 GB for all of them. Rounds are repeated until there are --rounds or the --minutes are
over; --only leaves out the models that lack one of the words. Prints Markdown, the bars in a short table last; progress
goes to standard error. Where there is no GPU, or nothing to build for it, this is said loudly and is an error.
"""
import argparse
import importlib.util
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

sys.dont_write_bytecode = True

import gauges
from cpu import FORMATS, HERE, ROOT, Runs, progress, run, spread

BUILD = "build/gpu"
DECODE, PREFILL = "decode, 1 sequence", "prefill 4096"
BATCHES = (64, 256)
PROMPT, GENERATED = 128, 64  # of each of several sequences
REPETITIONS = 3  # within a run
MODELS = ("Qwen3-0.6B", "Qwen3-8B", "Qwen3-14B")
COMPARED = "Qwen3-8B"  # with transformers

# Least share of a ceiling: performance.md 3.
BARS = {("Qwen3-8B", "bf16", DECODE): ("read", 0.80), ("Qwen3-14B", "bf16", DECODE): ("read", 0.80),
        ("Qwen3-0.6B", "bf16", DECODE): ("read", 0.45), ("Qwen3-8B", "int8", DECODE): ("read", 0.65),
        ("Qwen3-8B", "int4", DECODE): ("read", 0.65), ("Qwen3-8B", "bf16", PREFILL): ("matrix", 0.50)}
BAR_BATCH = 5  # times transformers
BAR_LOADING = 0.70  # of what copying the file and uploading it take at least


def batch_name(n):
    return f"{n} sequences, decode"


def nothing(why):
    print(f"\n**** GPUBENCH RAN NOTHING: {why} ****", file=sys.stderr)
    sys.exit(1)


# ---- what there is ----


def visible_gpu():
    """The compute capability of the first GPU, as nvcc writes it."""
    if not shutil.which("nvidia-smi"):
        nothing("there is no nvidia-smi, so there is no driver for a GPU")
    done = subprocess.run(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"], capture_output=True,
                          text=True, check=False)
    lines = done.stdout.split()
    if done.returncode or not lines:
        nothing(f"no GPU: {(done.stdout + done.stderr).strip().splitlines()[:1]}")
    return lines[0].replace(".", "")


def build(capability):
    """The engine, its plug-in for this GPU alone, and the program that measures the ceilings."""
    make = ["make", "-C", ROOT, "-s", "-j", os.cpu_count(), "-f", "engine.mk", f"BUILD={BUILD}",
            f"CUDA_ARCHS={capability}"]
    try:
        lacks = run([*make, "-n", "cuda"])
        if "not built" in lacks:
            nothing(lacks.strip())
        run([*make, *(f"{BUILD}/{name}" for name in ("qwen-engine", "qwen_cuda.so", "gpu/ceilings"))])
    except RuntimeError as error:
        nothing(error)


# ---- the two sides ----


class Engine:
    name = "qwen"

    def __init__(self, cache):
        self.program, self.cache = ROOT / BUILD / "qwen-engine", cache

    def measure(self, model, form):
        """Tokens a second of every work, and all that bench says."""
        command = [self.program, "bench", "-m", self.cache / model, "--device-map", "cuda:0", "--quantization",
                   FORMATS[form], "-p", 4096, "-n", 128, "-b", ",".join(map(str, BATCHES)), "--pb", PROMPT, "--nb",
                   GENERATED, "-r", REPETITIONS, "--json"]
        whole = json.loads(run(command))
        names = (PREFILL, DECODE, *map(batch_name, BATCHES))
        return {name: (row["tokens_per_second"], row) for name, row in zip(names, whole["rows"])}, whole


class Transformers:
    """The usual way to run a checkpoint in Python, in a process of its own; decodes with its default cache."""
    name = "transformers"

    def __init__(self, cache):
        self.cache = cache

    @staticmethod
    def is_here():
        return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))

    def measure(self, model, form):
        if form != "bf16":
            return {}, {}
        rates = json.loads(run([sys.executable, HERE / "gpu_transformers.py", self.cache / model, PROMPT, GENERATED,
                                1, *BATCHES]))
        names = (DECODE, *map(batch_name, BATCHES))
        return {name: (rate, {}) for name, rate in zip(names, rates) if rate}, {}


def measure(runs, sides, rows, args):
    """Round by round and in turns; a side that fails is left out and named."""
    deadline = time.monotonic() + 60 * args.minutes
    for i in range(args.rounds):
        for model, form in rows:
            for side in sides:
                if side.name != Engine.name and model != COMPARED:
                    continue
                if time.monotonic() > deadline:
                    progress("time is over")
                    return
                try:
                    works, details = side.measure(model, form)
                except RuntimeError as error:
                    progress(error)
                    continue
                for work, (value, row) in works.items():
                    progress(f"{i + 1}/{args.rounds}", side.name, model, form, work, f"{value:.1f}")
                    runs.add(side=side.name, row=[model, form, work], value=value, details=row,
                             load_seconds=details.get("load_seconds"))


# ---- the report ----


def share(runs, row, ceilings, of):
    """Which part of a ceiling the median run reached: of its bytes, or of its operations."""
    done = runs.of(Engine.name, row)
    if not done:
        return None
    details, rate = done[0]["details"], statistics.median(runs.values(Engine.name, row))
    seconds = details["sequences"] * (details["generated"] or details["prompt"]) / rate
    work = details["bytes"] if of == "read" else details["linear_operations"] + details["attention_operations"]
    return work / seconds / ceilings[of]


def percent(x):
    return "-" if x is None else f"{100 * x:.0f} %"


def print_machine(ceilings):
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True,
                            check=False).stdout.strip() or "unknown"
    print(f"\n## {ceilings['gpu']}, {time.strftime('%F', time.gmtime())}\n")
    print(f"Commit {commit}, driver for CUDA {ceilings['cuda'] // 1000}.{ceilings['cuda'] % 1000 // 10}, "
          f"{ceilings['bytes'] / 2**30:.1f} GiB, `python3 test/bench/gpu.py {' '.join(sys.argv[1:])}`.\n")
    print("| ceiling | measured |\n|---|---|")
    print(f"| read of device memory | {ceilings['read'] / 1e9:.0f} GB/s |")
    print(f"| products of bfloat16, 8192 each way, cuBLASLt | {ceilings['matrix'] / 1e12:.0f} Top/s |")
    print(f"| upload from pinned memory | {ceilings['upload'] / 1e9:.1f} GB/s |\n", flush=True)


def print_figures(runs, rows, ceilings):
    print("Tokens a second: median of the runs (lowest .. highest), and the share of each ceiling that it needs.\n")
    print("| model | format | work | qwen | of read | of products | transformers |\n|---|---|---|---|---|---|---|")
    for model, form in rows:
        for work in (DECODE, PREFILL, *map(batch_name, BATCHES)):
            row = (model, form, work)
            if runs.sides(row):
                shares = " | ".join(percent(share(runs, row, ceilings, of)) for of in ("read", "matrix"))
                print(f"| {model} | {form} | {work} | {spread(runs.values(Engine.name, row))} | {shares} | "
                      f"{spread(runs.values(Transformers.name, row))} |")
    print()


def verdict(reached):
    return "not measured" if reached is None else "yes" if reached else "**no**"


def loading_share(runs, model, cache, ceilings):
    """What copying the files out of the page cache and uploading them take, the longer of the two, over what loading
    takes."""
    seconds = [r["load_seconds"] for r in runs.all if r["side"] == Engine.name and r["row"][:2] == [model, "bf16"]]
    if not seconds:
        return None
    size = sum(path.stat().st_size for path in (cache / model).glob("*.safetensors"))
    return max(size / ceilings["upload"], gauges.copy_seconds(cache / model)) / min(seconds)


def bars(runs, models, cache, ceilings):
    """Lines of the table of bars: what, the bar, the figure, whether it is reached."""
    for row, (of, least) in BARS.items():
        if row[0] in models:
            figure = share(runs, row, ceilings, of)
            yield (" ".join(row), f"≥ {percent(least)} of {of}", percent(figure),
                   None if figure is None else figure >= least)
    if COMPARED in models:
        for name in map(batch_name, BATCHES):
            ours, theirs = (runs.values(side, (COMPARED, "bf16", name)) for side in (Engine.name, Transformers.name))
            ratio = statistics.median(ours) / statistics.median(theirs) if ours and theirs else None
            yield (f"{COMPARED} bf16 {name}", f"≥ {BAR_BATCH} x transformers",
                   "-" if ratio is None else f"{ratio:.1f}", None if ratio is None else ratio >= BAR_BATCH)
    for model in models:
        figure = loading_share(runs, model, cache, ceilings)
        yield (f"{model} loading", f"≥ {percent(BAR_LOADING)} of copying and uploading", percent(figure),
               None if figure is None else figure >= BAR_LOADING)


def print_bars(*args):
    print("| bar | least | figure | reached |\n|---|---|---|---|")
    for what, least, figure, reached in bars(*args):
        print(f"| {what} | {least} | {figure} | {verdict(reached)} |")


# ---- the command ----


def parse_arguments():
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "qwen-bench"
    parser = argparse.ArgumentParser(description="measures the engine on the first GPU")
    parser.add_argument("--cache", type=pathlib.Path, default=cache, help="models and runs; up to 48 GB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=25, help="after which no run begins any more")
    parser.add_argument("--only", nargs="*", default=[], help="models whose name has one of these words")
    return parser.parse_args()


def main():
    args = parse_arguments()
    build(visible_gpu())
    args.cache.mkdir(parents=True, exist_ok=True)
    ceilings = json.loads(run([ROOT / BUILD / "gpu" / "ceilings"]))
    print_machine(ceilings)
    models = [model for model in MODELS if not args.only or any(word in model for word in args.only)]
    for model in models:
        progress("writing", model)
        run([HERE / "make_checkpoint", model, args.cache / model])
    sides = [Engine(args.cache)]
    if Transformers.is_here():
        sides.append(Transformers(args.cache))
    else:
        progress("**** SKIPPED: transformers is not installed ****")
    rows = [(model, form) for model in models for form in FORMATS]
    runs = Runs(args.cache / "gpu-runs.jsonl", False)
    try:
        measure(runs, sides, rows, args)
    except KeyboardInterrupt:
        progress("interrupted: reporting what there is")
    print_figures(runs, rows, ceilings)
    print_bars(runs, models, args.cache, ceilings)


if __name__ == "__main__":
    main()
