"""Descriptors of crystals that others have learnt from large data, for ``s2snet_recipes.py --descriptors``.

    pip install elementembeddings chgnet
    python tests/benchmarks/learned_descriptors.py s2s.jsonl.gz --of chgnet --output chgnet.npy
    python tests/benchmarks/learned_descriptors.py s2s.jsonl.gz --of mat2vec --output mat2vec.npy

``chgnet``: energy an atom, pressure, anisotropic stress, forces, magnetic moments and site energies of CHGNet 0.3.0
(Deng et al., Nat. Mach. Intell. 5, 1031 (2023)), learnt from 1.5 million structures of the Materials Project; its
weights lie in its wheel. ``chgnet-crystal``: these and the 64 numbers of the crystal behind its last layer. Anything
else: mean, deviation, least and largest value of an embedding of the elements that ElementEmbeddings has, weighted by
the composition. Neither package is a dependency of meissner.
"""

# ruff: noqa: T201 - a benchmark prints what it does

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pymatgen.core import Element, Structure
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.crystals import ELEMENTS, CrystalArrays
from tasks.s2s_files import dataset_from_s2s


def of_potential(crystal_too: bool) -> Callable[[CrystalArrays], np.ndarray]:
    """What CHGNet says of a crystal, (11,) or (75,)."""
    from chgnet.model.model import CHGNet

    potential = CHGNet.load(verbose=False, use_device="cpu")

    def describe(crystal: CrystalArrays) -> np.ndarray:
        structure = Structure(crystal.lattice, crystal.atomic_numbers.tolist(), crystal.frac_coords)
        found = potential.predict_structure(structure, task="efsm", return_crystal_feas=True, return_site_energies=True)
        forces, moments, sites = np.linalg.norm(found["f"], axis=1), found["m"], found["site_energies"]
        pressure = np.trace(found["s"]) / 3
        numbers = [found["e"], pressure, np.linalg.norm(found["s"] - pressure * np.eye(3)), forces.max(), forces.mean()]
        numbers += [moments.mean(), moments.max(), moments.std(), sites.std(), sites.min(), sites.max()]
        return np.concatenate([np.array(numbers, dtype=float), found["crystal_fea"] if crystal_too else []])

    return describe


def of_elements(name: str) -> Callable[[CrystalArrays], np.ndarray]:
    """Statistics of an embedding over the elements of a crystal, (4 times its length,)."""
    from elementembeddings.core import Embedding

    known = Embedding.load_data(name).embeddings
    symbols = [Element.from_Z(number).symbol for number in range(1, ELEMENTS + 1)]
    width = len(next(iter(known.values())))
    table = np.array([known.get(symbol, np.full(width, np.nan)) for symbol in symbols], dtype=float)
    table = np.where(np.isnan(table), np.nanmean(table, axis=0), table)

    def describe(crystal: CrystalArrays) -> np.ndarray:
        numbers, counts = np.unique(crystal.atomic_numbers, return_counts=True)
        values, share = table[numbers - 1], counts / counts.sum()
        mean = share @ values
        deviation = np.sqrt(share @ (values - mean) ** 2)
        return np.concatenate([mean, deviation, values.min(axis=0), values.max(axis=0)])

    return describe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="S2S as JSON lines")
    parser.add_argument("--of", required=True, help="chgnet, chgnet-crystal, or an embedding such as mat2vec, oliynyk")
    parser.add_argument("--output", type=Path, required=True, help="File for the descriptors, .npy")
    options = parser.parse_args()
    torch.set_num_threads(1)
    potential = options.of.startswith("chgnet")
    describe = of_potential(options.of == "chgnet-crystal") if potential else of_elements(options.of)
    found = np.array([describe(crystal) for crystal in tqdm(dataset_from_s2s(options.data).crystals)])
    np.save(options.output, found)
    print(f"{found.shape[1]} descriptors of {len(found)} crystals: {options.output}")


if __name__ == "__main__":
    main()
