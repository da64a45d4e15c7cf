/**
 * Against a running Mooring:
 * MOORING_URL           the worker
 * MOORING_TOKEN         a token of it with all scopes, for all sources
 * MOORING_CALLBACK_URL  the callback URL of a `blnk` source, path token included
 */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { test, type TestContext } from 'node:test';
import {
    answerPortalLaunch,
    checkPortalToken,
    CursorExpired,
    Mooring,
    MooringProblem,
    type Followed,
    type Step,
} from 'mooring-client';
import { environment, eventually } from './world.js';

const { values, skip } = environment('MOORING_URL', 'MOORING_TOKEN', 'MOORING_CALLBACK_URL');
const mooring = skip ? undefined : new Mooring({ url: values.MOORING_URL, token: values.MOORING_TOKEN });
const DEADLINE_MS = 30_000;

/** An installation of its own for each test. */
class Tenant {
    readonly id = `instapp_${randomUUID()}`;
    readonly apiKey = `blnk_${randomUUID()}`;
    readonly ids = { installed_app_id: this.id, app_id: 'app_node', instance_id: `inst_${this.id}` };

    install(): Promise<void> {
        return this.#post({
            api_key: this.apiKey,
            api_key_prefix: this.apiKey.slice(0, 8),
            granted_permissions: ['data:read'],
            idempotency_key: `install:${this.id}`,
        });
    }

    uninstall(): Promise<void> {
        return this.#post({ uninstalled_at: new Date().toISOString(), idempotency_key: `uninstall:${this.id}` });
    }

    async #post(more: object): Promise<void> {
        const body = JSON.stringify({ ...this.ids, ...more });
        const headers = { 'content-type': 'application/json' };
        const answer = await fetch(values.MOORING_CALLBACK_URL, { method: 'POST', headers, body });
        assert.equal(answer.status, 200, await answer.text());
    }
}

/** The next change of this tenant. */
async function next(changes: AsyncGenerator<Followed>, tenant: Tenant): Promise<Followed> {
    for (;;) {
        const { value, done } = await changes.next();
        assert.ok(!done, 'the feed ended');
        if (value.change.installation_id === tenant.id) return value;
    }
}

test('what becomes of an installation is followed, and its key is opened', { skip }, async () => {
    assert.ok(mooring);
    const tenant = new Tenant();
    const { changes_cursor: after } = await mooring.listPage({ limit: 1 });
    const changes = mooring.follow({ after, signal: AbortSignal.timeout(DEADLINE_MS) });
    const installed = next(changes, tenant);
    await tenant.install();
    const activated = await installed;
    assert.equal(activated.change.type, 'installation.activated');
    assert.equal(activated.change.installation.status, 'active');

    const found = await mooring.get(tenant.id, { wait: 5 });
    assert.deepEqual([found.status, found.app_id, found.granted_permissions], ['active', 'app_node', ['data:read']]);
    const credential = await mooring.credential(tenant.id, { source: found.source });
    assert.deepEqual([credential.secret, credential.installationId], [tenant.apiKey, tenant.id]);
    assert.equal(await mooring.currentKey(tenant.id), tenant.apiKey);

    await tenant.uninstall();
    const deactivated = await next(changes, tenant);
    assert.equal(deactivated.change.type, 'installation.deactivated');
    await changes.return();
    await assert.rejects(mooring.credential(tenant.id), { name: 'MooringProblem', code: 'no-credential', status: 404 });

    const types = [];
    for await (const event of mooring.events(tenant.id, { limit: 1 })) types.push(event.type);
    assert.deepEqual(types, ['installed', 'uninstalled']);

    // A cursor within a page passes over nothing and repeats nothing.
    const [again] = (await mooring.changes({ after: activated.cursor, source: found.source })).changes;
    assert.ok(again && again.position > activated.change.position && again.position <= deactivated.change.position);
    const later = (await mooring.changes({ after: deactivated.cursor })).changes;
    assert.ok(later.every((change) => change.position > deactivated.change.position));
});

