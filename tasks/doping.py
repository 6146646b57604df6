"""Synthetic doping (3DSC): a crystal's occupancies are changed until it has a measured composition.

Only what is clear is done. A dopant replaces its host on the host's sites, and a host that changes must stand on one
group of sites that are equal by symmetry. Otherwise the reason is raised.
"""

import warnings
from collections.abc import Mapping

from pymatgen.core.structure import Structure

from tasks.exceptions import InputError

SYMPREC = 0.01  # angstrom; crystals arrive standardised to this tolerance
AMOUNT_TOLERANCE = 2e-3  # atoms per formula unit; compositions are written with 3 to 4 decimals
# Elements whose sites may stay empty: anions and interstitial atoms. A missing metal atom is more likely replaced.
NONMETALS = frozenset(["H", "B", "C", "N", "O", "F", "P", "S", "Cl", "Se", "Br", "Te", "I"])


class DopingError(InputError):
    """A composition that a crystal cannot clearly be given; the message says why."""


def symmetry_groups(structure: Structure) -> list[int]:
    """For each site the index of the first site that is equal to it by symmetry."""
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = SpacegroupAnalyzer(structure, symprec=SYMPREC).get_symmetry_dataset()
    return [int(index) for index in dataset.equivalent_atoms]


def find_changes(crystal: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, float]:
    """Change of each element's amount, per formula unit of the crystal, that leads to the measured composition.

    The measured formula has a scale of its own. The scale taken is the one in which most elements keep their amount
    (YBa2Cu3O6.9 is YBa2Cu3O7 with oxygen missing, not with metal on oxygen's sites), as long as no site is filled
    twice and sites stay empty only where nonmetals stood or two other elements vouch for the scale. Where no element
    keeps its amount the number of atoms is kept.
    """
    total = sum(crystal.values()) / sum(measured.values())
    scales = [total, *(crystal[symbol] / measured[symbol] for symbol in crystal if symbol in measured)]
    best: tuple[int, float] | None = None
    chosen: dict[str, float] = {}
    for scale in scales:
        changes = {s: scale * measured.get(s, 0.0) - crystal.get(s, 0.0) for s in sorted({*crystal, *measured})}
        kept = sum(abs(change) <= AMOUNT_TOLERANCE for change in changes.values())
        empty = -sum(changes.values())
        vouched = kept >= 2 or any(c < -AMOUNT_TOLERANCE and s in NONMETALS for s, c in changes.items())
        if empty < -AMOUNT_TOLERANCE or (empty > AMOUNT_TOLERANCE and not vouched):
            continue
        rank = (kept, -sum(abs(change) for change in changes.values()))
        if best is None or rank > best:
            best, chosen = rank, changes
    return {symbol: change for symbol, change in chosen.items() if abs(change) > AMOUNT_TOLERANCE}


def assign_dopants(changes: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """For each element that loses atoms the dopants that take its sites, with their amounts.

    With one such host every dopant goes there; with several the amounts must tell: each dopant comes in exactly the
    amount that one host loses, or all dopants together in the amount that one host loses.

    Raises
    ------
    DopingError
        If the amounts do not tell, or there are dopants but no host.
    """
    hosts = {symbol: -change for symbol, change in changes.items() if change < 0}
    dopants = {symbol: change for symbol, change in changes.items() if change > 0}

    def fitting(amount: float) -> list[str]:
        return [host for host, lost in hosts.items() if abs(lost - amount) <= AMOUNT_TOLERANCE]

    assigned: dict[str, dict[str, float]] = {host: {} for host in hosts}
    single = [fitting(amount) for amount in dopants.values()]
    together = fitting(sum(dopants.values()))
    if not dopants:
        return assigned
    if len(hosts) == 1:
        assigned[next(iter(hosts))] = dict(dopants)
    elif all(len(fits) == 1 for fits in single) and len({fits[0] for fits in single}) == len(dopants):
        for (dopant, amount), fits in zip(dopants.items(), single, strict=True):
            assigned[fits[0]] = {dopant: amount}
    elif len(together) == 1:
        assigned[together[0]] = dict(dopants)
    else:
        names = f"{' and '.join(dopants)} for {' or '.join(hosts) or 'nothing'}"
        raise DopingError(f"which element is replaced is not clear: {names}")
    return assigned


def dope_structure(structure: Structure, crystal: Mapping[str, float], measured: Mapping[str, float]) -> Structure:
    """The crystal with occupancies changed to a measured composition.

    Parameters
    ----------
    structure
        Standardised primitive cell; it is not changed.
    crystal, measured
        Amounts by element per formula unit of the crystal, and of the measured composition in any scale.

    Raises
    ------
    DopingError
        If it is not clear which sites change.
    """
    changes = find_changes(crystal, measured)
    assigned = assign_dopants(changes)
    doped = structure.copy()
    groups = symmetry_groups(structure)
    for host, dopants in assigned.items():
        sites = [index for index, site in enumerate(structure) if site.species.get_el_amt_dict().get(host, 0.0) > 0]
        if len({groups[index] for index in sites}) != 1:
            raise DopingError(
                f"{host} changes, but stands on {len({groups[index] for index in sites})} groups of sites: "
                "which of them is not clear"
            )
        for index in sites:
            occupancies = dict(doped[index].species.get_el_amt_dict())
            occupied = structure[index].species.get_el_amt_dict()[host]
            occupancies[host] += occupied * changes[host] / crystal[host]
            for dopant, amount in dopants.items():
                occupancies[dopant] = occupancies.get(dopant, 0.0) + occupied * amount / crystal[host]
            kept = {symbol: round(value, 6) for symbol, value in sorted(occupancies.items()) if value > 1e-6}
            if sum(kept.values()) > 1 + AMOUNT_TOLERANCE:
                raise DopingError(f"the sites of {host} cannot take {' and '.join(dopants)}: more atoms than sites")
            excess = max(1.0, sum(kept.values()))
            doped[index] = {symbol: value / excess for symbol, value in kept.items()}
    return doped
