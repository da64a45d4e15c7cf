import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { InstallProvider, LogLevel } from '@slack/oauth';
import { Mooring } from 'mooring-client';
import { MooringInstallationStore, NotHere, type SlackOptions } from 'mooring-client/slack';
import { FaultyServer, problem, type Answer } from './faulty_server.js';

const QUERY = { teamId: 'T1', enterpriseId: undefined, isEnterpriseInstall: false };
const INSTALLATION = { app_id: 'A1', installation_id: 'T1', granted_permissions: ['chat:write', 'commands'] };

/** A worker that knows one workspace. */
async function start(t: TestContext, credential: Answer, more: Partial<SlackOptions> = {}) {
    const worker = new FaultyServer(({ url }) => (url.includes('/credential') ? credential : { body: INSTALLATION }));
    const mooring = new Mooring({ url: await worker.start(), token: 'token' });
    t.after(() => worker.stop());
    const store = new MooringInstallationStore(mooring, { source: 'slack', ...more });
    const provider = new InstallProvider({
        clientId: 'client',
        clientSecret: 'secret',
        stateSecret: 'state',
        installationStore: store,
        logLevel: LogLevel.ERROR,
    });
    return { worker, store, provider };
}

const opened = (tokens: object, expires_at: string | null = null): Answer => ({
    body: { source: 'slack', installation_id: 'T1', credential: JSON.stringify(tokens), expires_at },
});

test("the SDK's authorize gets the bot's token", async (t) => {
    const { worker, provider } = await start(t, opened({ access_token: 'xoxb-1' }));
    const authorized = await provider.authorize(QUERY);
    assert.deepEqual([authorized.botToken, authorized.teamId, authorized.userToken], ['xoxb-1', 'T1', undefined]);
    assert.deepEqual([authorized.botId, authorized.botUserId], [undefined, undefined]);
    assert.deepEqual(
        worker.seen.map((it) => it.url).sort(),
        ['/v1/installations/T1/credential?source=slack', '/v1/installations/T1?source=slack'].sort(),
    );
});

test('a token that ends soon is not renewed by the SDK', async (t) => {
    const soon = new Date(Date.now() + 60_000).toISOString();
    const { provider, store } = await start(t, opened({ access_token: 'xoxe.xoxb-1', refresh_token: 'xoxe-1' }, soon));
    const authorized = await provider.authorize(QUERY);
    assert.deepEqual([authorized.botToken, authorized.botRefreshToken], ['xoxe.xoxb-1', undefined]);
    assert.ok(!JSON.stringify(await store.fetchInstallation(QUERY)).includes('xoxe-1'));
});

test('an installation has what Mooring knows, and what is added', async (t) => {
    const { store } = await start(t, opened({ access_token: 'xoxb-1' }));
    const found = await store.fetchInstallation(QUERY);
    assert.deepEqual([found.team, found.appId, found.bot?.scopes], [{ id: 'T1' }, 'A1', ['chat:write', 'commands']]);
    assert.deepEqual([found.isEnterpriseInstall, found.authVersion], [false, 'v2']);
    const completed = await start(t, opened({ access_token: 'xoxb-1' }), {
        complete: async (installation) => ({ ...installation, bot: { ...installation.bot!, id: 'B1', userId: 'U1' } }),
    });
    const authorized = await completed.provider.authorize(QUERY);
    assert.deepEqual([authorized.botToken, authorized.botId, authorized.botUserId], ['xoxb-1', 'B1', 'U1']);
});

test('of an installation that ended the SDK is told why', async (t) => {
    const { provider } = await start(t, problem(404, 'no-credential'));
    await assert.rejects(provider.authorize(QUERY), {
        code: 'slack_oauth_installer_authorization_error',
        message: /no-credential/,
    });
});

test('a whole organization is not in Mooring', async (t) => {
    const { store } = await start(t, opened({ access_token: 'xoxb-1' }));
    const organization = { teamId: undefined, enterpriseId: 'E1', isEnterpriseInstall: true };
    await assert.rejects(store.fetchInstallation(organization), NotHere);
});

test("a grant of the SDK's own OAuth is refused, and an uninstall is left to Mooring", async (t) => {
    const { worker, store } = await start(t, opened({ access_token: 'xoxb-1' }));
    await assert.rejects(
        store.storeInstallation(),
        (error) => error instanceof NotHere && /\/oauth\/slack\/authorize/.test(error.message),
    );
    await store.deleteInstallation();
    assert.equal(worker.seen.length, 0);
});
