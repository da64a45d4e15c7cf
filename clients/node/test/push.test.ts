import assert from 'node:assert/strict';
import { createPrivateKey, createPublicKey, sign } from 'node:crypto';
import { test } from 'node:test';
import { PushNotGenuine, verifyPush } from 'mooring-client';
import { Webhook } from 'standardwebhooks';

const SECRET = `whsec_${Buffer.alloc(32, 7).toString('base64')}`;
const OTHER_SECRET = `whsec_${Buffer.alloc(32, 8).toString('base64')}`;
// PKCS #8 of an Ed25519 seed: RFC 8410, section 7.
const PRIVATE = createPrivateKey({
    key: Buffer.concat([Buffer.from('302e020100300506032b657004220420', 'hex'), Buffer.alloc(32, 9)]),
    format: 'der',
    type: 'pkcs8',
});
const rawPublic = createPublicKey(PRIVATE).export({ format: 'der', type: 'spki' }).subarray(-32);
const PUBLIC = `whpk_${rawPublic.toString('base64')}`;
const OTHER_PUBLIC = 'whpk_11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=';

const CHANGE = { position: 42, type: 'installation.activated', installation_id: 'Grüße' };
const BODY = JSON.stringify({ type: CHANGE.type, timestamp: '2026-11-27T10:00:00Z', data: CHANGE });
const ID = 'msg_1';

const now = () => Math.floor(Date.now() / 1000);

function headers(signature: string, at = now()) {
    return { 'webhook-id': ID, 'webhook-timestamp': String(at), 'webhook-signature': signature };
}

const v1 = (body = BODY, at = now(), secret = SECRET) => new Webhook(secret).sign(ID, new Date(at * 1000), body);
const v1a = (body = BODY, at = now()) => `v1a,${sign(null, Buffer.from(`${ID}.${at}.${body}`), PRIVATE).toString('base64')}`;

const refused = (headersGiven: Record<string, string | string[]>, keys: string | string[], body = BODY) =>
    assert.rejects(verifyPush(body, headersGiven, keys), PushNotGenuine);

test('a push of a known key is read', async () => {
    const expected = { id: ID, type: CHANGE.type, timestamp: '2026-11-27T10:00:00Z', change: CHANGE };
    assert.deepEqual(await verifyPush(BODY, headers(v1()), SECRET), expected);
    assert.deepEqual(await verifyPush(Buffer.from(BODY), headers(v1a()), PUBLIC), expected);
    assert.deepEqual(await verifyPush(new Uint8Array(Buffer.from(BODY)), headers(v1()), [SECRET]), expected);
    assert.deepEqual(await verifyPush(BODY, new Headers(headers(v1a())), PUBLIC), expected);
    const shouted = Object.fromEntries(Object.entries(headers(v1())).map(([name, value]) => [name.toUpperCase(), value]));
    assert.deepEqual(await verifyPush(BODY, shouted, SECRET), expected);
});

test('one of several signatures and one of several keys are enough', async () => {
    const both = headers(`${v1(BODY, now(), OTHER_SECRET)} ${v1a()} ${v1()}`);
    for (const keys of [SECRET, PUBLIC, [OTHER_SECRET, SECRET], [OTHER_PUBLIC, PUBLIC], [OTHER_PUBLIC, SECRET]]) {
        assert.equal((await verifyPush(BODY, both, keys)).id, ID);
    }
});

test('what another key signed, or was changed, is refused', async () => {
    await refused(headers(v1()), OTHER_SECRET);
    await refused(headers(v1a()), OTHER_PUBLIC);
    for (const [signature, key] of [
        [v1(), SECRET],
        [v1a(), PUBLIC],
    ] as const) {
        await refused(headers(signature), key, BODY.replace('42', '43'));
        await refused({ ...headers(signature), 'webhook-id': 'msg_2' }, key);
        await refused(headers(signature, now() - 7), key);
    }
});

test('a signature counts for its own kind of key', async () => {
    await refused(headers(v1()), PUBLIC);
    await refused(headers(v1a()), SECRET);
    await refused(headers(v1a().replace('v1a', 'v1')), SECRET);
    await refused(headers(v1a().replace('v1a', 'v1')), PUBLIC);
    for (const nothing of ['v1a', 'v1a,', 'v1', 'v1,', ',', ' ', 'v1a,AAAA']) await refused(headers(nothing), [PUBLIC, SECRET]);
});

test('a time that is not now is refused', async () => {
    for (const at of [now() - 310, now() + 310]) {
        await refused(headers(v1(BODY, at), at), SECRET);
        await refused(headers(v1a(BODY, at), at), PUBLIC);
    }
    await refused({ ...headers(v1a()), 'webhook-timestamp': 'soon' }, PUBLIC);
    assert.equal((await verifyPush(BODY, headers(v1a(BODY, now() - 290), now() - 290), PUBLIC)).id, ID);
});

test('headers that are missing or come twice are refused', async () => {
    const all = headers(v1());
    for (const name of Object.keys(all) as (keyof typeof all)[]) {
        const { [name]: _, ...others } = all;
        await refused(others, SECRET);
        await refused({ ...all, [name]: ['a', 'b'] }, SECRET);
        await refused({ ...all, [name.toUpperCase()]: 'a' }, SECRET);
    }
});

test('a key that is none is the mistake of who gave it, and is not repeated', async () => {
    for (const key of ['secret-key', '', `whpk_${Buffer.alloc(31).toString('base64')}`]) {
        const isTold = (error: Error) => error instanceof TypeError && !(key && error.message.includes(key));
        await assert.rejects(verifyPush(BODY, headers(v1()), key), isTold);
    }
    await assert.rejects(verifyPush(BODY, headers(v1()), []), TypeError);
});

test('the official library passes over signatures that are labelled v1a', () => {
    const labelled = headers(v1().replace('v1,', 'v1a,'));
    assert.throws(() => new Webhook(SECRET).verify(BODY, labelled), /No matching signature/);
});
