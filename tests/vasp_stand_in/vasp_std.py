"""A program that stands in for VASP in tests: same input files, same output files, the physics of free electrons.

It reads INCAR, POSCAR, KPOINTS and the valences in POTCAR, and writes vasprun.xml, OUTCAR, OSZICAR, CONTCAR,
EIGENVAL, XDATCAR, DOSCAR, IBZKPT, CHGCAR and PCDAT as pymatgen and custodian read them. Bands are plane waves in an
empty lattice, E = 3.81 eV Å² |k + G|², so the exact band structure is known for any crystal. A relaxation shrinks the
cell by 0.2 %. A run on fixed density (ICHARG = 11) wants the CHGCAR of an earlier run.

Options
    --fail KIND[:FORMULA[:STEP[:TIMES]]]   fail so often (once), counted in --state
    --state FOLDER                         where starts, ends and failures are counted, one file each
    --seconds S                            time to take
Kinds: unconverged, zbrent, killed, truncated, empty-outcar, disk-full. Steps: relax, static, uniform, line.
"""

import argparse
import os
import signal
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import spglib

EV_ANGSTROM2 = 3.80998212  # ħ²/2m
VERSION = "6.4.2"
SHARES = {"s": 0.5, "py": 0.1, "pz": 0.1, "px": 0.1, "dxy": 0.04, "dyz": 0.04, "dz2": 0.04, "dxz": 0.04, "x2-y2": 0.04}


def read_incar():
    pairs = (line.split("=", 1) for line in Path("INCAR").read_text().splitlines() if "=" in line)
    return {name.strip().upper(): value.strip() for name, value in pairs}


def read_poscar():
    lines = Path("POSCAR").read_text().splitlines()
    lattice = float(lines[1]) * np.array([[float(x) for x in line.split()[:3]] for line in lines[2:5]])
    symbols, counts = lines[5].split(), [int(x) for x in lines[6].split()]
    start = 8 if lines[7].strip().lower().startswith("d") else 9
    coords = np.array([[float(x) for x in line.split()[:3]] for line in lines[start : start + sum(counts)]])
    return lattice, symbols, counts, coords


def read_valences():
    return [float(line.split("ZVAL")[1].split("=")[1].split()[0]) for line in open("POTCAR") if "ZVAL" in line]


def read_titles():
    return [line.split("=")[1].strip() for line in open("POTCAR") if "TITEL" in line]


def read_kpoints(lattice, kinds, coords):
    """Points, weights, and the body of <generation>."""
    lines = Path("KPOINTS").read_text().splitlines()
    count, style = int(lines[1].split()[0]), lines[2].strip().lower()
    if count == 0:
        grid = _divisions(lattice, lines[3]) if style.startswith("a") else [int(x) for x in lines[3].split()[:3]]
        shift = [0, 0, 0] if style[0] in "ag" else [int(n % 2 == 0) for n in grid]
        cell = (lattice, coords, kinds)
        mapping, places = spglib.get_ir_reciprocal_mesh(grid, cell, is_shift=shift, symprec=1e-5)
        first, counts = np.unique(mapping, return_counts=True)
        points = (places[first] + np.array(shift) / 2) / grid
        name = "Gamma" if style[0] in "ag" else "Monkhorst-Pack"
        rows = f'<v type="int" name="divisions"> {" ".join(map(str, grid))} </v>\n<v name="usershift"> 0 0 0 </v>\n'
        rows += "".join(f'<v name="genvec{i + 1}"> {_numbers(row)} </v>\n' for i, row in enumerate(np.eye(3)))
        return points, counts / counts.sum(), f'<generation param="{name}">\n{rows}</generation>\n'
    if style.startswith("l"):
        ends = np.array([[float(x) for x in line.split("!")[0].split()[:3]] for line in lines[4:] if line.strip()])
        points = np.concatenate([np.linspace(a, b, count) for a, b in zip(ends[::2], ends[1::2], strict=True)])
        rows = f'<i name="divisions" type="int">{count}</i>\n' + _varray(ends, None)
        head = f'<generation param="listgenerated">\n{rows}</generation>\n'
        return points, np.full(len(points), 1 / len(points)), head
    rows = np.array([[float(x) for x in line.split()[:4]] for line in lines[3 : 3 + count]])
    return rows[:, :3], rows[:, 3] / rows[:, 3].sum(), ""


