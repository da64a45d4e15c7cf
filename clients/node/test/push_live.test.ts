/**
 * Pushes of a running Mooring:
 * MOORING_CALLBACK_URL  as for the other tests
 * MOORING_PUSH_PORT     where this test listens: http://127.0.0.1:<port>/ is the URL of a `worker.push`, with `allow_private`
 * MOORING_PUSH_KEYS     what verifies its pushes, with spaces between: `whsec_…` of a secret, `whpk_…` of a key pair
 */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { test } from 'node:test';
import { verifyPush, type Push } from 'mooring-client';
import { FaultyServer } from './faulty_server.js';
import { environment, eventually } from './world.js';

const { values, skip } = environment('MOORING_CALLBACK_URL', 'MOORING_PUSH_PORT', 'MOORING_PUSH_KEYS');

test('what a worker pushes is genuine to each of its keys', { skip }, async (t) => {
    const endpoint = new FaultyServer({});
    await endpoint.start(Number(values.MOORING_PUSH_PORT));
    t.after(() => endpoint.stop());
    const id = `instapp_${randomUUID()}`;
    const install = {
        installed_app_id: id,
        app_id: 'app_node',
        instance_id: `inst_${id}`,
        api_key: `blnk_${randomUUID()}`,
        api_key_prefix: 'blnk_',
        granted_permissions: [],
        idempotency_key: `install:${id}`,
    };
    const headers = { 'content-type': 'application/json' };
    const answer = await fetch(values.MOORING_CALLBACK_URL, { method: 'POST', headers, body: JSON.stringify(install) });
    assert.equal(answer.status, 200, await answer.text());

    const pushed = await eventually('the push', async () => endpoint.seen.find((it) => it.body.includes(id)));
    for (const key of values.MOORING_PUSH_KEYS.split(' ')) {
        const { type, change }: Push = await verifyPush(pushed.body, pushed.headers, key);
        assert.deepEqual([type, change.type, change.installation_id], ['installation.activated', type, id]);
        assert.ok(change.installation.has_credential && !pushed.body.includes(install.api_key));
        await assert.rejects(verifyPush(`${pushed.body} `, pushed.headers, key), { name: 'PushNotGenuine' });
    }
});
