import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer, type AddressInfo } from 'node:net';
import { test } from 'node:test';
import { FaultyServer, problem } from './faulty_server.js';

async function freePort(): Promise<string> {
    const server = createServer().listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    server.close();
    await once(server, 'close');
    return String(port);
}

test('the Express example asks with the key of the tenant', async (t) => {
    const opened = { source: 'blnk', installation_id: 'a', credential: 'blnk_key', expires_at: null };
    const worker = new FaultyServer({ body: opened }, problem(404, 'no-credential'), problem(401, 'unauthorized'));
    const api = new FaultyServer({ body: ['ledger_1'] });
    const PORT = await freePort();
    const env = { ...process.env, MOORING_URL: await worker.start(), MOORING_TOKEN: 'token', API_URL: await api.start(), PORT };
    const example = spawn(process.execPath, ['examples/express.mjs'], { env, stdio: ['ignore', 'pipe', 'ignore'] });
    t.after(() => {
        example.kill();
        worker.stop();
        api.stop();
    });
    await once(example.stdout, 'data');
    const ask = () => fetch(`http://127.0.0.1:${PORT}/tenants/a/ledgers`);
    const answer = await ask();
    assert.deepEqual([answer.status, await answer.json()], [200, ['ledger_1']]);
    assert.equal(worker.seen[0]?.url, '/v1/installations/a/credential');
    assert.equal(api.seen[0]?.headers.authorization, 'Bearer blnk_key');
    assert.equal((await ask()).status, 404);
    assert.equal((await ask()).status, 502);
});