def _divisions(lattice, length):
    """VASP's automatic grid: the length over the real-space period of each axis, rounded."""
    return np.maximum(1, float(length) * np.linalg.norm(np.linalg.inv(lattice), axis=0) + 0.5).astype(int).tolist()


def plane_wave_bands(lattice, points, count):
    """(k, band) energies of the empty lattice, eV."""
    reciprocal = 2 * np.pi * np.linalg.inv(lattice).T
    reach = np.ceil(2 + np.cbrt(3 * count) * np.linalg.norm(lattice, axis=1) / np.cbrt(abs(np.linalg.det(lattice))))
    reach = np.minimum(reach, 6).astype(int)
    waves = np.array(list(product(*(range(-n, n + 1) for n in reach))))
    folded = points - np.round(points)
    vectors = (folded[:, None] + waves) @ reciprocal
    return np.sort(EV_ANGSTROM2 * (vectors**2).sum(axis=2), axis=1)[:, :count]


def fermi_level(energies, weights, electrons):
    """E_F of bands (spin, k, band) by bisection, with a Fermi width of 0.02 eV."""
    per_state = 2 / len(energies)
    low, high = energies.min() - 1, energies.max() + 1
    for _ in range(80):
        middle = (low + high) / 2
        filled = per_state * (weights[None, :, None] * occupations(energies, middle)).sum()
        low, high = (middle, high) if filled < electrons else (low, middle)
    return middle


def occupations(energies, efermi):
    return 1 / (1 + np.exp(np.clip((energies - efermi) / 0.02, -60, 60)))


def _numbers(values):
    return " ".join(f"{value:.8f}" for value in np.atleast_1d(values))


def _varray(rows, name):
    label = f' name="{name}"' if name else ""
    body = "".join(f"<v> {_numbers(row)} </v>\n" for row in rows)
    return f"<varray{label}>\n{body}</varray>\n" if name else body


