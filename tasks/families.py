"""Families of superconductors by rules on the composition alone."""

import math
from collections.abc import Mapping

CHALCOGENS = frozenset(["S", "Se", "Te"])
HALOGENS = frozenset(["F", "Cl", "Br", "I"])
IRON_PARTNERS = frozenset(["P", "As"]) | CHALCOGENS
HEAVY_FERMION_METALS = frozenset(["Ce", "Yb", "U", "Np", "Pu"])
NOT_HEAVY_FERMION = frozenset(["H", "C", "N", "O"]) | HALOGENS
A15_MAJORITY = frozenset(["Ti", "V", "Cr", "Zr", "Nb", "Mo", "Ta", "W"])
A15_MINORITY = frozenset(["Al", "Ga", "In", "Tl", "Si", "Ge", "Sn", "Pb", "As", "Sb", "Bi", "Be"]) | frozenset(
    ["Re", "Tc", "Ru", "Os", "Rh", "Ir", "Pd", "Pt", "Au"]
)

FAMILIES = (
    "element",
    "cuprate",
    "iron-based",
    "hydride",
    "Chevrel",
    "heavy fermion",
    "A15",
    "carbide/boride/nitride",
    "other",
)


def family_of(amounts: Mapping[str, float]) -> str:
    """Family of a composition, one of ``FAMILIES``; the first rule that fits decides.

    The families are those of the survey by Hirsch, Maple and Marsiglio (Physica C 514, 1 (2015)); cuprates (Cu with O)
    and iron-based materials (Fe with a pnictogen or chalcogen) are told by their elements as in Stanev et al. (npj
    Comput. Mater. 4, 29 (2018)). A composition shows no structure and no electron mass: "A15" means three parts of a
    transition metal to one of its known partners, "heavy fermion" an oxygen-free intermetallic of Ce, Yb, U, Np or Pu.

    Parameters
    ----------
    amounts
        Atoms by element symbol, in any scale.
    """
    total = math.fsum(amounts.values())
    share = {symbol: amount / total for symbol, amount in amounts.items()}

    def part(symbols: frozenset[str]) -> float:
        return math.fsum(share.get(symbol, 0.0) for symbol in sorted(symbols))

    rules = {
        "element": len(share) == 1,
        "cuprate": len(share) > 2 and 0.02 <= share.get("Cu", 0) <= share.get("O", 0),
        "iron-based": share.get("Fe", 0) >= 0.1 and part(IRON_PARTNERS) >= 0.1,
        "hydride": share.get("H", 0) >= 0.25 and not {"C", "O"} & set(share),
        "Chevrel": share.get("Mo", 0) >= 0.25 and 1.15 <= part(CHALCOGENS | HALOGENS) / share["Mo"] <= 1.4,
        "heavy fermion": part(HEAVY_FERMION_METALS) >= 0.05 and part(NOT_HEAVY_FERMION) == 0,
        "A15": set(share) <= A15_MAJORITY | A15_MINORITY and 0.72 <= part(A15_MAJORITY) <= 0.78,
        "carbide/boride/nitride": part(frozenset("BCN")) >= 0.05 and share.get("C", 0) <= 0.86 and "O" not in share,
    }
    return next((family for family, fits in rules.items() if fits), "other")
