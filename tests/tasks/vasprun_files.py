"""A small vasprun.xml with given bands, in the layout that VASP 6 writes and pymatgen reads."""

import numpy as np


def _rows(rows, tag="v"):
    return "".join(f"<{tag}> {' '.join(f'{number:.8f}' for number in row)} </{tag}>\n" for row in rows)


def _generation(bands, style):
    if style == "explicit":
        return ""
    if style == "line":
        ends = _rows([[0, 0, 0], [0.5, 0, 0]])
        return f'<generation param="listgenerated"><i name="divisions" type="int">10</i>{ends}</generation>'
    divisions = " ".join(map(str, bands.grid))
    return (
        f'<generation param="{style}"><v type="int" name="divisions"> {divisions} </v>'
        '<v name="usershift"> 0.0 0.0 0.0 </v>'
        f'{_vectors()}<v name="shift"> 0.0 0.0 0.0 </v></generation>'
    )


def _vectors():
    return "".join(f'<v name="genvec{i + 1}"> {" ".join(map(str, row))} </v>' for i, row in enumerate(np.eye(3)))


def _structure(bands, name=""):
    reciprocal = np.linalg.inv(bands.lattice).T
    label = f' name="{name}"' if name else ""
    return (
        f'<structure{label}><crystal><varray name="basis">{_rows(bands.lattice)}</varray>'
        f'<i name="volume">{abs(np.linalg.det(bands.lattice))}</i>'
        f'<varray name="rec_basis">{_rows(reciprocal)}</varray></crystal>'
        f'<varray name="positions">{_rows(bands.coords)}</varray></structure>'
    )


def _eigenvalues(bands):
    spins = ""
    for spin, energies in enumerate(bands.energies, start=1):
        points = "".join(
            f'<set comment="kpoint {i}">{_rows([[e, float(e < bands.efermi)] for e in column], "r")}</set>'
            for i, column in enumerate(energies.T, start=1)
        )
        spins += f'<set comment="spin {spin}">{points}</set>'
    return f"<eigenvalues><array><set>{spins}</set></array></eigenvalues>"


def _density_of_states(bands):
    energies = np.linspace(bands.energies.min(), bands.energies.max(), 5)
    rows = _rows([[energy, 1.0, 1.0] for energy in energies], "r")
    spins = "".join(f'<set comment="spin {i + 1}">{rows}</set>' for i in range(len(bands.energies)))
    return f'<dos><i name="efermi">{bands.efermi:.8f}</i><total><array><set>{spins}</set></array></total></dos>'


def write_vasprun(path, bands, style="Gamma"):
    """Write the bands; ``style`` is Gamma, explicit (a list of points) or line."""
    n_atoms = len(bands.species)
    atoms = "".join(f"<rc><c>{symbol}</c><c>1</c></rc>" for symbol in bands.species)
    kinds = f"<rc><c>{n_atoms}</c><c>{bands.species[0]}</c><c>63.546</c><c>11.0</c><c>PAW_PBE</c></rc>"
    weights = _rows(bands.weights[:, None])
    energy = "".join(f'<i name="{name}"> -1.0 </i>' for name in ("e_fr_energy", "e_wo_entrp", "e_0_energy"))
    path.write_text(
        f"""<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling>
<generator><i name="program" type="string">vasp</i><i name="version" type="string">6.4.2</i></generator>
<incar><i type="int" name="ISPIN">{len(bands.energies)}</i></incar>
<kpoints>{_generation(bands, style)}<varray name="kpointlist">{_rows(bands.kpoints)}</varray>
<varray name="weights">{weights}</varray></kpoints>
<parameters><separator name="electronic"><i type="int" name="NELM">60</i><i type="int" name="NSW">0</i>
<i type="int" name="IBRION">-1</i><i type="int" name="ISPIN">{len(bands.energies)}</i></separator></parameters>
<atominfo><atoms>{n_atoms}</atoms><types>1</types>
<array name="atoms"><set>{atoms}</set></array><array name="atomtypes"><set>{kinds}</set></array></atominfo>
{_structure(bands, "initialpos")}
<calculation><scstep><energy>{energy}</energy></scstep>{_structure(bands)}
<varray name="forces">{_rows(np.zeros((n_atoms, 3)))}</varray><energy>{energy}</energy>
{_eigenvalues(bands)}{_density_of_states(bands)}</calculation>
{_structure(bands, "finalpos")}
</modeling>
"""
    )
    return path
