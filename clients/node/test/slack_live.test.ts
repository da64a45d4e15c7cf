/**
 * Slack's own SDK against a running Mooring:
 * MOORING_URL, MOORING_TOKEN, MOORING_INGEST_URL  as for HighLevel
 * MOORING_SLACK_SOURCE          a source as deploy/sources/slack.toml has it
 * MOORING_SLACK_PORT            where it listens as Slack: `oauth.token_url` is http://127.0.0.1:<port>/api/oauth.v2.access
 * MOORING_SLACK_SIGNING_SECRET  the secret of its `verification.hmac`
 * MOORING_SLACK_APP_ID          the only one of its `app_ids`; `A0123456789` unless given
 */
import assert from 'node:assert/strict';
import { createHmac, randomUUID } from 'node:crypto';
import { test } from 'node:test';
import { InstallProvider, LogLevel } from '@slack/oauth';
import { Mooring } from 'mooring-client';
import { MooringInstallationStore } from 'mooring-client/slack';
import { FaultyServer } from './faulty_server.js';
import { environment, eventually, grant } from './world.js';

const { values, skip } = environment(
    'MOORING_URL',
    'MOORING_TOKEN',
    'MOORING_INGEST_URL',
    'MOORING_SLACK_SOURCE',
    'MOORING_SLACK_PORT',
    'MOORING_SLACK_SIGNING_SECRET',
);
const { MOORING_SLACK_APP_ID: appId = 'A0123456789' } = process.env;
const source = values.MOORING_SLACK_SOURCE;

/** What Slack answers: https://docs.slack.dev/reference/methods/oauth.v2.access */
const granted = (team: string) => ({
    ok: true,
    access_token: `xoxb-${team}`,
    token_type: 'bot',
    scope: 'commands,chat:write',
    bot_user_id: 'U1',
    app_id: appId,
    team: { name: 'A team', id: team },
    enterprise: null,
    is_enterprise_install: false,
    authed_user: { id: 'U2' },
});

async function uninstalled(team: string): Promise<void> {
    const now = Math.floor(Date.now() / 1000);
    const event = { type: 'app_uninstalled' };
    const body = JSON.stringify({
        team_id: team,
        api_app_id: appId,
        event,
        type: 'event_callback',
        event_id: randomUUID(),
        event_time: now + 1,
    });
    const mac = createHmac('sha256', values.MOORING_SLACK_SIGNING_SECRET).update(`v0:${now}:${body}`).digest('hex');
    const headers = {
        'content-type': 'application/json',
        'x-slack-request-timestamp': String(now),
        'x-slack-signature': `v0=${mac}`,
    };
    const answer = await fetch(`${values.MOORING_INGEST_URL}/callbacks/${source}`, { method: 'POST', headers, body });
    assert.equal(answer.status, 200, await answer.text());
}

test('a workspace that granted access is authorized until it uninstalls the app', { skip }, async (t) => {
    const team = `T${randomUUID()}`;
    const slack = new FaultyServer({ body: granted(team) });
    await slack.start(Number(values.MOORING_SLACK_PORT));
    t.after(() => slack.stop());
    const mooring = new Mooring({ url: values.MOORING_URL, token: values.MOORING_TOKEN });
    const provider = new InstallProvider({
        clientId: 'client',
        clientSecret: 'secret',
        stateSecret: 'state',
        logLevel: LogLevel.ERROR,
        installationStore: new MooringInstallationStore(mooring, { source }),
    });
    const query = { teamId: team, enterpriseId: undefined, isEnterpriseInstall: false };

    await grant(values.MOORING_INGEST_URL, source, 'code-1');
    await mooring.get(team, { source, wait: 20 });
    assert.equal((await provider.authorize(query)).botToken, `xoxb-${team}`);
    const found = await provider.installationStore.fetchInstallation(query);
    assert.deepEqual([found.appId, found.bot?.scopes], [appId, ['commands', 'chat:write']]);

    await uninstalled(team);
    await eventually('the end', async () => (await mooring.get(team, { source })).status === 'inactive');
    await assert.rejects(provider.authorize(query), /no-credential/);
});
