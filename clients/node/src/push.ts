import { Buffer } from 'node:buffer';
import { createPublicKey, verify, type KeyObject } from 'node:crypto';
import type { Change } from './types.js';

const TOLERANCE_S = 300;
const SHARED = 'whsec_';
const PUBLIC = 'whpk_';
const PUBLIC_KEY_BYTES = 32;

/** A change that Mooring pushed. */
export interface Push {
    /** The same for each copy of a change. */
    id: string;
    type: string;
    timestamp: string;
    change: Change;
}

export type PushHeaders = Headers | Readonly<Record<string, string | readonly string[] | undefined>>;

/** No key that was given signed this, or its time is not now. */
export class PushNotGenuine extends Error {
    override readonly name = 'PushNotGenuine';
}

interface Signed {
    id: string;
    timestamp: string;
    signatures: string;
    body: Buffer;
}

/**
 * A push, if one of the keys signed it at most five minutes ago. `body` is the raw body, as it came. Keys are those of Standard
 * Webhooks: `whsec_…` for signatures `v1`, and `whpk_…` for `v1a`. Of two keys one is enough, so that they can be rotated.
 */
export async function verifyPush(
    body: string | Uint8Array,
    headers: PushHeaders,
    keys: string | readonly string[],
): Promise<Push> {
    const given = [keys].flat();
    if (given.length === 0) throw new TypeError('give at least one key');
    const checks = await Promise.all(given.map(checkWith));
    const signed: Signed = {
        id: header(headers, 'webhook-id'),
        timestamp: header(headers, 'webhook-timestamp'),
        signatures: header(headers, 'webhook-signature'),
        body: Buffer.from(body as Uint8Array),
    };
    requireNow(signed.timestamp);
    if (!checks.some((isGenuine) => isGenuine(signed))) throw new PushNotGenuine('no signature is of a key that was given');
    return pushOf(signed);
}

type Check = (signed: Signed) => boolean;

async function checkWith(key: string): Promise<Check> {
    if (key.startsWith(SHARED)) return sharedSecret(key);
    if (key.startsWith(PUBLIC)) return publicKey(key);
    throw new TypeError(`a key begins with ${SHARED} or ${PUBLIC}`);
}

/** By the official library, which is loaded only if a key is a shared secret. */
async function sharedSecret(key: string): Promise<Check> {
    const { Webhook, WebhookVerificationError } = await import('standardwebhooks');
    const webhook = new Webhook(key);
    return ({ id, timestamp, signatures, body }) => {
        const headers = { 'webhook-id': id, 'webhook-timestamp': timestamp, 'webhook-signature': signatures };
        try {
            webhook.verify(body, headers, { jsonParse: false });
            return true;
        } catch (error) {
            if (error instanceof WebhookVerificationError) return false;
            throw error;
        }
    };
}

/** That library passes over all signatures but `v1`. */
function publicKey(key: string): Check {
    const imported = importKey(key);
    return ({ id, timestamp, signatures, body }) => {
        const content = Buffer.concat([Buffer.from(`${id}.${timestamp}.`), body]);
        return signatures.split(' ').some((one) => {
            const [version, signature] = one.split(',');
            return (
                version === 'v1a' &&
                signature !== undefined &&
                verify(null, content, imported, Buffer.from(signature, 'base64'))
            );
        });
    };
}

function importKey(key: string): KeyObject {
    const bytes = Buffer.from(key.slice(PUBLIC.length), 'base64');
    if (bytes.length !== PUBLIC_KEY_BYTES) throw new TypeError(`${PUBLIC} is followed by ${PUBLIC_KEY_BYTES} bytes in base64`);
    const jwk = { kty: 'OKP', crv: 'Ed25519', x: bytes.toString('base64url') };
    return createPublicKey({ key: jwk, format: 'jwk' });
}

function requireNow(timestamp: string): void {
    const age = Math.floor(Date.now() / 1000) - Number(timestamp);
    const isNow = /^\d+$/.test(timestamp) && Math.abs(age) <= TOLERANCE_S;
    if (!isNow) throw new PushNotGenuine('the time is not within five minutes of now');
}

function header(headers: PushHeaders, name: string): string {
    const value = headers instanceof Headers ? headers.get(name) : valueOf(headers, name);
    if (typeof value !== 'string' || value === '') throw new PushNotGenuine(`the header ${name} is not there once`);
    return value;
}

function valueOf(headers: Exclude<PushHeaders, Headers>, name: string): unknown {
    const found = Object.entries(headers).filter(([given]) => given.toLowerCase() === name);
    return found.length === 1 ? found[0]?.[1] : undefined;
}

function pushOf({ id, body }: Signed): Push {
    const { type, timestamp, data } = JSON.parse(body.toString()) as { type: string; timestamp: string; data: Change };
    return { id, type, timestamp, change: data };
}
