import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inspect } from 'node:util';
import { Credential } from 'mooring-client';

const of = (credential: string, expires_at: string | null = null) =>
    new Credential({ source: 'blnk', installation_id: 'instapp_1', credential, expires_at });

test('a key is given as it is', () => {
    const credential = of('blnk_secret_key');
    assert.equal(credential.secret, 'blnk_secret_key');
    assert.equal(credential.key, 'blnk_secret_key');
    assert.equal(credential.accessToken, undefined);
    assert.equal(credential.fields, undefined);
    assert.equal(credential.expiresAt, null);
});

test('tokens are read', () => {
    const credential = of('{"access_token":"at-1","refresh_token":"rt-1"}', '2026-11-27T10:00:00Z');
    assert.equal(credential.key, 'at-1');
    assert.equal(credential.accessToken, 'at-1');
    assert.equal(credential.refreshToken, 'rt-1');
    assert.equal(credential.expiresAt?.toISOString(), '2026-11-27T10:00:00.000Z');
    assert.equal(of('{"access_token":"at-1"}').refreshToken, undefined);
});

test('several secrets are fields', () => {
    assert.deepEqual(of('{"/user":"ann","/password":"p"}').fields, { '/user': 'ann', '/password': 'p' });
    for (const other of ['[1]', '"a"', '1', 'null', '{']) assert.equal(of(other).fields, undefined, other);
});

test('nothing shows the secret', () => {
    for (const secret of ['blnk_secret_key', '{"access_token":"blnk_secret_key"}']) {
        const credential = of(secret);
        const shown = [
            String(credential),
            `${credential}`,
            JSON.stringify({ credential }),
            inspect(credential),
            inspect({ nested: [credential] }, { showHidden: true, getters: true, depth: 9 }),
            JSON.stringify(Object.entries(credential)),
            JSON.stringify({ ...credential }),
        ].join('\n');
        assert.ok(!shown.includes('blnk_secret_key'), shown);
        assert.ok(shown.includes('instapp_1') && shown.includes('redacted'), shown);
    }
});
