#!/usr/bin/env python3
"""memory.py: what the plan says that the engine will hold, beside what it holds.

    python3 test/bench/memory.py [--only WORD...]

Models are of random weights in the true shapes (make_checkpoint, in --cache) with the tokenizer that the released ones
have. The engine loads one under a plan with room for a few sequences, then gets more of them than that, of full length
and of ids that are all different, so that every block of the cache is written, a step is as long as it may be, and the
samplers see tokens of the whole vocabulary.

Resident is what is neither a page of the program nor of the page cache: RssAnon and RssShmem of the kernel's own
accounts. Its peak is taken from two sides, of which the larger counts: it is asked for again and again, and it is no
less than the peak of all resident pages (VmHWM, which misses none) without those of files. Checkpoints are read and
not mapped, so that VmHWM has none of their pages.

Prints Markdown. The exit status is 1 when a plan is below the peak or more than 5 % above it, or when loading takes 1 GiB
more than the plan.
"""
import argparse
import json
import os
import pathlib
import random
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

sys.dont_write_bytecode = True
import gauges

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "qwen-bench"
MODELS = ("Qwen3-0.6B", "Qwen3-1.7B")
FORMATS = {"bf16": (), "int8": ("--quantization", "int8"), "int4": ("--quantization", "int4"),
           "f32": ("--dtype", "float32")}
MAPS = {1: ("--device-map", "cpu"), 2: ("--device-map", "balanced", "--max-memory", "cpu:0=10GiB,cpu:1=10GiB")}
CONTEXT, SEQUENCES = 256, 4  # the cache has room for so many of that length
REQUESTS = 7
ANSWER = 32
RESERVED_IDS = 400  # at the end of the vocabulary, which a tokenizer may not have
MIB = 1 << 20
GIB = 1 << 30


class Memory:
    """Watches the memory of a process."""

    def __init__(self, pid):
        self.path = pathlib.Path(f"/proc/{pid}/status")
        self.most = 0
        self.ended = False
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _numbers(self):
        return {name: 1024 * int(kib) for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", self.path.read_text(), re.M)}

    def _watch(self):
        while not self.ended:
            self.peak()
            time.sleep(0.002)

    def peak(self):
        """Of what is resident, so far."""
        now = self._numbers()
        self.most = max(self.most, now["RssAnon"] + now["RssShmem"], now["VmHWM"] - now["RssFile"])
        return self.most

    def end(self):
        self.ended = True
        self.thread.join()


def planned(devices):
    """Bytes that a DEVICES frame plans, of all devices: the third number of each, see engine/protocol.h."""
    return sum(device[6] for device in struct.iter_unpack("=16s8s2i14Q", devices[4 * 4 + 1024:]))


def wait_ready(server):
    """The plan of the model, once it is loaded."""
    plan = None
    while True:
        kind, payload = server.frame()
        if kind == server.DEVICES:
            plan = planned(payload)
        elif kind == server.STATE:
            phase = struct.unpack_from("=2I", payload)[1]
            if phase == 4:
                raise RuntimeError("the engine refused the model")
            if phase == 3:
                return plan


def fill(server, vocab):
    """More sequences of full length than there is room for, half of them with all that samplers can do."""
    source = random.Random(1)
    for number in range(1, REQUESTS + 1):
        ids = [source.randrange(vocab - RESERVED_IDS) for _ in range(CONTEXT - ANSWER)]
        drawn = {"temperature": 2, "repetition_penalty": 1.1} if number % 2 else {}
        server.request(number, server.IDS, struct.pack(f"={len(ids)}i", *ids), ANSWER, **drawn)
    answers = 0
    while answers < REQUESTS:
        kind, payload = server.frame()
        if kind == server.ERROR:
            raise RuntimeError(f"the engine refused a request: {payload!r}")
        answers += kind == server.DONE


def token_bytes(config, options):
    """Of the cache, in all layers."""
    width = 4 if "float32" in options else 2
    return 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * width


def measure(program, folder, options):
    """Bytes: of the plan, of the peak while loading, and of the peak."""
    config = json.loads((folder / "config.json").read_text())
    room = SEQUENCES * CONTEXT * token_bytes(config, options)
    limits = ["--max-model-len", str(CONTEXT), "--max-sequences", str(SEQUENCES), "--kv-memory", str(room)]
    server = gauges.Server(program, ROOT, folder, [*limits, *options])
    memory = Memory(server.process.pid)
    try:
        plan = wait_ready(server)
        loading = memory.peak()
        fill(server, config["vocab_size"])
        return plan, loading, memory.peak()
    finally:
        memory.end()
        server.close()


def beside_tokenizer(checkpoint, folder):
    """The files of a checkpoint, and those of the tokenizer that the released models have."""
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    with tarfile.open(ROOT / "test" / "data" / "tokenizers" / "qwen3.tar.xz") as archive:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes(archive.extractfile(name).read())


def row(model, form, devices, plan, loading, peak):
    kept = peak <= plan <= 1.05 * peak and loading <= plan + GIB
    print(f"| {model} | {form} | {devices} | {plan / MIB:.1f} | {loading / MIB:.1f} | {peak / MIB:.1f} "
          f"| {100 * (plan / peak - 1):+.2f} % | {'yes' if kept else '**no**'} |", flush=True)
    return kept


def main():
    parser = argparse.ArgumentParser(description="measures what the engine holds beside what is planned")
    parser.add_argument("--engine", type=pathlib.Path, default=ROOT / "qwen-engine")
    parser.add_argument("--cache", type=pathlib.Path,
                        default=CACHE, help="models; several GB")
    parser.add_argument("--only", nargs="*", default=[], help="rows with all of these words")
    args = parser.parse_args()
    kept = True
    print("| model | format | devices | planned, MiB | peak while loading | peak in use | plan above it | 0 .. 5 % |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        for model in MODELS:
            rows = [(form, n) for form in FORMATS for n in MAPS]
            rows = [(form, n) for form, n in rows if all(word in (model, form, str(n)) for word in args.only)]
            if not rows:
                continue
            subprocess.run([HERE / "make_checkpoint", model, args.cache / model], check=True)
            beside_tokenizer(args.cache / model, pathlib.Path(work) / model)
            for form, n in rows:
                kept &= row(model, form, n, *measure(args.engine, pathlib.Path(work) / model, FORMATS[form] + MAPS[n]))
    return not kept


if __name__ == "__main__":
    sys.exit(main())
