import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { answerPortalLaunch, checkPortalToken, Mooring, MooringProblem } from 'mooring-client';
import { FaultyServer, problem, type Answer } from './faulty_server.js';

const POSTED = { installed_app_id: 'i', app_id: 'a', instance_id: 'n', organization_id: 'o', user_id: null };
const URL_ANSWER = { portal_url: 'https://app.example.com/portal?token=t', expires_at: '2026-11-27T10:00:00Z' };
const CSP = "frame-ancestors 'self' https://blnkfinance.com https://*.blnkfinance.com";

async function start(t: TestContext, answer: Answer) {
    const server = new FaultyServer(answer);
    const url = await server.start();
    t.after(() => server.stop());
    return { server, mooring: new Mooring({ url, token: 'token', timeoutMs: 300 }) };
}

test('what Blnk posted is passed on, and it is answered the URL', async (t) => {
    const { server, mooring } = await start(t, { body: URL_ANSWER });
    const answer = await answerPortalLaunch(mooring, POSTED, { source: 'blnk' });
    assert.deepEqual(answer, { status: 200, headers: { 'cache-control': 'no-store' }, body: URL_ANSWER });
    assert.deepEqual(JSON.parse(server.seen[0]?.body ?? ''), POSTED);
});

test('Blnk is told what is about its request, and nothing else', async (t) => {
    for (const [status, name] of [
        [404, 'installation-not-found'],
        [409, 'installation-not-active'],
        [422, 'invalid-field'],
    ] as const) {
        const { mooring } = await start(t, problem(status, name));
        const answer = await answerPortalLaunch(mooring, POSTED);
        assert.deepEqual([answer.status, answer.body], [status, { error: `it is ${name}` }]);
    }
    const others = [
        problem(401, 'unauthorized'),
        problem(403, 'insufficient-scope'),
        problem(404, 'not-found'),
        { hangUp: true },
    ];
    for (const other of others) {
        const { mooring } = await start(t, other);
        const answer = await answerPortalLaunch(mooring, POSTED);
        assert.deepEqual([answer.status, answer.body], [503, { error: 'the portal is not available now' }]);
        assert.ok(answer.error instanceof Error, 'the app can log it');
    }
});

test('the page answers by its token, and always says who may frame it', async (t) => {
    const session = { source: 'blnk', app_id: 'a', installation_id: 'i', user_id: null };
    const cases: [Answer, number][] = [
        [{ body: session }, 200],
        [problem(404, 'no-portal-session'), 401],
        [problem(410, 'portal-session-expired'), 410],
        [problem(404, 'not-found'), 503],
        [problem(401, 'unauthorized'), 503],
        [{ hangUp: true }, 503],
    ];
    for (const [answer, status] of cases) {
        const { mooring } = await start(t, answer);
        const page = await checkPortalToken(mooring, 'token-of-portal');
        assert.equal(page.status, status);
        assert.equal(page.headers['content-security-policy'], CSP);
        assert.equal(page.headers['cache-control'], 'no-store');
        assert.deepEqual(page.session, status === 200 ? session : null);
        assert.equal(page.error instanceof Error, status === 503);
        const shown = page.error instanceof MooringProblem ? String(page.error.stack) : '';
        assert.ok(!shown.includes('token-of-portal'));
    }
});

test('without a token nobody is asked', async (t) => {
    const { server, mooring } = await start(t, { body: {} });
    for (const none of [undefined, '', null, ['a', 'b']]) assert.equal((await checkPortalToken(mooring, none)).status, 401);
    assert.equal(server.seen.length, 0);
});
