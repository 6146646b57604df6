"""Crystals of OPTIMADE databases (OQMD, Alexandria, JARVIS, COD, …), page by page.

The specification is OPTIMADE 1.2 (https://specification.optimade.org). The reference library checks filters, knows the
providers and converts entries; requests are our own patient ones, because the library's client turns failures into
texts and repeats a 429 without end.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urljoin

from pymatgen.core.structure import Structure

from tasks.exceptions import InputError, RemoteError
from tasks.remote import Page, PatientSession
from tasks.settings import FetchSettings

PREFIX = "optimade:"
FIELDS = (
    "lattice_vectors",
    "cartesian_site_positions",
    "species",
    "species_at_sites",
    "nsites",
    "dimension_types",
    "nperiodic_dimensions",
    "structure_features",
)
# Where providers keep the energy above the hull, eV per atom, and the band gap, eV; dots lead into mappings.
HULL_FIELDS = {
    "alexandria": ("_alexandria_hull_distance",),
    "jarvis": ("_jarvis_ehull",),
    "mp": (
        "_mp_stability.gga_gga+u_r2scan.energy_above_hull",
        "_mp_stability.gga_gga+u.energy_above_hull",
        "_mp_stability.r2scan.energy_above_hull",
    ),
    "odbx": ("_odbx_thermodynamics.hull_distance",),
    "oqmd": ("_oqmd_stability",),
}
GAP_FIELDS = {
    "alexandria": "_alexandria_band_gap",
    "jarvis": "_jarvis_optb88vdw_bandgap",
    "oqmd": "_oqmd_band_gap",
}
LICENCES = {"alexandria": "CC BY 4.0", "cod": "CC0 1.0", "mp": "CC BY 4.0", "oqmd": "CC BY 4.0"}  # if not declared
UNREADABLE = {
    "implicit_atoms": "has atoms without positions",
    "site_attachments": "has atoms that hang on a site without a position",
    "assemblies": "has groups of sites that exclude each other",
    "unknown_positions": "has atoms without positions",
}
LONGEST_DELAY = 10.0  # seconds; a database that asks for more between requests is asked after this


class OptimadeSource:
    """One OPTIMADE database, named by its address or by its provider (``oqmd``, ``alexandria/alexandria-pbe``)."""

    def __init__(self, name: str, settings: FetchSettings) -> None:
        self.name = name.removeprefix(PREFIX)
        self.settings = settings
        self.asked = settings.optimade
        if not self.name:
            raise InputError(f"{name!r} names no database; a provider or an address is expected, such as optimade:oqmd")
        _check_filter(self.asked.filter)
        advice = {
            403: "it may be that it gives fewer crystals a request (setting fetch.optimade.page)",
            404: "no OPTIMADE database is at this address",
        }
        self.session = PatientSession(f"OPTIMADE database {self.name}", settings, advice)

    @property
    def query(self) -> dict[str, Any]:
        """What is asked: the same query need not be asked twice."""
        return {"database": self.name, "fields": FIELDS, **self.asked.model_dump()}

    @property
    def limit(self) -> int | None:
        """The most crystals wanted."""
        return self.asked.limit

    def check(self) -> None:
        """Nothing is needed beyond what the settings say."""

    def pages(self, cursor: str | None) -> Iterator[Page]:
        """Pages of crystals, from the start or from a cursor (the address of the next page).

        Raises
        ------
        RemoteError
            If the database does not answer, or answers what is no OPTIMADE.
        InputError
            If it refuses the request, or is not known.
        """
        base = self._find_address()
        info = self.session.read_json(f"{base}/v1/info")
        provider = _get(info, "meta.provider.prefix") or _get(info, "meta.provider.name") or self.name
        licence = _licence(info, provider)
        url, seen = cursor or f"{base}/v1/structures", set[str]()
        parameters = {} if cursor else self._parameters(provider)
        while url not in seen:
            seen.add(url)
            document = self.session.read_json(url, **parameters)
            entries = document.get("data")
            if not isinstance(entries, list):
                raise RemoteError(f"{self.session.name} answers no list of structures at {url[:200]}")
            rows = [_row(entry, provider, base, licence) for entry in entries]
            found = _get(document, "links.next.href") or _get(document, "links.next")
            following = urljoin(url, found) if rows and isinstance(found, str) else None
            total = _get(document, "meta.data_returned")
            yield Page(rows, following, total if isinstance(total, int) else None)
            if following is None:
                return
            url, parameters = following, {}
            delay = _get(document, "meta.request_delay")
            time.sleep(min(delay, LONGEST_DELAY) if isinstance(delay, int | float) and delay > 0 else 0)
        raise RemoteError(f"{self.session.name} leads in a circle: {url[:200]} follows itself")

    def _parameters(self, provider: str) -> dict[str, str]:
        own = [field.partition(".")[0] for field in HULL_FIELDS.get(provider, ())]
        own += [GAP_FIELDS[provider]] if provider in GAP_FIELDS else []
        size = min(self.asked.page, self.asked.limit or self.asked.page)
        parameters = {"response_fields": ",".join(dict.fromkeys([*FIELDS, *own])), "page_limit": str(size)}
        return parameters | ({"filter": self.asked.filter} if self.asked.filter else {})

    def _find_address(self) -> str:
        """The base address of the database, looked up in the list of providers where only a name is given."""
        if "://" in self.name:
            return self.name.rstrip("/").removesuffix("/v1")
        provider, _, child = self.name.partition("/")
        addresses = _child_databases(provider)
        if child or len(addresses) > 1:
            if child not in addresses:
                names = ", ".join(f"{PREFIX}{provider}/{name}" for name in sorted(addresses))
                raise InputError(f"{PREFIX}{self.name} is not one database; {provider} has {names or 'none'}")
            return addresses[child]
        if not addresses:
            raise InputError(f"The OPTIMADE provider {provider} has no database at present")
        return next(iter(addresses.values()))


def _check_filter(text: str) -> None:
    """Raise InputError where a filter is not in OPTIMADE's language."""
    from optimade.exceptions import BadRequest
    from optimade.filterparser import LarkParser

    try:
        if text:
            LarkParser().parse(text)
    except BadRequest as error:
        reason = " ".join(str(error.detail or error).split())
        raise InputError(f"fetch.optimade.filter {text!r} is no OPTIMADE filter: {reason[:200]}") from error


