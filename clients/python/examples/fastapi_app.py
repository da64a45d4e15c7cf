"""Answers with what a platform's API says for a tenant, asked with the tenant's current key."""

import os
from typing import Any

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from mooring_client import Mooring, MooringProblem, MooringUnreachable

API_URL = os.environ["API_URL"]
mooring = Mooring(os.environ["MOORING_URL"], os.environ["MOORING_TOKEN"])
api = httpx.AsyncClient()
app = FastAPI()


@app.get("/tenants/{id}/ledgers")
async def ledgers(id: str) -> Any:
    key = await mooring.current_key(id)
    answer = await api.get(f"{API_URL}/ledgers", headers={"authorization": f"Bearer {key}"})
    return JSONResponse(answer.json(), answer.status_code)


@app.exception_handler(MooringProblem)
@app.exception_handler(MooringUnreachable)
async def failed(_: Request, error: Exception) -> JSONResponse:
    print(error)
    is_gone = isinstance(error, MooringProblem) and error.code == "no-credential"
    return JSONResponse({"error": "no key"}, 404 if is_gone else 502)
