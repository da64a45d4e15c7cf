import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { HighLevel } from '@gohighlevel/api-client';
import { Mooring } from 'mooring-client';
import { MooringSessionStorage, NotStored } from 'mooring-client/highlevel';
import { FaultyServer, problem, type Answer, type Seen } from './faulty_server.js';

const credential = (tokens: object): Answer => ({
    body: { source: 'highlevel', installation_id: 'i', credential: JSON.stringify(tokens), expires_at: '2000-01-01T00:00:00Z' },
});
const NOT_FOUND = problem(404, 'installation-not-found');

async function start(t: TestContext, ...answers: Answer[]) {
    const worker = new FaultyServer(...answers);
    const mooring = new Mooring({ url: await worker.start(), token: 'token', timeoutMs: 500 });
    t.after(() => worker.stop());
    return { worker, mooring, storage: new MooringSessionStorage(mooring, { source: 'highlevel', appId: 'my-app' }) };
}

test('the session of a location has its access token, and no refresh token', async (t) => {
    const { worker, storage } = await start(t, credential({ access_token: 'at-1', refresh_token: 'rt-1' }));
    const session = await storage.getSession('loc_1');
    assert.deepEqual(session, { access_token: 'at-1', token_type: 'Bearer', userType: 'Location', locationId: 'loc_1' });
    assert.equal(worker.seen[0]?.url, '/v1/installations/my-app%3Alocation%3Aloc_1/credential?source=highlevel');
    assert.equal(await storage.getAccessToken('loc_1'), 'at-1');
    assert.equal(await storage.getRefreshToken(), null);
});

test('what is no location is a company', async (t) => {
    const { worker, storage } = await start(t, NOT_FOUND, credential({ access_token: 'at-1' }));
    const session = await storage.getSession('co_1');
    assert.deepEqual(session, { access_token: 'at-1', token_type: 'Bearer', userType: 'Company', companyId: 'co_1' });
    assert.match(worker.seen[1]?.url ?? '', /my-app%3Acompany%3Aco_1/);
});

test('there is no session of who is unknown or gone, and a fault is not the same', async (t) => {
    const unknown = await start(t, NOT_FOUND);
    assert.equal(await unknown.storage.getSession('x'), null);
    const gone = await start(t, problem(404, 'no-credential'));
    assert.equal(await gone.storage.getSession('x'), null);
    assert.equal(gone.worker.seen.length, 1);
    const ambiguous = await start(t, problem(409, 'ambiguous-installation'));
    await assert.rejects(ambiguous.storage.getSession('x'), { code: 'ambiguous-installation' });
});

test('the app is that of the client id, unless it is given', async (t) => {
    const { worker, mooring } = await start(t, NOT_FOUND);
    const storage = new MooringSessionStorage(mooring, { source: 'highlevel' });
    await assert.rejects(storage.getSession('x'), /appId/);
    storage.setClientId('app1-suffix');
    await storage.getSession('x:y');
    assert.match(worker.seen[0]?.url ?? '', /app1%3Alocation%3Ax%253Ay/);
});

test('a grant that would be lost is refused, and what the SDK stores by itself is passed over', async (t) => {
    const { worker, storage } = await start(t, NOT_FOUND);
    await assert.rejects(storage.setSession('loc_1', { access_token: 'at', refresh_token: 'rt-secret' }), (error: Error) => {
        return (
            error instanceof NotStored &&
            error.message.includes('/oauth/highlevel/authorize') &&
            !error.message.includes('rt-secret')
        );
    });
    await storage.setSession('loc_1', { access_token: 'at' });
    await storage.deleteSession();
    assert.equal(worker.seen.length, 0);
});

function sdk(storage: MooringSessionStorage, apiUrl: string): HighLevel {
    const highlevel = new HighLevel({
        clientId: 'my-app-1',
        clientSecret: 'secret',
        sessionStorage: storage,
        logLevel: 'none',
    });
    highlevel.getHttpClient().defaults.baseURL = apiUrl;
    return highlevel;
}

const readContact = (highlevel: HighLevel) =>
    highlevel.contacts.getContact({ contactId: 'c_1' }, { headers: { locationId: 'loc_1' } });

test('after a 401 the SDK goes on with the token that Mooring has by then, and renews none itself', async (t) => {
    const { storage } = await start(
        t,
        credential({ access_token: 'at-1', refresh_token: 'rt-1' }),
        credential({ access_token: 'at-2', refresh_token: 'rt-2' }),
    );
    const isNewest = ({ headers }: Seen) =>
        headers.authorization === 'Bearer at-2' ? { body: { contact: { id: 'c_1' } } } : { status: 401 };
    const api = new FaultyServer(isNewest);
    const highlevel = sdk(storage, await api.start());
    t.after(() => api.stop());
    assert.deepEqual(await readContact(highlevel), { contact: { id: 'c_1' } });
    assert.deepEqual(
        api.seen.map(({ url, headers }) => [url, headers.authorization]),
        [
            ['/contacts/c_1', 'Bearer at-1'],
            ['/contacts/c_1', 'Bearer at-2'],
        ],
    );
});

test('a token that stays refused is an error of the SDK', async (t) => {
    const { storage } = await start(t, credential({ access_token: 'at-1', refresh_token: 'rt-1' }));
    const api = new FaultyServer({ status: 401 });
    const highlevel = sdk(storage, await api.start());
    t.after(() => api.stop());
    await assert.rejects(readContact(highlevel), { statusCode: 401 });
    assert.ok(
        api.seen.every((it) => it.url === '/contacts/c_1'),
        'no token is renewed by the SDK',
    );
});
