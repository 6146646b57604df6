"""Crystals of the Materials Project, in pages of its summary endpoint, through its own client (mp-api).

A key is needed; it goes into the client's header and nowhere else. Only the fields that are used are asked for.
"""

import itertools
import json
from collections.abc import Iterator
from typing import Any

from pydantic import SecretStr

from tasks.exceptions import InputError, RemoteError
from tasks.formula_reader import SYMBOLS
from tasks.remote import Page, PatientSession
from tasks.settings import FetchSettings

NAME = "mp"
FIELDS = ("material_id", "structure", "energy_above_hull", "band_gap", "theoretical", "builder_meta.license")
KEY_LENGTH = 32
SYSTEMS_A_QUERY = 50  # chemical systems; more would make too long an address
LICENCES = {"BY-C": "CC BY 4.0", "BY-NC": "CC BY-NC 4.0"}  # as the database marks them; GNoME's are not commercial
ADVICE = "check the key in MEISSNER_MP_API_KEY or Prefect's Secret block meissner-mp-api-key (materialsproject.org/api)"


class MaterialsProjectSource:
    """The Materials Project, asked with a key for what the settings say."""

    def __init__(self, settings: FetchSettings, key: SecretStr | None) -> None:
        self.settings, self.asked = settings, settings.materials_project
        self._key = key.get_secret_value().strip() if key else ""
        _check_symbols(self.asked.elements, "elements")
        for system in self.asked.chemical_systems:
            _check_symbols([part for part in system.split("-") if part != "*"], "chemical_systems")

    @property
    def query(self) -> dict[str, Any]:
        """What is asked: the same query need not be asked twice."""
        return {"fields": FIELDS, **self.asked.model_dump()}

    @property
    def limit(self) -> int | None:
        """The most crystals wanted."""
        return self.asked.limit

    def check(self) -> None:
        """Raise InputError where there is no key that could be one."""
        if len(self._key) != KEY_LENGTH:
            found = f"has {len(self._key)} characters in place of {KEY_LENGTH}" if self._key else "is not given"
            raise InputError(f"The Materials Project's key {found}; {ADVICE}")

    def pages(self, cursor: str | None) -> Iterator[Page]:
        """Pages of crystals in the order of their ids, from the start or from a cursor (``batch:page``).

        Raises
        ------
        RemoteError
            If the server does not answer, or answers what its client does not understand.
        InputError
            If it refuses the key or the query.
        """
        self.check()
        from mp_api.client import MPRester
        from mp_api.client.core import MPRestError

        advice = {401: ADVICE, 403: f"{ADVICE}, or wait: reading much in a short time is blocked"}
        session = PatientSession("The Materials Project", self.settings, advice)
        endpoint = self.asked.endpoint.rstrip("/") + "/"
        version = session.read_json(f"{endpoint}heartbeat").get("db_version")
        try:
            with MPRester(
                self._key, endpoint, session=session, use_document_model=False, mute_progress_bars=True
            ) as client:
                yield from self._read_pages(client.materials.summary, cursor, version)
        except (InputError, RemoteError):
            raise
        except MPRestError as error:
            reason = " ".join(str(error).replace(self._key, "…").split())
            raise InputError(f"The Materials Project cannot be asked: {reason[:300]}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error).replace(self._key, "…")[:200]
            raise RemoteError(f"The Materials Project's answer is not understood: {reason}") from None

    def _read_pages(self, summary: Any, cursor: str | None, version: Any) -> Iterator[Page]:
        batches = self._batches()
        batch, page = map(int, cursor.split(":")) if cursor else (0, 1)
        size = min(self.asked.page, self.limit or self.asked.page)
        while batch < len(batches):
            documents = summary.search(
                **batches[batch],
                deprecated=False,
                fields=list(FIELDS),
                chunk_size=size,
                _page=page,
                _sort_fields="material_id",
            )
            rows = [_row(document, version) for document in documents]
            batch, page = (batch, page + 1) if len(rows) == size else (batch + 1, 1)
            yield Page(rows, f"{batch}:{page}" if batch < len(batches) else None)

    def _batches(self) -> list[dict[str, Any]]:
        """Filters of one query or of several, none with too many chemical systems."""
        asked = self.asked
        common: dict[str, Any] = {"elements": list(asked.elements)} if asked.elements else {}
        if asked.max_above_hull_ev is not None:
            common["energy_above_hull"] = (0.0, asked.max_above_hull_ev)
        if asked.max_band_gap_ev is not None:
            common["band_gap"] = (0.0, asked.max_band_gap_ev)
        systems = sorted({"-".join(sorted(system.split("-"))) for system in asked.chemical_systems})
        alone = [[system] for system in systems if "*" in system]  # the server takes these one by one only
        several = iter([system for system in systems if "*" not in system])
        while batch := list(itertools.islice(several, SYSTEMS_A_QUERY)):
            alone.append(batch)
        return [common | {"chemsys": batch} for batch in alone] or [common]


def _check_symbols(symbols: list[str] | tuple[str, ...], setting: str) -> None:
    unknown = [symbol for symbol in symbols if symbol not in SYMBOLS]
    if unknown:
        raise InputError(f"fetch.materials_project.{setting} names {unknown[0]!r}, which is no element")


def _row(document: dict[str, Any], version: Any) -> dict[str, Any]:
    """One summary as a row of FETCHED_CRYSTALS."""
    name = str(document["material_id"])
    licence = (document.get("builder_meta") or {}).get("license")
    return {
        "crystal_id": name,
        "kind": "json",
        "text": json.dumps(document.get("structure")),
        "energy_above_hull_ev": _number(document.get("energy_above_hull")),
        "band_gap_ev": _number(document.get("band_gap")),
        "theoretical": theoretical if isinstance(theoretical := document.get("theoretical"), bool) else None,
        "crystal_source": "Materials Project",
        "reference": f"https://materialsproject.org/materials/{name}" + (f" (database {version})" if version else ""),
        "licence": LICENCES.get(licence or "BY-C", licence),
    }


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