def _child_databases(provider: str) -> dict[str, str]:
    """Addresses of a provider's databases by their ids."""
    import requests
    from optimade.utils import get_child_database_links, get_providers

    try:
        known = {str(entry["id"]): entry for entry in get_providers()}
        if not known:
            raise RemoteError("The list of OPTIMADE providers cannot be had; give the database's address")
        if provider not in known or not known[provider].get("base_url"):
            served = ", ".join(sorted(name for name, entry in known.items() if entry.get("base_url")))
            raise InputError(f"{PREFIX}{provider} is neither an address nor one of the providers {served}")
        links = get_child_database_links({**known[provider]}, obey_aggregate=False)  # it changes what it is given
    except (requests.RequestException, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RemoteError(f"The databases of the OPTIMADE provider {provider} cannot be listed: {reason}") from error
    return {str(link.id): str(link.attributes.base_url).rstrip("/") for link in links}


def _row(entry: Any, provider: str, base: str, licence: str | None) -> dict[str, Any]:
    """One entry as a row of FETCHED_CRYSTALS; what is wrong in it is told when it is built."""
    found = entry if isinstance(entry, dict) else {}
    attributes: dict[str, Any] = values if isinstance(values := found.get("attributes"), dict) else {}
    name = str(found.get("id", "without-id"))
    hulls = (_get(attributes, field) for field in HULL_FIELDS.get(provider, ()))
    gap = _get(attributes, GAP_FIELDS.get(provider, ""))
    return {
        "crystal_id": name if name.startswith(provider) else f"{provider}-{name}",
        "kind": "optimade",
        "text": json.dumps({field: attributes.get(field) for field in FIELDS}),
        "energy_above_hull_ev": next((float(e) for e in hulls if isinstance(e, int | float)), None),
        "band_gap_ev": float(gap) if isinstance(gap, int | float) else None,
        "theoretical": None,
        "crystal_source": f"{PREFIX}{provider}",
        "reference": f"{base}/v1/structures/{name}",
        "licence": licence,
    }


def _licence(info: Mapping[str, Any], provider: str) -> str | None:
    """The licence that a database declares; for known providers that declare none, the one they publish under."""
    declared = _get(info, "data.attributes.available_licenses")
    if isinstance(declared, list) and declared:
        return " or ".join(re.sub(r"^CC(0|-[A-Z-]+)-([0-9.]+)$", _spoken, str(name)) for name in declared)
    link = _get(info, "data.attributes.license.href") or _get(info, "data.attributes.license")
    return LICENCES.get(provider) or (link if isinstance(link, str) else None)


def _spoken(found: re.Match[str]) -> str:
    """CC BY-NC 4.0 for CC-BY-NC-4.0."""
    return f"CC{found[1].replace('-', ' ', 1)} {found[2]}"


def _get(document: Any, path: str) -> Any:
    """What stands at a path of keys with dots between, or None."""
    for key in path.split("."):
        document = document.get(key) if isinstance(document, Mapping) else None
    return document


def structure_from_optimade(text: str) -> Structure:
    """The structure in the attributes of an OPTIMADE entry (JSON of FIELDS).

    Raises
    ------
    InputError
        If it is not periodic in three directions, has no cell, or holds atoms that have no site of their own.
    """
    from optimade.adapters.structures.pymatgen import get_pymatgen
    from optimade.models import StructureResource

    attributes = {name: value for name, value in json.loads(text).items() if value is not None}
    for feature, problem in UNREADABLE.items():
        if feature in attributes.get("structure_features", ()):
            raise InputError(f"{problem} (OPTIMADE's {feature})")
    periodic = attributes.get("nperiodic_dimensions", sum(attributes.get("dimension_types", (1, 1, 1))))
    if periodic != 3:
        raise InputError(f"is periodic in {periodic} directions; 3 are needed")
    positions, vectors = attributes.get("cartesian_site_positions"), attributes.get("lattice_vectors")
    if not positions or not vectors or None in [x for row in [*positions, *vectors] for x in row or [None]]:
        raise InputError("lacks its cell or positions")
    filled = {
        "structure_features": [],
        "nsites": len(positions),
        **attributes,
        "last_modified": None,
        "nperiodic_dimensions": 3,
        "dimension_types": [1, 1, 1],
    }
    found = get_pymatgen(StructureResource(id="entry", type="structures", attributes=filled))
    if not isinstance(found, Structure):
        raise InputError("has no cell")
    return found
