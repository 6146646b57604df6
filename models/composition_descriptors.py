"""Magpie's descriptors of a composition, computed for a whole batch of crystals at once from one table of elements.

Source: Ward et al., npj Comput. Mater. 2, 16028 (2016). The 132 statistics of elemental properties, 6 norms of the
stoichiometry, 4 fractions of valence electrons and 2 measures of ionic character are matminer's to rounding; its
guess of oxidation states is left out.

Shape letters: B crystals, N atoms (padded), P = 22 element properties.
"""

import functools

import numpy as np
import torch

from models.crystals import ELEMENTS, MASKED

NORMS = (2, 3, 5, 7, 10)
STATISTICS = ("least {}", "largest {}", "range of {}", "mean {}", "deviation of {}", "{} of the most frequent element")
WORDS = {  # Magpie's property: what it is
    "Number": "atomic number",
    "MendeleevNumber": "Mendeleev number",
    "AtomicWeight": "atomic weight",
    "MeltingT": "melting temperature",
    "Column": "group of the periodic table",
    "Row": "period of the periodic table",
    "CovalentRadius": "covalent radius",
    "Electronegativity": "electronegativity",
    **{f"N{shell}Valence": f"number of {shell} valence electrons" for shell in "spdf"},
    "NValence": "number of valence electrons",
    **{f"N{shell}Unfilled": f"number of unfilled {shell} states" for shell in "spdf"},
    "NUnfilled": "number of unfilled states",
    "GSvolume_pa": "volume an atom of the elements",
    "GSbandgap": "band gap of the elements",
    "GSmagmom": "magnetic moment of the elements",
    "SpaceGroupNumber": "space group of the elements",
}
UNITS = {  # of Magpie's properties; the others are numbers
    "AtomicWeight": "u",
    "MeltingT": "K",
    "CovalentRadius": "pm",
    "GSvolume_pa": "Å³",
    "GSbandgap": "eV",
    "GSmagmom": "μB",
}
VALENCE = ("NsValence", "NpValence", "NdValence", "NfValence")


@functools.cache
def property_names() -> tuple[str, ...]:
    """Names of the P properties, in the order of the table."""
    return tuple(_magpie().features)


@functools.cache
def element_properties() -> np.ndarray:
    """(97, P) float32 Magpie properties by atomic number; 0 for padding, the mask and what Magpie does not know."""
    from pymatgen.core import Element

    source, names = _magpie().data_source, property_names()
    elements = [Element.from_Z(number) for number in range(1, ELEMENTS + 1)]
    table = np.zeros((MASKED + 1, len(names)), dtype=np.float32)
    table[1 : ELEMENTS + 1] = np.nan_to_num([[source.get_elemental_property(e, n) for n in names] for e in elements])
    table.setflags(write=False)
    return table


def standardised(table: np.ndarray) -> np.ndarray:
    """Give the table with mean 0 and deviation 1 over the elements; padding and mask stay 0."""
    values = np.zeros_like(table)
    elements = table[1 : ELEMENTS + 1]
    values[1 : ELEMENTS + 1] = (elements - elements.mean(axis=0)) / elements.std(axis=0)
    return values


def descriptor_count() -> int:
    """Number of descriptors of a composition."""
    return 6 * len(property_names()) + 1 + len(NORMS) + len(VALENCE) + 2


@functools.cache
def composition_descriptor_names() -> tuple[str, ...]:
    """Names of the descriptors, in the order of ``composition_descriptors``."""
    names = [statistic.format(WORDS[name]) for name in property_names() for statistic in STATISTICS]
    names += ["elements", *(f"{p}-norm of the fractions" for p in NORMS)]
    names += [f"share of {name[1]} among valence electrons" for name in VALENCE]
    return (*names, "largest ionic character", "mean ionic character")


def composition_descriptor_units() -> dict[str, str]:
    """Units of the descriptors that have one, by name."""
    return {statistic.format(WORDS[name]): unit for name, unit in UNITS.items() for statistic in STATISTICS}


def composition_descriptors(
    numbers: torch.Tensor, table: torch.Tensor, multiplicity: torch.Tensor | None = None
) -> torch.Tensor:
    """Descriptors of the compositions of a batch.

    Parameters
    ----------
    numbers
        (B, N) int64 atomic numbers, 0 where there is no atom.
    table
        (97, P), as ``element_properties`` gives it.
    multiplicity
        (B, N) atoms of the cell that each one stands for; None: one each.

    Returns
    -------
    torch.Tensor
        (B, 144): smallest, largest, range, mean, mean absolute deviation and mode of each property, number of
        elements, norms of the fractions, fractions of s, p, d and f electrons among the valence electrons, largest
        and mean ionic character of a pair of elements.
    """
    atoms = torch.nn.functional.one_hot(numbers, MASKED + 1)[..., 1 : ELEMENTS + 1]
    counts = (
        atoms.sum(dim=1)
        if multiplicity is None
        else torch.einsum("bne,bn->be", atoms.to(multiplicity.dtype), multiplicity)
    )
    fractions = counts.to(table.dtype) / counts.sum(dim=1, keepdim=True).clamp(min=1)
    return fraction_descriptors(fractions, table)


def fraction_descriptors(fractions: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The same (B, 144) descriptors from (B, 95) atomic fractions, column Z - 1, such as those of a doped crystal."""
    values = table[1 : ELEMENTS + 1]
    return torch.cat(
        [
            _property_statistics(fractions, values),
            _norms(fractions),
            _valence(fractions, values),
            _ionic(fractions, values),
        ],
        dim=1,
    )


def _property_statistics(fractions: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """(B, 6 P) of (B, 95) fractions; where several elements are most frequent, the mode is their smallest value."""
    absent = (fractions == 0).unsqueeze(-1)
    rarer = (fractions < fractions.amax(dim=1, keepdim=True)).unsqueeze(-1)
    lowest = values.masked_fill(absent, torch.inf).amin(dim=1)
    highest = values.masked_fill(absent, -torch.inf).amax(dim=1)
    mode = values.masked_fill(rarer, torch.inf).amin(dim=1)
    mean = fractions @ values
    deviation = ((values - mean.unsqueeze(1)).abs() * fractions.unsqueeze(-1)).sum(dim=1)
    return torch.stack([lowest, highest, highest - lowest, mean, deviation, mode], dim=2).flatten(1)


def _norms(fractions: torch.Tensor) -> torch.Tensor:
    elements = (fractions > 0).sum(dim=1, keepdim=True).to(fractions.dtype)
    return torch.cat([elements, *(fractions.norm(p, dim=1, keepdim=True) for p in NORMS)], dim=1)


def _valence(fractions: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    columns = [property_names().index(name) for name in VALENCE]
    electrons = fractions @ values[:, columns]
    return electrons / electrons.sum(dim=1, keepdim=True).clamp(min=1e-6)


def _ionic(fractions: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Pauling's ionic character 1 - exp(-(difference of electronegativity)^2 / 4), largest and mean over pairs."""
    electronegativity = values[:, property_names().index("Electronegativity")]
    character = 1 - torch.exp(-0.25 * (electronegativity[:, None] - electronegativity[None]) ** 2)
    present = (fractions > 0).to(values.dtype)
    largest = (character * present[:, :, None] * present[:, None, :]).amax(dim=(1, 2))
    mean = torch.einsum("bi,ij,bj->b", fractions, character, fractions) / 2
    return torch.stack([largest, mean], dim=1)


@functools.cache
def _magpie():  # type: ignore[no-untyped-def]
    from matminer.featurizers.composition import ElementProperty

    return ElementProperty.from_preset("magpie")
