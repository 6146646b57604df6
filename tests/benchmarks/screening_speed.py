"""Screening from a table on S3 to ranked candidates, in materials a second, beside the naive way.

    OMP_NUM_THREADS=1 python tests/benchmarks/screening_speed.py --materials 5000 --processes 2 --workspace workspace

The made-up table of mp_grid_speed.py lies on moto's S3 server, a process of its own that is not counted. The networks
are those of the workspace that is named, which is copied; without one, small ones without training. The flow runs under
a Prefect server that is started before the clock; memory is that of this process and all others that work for it.

Naive way, on a sample of the same table and with the same networks: an object a material, decoded to pymatgen's
``BandStructure``, IFermi's interpolation and scikit-image's ``resize`` (see grid_speed.py), then BNAS about the 24
images and S2SNet, one material at a time.

With ``--keep kept`` a report of the run can be made: ``meissner report --workspace kept/w/collections/screen-mp``.

Orchestration is what is left of the flow's wall time without listing, networks, chunks, joining and keeping. The
published network (34.56 million parameters, random weights: its time does not hang on them) is timed on a few grids,
one network and an ensemble of three, and put into the projection in place of the one that ran; where there is a GPU, it
is timed there, too, and else the output says that nothing was.
"""

# ruff: noqa: T201 - a benchmark prints its table

import argparse
import contextlib
import gzip
import json
import multiprocessing
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.bnas import CONFIGS, Bnas
from tasks.settings import GridSettings, ScreeningSettings
from tasks.workspace import Workspace
from tests.benchmarks.mp_grid_speed import BUCKET, TABLE, serve, write_inputs

PROJECTED = (46_442, 200_000)  # metals of the BNAS paper's screening; about all of the Materials Project
MEMBERS = (1, 3)


class Watch(threading.Thread):
    """Peak memory and CPU seconds of this process and its descendants, without one of them."""

    def __init__(self, without: int) -> None:
        super().__init__(daemon=True)
        self.without, self.peak, self.over = without, 0, threading.Event()
        self.cpu: dict[int, float] = {}
        self.before = 0.0

    def run(self) -> None:
        while not self.over.wait(0.2):
            self.look()

    def look(self) -> None:
        """Take one sample."""
        memory = 0
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            if process.pid != self.without:
                with contextlib.suppress(psutil.Error):
                    memory += process.memory_info().rss
                    times = process.cpu_times()
                    self.cpu[process.pid] = times.user + times.system
        self.peak = max(self.peak, memory)

    def reset(self) -> None:
        self.look()
        self.peak, self.before = 0, sum(self.cpu.values())

    @property
    def seconds(self) -> float:
        """CPU seconds since the reset."""
        self.look()
        return sum(self.cpu.values()) - self.before


