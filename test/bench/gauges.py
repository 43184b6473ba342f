"""gauges.py: two measures beside tokens a second: how long copying a model's files takes at least, and what an engine
does that has nothing to do.

    python3 test/bench/gauges.py DIR    prints the seconds that copying takes
"""
import mmap
import os
import pathlib
import re
import socket
import struct
import subprocess
import sys
import threading
import time

PIECE = 8 << 20
IDLE_SECONDS = 20


# ---- loading ----


def copy_seconds(folder):
    """Copying all weights of a folder from the page cache to memory, with a thread for each core; the best of three."""
    paths = sorted(pathlib.Path(folder).glob("*.safetensors"))
    return min(sum(_copy_file(path) for path in paths) for _ in range(3))


def _copy_file(path):
    size = path.stat().st_size
    threads = len(os.sched_getaffinity(0))
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory gets no huge pages
    with open(path, "rb", buffering=0) as file, mmap.mmap(-1, size, flags=private) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        share = -(-size // threads)
        view = memoryview(memory)
        parts = [(file.fileno(), view, i * share, min(size, (i + 1) * share)) for i in range(threads)]
        workers = [threading.Thread(target=_copy_part, args=part) for part in parts]
        begin = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        took = time.perf_counter() - begin
        view.release()
    return took


def _copy_part(fd, view, begin, end):
    while begin < end:
        piece = view[begin:min(end, begin + PIECE)]
        begin += os.preadv(fd, [piece], begin)
        piece.release()


# ---- idling ----


class Server:
    """An engine that serves, as the database starts it: frames as engine/protocol.h has them."""
    REQUEST, SHUTDOWN, STATE, HEARTBEAT, DONE, ERROR, DEVICES = 1, 4, 64, 65, 68, 69, 70
    COMPLETE, PROMPT, IDS = 2, 1, 6

    def __init__(self, program, root, model=None, options=()):
        text = (root / "engine" / "protocol.h").read_text()
        self.protocol = int(re.search(r"#define QWEN_PROTOCOL (\d+)", text).group(1))
        self.socket, other = socket.socketpair()
        with other:
            model = model or root / "test" / "data" / "demo-model"
            command = [program, "serve", "--fd", str(other.fileno()), "-m", model, *options]
            self.process = subprocess.Popen(command, pass_fds=[other.fileno()], stderr=subprocess.DEVNULL)

    def _send(self, kind, number=0, payload=b""):
        self.socket.sendall(struct.pack("=IIQ", kind, len(payload), number) + payload)

    def _receive(self, n):
        data = b""
        while len(data) < n:
            piece = self.socket.recv(n - len(data))
            if not piece:
                raise RuntimeError("the engine has closed its socket")
            data += piece
        return data

    def frame(self):
        """Type and payload of the next one."""
        kind, length, _ = struct.unpack("=IIQ", self._receive(16))
        return kind, self._receive(length)

    def request(self, number, tag, subject, max_tokens, temperature=0, repetition_penalty=1):
        """A continuation of a text or of token ids; its answer is still to be read."""
        head = struct.pack("=4I2Q2i6f2i", self.protocol, self.COMPLETE, 0, 1, number, 0, max_tokens, 0, temperature, 1, 0, 0,
                           0, repetition_penalty, 0, 1)
        self._send(self.REQUEST, number, head + struct.pack("=II", tag, len(subject)) + subject)

    def ask(self, prompt):
        """One request from beginning to end."""
        self.request(1, self.PROMPT, prompt, 32)
        kind = None
        while kind != self.DONE:
            kind, payload = self.frame()
            if kind == self.ERROR:
                raise RuntimeError(f"the engine refused the request: {payload!r}")

    def busy_seconds(self):
        """Time on a processor of all threads so far."""
        stats = pathlib.Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(stat.read_text().split()[0]) for stat in stats) / 1e9

    def close(self):
        self._send(self.SHUTDOWN)
        self.process.wait()
        self.socket.close()


def idle_share(program, root):
    """Share of one core that an engine uses which has answered once and has nothing to do. Its heartbeats are read."""
    server = Server(program, root)
    try:
        server.ask(b"The capital of France is")
        while server.frame()[0] != server.HEARTBEAT:
            pass
        begin, busy = time.monotonic(), server.busy_seconds()
        while time.monotonic() - begin < IDLE_SECONDS:
            server.frame()
        return (server.busy_seconds() - busy) / (time.monotonic() - begin)
    finally:
        server.close()


if __name__ == "__main__":
    print(copy_seconds(sys.argv[1]))
