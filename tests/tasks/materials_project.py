"""A few summary documents for the stand-in of the Materials Project, and its start."""

import contextlib
import json

from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from tests.tasks.local_servers import serve

KEY = "planted0key1planted2key3planted4"
ALUMINIUM = Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.05), ["Al"], [[0, 0, 0]])
DIBORIDE = Structure.from_spacegroup(
    "P6/mmm", Lattice.hexagonal(3.07, 3.52), ["Mg", "B"], [[0, 0, 0], [1 / 3, 2 / 3, 0.5]]
)
CARBIDE = Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.47), ["Nb", "C"], [[0, 0, 0], [0.5, 0.5, 0.5]])
STRETCHED = Structure.from_spacegroup("Pm-3m", Lattice.cubic(2.77), ["Nb", "C"], [[0, 0, 0], [0.5, 0.5, 0.5]])
SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def document(material_id, structure, hull=0.0, gap=0.0, licence="BY-C", deprecated=False):
    elements = sorted(map(str, structure.composition))
    return {
        "material_id": material_id,
        "structure": structure.as_dict(),
        "chemsys": "-".join(elements),
        "elements": elements,
        "energy_above_hull": hull,
        "band_gap": gap,
        "theoretical": hull > 0,
        "builder_meta": {"license": licence},
        "deprecated": deprecated,
        "volume": structure.volume,
    }


DOCUMENTS = [
    document("mp-763", DIBORIDE),
    document("mp-134", ALUMINIUM),
    document("mp-910", CARBIDE),
    document("mp-2217", STRETCHED, hull=0.4, licence="BY-NC"),
    document("mp-22862", SALT, gap=5.0),
    document("mp-1", CARBIDE, deprecated=True),
]


@contextlib.contextmanager
def materials_project(folder):
    """The address of the stand-in."""
    (folder / "documents.json").write_text(json.dumps(DOCUMENTS))
    environment = {"MP_DOCUMENTS": str(folder / "documents.json"), "MP_KEY": KEY}
    app = "tests.tasks.materials_project_server:app"
    with serve(app, "/heartbeat", folder / "materials-project.log", **environment) as url:
        yield url
