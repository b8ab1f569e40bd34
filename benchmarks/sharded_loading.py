"""Memory of processes that load a published model and cut it up over themselves (FSDP2), on the CPU.

    python -m benchmarks.sharded_loading FOLDER [--processes 2] [-- overrides of `voxzoo train`]

Prints one JSON object: bytes of the weights, and for each process the most it held in memory of its own (`anonymous`)
and in all (`resident`: also pages of the mapped file, which processes share and the system takes back), less what it
held before, and a digest of the weights, gathered again: the same for one process and many.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch


def held() -> dict[str, int]:
    """Bytes of this process now."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: 1024 * int(lines[key].split()[0]) for name, key in (("anonymous", "RssAnon"), ("resident", "VmRSS"))}


class Peak(threading.Thread):
    """The most this process held, looked at every few milliseconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before, self.most, self.ended = held(), held(), False
        self.start()

    def run(self) -> None:
        while not self.ended:
            now = held()
            self.most = {name: max(value, now[name]) for name, value in self.most.items()}
            time.sleep(0.003)

    def stop(self) -> dict[str, int]:
        self.ended = True
        self.join()
        return {name: self.most[name] - self.before[name] for name in self.most}


def load(overrides: list[str]) -> None:
    """One process: build the task of a config, cut it up, print what it took."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor
    from voxzoo.configs import compose
    from voxzoo.tasks.distributed.strategies import shard
    from voxzoo.tasks.training.train import build_for_training, prepare_data

    world = int(os.environ.get("WORLD_SIZE", 1))
    config = compose([*overrides, *(["trainer=fsdp2"] if world > 1 else [])])
    prepare_data(config)
    if world > 1:
        torch.distributed.init_process_group("gloo")
        mesh = init_device_mesh("cpu", (world,))
        shard(torch.nn.Linear(1, 1), mesh)  # pyright: ignore[reportArgumentType] - what this imports is not counted
    torch.manual_seed(int(config.seed))
    peak = Peak()
    task = build_for_training(config, Path(config.run_dir))
    if world > 1:
        shard(task, mesh)  # pyright: ignore[reportPossiblyUnboundVariable]
    took = peak.stop()
    digest, size = hashlib.sha256(), 0
    for name, value in sorted(task.state_dict().items()):
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        digest.update(name.encode() + whole.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        size += whole.nbytes
    print(json.dumps({"weights": size, **took, "digest": digest.hexdigest()}))


def run(overrides: list[str], processes: int) -> list[dict]:
    """What each of so many processes printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(processes), "MASTER_PORT": port}
    common["MASTER_ADDR"] = "127.0.0.1"
    command = [sys.executable, __file__, "--one", "--", *overrides]
    started = [
        subprocess.Popen(command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE)
        for rank in range(processes)
    ]
    try:
        said = [process.communicate(timeout=500)[0].decode() for process in started]
    finally:
        for process in started:
            process.kill()
    return [json.loads(text.splitlines()[-1]) for text in said]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="a published speech encoder (w2v-BERT)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    options, rest = parser.parse_args(words[:cut]), words[cut + 1 :]
    if options.one:
        load(rest)
    else:
        given = [
            f"speech_encoder.pretrained={options.folder}",
            "speech_encoder=pretrained",
            "frontend=pretrained",
            *rest,
        ]
        print(json.dumps(run(given, options.processes), indent=1))
