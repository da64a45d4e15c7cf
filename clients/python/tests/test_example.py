import runpy
from pathlib import Path

import httpx
import pytest
from faulty_server import Answer, FaultyServer, problem

EXAMPLE = Path(__file__).parent.parent / "examples" / "fastapi_app.py"


@pytest.mark.anyio
async def test_the_fastapi_example_asks_with_the_key_of_the_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = {"source": "blnk", "installation_id": "a", "credential": "blnk_key", "expires_at": None}
    answers = (Answer(opened), problem(404, "no-credential"), problem(401, "unauthorized"))
    async with FaultyServer(*answers) as worker, FaultyServer(Answer(["ledger_1"])) as api:
        for name, value in {"MOORING_URL": worker.url, "MOORING_TOKEN": "token", "API_URL": api.url}.items():
            monkeypatch.setenv(name, value)
        app = runpy.run_path(str(EXAMPLE))["app"]
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as browser:
            answer = await browser.get("/tenants/a/ledgers")
            assert (answer.status_code, answer.json()) == (200, ["ledger_1"])
            assert worker.seen[0].url == "/v1/installations/a/credential"
            assert api.seen[0].headers["authorization"] == "Bearer blnk_key"
            assert (await browser.get("/tenants/a/ledgers")).status_code == 404
            assert (await browser.get("/tenants/a/ledgers")).status_code == 502
