"""Tight-binding models of the textbooks, ready to run: the CuO2 layer with one and with three bands, the honeycomb.

All are layers: no electron hops along the third axis, so energies do not depend on k_z. Energies are those of
electrons, without interactions beyond what the parameters hold.
"""

from collections.abc import Mapping

import numpy as np

from tasks.exceptions import InputError
from tasks.tight_binding import TightBinding

LAYER = 6.6  # angstrom; distance of the CuO2 layers of La2CuO4, half its c axis
CUPRATE_RANGES = {"La2CuO4": 0.17, "Tl2Ba2CuO6": 0.33}  # t'/t; Pavarini et al., Phys. Rev. Lett. 87, 047003 (2001)

Hops = Mapping[tuple[int, int, int, int, int], float]


def one_band_cuprate(
    t: float = 0.43,
    t_prime: float | None = None,
    t_double_prime: float | None = None,
    material: str = "La2CuO4",
    a: float = 3.8,
) -> TightBinding:
    """The one-band model of a CuO2 layer; 1 - x electrons a cell for x doped holes.

    E(k) = -2t (cos kx + cos ky) + 4t' cos kx cos ky - 2t'' (cos 2kx + cos 2ky): t, t' and t'' are positive in
    hole-doped cuprates.

    Parameters
    ----------
    t
        Hopping to the nearest Cu, eV; about 0.4 eV in band theory.
    t_prime
        Hopping along the diagonal, eV; by ``material`` if None.
    t_double_prime
        Hopping over two cells along the axis, eV; half of t' if None.
    material
        A key of ``CUPRATE_RANGES``, which gives t'/t: 0.17 for La2CuO4, 0.33 for Tl2Ba2CuO6 (Pavarini et al., Phys.
        Rev. Lett. 87, 047003 (2001)).
    a
        Lattice constant, angstrom.

    Raises
    ------
    InputError
        For a material that is not in ``CUPRATE_RANGES``.
    """
    if material not in CUPRATE_RANGES:
        raise InputError(f"{material=} is not one of {', '.join(CUPRATE_RANGES)}; give t_prime instead")
    second = CUPRATE_RANGES[material] * t if t_prime is None else t_prime
    third = second / 2 if t_double_prime is None else t_double_prime
    hops = {(1, 0, 0): -t, (0, 1, 0): -t, (1, 1, 0): second, (1, -1, 0): second, (2, 0, 0): -third, (0, 2, 0): -third}
    return _model({(*vector, 0, 0): hop for vector, hop in hops.items()}, [0.0], np.diag([a, a, LAYER]))


def three_band_cuprate(
    charge_transfer: float = 3.6, t_pd: float = 1.3, t_pp: float = 0.65, a: float = 3.8
) -> TightBinding:
    """The three-band (Emery) model of a CuO2 layer, in the electron picture; 5 - x electrons a cell for x doped holes.

    Orbitals: Cu d(x2-y2) at the origin, O p_x at a/2 along x, O p_y at a/2 along y. In the gauge with the places of the
    orbitals in the phases, with s_i = sin(k_i / 2):

        H = [[eps_d, 2 t_pd s_x, -2 t_pd s_y], [., eps_p, -4 t_pp s_x s_y], [., ., eps_p]]

    eps_d = 0 and eps_p = -charge_transfer. The parameters are usually given for holes, whose energies have the
    opposite sign: there eps_p - eps_d = +charge_transfer, and the lowest hole band is the highest electron band here.

    Parameters
    ----------
    charge_transfer
        eps_p - eps_d of holes, eps_d - eps_p of electrons, eV.
    t_pd, t_pp
        Cu-O and O-O hopping, eV, positive.
    a
        Lattice constant, angstrom.

    Notes
    -----
    The defaults are those of La2CuO4, Hybertsen, Schluter and Christensen, Phys. Rev. B 39, 9028 (1989). They are
    parameters of a Hubbard model: the repulsions U that go with them are not in these bands.
    """
    hops = {
        (0, 0, 0, 0, 1): t_pd,
        (-1, 0, 0, 0, 1): -t_pd,
        (0, 0, 0, 0, 2): -t_pd,
        (0, -1, 0, 0, 2): t_pd,
        (0, 0, 0, 1, 2): -t_pp,
        (1, 0, 0, 1, 2): t_pp,
        (0, -1, 0, 1, 2): t_pp,
        (1, -1, 0, 1, 2): -t_pp,
    }
    return _model(hops, [0.0, -charge_transfer, -charge_transfer], np.diag([a, a, LAYER]))


def honeycomb(t: float = 2.7, a: float = 2.46, layer: float = 10.0) -> TightBinding:
    """The p_z bands of graphene, nearest neighbours only; 2 electrons a cell undoped.

    E(k) = ±t |1 + exp(-2 pi i k1) + exp(-2 pi i k2)|, zero at K = (1/3, 2/3, 0) and (2/3, 1/3, 0).

    Parameters
    ----------
    t
        Hopping, eV; 2.7 to 2.8 eV in Castro Neto et al., Rev. Mod. Phys. 81, 109 (2009).
    a
        Lattice constant, angstrom, sqrt(3) times the distance of neighbours.
    layer
        Distance of the layers, angstrom.
    """
    lattice = np.array([[a, 0, 0], [a / 2, np.sqrt(0.75) * a, 0], [0, 0, layer]])
    return _model({(0, 0, 0, 0, 1): -t, (-1, 0, 0, 0, 1): -t, (0, -1, 0, 0, 1): -t}, [0.0, 0.0], lattice)


def _model(hops: Hops, onsite: list[float], lattice: np.ndarray) -> TightBinding:
    """A model from hoppings {(R1, R2, R3, m, n): eV}, each given once without its conjugate, and on-site energies."""
    size = len(onsite)
    blocks = {(0, 0, 0): np.diag(onsite).astype(np.complex128)}
    for (r1, r2, r3, m, n), hop in hops.items():
        for vector, i, j in (((r1, r2, r3), m, n), ((-r1, -r2, -r3), n, m)):
            blocks.setdefault(vector, np.zeros((size, size), dtype=np.complex128))[i, j] += hop
    vectors = np.array(list(blocks), dtype=np.int64)
    return TightBinding(vectors, np.stack(list(blocks.values())), np.ones(len(vectors), dtype=np.int64), lattice)
