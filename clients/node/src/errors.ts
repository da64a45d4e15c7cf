import type { Candidate } from './types.js';

const URN = 'urn:mooring:problem:';

interface ProblemFields {
    type: string;
    title: string;
    status: number;
    detail: string;
    candidates: readonly Candidate[];
    retryAfter: number | undefined;
}

/** Mooring answered, and the answer is a problem (RFC 9457). */
export class MooringProblem extends Error {
    override readonly name: string = 'MooringProblem';
    /** Stable, such as `urn:mooring:problem:no-credential`. An answer that is not Mooring's has `about:blank`. */
    readonly type: string;
    readonly title: string;
    readonly status: number;
    /** For people. */
    readonly detail: string;
    /** Of `ambiguous-installation`: the installations that have this id. */
    readonly candidates: readonly Candidate[];
    /** In how many seconds to ask again, if the answer says so. */
    readonly retryAfter: number | undefined;

    constructor(fields: ProblemFields) {
        super(`${fields.status} ${shortName(fields.type) || fields.title}: ${fields.detail}`);
        this.type = fields.type;
        this.title = fields.title;
        this.status = fields.status;
        this.detail = fields.detail;
        this.candidates = fields.candidates;
        this.retryAfter = fields.retryAfter;
    }

    /** The last part of `type`, such as `no-credential`. Empty if the answer is not Mooring's. */
    get code(): string {
        return shortName(this.type);
    }
}

/** The changes after a cursor are gone. List the installations, and follow from the `changes_cursor` of the first page. */
export class CursorExpired extends MooringProblem {
    override readonly name = 'CursorExpired';
}

/** There is no answer, or none that a worker gives. */
export class MooringUnreachable extends Error {
    override readonly name = 'MooringUnreachable';
    readonly timedOut: boolean;

    constructor(message: string, { timedOut = false, cause }: { timedOut?: boolean; cause?: unknown } = {}) {
        super(message, { cause });
        this.timedOut = timedOut;
    }
}

export function problemOf(response: Response, body: string): MooringProblem {
    const said = objectIn(body);
    const text = (name: string, otherwise: string) => (typeof said[name] === 'string' ? (said[name] as string) : otherwise);
    const candidates = said['candidates'];
    const fields: ProblemFields = {
        type: text('type', 'about:blank'),
        title: text('title', response.statusText),
        status: response.status,
        detail: text('detail', 'the answer says no more'),
        candidates: Array.isArray(candidates) ? (candidates as Candidate[]) : [],
        retryAfter: secondsOf(response.headers.get('retry-after')),
    };
    return shortName(fields.type) === 'cursor-expired' ? new CursorExpired(fields) : new MooringProblem(fields);
}

/** Whether the same request may succeed a little later. */
export function isPassing(error: unknown): error is MooringProblem | MooringUnreachable {
    if (error instanceof MooringProblem) return [429, 502, 503, 504].includes(error.status);
    return error instanceof MooringUnreachable;
}

/** `Retry-After` is a number of seconds or a date (RFC 9110, section 10.2.3). */
export function secondsOf(retryAfter: string | null): number | undefined {
    const given = retryAfter?.trim();
    if (!given) return undefined;
    if (/^\d+$/.test(given)) return Number(given);
    const date = Date.parse(given);
    return Number.isNaN(date) ? undefined : Math.max(0, Math.ceil((date - Date.now()) / 1000));
}

function shortName(type: string): string {
    return type.startsWith(URN) ? type.slice(URN.length) : '';
}

function objectIn(body: string): Record<string, unknown> {
    try {
        const value: unknown = JSON.parse(body);
        return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
    } catch {
        return {};
    }
}
