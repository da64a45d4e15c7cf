import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { inspect } from 'node:util';
import { Mooring, MooringProblem, MooringUnreachable, type MooringOptions } from 'mooring-client';
import { FaultyServer, problem, type Answer } from './faulty_server.js';

const TOKEN = 'token-that-is-secret';

async function start(t: TestContext, answers: Answer[], options: Partial<MooringOptions> = {}) {
    const server = new FaultyServer(...answers);
    const url = await server.start();
    t.after(() => server.stop());
    return { server, mooring: new Mooring({ url, token: TOKEN, ...options }) };
}

const PAGE = { installations: [], next_cursor: null, changes_cursor: 'f-1' };

test('a problem says what Mooring said', async (t) => {
    const candidates = [{ source: 'shop', app_id: 'app_1', place: 'here', status: 'active' }];
    const { mooring } = await start(t, [problem(409, 'ambiguous-installation', { candidates })]);
    await assert.rejects(mooring.get('a'), (error) => {
        assert.ok(error instanceof MooringProblem);
        assert.equal(error.type, 'urn:mooring:problem:ambiguous-installation');
        assert.equal(error.code, 'ambiguous-installation');
        assert.equal(error.status, 409);
        assert.equal(error.detail, 'it is ambiguous-installation');
        assert.deepEqual(error.candidates, candidates);
        assert.equal(error.retryAfter, undefined);
        return true;
    });
});

test('an error that is not of Mooring is a problem without a code', async (t) => {
    const { mooring } = await start(t, [{ status: 404, headers: { 'content-type': 'text/html' }, body: '<html>' }]);
    await assert.rejects(mooring.get('a'), { name: 'MooringProblem', type: 'about:blank', code: '', status: 404 });
});

test('no answer is another error than a problem', async (t) => {
    const { server, mooring } = await start(t, [{ hangUp: true }], { timeoutMs: 400 });
    await assert.rejects(mooring.get('a'), (error) => error instanceof MooringUnreachable && !error.timedOut);
    assert.ok(server.seen.length > 1, 'it is asked again');
    const silent = await start(t, [{ hang: true }], { timeoutMs: 200 });
    await assert.rejects(silent.mooring.get('a'), (error) => error instanceof MooringUnreachable && error.timedOut);
});

test('an answer that is not JSON is none, and is not repeated', async (t) => {
    const { mooring } = await start(t, [{ body: '{"credential":"blnk_secret_key' }], { timeoutMs: 200 });
    await assert.rejects(mooring.credential('a'), (error: Error) => {
        assert.ok(error instanceof MooringUnreachable);
        assert.ok(!`${error.stack} ${String(error.cause)}`.includes('blnk_secret'));
        return true;
    });
});

test('a request that reads is sent again, and not before Retry-After', async (t) => {
    const busy = problem(503, 'database-unavailable', {}, { 'retry-after': '1' });
    const { server, mooring } = await start(t, [busy, { body: PAGE }]);
    const began = Date.now();
    assert.deepEqual(await mooring.listPage(), PAGE);
    assert.ok(Date.now() - began >= 1_000);
    assert.equal(server.seen.length, 2);
});

test('a Retry-After beyond the timeout is told at once', async (t) => {
    const { server, mooring } = await start(t, [problem(429, 'rate-limited', {}, { 'retry-after': '60' })]);
    await assert.rejects(mooring.listPage(), { code: 'rate-limited', status: 429, retryAfter: 60 });
    assert.equal(server.seen.length, 1);
});

test('Retry-After may be a date', async (t) => {
    const date = new Date(Date.now() + 120_000).toUTCString();
    const { mooring } = await start(t, [problem(503, 'database-unavailable', {}, { 'retry-after': date })]);
    await assert.rejects(mooring.listPage(), (error) => {
        assert.ok(error instanceof MooringProblem && error.retryAfter !== undefined);
        return error.retryAfter > 110 && error.retryAfter <= 120;
    });
});

test('it gives up after a few attempts', async (t) => {
    const { server, mooring } = await start(t, [problem(503, 'database-unavailable')]);
    await assert.rejects(mooring.listPage(), { status: 503 });
    assert.equal(server.seen.length, 4);
});

