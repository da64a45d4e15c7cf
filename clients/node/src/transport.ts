import { delayAfter, sleep } from './backoff.js';
import { isPassing, MooringProblem, MooringUnreachable, problemOf } from './errors.js';

/** Further attempts of a request that changes nothing. */
const RETRIES = 3;
const TIMEOUT_MS = 10_000;

/** Called before each attempt if it is a function, because workload identities rotate. What it throws is thrown. */
export type Token = string | (() => string | Promise<string>);

export interface MooringOptions {
    /** Where the worker is, such as `http://worker:8081`. */
    url: string | URL;
    token: Token;
    /** How long a call may take with all its attempts, beside what it is told to wait. 10 s unless given. */
    timeoutMs?: number;
}

export type Query = Record<string, string | number | undefined>;

export interface Asked {
    method: 'GET' | 'POST';
    path: string;
    query?: Query;
    body?: unknown;
    /** How long the worker may wait before it answers. */
    waitS?: number;
    retries?: number;
    signal?: AbortSignal;
}

export class Transport {
    readonly #base: string;
    readonly #token: Token;
    readonly #timeoutMs: number;

    constructor({ url, token, timeoutMs = TIMEOUT_MS }: MooringOptions) {
        this.#base = String(new URL(url)).replace(/\/+$/, '');
        this.#token = token;
        this.#timeoutMs = timeoutMs;
    }

    /** The JSON of a success. */
    async ask<Answer>(asked: Asked): Promise<Answer> {
        const until = Date.now() + this.#timeoutMs + (asked.waitS ?? 0) * 1000;
        const retries = asked.retries ?? (asked.method === 'GET' ? RETRIES : 0);
        for (let failures = 0; ; failures += 1) {
            try {
                return (await this.#attempt(asked, until)) as Answer;
            } catch (error) {
                if (failures >= retries || !isPassing(error)) throw error;
                const retryAfter = error instanceof MooringProblem ? error.retryAfter : undefined;
                const delay = delayAfter(failures, retryAfter);
                if (Date.now() + delay >= until) throw error;
                await sleep(delay, asked.signal);
            }
        }
    }

    async #attempt(asked: Asked, until: number): Promise<unknown> {
        const { signal } = asked;
        signal?.throwIfAborted();
        const authorization = `Bearer ${await this.#currentToken()}`;
        // Not `AbortSignal.any`: on a signal that lives long it leaves something behind for each request.
        const controller = new AbortController();
        const abort = () => controller.abort();
        signal?.addEventListener('abort', abort, { once: true });
        const timer = setTimeout(abort, Math.max(0, until - Date.now()));
        try {
            return await this.#exchange(asked, authorization, controller.signal);
        } catch (error) {
            if (error instanceof MooringProblem || error instanceof MooringUnreachable) throw error;
            signal?.throwIfAborted();
            const timedOut = controller.signal.aborted;
            const why = timedOut ? 'no answer in time' : 'no answer';
            throw new MooringUnreachable(`${named(asked)}: ${why}`, { timedOut, cause: error });
        } finally {
            clearTimeout(timer);
            signal?.removeEventListener('abort', abort);
        }
    }

    async #exchange(asked: Asked, authorization: string, signal: AbortSignal): Promise<unknown> {
        const headers: Record<string, string> = { authorization, accept: 'application/json' };
        if (asked.body !== undefined) headers['content-type'] = 'application/json';
        const response = await fetch(this.#base + asked.path + queryString(asked.query), {
            method: asked.method,
            headers,
            signal,
            // A worker redirects nobody, and another host must not see what is sent here.
            redirect: 'manual',
            body: asked.body === undefined ? null : JSON.stringify(asked.body),
        });
        const body = await response.text();
        if (!response.ok) throw problemOf(response, body);
        try {
            return JSON.parse(body);
        } catch {
            // What the parser says repeats a part of the answer, which may be a secret.
            throw new MooringUnreachable(`${named(asked)}: the answer is not JSON`);
        }
    }

    async #currentToken(): Promise<string> {
        const given = typeof this.#token === 'function' ? await this.#token() : this.#token;
        const token = given.trim();
        // `fetch` would repeat it in its error.
        if (!/^[\x21-\x7e]+$/.test(token)) throw new TypeError('the token is empty, or no text that a header may hold');
        return token;
    }
}

function named(asked: Asked): string {
    return `${asked.method} ${asked.path}`;
}

function queryString(query: Query = {}): string {
    const parameters = new URLSearchParams();
    for (const [name, value] of Object.entries(query)) if (value !== undefined) parameters.append(name, String(value));
    return parameters.size > 0 ? `?${parameters}` : '';
}
