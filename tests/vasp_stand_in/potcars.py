"""POTCAR files that hold what programs read of them (title, valence, cutoff) and no potential."""

from pathlib import Path

from pymatgen.core.periodic_table import Element
from pymatgen.io.vasp.sets import MITRelaxSet

FOLDER = "POT_GGA_PAW_PBE"


def write_potcars(folder, elements):
    """A folder as PMG_VASP_PSP_DIR wants it, with the data sets that the MIT parameters name for these elements."""
    names = MITRelaxSet().config_dict["POTCAR"]
    for symbol in elements:
        entry = names[symbol]
        name = entry["symbol"] if isinstance(entry, dict) else entry
        target = Path(folder) / FOLDER / f"POTCAR.{name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(potcar_text(symbol, name))
    return Path(folder)


def valence(symbol):
    """Electrons outside the noble gas and filled d and f shells of heavier p elements."""
    element = Element(symbol)
    filled = {"p": 0, "s": 0, "d": 0, "f": 0}
    outer = [shell for shell in element.full_electronic_structure if shell[0] >= element.row - 2]
    highest = max(n for n, _, _ in outer)
    for n, kind, count in outer:
        if n == highest or (kind == "d" and n == highest - 1 and count < 10) or (kind == "d" and element.group == 11):
            filled[kind] += count
    return float(sum(filled.values()))


def potcar_text(symbol, name):
    electrons = valence(symbol)
    return f"""  PAW_PBE {name} 01Jan2000
   {electrons:.8f}
 parameters from PSCTR are:
   VRHFIN ={symbol}: stand-in
   LEXCH  = PE
   EATOM  =   100.0000 eV,    7.0000 Ry

   TITEL  = PAW_PBE {name} 01Jan2000
   LULTRA =        F    use ultrasoft PP ?
   IUNSCR =        1    unscreen: 0-lin 1-nonlin 2-no
   RPACOR =    1.500    partial core radius
   POMASS =   {float(Element(symbol).atomic_mass):7.3f}; ZVAL   =   {electrons:6.3f}    mass and valenz
   RCORE  =    1.900    outmost cutoff radius
   RWIGS  =    2.650; RWIGS  =    1.402    wigner-seitz radius (au A)
   ENMAX  =  240.000; ENMIN  =  180.000 eV
   RCLOC  =    1.700    cutoff for local pot
   LCOR   =        T    correct aug charges
   LPAW   =        T    paw PP
   EAUG   =  300.000
   RMAX   =    2.000    core radius for proj-oper
   RAUG   =    1.300    factor for augmentation sphere
   RDEP   =    2.000    radius for radial grids
   QCUT   =   -4.000; QGAM   =    8.000    optimization parameters

   Description
     l     E      TYP  RCUT    TYP  RCUT
     0   .000     23  1.900
   Error from kinetic energy argument (eV)
   NDATA  =      100
   STEP   =   20.000   1.050
END of PSCTR-controll parameters
 local part
   1.00000000E+00
 End of Dataset
"""