@contextlib.contextmanager
def timed(module: Any, names: tuple[str, ...]) -> Iterator[dict[str, float]]:
    """Wall seconds spent in functions of a module, those of each by its name."""
    spent = dict.fromkeys(names, 0.0)
    real = {name: getattr(module, name) for name in names}

    def wrap(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return real[name](*arguments, **named)
            finally:
                spent[name] += time.perf_counter() - started

        return call

    for name in names:
        setattr(module, name, wrap(name))
    try:
        yield spent
    finally:
        for name in names:
            setattr(module, name, real[name])


def make_home(folder: Path, source: str | None) -> Workspace:
    """The workspace with the networks."""
    if source is None:
        from tests.tasks.screening_workspace import make_workspace

        return make_workspace(folder)
    for name in ("models", "supercon", "grids", "crystals"):
        shutil.copytree(Path(source) / name, folder / name)
    return Workspace(folder)


def run_flow(home: Workspace, settings: ScreeningSettings, processes: int, watch: Watch) -> dict[str, float]:
    """Screen the table; gives wall and CPU seconds, peak memory, and the seconds of the parts of the work."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.server import prefect_server

    with prefect_server(home) as server, temporary_settings({PREFECT_API_URL: server.api_url}):
        import tasks.screening as stage
        from flows.screening import screen

        names = ("open_networks", "plan_screening", "choose_best", "join_parts", "keep_best")
        with timed(stage, names) as spent:
            watch.reset()
            started = time.perf_counter()
            report = screen(home.url, settings, (f"mp:{TABLE}",), processes=processes)
            wall, cpu, peak = time.perf_counter() - started, watch.seconds, watch.peak
    place = stage.screening_place(home, (TABLE,), "screen-mp", settings)
    chunks = [place.read_json(name)["seconds"] for name in place.list("candidates/parts/*.json")]
    print(f"{report.rows_in} rows, {report.rows_refused} refused; {len(chunks)} chunks; {report.counts}")
    return {"wall": wall, "cpu": cpu, "peak": peak, "chunks": sum(chunks), **spent}


def naive_material(key: str, bnas: Any, s2snet: Any) -> None:
    """One material the naive way."""
    import boto3
    from monty.json import MontyDecoder
    from pymatgen.core import Structure

    from tests.benchmarks.grid_speed import published_way

    multiprocessing.set_start_method("fork", force=True)  # as by default: BoltzTraP2's process need not import again
    data = boto3.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()
    document = json.loads(gzip.decompress(data))
    bands = MontyDecoder().process_decoded(document)
    bands.structure = bands.structure or Structure.from_dict(document["structure"])
    bnas.predict(published_way(bands, GridSettings())[None])
    s2snet.predict([bands.structure])


def naive(home: Workspace, keys: list[str], watch: Watch) -> tuple[float, float]:
    """Wall and CPU seconds of the sample, the first material not counted."""
    from tasks.bnas_ensemble import load_bnas
    from tasks.s2snet_ensemble import load_s2snet

    networks = load_bnas(home), load_s2snet(home)
    naive_material(keys[0], *networks)
    watch.reset()
    started = time.perf_counter()
    for key in keys[1:]:
        naive_material(key, *networks)
    return time.perf_counter() - started, watch.seconds


def image_seconds(networks: list[Bnas], grids: int = 32, device: str = "cpu") -> float:
    """CPU seconds of one image of one grid, all networks; on a GPU wall seconds, the way there and back included."""
    import torch

    from models.bnas import prepare
    from models.bnas_training import predict_images

    torch.set_num_threads(1)
    config = networks[0].config
    energies = np.random.default_rng(0).normal(size=(grids, 18, 32, 32, 32)).astype(np.float32)
    inputs = prepare(torch.from_numpy(energies), config)
    clock = time.process_time if device == "cpu" else time.perf_counter
    predict_images(networks, inputs[:2] if device == "cpu" else inputs, device, images=1)
    started = clock()
    predict_images(networks, inputs, device, images=1)
    return (clock() - started) / grids


def gpu_images(published: dict[int, list[Bnas]]) -> str:
    """What an image costs on the GPU, in a sentence, or that there is none."""
    import torch

    if not torch.cuda.is_available():
        return "no GPU here: nothing measured on one"
    found = ", ".join(f"{n} of it {image_seconds(some, 256, 'cuda'):.6f}" for n, some in published.items())
    return f"wall seconds of an image on {torch.cuda.get_device_name()}, the published BNAS: {found}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--materials", type=int, default=5000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--chunk", type=int, default=200)
    parser.add_argument("--best", type=int, default=None, help="by default a fiftieth of the materials")
    parser.add_argument("--naive", type=int, default=20)
    parser.add_argument("--workspace")
    parser.add_argument("--keep", help="new folder for the workspace that is screened in, kept for a report")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    best = arguments.materials // 50 if arguments.best is None else arguments.best
    server = serve()
    watch = Watch(server.pid)
    watch.start()
    try:
        with contextlib.nullcontext(arguments.keep) if arguments.keep else tempfile.TemporaryDirectory() as folder:
            home = make_home(Path(folder) / "w", arguments.workspace)
            keys = write_inputs(arguments.materials, arguments.materials // arguments.naive + 1)
            settings = ScreeningSettings(chunk=arguments.chunk, best=best, kept=10)
            found = run_flow(home, settings, arguments.processes, watch)
            their_wall, their_cpu = naive(home, keys, watch)
            from tasks.bnas_ensemble import load_bnas

            ours = image_seconds(load_bnas(home).networks)
            networks = {members: [Bnas(CONFIGS["paper"][0]).eval() for _ in range(members)] for members in MEMBERS}
            published = {members: image_seconds(some, 16) for members, some in networks.items()}
            gpu = gpu_images(networks)
    finally:
        server.terminate()
    _print(arguments, best, found, (len(keys) - 1, their_wall, their_cpu), ours, published)
    print(gpu)


def _print(
    arguments: Any,
    best: int,
    found: dict[str, float],
    theirs: tuple[int, float, float],
    ours: float,
    published: dict[int, float],
) -> None:
    count, wall, cpu = arguments.materials, found["wall"], found["cpu"]
    rest = sum(found[name] for name in ("open_networks", "plan_screening", "choose_best", "join_parts", "keep_best"))
    work = found["chunks"] / arguments.processes + rest
    print(f"{'way':<8} {'materials':>9} {'wall s':>8} {'a second':>9} {'CPU s a material':>17}")
    for name, n, a, b in (("here", count, wall, cpu), ("naive", *theirs)):
        print(f"{name:<8} {n:>9} {a:>8.1f} {n / a:>9.2f} {b / n:>17.4f}")
    print(f"ratio of CPU seconds a material: {theirs[2] / theirs[0] / (cpu / count):.1f}")
    print(f"peak memory of all processes: {found['peak'] / 2**30:.2f} GiB, {arguments.processes} processes")
    print("seconds: " + ", ".join(f"{name} {found[name]:.1f}" for name in found if name not in {"wall", "cpu", "peak"}))
    print(f"orchestration: {wall - work:.1f} of {wall:.1f} s, {100 * (wall - work) / wall:.1f} %")
    images = {"this BNAS": ours} | {f"the published BNAS, {n} of it": image for n, image in published.items()}
    print("CPU seconds of an image: " + ", ".join(f"{name} {image:.4f}" for name, image in images.items()))
    asked = count + 24 * best
    other = (cpu - asked * ours) / count
    for materials in PROJECTED:
        for name, image in images.items():
            seconds = materials * other + (materials + 24 * 1000) * image
            times = ", ".join(f"{timedelta(seconds=round(seconds / cores))} on {cores}" for cores in (1, 2, 32))
            print(f"{materials} materials, the 1,000 best by all images, {name}: {times} cores")


if __name__ == "__main__":
    main()