test('one that is on its way is waited for', { skip }, async () => {
    assert.ok(mooring);
    const tenant = new Tenant();
    const found = mooring.get(tenant.id, { wait: 20 });
    await tenant.install();
    assert.equal((await found).installation_id, tenant.id);
});

test('a list and the feed after it have no hole', { skip }, async () => {
    assert.ok(mooring);
    const [before, after] = [new Tenant(), new Tenant()];
    await before.install();
    await mooring.get(before.id, { wait: 20 });
    const steps = mooring.listAndFollow({ signal: AbortSignal.timeout(DEADLINE_MS) });
    const first = (await steps.next()).value as Step;
    assert.ok(first.kind === 'listed');
    const listed = first.installations.map((it) => it.installation_id);
    assert.ok(listed.includes(before.id) && !listed.includes(after.id));
    await after.install();
    for await (const step of steps) {
        assert.ok(step.kind === 'changed');
        if (step.change.installation_id === after.id) break;
        assert.ok(step.cursor);
    }
    const everything = [];
    for await (const installation of mooring.list({ limit: 1 })) everything.push(installation.installation_id);
    assert.ok(everything.includes(before.id) && everything.includes(after.id));
    assert.equal(new Set(everything).size, everything.length);
});

test('a cursor of another feed has expired, and then the list begins again', { skip }, async () => {
    assert.ok(mooring);
    const after = 'otherfeed-1';
    await assert.rejects(mooring.follow({ after }).next(), CursorExpired);
    const steps = mooring.listAndFollow({ after });
    assert.equal(((await steps.next()).value as Step).kind, 'listed');
    await steps.return();
});

test('a wrong token is a problem', { skip }, async () => {
    const stranger = new Mooring({ url: values.MOORING_URL, token: 'not-a-token' });
    await assert.rejects(stranger.listPage(), { code: 'unauthorized', status: 401 });
    await assert.rejects(stranger.follow().next(), { code: 'unauthorized' });
});

test('an id that nobody has is a problem', { skip }, async () => {
    assert.ok(mooring);
    const nobody = `nobody ${randomUUID()}/%`;
    await assert.rejects(mooring.get(nobody), { code: 'installation-not-found', candidates: [] });
    await assert.rejects(mooring.get(nobody, { wait: 51 }), { code: 'invalid-parameter', status: 400 });
});

test('a portal is opened for Blnk, and closes with the installation', { skip }, async (t) => {
    assert.ok(mooring);
    if (await lacksPortals(t, mooring)) return;
    const tenant = new Tenant();
    const opening = answerPortalLaunch(mooring, { ...tenant.ids, user_id: 'user_1' });
    await tenant.install();
    const answer = await opening;
    assert.equal(answer.status, 200, String(answer.error));
    assert.ok('portal_url' in answer.body);
    const token = new URL(answer.body.portal_url).searchParams.get('token');
    const page = await checkPortalToken(mooring, token);
    assert.equal(page.status, 200, String(page.error));
    assert.deepEqual([page.session?.installation_id, page.session?.user_id], [tenant.id, 'user_1']);
    assert.equal(page.session?.scope['instance_id'], tenant.ids.instance_id);

    assert.equal((await checkPortalToken(mooring, `${token}x`)).status, 401);
    const wrong = { ...tenant.ids, instance_id: 'another' };
    assert.equal((await answerPortalLaunch(mooring, wrong)).status, 404);
    await tenant.uninstall();
    await eventually('the session ends', async () => (await checkPortalToken(mooring, token)).status === 410);
    assert.equal((await answerPortalLaunch(mooring, tenant.ids)).status, 409);
});

async function lacksPortals(t: TestContext, worker: Mooring): Promise<boolean> {
    try {
        await worker.introspectPortalSession('probe');
    } catch (error) {
        if (!(error instanceof MooringProblem)) throw error;
        if (!['not-found', 'method-not-allowed'].includes(error.code)) return false;
    }
    t.skip('this worker has no portal sessions');
    return true;
}
