/**
 * HighLevel's own SDK against a running Mooring that renews tokens:
 * MOORING_URL, MOORING_TOKEN  the worker, with `every_ms` of `worker.token_renewal` at most a second
 * MOORING_INGEST_URL          ingest
 * MOORING_HL_SOURCE           its source of the platform `highlevel`, with `oauth.state = "when_present"`
 * MOORING_HL_PORT             where this test listens as HighLevel: `oauth.token_url` is http://127.0.0.1:<port>/oauth/token
 * MOORING_HL_APP_ID           the only one of its `app_ids`; `my-app` unless given
 * and one of:
 * MOORING_HL_UNINSTALL        {"url", "headers", "body"} of a signed UNINSTALL of the location `loc_1`, later than the tokens
 * MOORING_HL_SIGNING_SEED     the seed of the Ed25519 key that callbacks are signed with, in hexadecimal digits
 */
import assert from 'node:assert/strict';
import { createPrivateKey, randomUUID, sign } from 'node:crypto';
import { test } from 'node:test';
import { HighLevel } from '@gohighlevel/api-client';
import { Mooring } from 'mooring-client';
import { MooringSessionStorage } from 'mooring-client/highlevel';
import { FaultyServer, type Answer, type Seen } from './faulty_server.js';
import { comeBack, environment, eventually } from './world.js';

const { values, skip } = environment(
    'MOORING_URL',
    'MOORING_TOKEN',
    'MOORING_INGEST_URL',
    'MOORING_HL_SOURCE',
    'MOORING_HL_PORT',
);
const { MOORING_HL_APP_ID: appId = 'my-app', MOORING_HL_UNINSTALL: prepared, MOORING_HL_SIGNING_SEED: seed } = process.env;
const unsigned = !skip && !prepared && !seed && 'neither MOORING_HL_UNINSTALL nor MOORING_HL_SIGNING_SEED is set';
const LOCATION = 'loc_1';
const ID = `${appId}:location:${LOCATION}`;
/** Of the first token. Mooring renews it half of that before its end. */
const FIRST_EXPIRES_IN_S = 6;

/** HighLevel: it grants tokens, and its API takes only the newest. */
class FakeHighLevel {
    readonly server = new FaultyServer((seen) => this.#answer(seen));
    readonly usedAtApi: string[] = [];
    readonly grants: string[] = [];
    /** Before the API answers. */
    beforeAnswer: () => Promise<unknown> = async () => {};

    get newest(): string {
        return `at-${this.grants.length}`;
    }

    async #answer(seen: Seen): Promise<Answer> {
        if (seen.url === '/oauth/token') return this.#token(new URLSearchParams(seen.body));
        const token = seen.headers.authorization?.replace('Bearer ', '') ?? '';
        this.usedAtApi.push(token);
        await this.beforeAnswer();
        return token === this.newest ? { body: { contact: { id: 'c_1' } } } : { status: 401, body: { message: 'Invalid JWT' } };
    }

    #token(asked: URLSearchParams): Answer {
        const isRight = asked.get('code') === 'abc' || asked.get('refresh_token') === `rt-${this.grants.length}`;
        if (!isRight) return { status: 400, body: { error: 'invalid_grant' } };
        this.grants.push(asked.get('grant_type') ?? '');
        const expires_in = this.grants.length === 1 ? FIRST_EXPIRES_IN_S : 86_399;
        const tokens = {
            access_token: this.newest,
            refresh_token: `rt-${this.grants.length}`,
            token_type: 'Bearer',
            expires_in,
        };
        return {
            body: {
                ...tokens,
                scope: 'contacts.readonly',
                userType: 'Location',
                locationId: LOCATION,
                companyId: 'co_1',
                userId: 'u_1',
            },
        };
    }
}

async function uninstall(): Promise<void> {
    const { url, headers, body } = prepared ? JSON.parse(prepared) : signedUninstall();
    const answer = await fetch(url, { method: 'POST', headers, body });
    assert.equal(answer.status, 200, await answer.text());
}

function signedUninstall() {
    const timestamp = new Date().toISOString();
    const body = JSON.stringify({ type: 'UNINSTALL', appId, locationId: LOCATION, webhookId: randomUUID(), timestamp });
    // PKCS #8 of an Ed25519 seed: RFC 8410, section 7.
    const der = Buffer.concat([Buffer.from('302e020100300506032b657004220420', 'hex'), Buffer.from(seed ?? '', 'hex')]);
    const signature = sign(null, Buffer.from(body), createPrivateKey({ key: der, format: 'der', type: 'pkcs8' }));
    const headers = { 'content-type': 'application/json', 'x-ghl-signature': signature.toString('base64') };
    return { url: `${values.MOORING_INGEST_URL}/callbacks/${values.MOORING_HL_SOURCE}`, headers, body };
}

test(
    'the SDK goes on while Mooring renews its tokens, and stops when the app is uninstalled',
    { skip: skip || unsigned },
    async (t) => {
        const highlevel = new FakeHighLevel();
        const apiUrl = await highlevel.server.start(Number(values.MOORING_HL_PORT));
        t.after(() => highlevel.server.stop());
        const source = values.MOORING_HL_SOURCE;
        const mooring = new Mooring({ url: values.MOORING_URL, token: values.MOORING_TOKEN });
        const storage = new MooringSessionStorage(mooring, { source, appId });
        const sdk = new HighLevel({
            clientId: `${appId}-1`,
            clientSecret: 'unused',
            sessionStorage: storage,
            logLevel: 'none',
        });
        sdk.getHttpClient().defaults.baseURL = apiUrl;
        const readContact = () => sdk.contacts.getContact({ contactId: 'c_1' }, { headers: { locationId: LOCATION } });
        const heldToken = async () => (await storage.getSession(LOCATION))?.access_token;

        await comeBack(values.MOORING_INGEST_URL, source, { code: 'abc' });
        await eventually('the granted token', async () => (await heldToken()) === 'at-1');
        assert.deepEqual(await readContact(), { contact: { id: 'c_1' } });
        assert.deepEqual(highlevel.usedAtApi, ['at-1']);

        // The SDK's request is on its way with the old token while Mooring renews it.
        highlevel.beforeAnswer = () => eventually('the renewed token', async () => (await heldToken()) === 'at-2');
        assert.deepEqual(await readContact(), { contact: { id: 'c_1' } });
        assert.deepEqual(highlevel.usedAtApi, ['at-1', 'at-1', 'at-2']);
        assert.deepEqual(await readContact(), { contact: { id: 'c_1' } });
        assert.deepEqual(highlevel.grants, ['authorization_code', 'refresh_token'], 'only Mooring renewed, and once');

        await uninstall();
        await eventually('the end of the session', async () => (await storage.getSession(LOCATION)) === null);
        await assert.rejects(readContact(), /token required/i);
        assert.equal((await mooring.get(ID, { source })).status, 'inactive');
    },
);
