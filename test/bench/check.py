"""Checks what measurements stand on, and measures nothing: random checkpoints, their GGUF, the figures of bench, the
report, and on the demo model that the plan holds. TAP.

    python3 test/bench/check.py [--engine ./qwen-engine]
"""
import argparse
import json
import pathlib
import struct
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True

import gpu
import memory

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CONFIG = ROOT / "test" / "data" / "demo-model" / "config.json"


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def read_checkpoint(folder):
    data = (folder / "model.safetensors").read_bytes()
    size = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__")
    return header, memoryview(data)[8 + size:]


def checkpoint_is_random(folder):
    header, data = read_checkpoint(folder)
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        elements = data[begin:end].cast("H")
        assert all(element & 0x7FFF for element in elements), f"{name} has a zero"
        if len(tensor["shape"]) == 2:
            step = (end - begin) // tensor["shape"][0]
            rows = {bytes(data[i:i + step]) for i in range(begin, end, step)}
            assert len(rows) == tensor["shape"][0], f"{name} has equal rows"


def checkpoint_is_repeatable(folder):
    run(HERE / "make_checkpoint", CONFIG, folder.parent / "again")
    assert (folder / "model.safetensors").read_bytes() == (folder.parent / "again" / "model.safetensors").read_bytes()


def gguf_has_the_same_weights(folder):
    target = folder.parent / "model.gguf"
    run(HERE / "make_gguf", folder, target)
    header, data = read_checkpoint(folder)
    gguf = target.read_bytes()
    magic, version, count, _ = struct.unpack_from("<4sIQQ", gguf)
    assert (magic, version, count) == (b"GGUF", 3, len(header))
    assert b"blk.0.attn_q_norm.weight" in gguf and b"token_embd.weight" in gguf
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        if len(tensor["shape"]) == 2:
            assert gguf.find(data[begin:end]) % 32 == 0, f"{name} is missing or not aligned"


def bench_prints_what_it_promises(folder):
    for quantization in ("none", "int8", "int4"):
        out = json.loads(run(args.engine, "bench", "-m", folder, "--quantization", quantization, "-p", 20, "-n", 3,
                             "-b", "1,3", "--pb", 5, "--nb", 2, "-r", 2, "--json"))
        assert out["weights_bytes"] > 0 and out["quantization"] == quantization and out["kernels"] and out["threads"]
        shapes = [(row["test"], row["sequences"], row["prompt"], row["generated"]) for row in out["rows"]]
        assert shapes == [("pp20", 1, 20, 0), ("tg3", 1, 0, 3), ("batch", 1, 5, 2), ("batch", 3, 5, 2)], shapes
        for row in out["rows"]:
            assert row["tokens_per_second"] > 0 and row["deviation"] >= 0 and row["bytes"] > 0


def report_compares(folder):
    """Of runs that are made up: ours twice as fast."""
    cache = folder.parent
    details = {"kernels": "avx512", "bandwidth": 1e9, "linear_rate": 1e12, "attention_rate": 1e12, "load_seconds": 1,
               "rows": [{"bytes": 1e7, "linear_operations": 1e7, "attention_operations": 0, "sequences": 1, "prompt": 0,
                         "generated": 1}]}
    runs = [{"side": side, "row": ["Qwen3-0.6B", "bf16", "decode, 1 sequence"], "value": value, "settings": "fa=1",
             "details": details if side == "qwen" else {}}
            for side, value in (("qwen", 50), ("other", 20), ("qwen", 70), ("other", 40), ("qwen", 60), ("other", 30))]
    (cache / "runs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in runs))
    (cache / "Qwen3-0.6B").symlink_to(folder)
    out = run(sys.executable, "-B", HERE / "cpu.py", "--engine", args.engine, "--cache", cache, "--report", "--no-idle",
              "--plot", cache / "plot.svg")
    line = next(line for line in out.splitlines() if line.startswith("| Qwen3-0.6B | decode"))
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[4:6] == ["60.0 (50.0 .. 70.0)", "30.0 (20.0 .. 40.0) other fa=1"], line
    assert cells[6:9] == ["2.00", "1: yes", "100, bandwidth"], line
    assert cells[9] == "60 %", line
    assert "60.0" in (cache / "plot.svg").read_text()


def plan_covers_memory(_):
    """What the engine holds of the demo model is within the plan, and not far below it."""
    for form, options in memory.FORMATS.items():
        for devices, placed in memory.MAPS.items():
            plan, loading, peak = memory.measure(args.engine, CONFIG.parent, (*options, *placed, "--threads", "2"))
            figures = f"{form} on {devices}: plan {plan}, peak {peak}, while loading {loading}"
            assert max(peak, loading) <= plan <= peak + 24 * memory.MIB, figures


def gpu_report_compares(folder):
    """Of runs that are made up: a decode that reads 900 GB/s of 1000, a batch six times as fast as transformers'."""
    runs = gpu.Runs(folder.parent / "gpu-runs.jsonl", False)
    work = {"sequences": 1, "prompt": 0, "generated": 10, "bytes": 9e10, "linear_operations": 1e12,
            "attention_operations": 0}
    for side, name, value in (("qwen", gpu.DECODE, 100), ("qwen", "64 sequences, decode", 600),
                              ("transformers", "64 sequences, decode", 100)):
        runs.add(side=side, row=["Qwen3-8B", "bf16", name], value=value, details=work, load_seconds=1)
    (folder.parent / "Qwen3-8B").symlink_to(folder)
    size = (folder / "model.safetensors").stat().st_size
    lines = {line[0]: line[2:] for line in gpu.bars(runs, ["Qwen3-8B"], folder.parent,
                                                    {"read": 1e12, "matrix": 1e15, "upload": size / 0.5})}
    assert lines["Qwen3-8B bf16 decode, 1 sequence"] == ("90 %", True), lines
    assert lines["Qwen3-8B bf16 64 sequences, decode"] == ("6.0", True), lines
    assert lines["Qwen3-8B bf16 256 sequences, decode"] == ("-", None), lines
    assert lines["Qwen3-8B loading"] == ("50 %", False), lines


CHECKS = [checkpoint_is_random, checkpoint_is_repeatable, gguf_has_the_same_weights, bench_prints_what_it_promises,
          report_compares, gpu_report_compares, plan_covers_memory]


def main():
    failed = 0
    print(f"1..{len(CHECKS)}")
    with tempfile.TemporaryDirectory() as work:
        folder = pathlib.Path(work) / "model"
        run(HERE / "make_checkpoint", CONFIG, folder)
        for number, check in enumerate(CHECKS, 1):
            name = "benchmarks: " + check.__name__.replace("_", " ")
            try:
                check(folder)
                print(f"ok {number} - {name}", flush=True)
            except AssertionError as error:
                failed += 1
                print(f"not ok {number} - {name}\n# {error}", flush=True)
    return failed > 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="checks what the measurements stand on")
    parser.add_argument("--engine", type=pathlib.Path, default=ROOT / "qwen-engine")
    args = parser.parse_args()
    sys.exit(main())