class Run:
    """One start of the program in the current folder."""

    def __init__(self, options):
        self.options = options
        self.incar = read_incar()
        self.lattice, self.symbols, self.counts, self.coords = read_poscar()
        self.species = [symbol for symbol, count in zip(self.symbols, self.counts, strict=True) for _ in range(count)]
        kinds = [self.symbols.index(symbol) for symbol in self.species]
        self.points, self.weights, self.generation = read_kpoints(self.lattice, kinds, self.coords)
        self.valences, self.titles = read_valences(), read_titles()
        self.electrons = float(np.dot(self.valences, self.counts))
        self.spins = int(self.incar.get("ISPIN", 1))
        self.fixed_density = self.incar.get("ICHARG") == "11"
        self.steps = 2 if int(self.incar.get("NSW", 0)) > 0 else 1
        default = int(max(np.floor((self.electrons + 2) / 2) + max(len(self.species) // 2, 3), 0.6 * self.electrons))
        self.bands = int(self.incar.get("NBANDS", default))
        self.max_loops = int(self.incar.get("NELM", 60))

    @property
    def formula(self):
        return "".join(f"{s}{n if n > 1 else ''}" for s, n in zip(self.symbols, self.counts, strict=True))

    @property
    def step(self):
        if self.fixed_density:
            return "line" if "listgenerated" in self.generation or not self.generation else "uniform"
        return "relax" if self.steps > 1 else "static"

    def calculate(self):
        if self.fixed_density and not Path("CHGCAR").exists():
            raise SystemExit("ERROR: charge density could not be read from file CHGCAR for ICHARG>10")
        if self.steps > 1:
            self.lattice = 0.998 * self.lattice
        plain = plane_wave_bands(self.lattice, self.points, self.bands)
        split = 1.0 if self.spins == 2 and set(self.species) & {"Cr", "Mn", "Fe", "Co", "Ni"} else 0.0
        shifts = [-split / 2, split / 2] if self.spins == 2 else [0.0]
        self.energies = np.stack([plain + shift for shift in shifts])
        self.efermi = fermi_level(self.energies, self.weights, self.electrons)
        self.filled = occupations(self.energies, self.efermi)
        per_spin = (self.weights[None, :, None] * self.filled).sum(axis=(1, 2))
        self.moment = float(per_spin[0] - per_spin[-1]) if self.spins == 2 else 0.0
        self.energy = float((2 / self.spins * self.weights[None, :, None] * self.filled * self.energies).sum())
        self.energy -= (self.efermi + 4) * self.electrons  # bound, whatever the cell

    def write(self, loops):
        self.write_vasprun(loops)
        self.write_outcar(loops)
        self.write_small(loops)

    def structure(self, name=None):
        label = f' name="{name}"' if name else ""
        return (
            f"<structure{label}>\n<crystal>\n{_varray(self.lattice, 'basis')}"
            f'<i name="volume"> {abs(np.linalg.det(self.lattice)):.8f} </i>\n'
            f"{_varray(np.linalg.inv(self.lattice).T, 'rec_basis')}</crystal>\n"
            f"{_varray(self.coords, 'positions')}</structure>\n"
        )

    def energy_block(self):
        return (
            "<energy>\n"
            + "".join(
                f'<i name="{name}"> {self.energy:.8f} </i>\n' for name in ("e_fr_energy", "e_wo_entrp", "e_0_energy")
            )
            + "</energy>\n"
        )

    def calculation(self, loops, last):
        electronic = "".join(f"<scstep>\n{self.energy_block()}</scstep>\n" for _ in range(loops))
        zeros = np.zeros((len(self.species), 3))
        ends = f"{self.eigenvalues()}{self.density_of_states()}" if last else ""
        return (
            f"<calculation>\n{electronic}{self.structure()}{_varray(zeros, 'forces')}"
            f"{_varray(np.zeros((3, 3)), 'stress')}{self.energy_block()}{ends}</calculation>\n"
        )

    def eigenvalues(self):
        fields = '<dimension dim="1">band</dimension><dimension dim="2">kpoint</dimension>'
        fields += '<dimension dim="3">spin</dimension><field>eigene</field><field>occ</field>'
        spins = []
        for spin, (energies, filled) in enumerate(zip(self.energies, self.filled, strict=True), start=1):
            points = "".join(
                f'<set comment="kpoint {i}">\n'
                + "".join(f"<r> {e:.4f} {f:.4f} </r>\n" for e, f in zip(column, occupied, strict=True))
                + "</set>\n"
                for i, (column, occupied) in enumerate(zip(energies, filled, strict=True), start=1)
            )
            spins.append(f'<set comment="spin {spin}">\n{points}</set>\n')
        return f"<eigenvalues><array>{fields}<set>\n{''.join(spins)}</set></array></eigenvalues>\n"

    def density_of_states(self):
        """Total and projected: a Gaussian for each state, shared among the orbitals in fixed parts."""
        count = min(int(self.incar.get("NEDOS", 301)), 1001)
        grid = np.linspace(self.energies.min() - 1, self.energies.max() + 1, count)
        per_spin = 2 / self.spins if self.spins == 1 else 1
        spins, partial = [], [""] * len(self.species)
        for spin, energies in enumerate(self.energies, start=1):
            width = 0.1
            bins = np.histogram(energies.ravel(), np.append(grid, grid[-1] + grid[1] - grid[0]), weights=per_spin
                                * np.repeat(self.weights, energies.shape[1]))[0] / (grid[1] - grid[0])  # fmt: skip
            kernel = np.exp(-(((grid - grid.mean()) / width) ** 2) / 2)
            total = np.convolve(bins, kernel / kernel.sum(), mode="same")
            rows = np.column_stack([grid, total, np.cumsum(total) * (grid[1] - grid[0])])
            spins.append(
                f'<set comment="spin {spin}">\n' + "".join(f"<r> {_numbers(r)} </r>\n" for r in rows) + "</set>\n"
            )
            shares = np.column_stack([grid] + [share * total / len(self.species) for share in SHARES.values()])
            block = "".join(f"<r> {_numbers(row)} </r>\n" for row in shares)
            partial = [old + f'<set comment="spin {spin}">\n{block}</set>\n' for old in partial]
        ions = "".join(f'<set comment="ion {i}">\n{block}</set>\n' for i, block in enumerate(partial, start=1))
        fields = "<field>energy</field>" + "".join(f"<field>{name}</field>" for name in SHARES)
        projected = f"<partial><array>{fields}<set>\n{ions}</set></array></partial>\n"
        total_fields = "<field>energy</field><field>total</field><field>integrated</field>"
        return (
            f'<dos>\n<i name="efermi"> {self.efermi:.8f} </i>\n'
            f"<total><array>{total_fields}<set>\n{''.join(spins)}</set></array></total>\n{projected}</dos>\n"
        )

    def write_vasprun(self, loops):
        incar = "".join(f'<i type="string" name="{name}"> {value} </i>\n' for name, value in self.incar.items())
        integers = {"NELM": self.max_loops, "NSW": self.incar.get("NSW", 0), "ISPIN": self.spins, "NBANDS": self.bands,
                    "IBRION": self.incar.get("IBRION", -1), "ISIF": self.incar.get("ISIF", 2), "NELMIN": 2,
                    "ISMEAR": self.incar.get("ISMEAR", 1), "NEDOS": 301, "ICHARG": self.incar.get("ICHARG", 2),
                    "NELMDL": -5, "LORBIT": self.incar.get("LORBIT", 0)}  # fmt: skip
        numbers = {"NELECT": self.electrons, "EDIFF": self.incar.get("EDIFF", 1e-4), "SIGMA": 0.05, "ENMAX": 520.0,
                   "EDIFFG": -0.01, "POTIM": 0.5, "EFIELD": 0.0}  # fmt: skip
        parameters = "".join(f'<i type="int" name="{name}"> {value} </i>\n' for name, value in integers.items())
        parameters += "".join(f'<i name="{name}"> {value} </i>\n' for name, value in numbers.items())
        for flag in ("LDAU", "LEPSILON", "LHFCALC", "LNONCOLLINEAR"):
            value = self.incar.get(flag, "F").upper().strip(".")[:1]
            parameters += f'<i type="logical" name="{flag}"> {value} </i>\n'
        parameters += f'<i type="string" name="GGA">{self.incar.get("GGA", "--")}</i>\n'
        moments = self.incar.get("MAGMOM")
        if moments:
            values = [(part.split("*") if "*" in part else ("1", part)) for part in moments.split()]
            listed = " ".join(" ".join([value] * int(count)) for count, value in values)
            parameters += f'<v name="MAGMOM"> {listed} </v>\n'
        atoms = "".join(
            f"<rc><c>{symbol:2s}</c><c>{self.symbols.index(symbol) + 1}</c></rc>\n" for symbol in self.species
        )
        types = "".join(
            f"<rc><c>{n}</c><c>{symbol:2s}</c><c>1.0</c><c>{valence}</c><c>{title}</c></rc>\n"
            for n, symbol, valence, title in zip(self.counts, self.symbols, self.valences, self.titles, strict=True)
        )
        calculations = "".join(self.calculation(loops, step == self.steps - 1) for step in range(self.steps))
        Path("vasprun.xml").write_text(
            f'<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>\n<generator>\n'
            f'<i name="program" type="string">vasp </i>\n<i name="version" type="string">{VERSION} </i>\n'
            f'<i name="subversion" type="string">(stand-in) </i>\n<i name="platform" type="string">tests </i>\n'
            f'<i name="date" type="string">2026 01 01 </i>\n<i name="time" type="string">00:00:00 </i>\n</generator>\n'
            f"<incar>\n{incar}</incar>\n<kpoints>\n{self.generation}{_varray(self.points, 'kpointlist')}"
            f"{_varray(self.weights[:, None], 'weights')}</kpoints>\n"
            f'<parameters>\n<separator name="all">\n{parameters}</separator>\n</parameters>\n'
            f"<atominfo>\n<atoms>{len(self.species)}</atoms>\n<types>{len(self.symbols)}</types>\n"
            '<array name="atoms"><dimension dim="1">ion</dimension><field type="string">element</field>'
            f'<field type="int">atomtype</field><set>\n{atoms}</set></array>\n'
            '<array name="atomtypes"><dimension dim="1">type</dimension><field type="int">atomspertype</field>'
            '<field type="string">element</field><field>mass</field><field>valence</field>'
            f'<field type="string">pseudopotential</field><set>\n{types}</set></array>\n</atominfo>\n'
            f"{self.structure('initialpos')}{calculations}{self.structure('finalpos')}</modeling>\n"
        )

    def write_outcar(self, loops):
        titles = "".join(f" TITEL  = {title}\n" for title in self.titles)
        spin = f" number of electron  {self.electrons:12.7f} magnetization {self.moment:12.7f}\n"
        moments = ""
        if self.spins == 2:
            each = self.moment / len(self.species)
            rows = "".join(
                f"{i:5d}     0.000   0.000  {each:6.3f}  {each:6.3f}\n" for i in range(1, len(self.species) + 1)
            )
            moments = (
                f" magnetization (x)\n\n# of ion       s       p       d       tot\n{'-' * 42}\n{rows}{'-' * 42}\n"
            )
            moments += f"tot          0.000   0.000  {self.moment:6.3f}  {self.moment:6.3f}\n\n"
        iterations = "".join(
            f"--------------------------------------- Iteration {step + 1:6d}({loop + 1:4d})  ------\n"
            for step in range(self.steps)
            for loop in range(loops)
        )
        reached = " reached required accuracy - stopping structural energy minimisation\n" if self.steps > 1 else ""
        Path("OUTCAR").write_text(
            f" vasp.{VERSION} (stand-in) complex\n\n executed on             tests date 2026.01.01  00:00:00\n"
            f" running on    1 total cores\n{titles}   NELECT = {self.electrons:12.4f}    total number of electrons\n"
            f"   k-points           NKPTS = {len(self.points):6d}   k-points in BZ     NKDIM = {len(self.points):6d}"
            f"   number of bands    NBANDS= {self.bands:6d}\n"
            f"   total plane-waves  NPLWV =   {24**3}\n   ISPIN  = {self.spins:6d}    spin polarized calculation?\n"
            f"   IBRION =  {int(self.incar.get('IBRION', -1)):6d}    ionic relax\n"
            f"{iterations}"
            " aborting loop because EDIFF is reached\n"
            f" E-fermi : {self.efermi:8.4f}     XC(G=0):  -8.0000     alpha+bet : -7.0000\n{spin}{moments}"
            "  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)\n  ---------------------------------------------------\n"
            f"  free  energy   TOTEN  = {self.energy:18.8f} eV\n\n"
            f"  energy  without entropy= {self.energy:16.8f}  energy(sigma->0) = {self.energy:16.8f}\n{reached}"
            "    total drift:                                0.000000      0.000000      0.000000\n"
            "\n General timing and accounting information for this job:\n ========================================\n\n"
            "                  Total CPU time used (sec):        1.000\n                            User time (sec): "
            "       0.900\n                          System time (sec):        0.100\n                         "
            f"Elapsed time (sec): {time.time() - STARTED:12.3f}\n\n                   Maximum memory used (kb):      "
            "50000.\n                   Average memory used (kb):          0.\n"
        )  # fmt: skip

    def write_small(self, loops):
        rows = []
        for step in range(1, self.steps + 1):
            rows += ["       N       E                     dE             d eps       ncg     rms          rms(c)"]
            change = "-0.1E-01   -0.1E-01   100   0.1E-01"
            rows += [f"DAV: {n + 1:3d}    {self.energy: .12E}   {change}" for n in range(loops)]
            spin = f"  mag= {self.moment:9.4f}" if self.spins == 2 else ""
            rows += [f"{step:4d} F= {self.energy: .8E} E0= {self.energy: .8E}  d E =0.000000E+00{spin}"]
        Path("OSZICAR").write_text("\n".join(rows) + "\n")
        head = f"{self.formula}\n1.0\n" + "".join(f" {_numbers(row)}\n" for row in self.lattice)
        head += f"{' '.join(self.symbols)}\n{' '.join(map(str, self.counts))}\n"
        poscar = head + "Direct\n" + "".join(f" {_numbers(row)}\n" for row in self.coords)
        Path("CONTCAR").write_text(poscar)
        Path("XDATCAR").write_text(poscar.replace("Direct\n", "Direct configuration=     1\n"))
        grid = 2
        density = "\n".join([_numbers([self.electrons] * grid**3)])
        if not self.fixed_density:
            Path("CHGCAR").write_text(f"{poscar}\n {grid} {grid} {grid}\n{density}\n")
        lines = [f"{len(self.species)} {len(self.species)} 1 {self.spins}", "0 0 0 0 0", "1e-4", "CAR", self.formula]
        lines += [f"{round(self.electrons)} {len(self.points)} {self.bands}", ""]
        for point, (coords, weight) in enumerate(zip(self.points, self.weights, strict=True)):
            lines += [f"{_numbers(coords)} {weight:.8E}"]
            lines += [
                f"{band + 1} {_numbers(self.energies[:, point, band])} {_numbers(self.filled[:, point, band])}"
                for band in range(self.bands)
            ]
            lines += [""]
        Path("EIGENVAL").write_text("\n".join(lines) + "\n")
        for name in ("DOSCAR", "IBZKPT", "PCDAT", "WAVECAR", "PROCAR"):
            Path(name).write_text(f"{self.formula}\n")

    def note(self, event):
        """Count an event in the state folder: file names are unique, so runs at the same time do not collide."""
        if self.options.state:
            folder = Path(self.options.state)
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{event}-{self.formula}-{self.step}-{time.time_ns()}-{os.getpid()}"
            (folder / name).write_text(os.environ.get("SLURM_JOB_ID", ""))

    def wanted_failure(self):
        """The failure to show now, if any is left to show."""
        for rule in self.options.fail:
            kind, formula, step, times = [*rule.split(":"), "", "", ""][:4]
            if formula in ("", self.formula) and step in ("", self.step):
                shown = len(list(Path(self.options.state).glob(f"{kind}-{self.formula}-{self.step}-*")))
                if shown < int(times or 1):
                    return kind
        return None


STARTED = time.time()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fail", action="append", default=[])
    parser.add_argument("--state")
    parser.add_argument("--seconds", type=float, default=0.0)
    run = Run(parser.parse_args())
    failure = run.wanted_failure()
    run.note("start")
    print(
        f" running on    1 total cores\n vasp.{VERSION} stand-in\n POSCAR found :  {len(run.symbols)} types", flush=True
    )
    time.sleep(run.options.seconds)
    if failure:
        run.note(failure)
    if failure == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if failure == "disk-full":
        sys.exit("forrtl: No space left on device\nforrtl: severe (38): error during write, unit 12, file WAVECAR")
    run.calculate()
    run.write(run.max_loops if failure == "unconverged" else 8)
    if failure == "zbrent":
        print(" ZBRENT: fatal error in bracketing\n     please rerun with smaller EDIFF, or copy CONTCAR")
        return
    if failure == "truncated":
        text = Path("vasprun.xml").read_text()
        Path("vasprun.xml").write_text(text[: len(text) // 2])
    if failure == "empty-outcar":
        Path("OUTCAR").write_text("")
    print(" writing wavefunctions")
    run.note("end")


if __name__ == "__main__":
    main()
