"""A stand-in for the Materials Project's API, built from what the real one is built of: maggma's resources and
query operators over emmet's summary documents. Only the store is in memory, and small.

``MP_DOCUMENTS`` names a JSON file of summary documents, ``MP_KEY`` the one key that is let in. A test posts to
``/faults`` what the next requests shall answer instead, and reads from ``/seen`` what was asked.
"""

import json
import os
from pathlib import Path

from emmet.core.summary import SummaryDoc
from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from maggma.api.query_operator import NumericQuery, PaginationQuery, QueryOperator, SortQuery, SparseFieldsQuery
from maggma.api.resource import ReadOnlyResource
from maggma.stores import MemoryStore

NUMBERS = ["energy_above_hull", "band_gap"]


class CompositionQuery(QueryOperator):
    """Chemical systems and elements, as emmet's server understands them without wildcards."""

    def query(self, chemsys: str | None = Query(None), elements: str | None = Query(None)):
        criteria = {}
        if chemsys:
            criteria["chemsys"] = {"$in": ["-".join(sorted(s.split("-"))) for s in chemsys.split(",")]}
        if elements:
            criteria["elements"] = {"$all": elements.split(",")}
        return {"criteria": criteria}


class DeprecationQuery(QueryOperator):
    def query(self, deprecated: bool | None = Query(False)):
        return {"criteria": {"deprecated": deprecated} if deprecated is not None else {}}


def summaries():
    store = MemoryStore(key="material_id")
    store.connect()
    store.update(json.loads(Path(os.environ["MP_DOCUMENTS"]).read_text()))
    return ReadOnlyResource(
        store,
        SummaryDoc,
        query_operators=[
            CompositionQuery(),
            NumericQuery(model=SummaryDoc, fields=NUMBERS),
            DeprecationQuery(),
            SortQuery(),
            PaginationQuery(),
            SparseFieldsQuery(SummaryDoc, default_fields=["material_id"]),
        ],
        sub_path="/summary/",
        disable_validation=True,
    )


app = FastAPI()
app.include_router(summaries().router, prefix="/materials")
faults, seen = [], []


@app.middleware("http")
async def gate(request: Request, answer):
    """The gateway in front of the API: the key, and the faults that a test asked for."""
    if not request.url.path.startswith("/materials"):
        return await answer(request)
    seen.append({"query": dict(request.query_params), "key": request.headers.get("x-api-key")})
    fault = faults.pop(0) if faults else 200
    if fault == "html":
        return Response("<html>Maintenance</html>", media_type="text/html")
    if fault != 200:
        return JSONResponse({"detail": f"fault {fault}"}, fault, {"Retry-After": "0"} if fault == 429 else None)
    if request.headers.get("x-api-key") != os.environ["MP_KEY"]:
        return JSONResponse({"message": f"Invalid key {request.headers.get('x-api-key')}"}, 401)
    return await answer(request)


@app.get("/heartbeat")
def heartbeat():
    return {"status": "OK", "version": "0.87.3", "db_version": "2026.10.1", "access_controlled_batch_ids": []}


@app.post("/faults")
def ask_for_faults(asked: list[int | str]):
    faults[:] = asked


@app.get("/seen")
def tell_and_forget():
    told = list(seen)
    seen.clear()
    return told
