import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';

export interface Seen {
    method: string;
    url: string;
    headers: IncomingMessage['headers'];
    body: string;
}

export interface Answer {
    status?: number;
    headers?: Record<string, string>;
    body?: unknown;
    /** Hang up in place of an answer. */
    hangUp?: boolean;
    /** Never answer. */
    hang?: boolean;
}

/** Stands in for a network and a worker with faults: it gives these answers in turn, and the last one from then on. */
export class FaultyServer {
    readonly seen: Seen[] = [];
    readonly #server = createServer((request, response) => void this.#answer(request, response));
    readonly #answers: (Answer | ((seen: Seen) => Answer | Promise<Answer>))[];

    constructor(...answers: (Answer | ((seen: Seen) => Answer | Promise<Answer>))[]) {
        this.#answers = answers;
    }

    async start(port = 0): Promise<string> {
        await new Promise<void>((resolve) => this.#server.listen(port, '127.0.0.1', resolve));
        return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
    }

    stop(): void {
        this.#server.closeAllConnections();
        this.#server.close();
    }

    async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
        const { method = '', url = '', headers } = request;
        const seen = { method, url, headers, body: await text(request) };
        this.seen.push(seen);
        const next = this.#answers.length > 1 ? this.#answers.shift() : this.#answers[0];
        const answer = typeof next === 'function' ? await next(seen) : (next ?? {});
        if (answer.hang) return;
        if (answer.hangUp) return void request.socket.destroy();
        const body = typeof answer.body === 'string' ? answer.body : JSON.stringify(answer.body ?? {});
        response.writeHead(answer.status ?? 200, { 'content-type': 'application/json', ...answer.headers });
        response.end(body);
    }
}

export function problem(status: number, name: string, more: object = {}, headers: Record<string, string> = {}): Answer {
    const body = { type: `urn:mooring:problem:${name}`, title: name, status, detail: `it is ${name}`, ...more };
    return { status, headers: { 'content-type': 'application/problem+json', ...headers }, body };
}
