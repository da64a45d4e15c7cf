import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';

const DEADLINE_MS = 30_000;
const LOOK_EVERY_MS = 50;

/** The values of these variables, or why a test is skipped. */
export function environment<Name extends string>(...names: Name[]): { values: Record<Name, string>; skip: string | false } {
    const missing = names.filter((name) => !process.env[name]);
    const values = Object.fromEntries(names.map((name) => [name, process.env[name] ?? ''])) as Record<Name, string>;
    return { values, skip: missing.length > 0 && `${missing.join(', ')} not set: it needs a running Mooring` };
}

/** What `look` finds at last. */
export async function eventually<T>(what: string, look: () => Promise<T | undefined | false>): Promise<T> {
    const until = Date.now() + DEADLINE_MS;
    for (;;) {
        const found = await look();
        if (found) return found;
        assert.ok(Date.now() < until, `in vain: ${what}`);
        await sleep(LOOK_EVERY_MS);
    }
}

/** Goes where the browser of a user goes who grants access. */
export async function grant(ingest: string, source: string, code: string): Promise<void> {
    const begun = await fetch(`${ingest}/oauth/${source}/authorize`, { redirect: 'manual' });
    const cookie = begun.headers.get('set-cookie')?.split(';')[0] ?? '';
    const state = new URL(begun.headers.get('location') ?? '').searchParams.get('state') ?? '';
    await comeBack(ingest, source, { code, state }, cookie);
}

/** Comes back from the platform, with a code. */
export async function comeBack(ingest: string, source: string, query: Record<string, string>, cookie = ''): Promise<void> {
    const url = `${ingest}/oauth/${source}/callback?${new URLSearchParams(query)}`;
    const answer = await fetch(url, { headers: { cookie }, redirect: 'manual' });
    assert.ok(answer.status === 200 || answer.status === 303, `${answer.status} ${await answer.text()}`);
}