test('what no repetition helps is asked once', async (t) => {
    const { server, mooring } = await start(t, [problem(403, 'insufficient-scope')]);
    await assert.rejects(mooring.credential('a'), { code: 'insufficient-scope' });
    assert.equal(server.seen.length, 1);
});

test('a portal session is opened once, and looked up again', async (t) => {
    const { server, mooring } = await start(t, [problem(503, 'database-unavailable')]);
    const ids = { installed_app_id: 'i', app_id: 'a', instance_id: 'n' };
    await assert.rejects(mooring.openPortalSession(ids, { source: 'blnk' }), { status: 503 });
    assert.equal(server.seen.length, 1);
    assert.equal(server.seen[0]?.url, '/v1/portal-sessions?source=blnk');
    assert.deepEqual(JSON.parse(server.seen[0]?.body ?? ''), ids);
    await assert.rejects(mooring.introspectPortalSession('t'), { status: 503 });
    assert.equal(server.seen.length, 5);
});

test('a redirect is not followed', async (t) => {
    const { server, mooring } = await start(t, [{ status: 307, headers: { location: '/elsewhere' } }]);
    await assert.rejects(mooring.listPage(), { name: 'MooringProblem', status: 307 });
    assert.equal(server.seen.length, 1);
});

test('the caller may cancel', async (t) => {
    const { mooring } = await start(t, [{ hang: true }]);
    await assert.rejects(mooring.get('a', { signal: AbortSignal.timeout(50) }), { name: 'TimeoutError' });
    await assert.rejects(mooring.get('a', { signal: AbortSignal.abort(new Error('mine')) }), { message: 'mine' });
});

test('a token that rotates is asked for each time, and none is shown', async (t) => {
    let number = 0;
    const server = new FaultyServer({ body: PAGE });
    const url = await server.start();
    t.after(() => server.stop());
    const mooring = new Mooring({ url: `${url}/`, token: async () => `token-${++number}\n` });
    await mooring.listPage();
    await mooring.listPage();
    const sent = server.seen.map((it) => it.headers.authorization);
    assert.deepEqual(sent, ['Bearer token-1', 'Bearer token-2']);
    assert.ok(!inspect(new Mooring({ url, token: TOKEN }), { showHidden: true, depth: 9 }).includes(TOKEN));
    const bad = new Mooring({ url, token: 'secret\u0000token' });
    await assert.rejects(bad.listPage(), (error: Error) => !String(error.stack).includes('secret\u0000'));
});

test('ids and parameters are written as the API reads them', async (t) => {
    const { server, mooring } = await start(t, [{ body: {} }]);
    await mooring.get('app:location:a/b c?', { source: 'high level', wait: 5 });
    await mooring.changes({ after: 'f-1', types: ['installation.activated', 'credential.replaced'] });
    assert.deepEqual(
        server.seen.map((it) => it.url),
        [
            '/v1/installations/app%3Alocation%3Aa%2Fb%20c%3F?source=high+level&wait=5',
            '/v1/changes?after=f-1&type=installation.activated%2Ccredential.replaced',
        ],
    );
    for (const id of ['', '.', '..']) assert.throws(() => mooring.get(id), TypeError);
});

test('a list goes on until there is no page', async (t) => {
    const page = (id: string, next_cursor: string | null) => ({
        body: { ...PAGE, installations: [{ installation_id: id }], next_cursor },
    });
    const { server, mooring } = await start(t, [page('a', 'n1'), page('b', null)]);
    const found = [];
    for await (const { installation_id } of mooring.list({ source: 'blnk' })) found.push(installation_id);
    assert.deepEqual(found, ['a', 'b']);
    assert.deepEqual(
        server.seen.map((it) => it.url),
        ['/v1/installations?source=blnk', '/v1/installations?source=blnk&cursor=n1'],
    );
});

test('all events are read page by page', async (t) => {
    const page = (sequence: number, next_after: number | null) => ({ body: { events: [{ sequence }], next_after } });
    const { server, mooring } = await start(t, [page(1, 1), page(2, null)]);
    const found = [];
    for await (const { sequence } of mooring.events('a')) found.push(sequence);
    assert.deepEqual(found, [1, 2]);
    assert.equal(server.seen[1]?.url, '/v1/installations/a/events?after=1');
});
