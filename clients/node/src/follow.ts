import { delayAfter, sleep } from './backoff.js';
import { CursorExpired, isPassing, MooringProblem, type MooringUnreachable } from './errors.js';
import type { Cancel, Change, ChangesPage, ChangesQuery, Installation, InstallationsPage, ListQuery } from './types.js';

const WAIT_S = 25;
const PAGE_MAX = 200;
/** An answer without changes that came sooner did not wait. */
const WAITED_MS = 500;

export interface FollowOptions extends Cancel {
    /** The cursor after the last change that was dealt with. Without it from the oldest that is kept. */
    after?: string;
    source?: string;
    types?: readonly string[];
    /** How long one request waits for a change, in seconds. 25 unless given, 50 at most. */
    wait?: number;
    /** Told of each failure that is waited out. */
    onFailure?: (error: MooringProblem | MooringUnreachable, retryInMs: number) => void;
}

export interface Followed {
    change: Change;
    /** Store it with what the change led to. */
    cursor: string;
}

/** All installations: they take the place of what was known before. */
export interface Listed {
    kind: 'listed';
    installations: Installation[];
    cursor: string;
}

export interface Changed extends Followed {
    kind: 'changed';
}

export type Step = Listed | Changed;

type ReadChanges = (query: ChangesQuery & Cancel) => Promise<ChangesPage>;
type ReadPages = (query: ListQuery & Cancel) => AsyncIterable<InstallationsPage>;

export async function* follow(read: ReadChanges, options: FollowOptions): AsyncGenerator<Followed, void, undefined> {
    const { after, source, types, signal, onFailure } = options;
    const query = { source, types, signal, wait: Math.max(1, options.wait ?? WAIT_S) };
    const asking = { signal, onFailure };
    let cursor = after;
    let early = 0;
    while (!signal?.aborted) {
        const began = Date.now();
        const page = await untilAnswered(() => read({ ...query, after: cursor }), asking);
        if (page === ABORTED) return;
        for (const change of page.changes) {
            if (signal?.aborted) return;
            yield { change, cursor: cursorAt(page.cursor, change.position) };
        }
        cursor = page.cursor;
        const waited = page.changes.length > 0 || Date.now() - began >= WAITED_MS;
        early = waited ? 0 : early + 1;
        if (!waited && (await pause(delayAfter(early, undefined), signal)) === ABORTED) return;
    }
}

export async function* listAndFollow(
    pages: ReadPages,
    read: ReadChanges,
    options: FollowOptions,
): AsyncGenerator<Step, void, undefined> {
    const { source, signal } = options;
    let after = options.after;
    while (!signal?.aborted) {
        if (after === undefined) {
            const listed = await untilAnswered(() => list(pages, { source, signal }), options);
            if (listed === ABORTED) return;
            yield listed;
            after = listed.cursor;
        }
        try {
            for await (const followed of follow(read, { ...options, after })) yield { kind: 'changed', ...followed };
            return;
        } catch (error) {
            if (!(error instanceof CursorExpired)) throw error;
            after = undefined;
        }
    }
}

async function list(pages: ReadPages, { source, signal }: Pick<FollowOptions, 'source' | 'signal'>): Promise<Listed> {
    const installations: Installation[] = [];
    let cursor: string | undefined;
    for await (const page of pages({ source, limit: PAGE_MAX, signal })) {
        // What changes while the later pages are read comes after the first cursor.
        cursor ??= page.changes_cursor;
        installations.push(...page.installations);
    }
    return { kind: 'listed', installations, cursor: cursor ?? '' };
}

const ABORTED = Symbol('aborted');

/** Waits out what passes. */
async function untilAnswered<Answer>(
    ask: () => Promise<Answer>,
    { signal, onFailure }: Pick<FollowOptions, 'signal' | 'onFailure'>,
): Promise<Answer | typeof ABORTED> {
    for (let failures = 0; ; failures += 1) {
        try {
            return await ask();
        } catch (error) {
            if (signal?.aborted) return ABORTED;
            if (!mayPass(error)) throw error;
            const delay = delayAfter(failures, error instanceof MooringProblem ? error.retryAfter : undefined);
            onFailure?.(error, delay);
            if ((await pause(delay, signal)) === ABORTED) return ABORTED;
        }
    }
}

/** Whoever follows has time, so a fault of the worker is waited out, too. */
function mayPass(error: unknown): error is MooringProblem | MooringUnreachable {
    return isPassing(error) || (error instanceof MooringProblem && error.status >= 500);
}

async function pause(milliseconds: number, signal: AbortSignal | undefined): Promise<typeof ABORTED | undefined> {
    try {
        await sleep(milliseconds, signal);
        return undefined;
    } catch {
        return ABORTED;
    }
}

/** A page has the cursor after its last change. It is the name of the feed and a position, as the ID of a server-sent event. */
function cursorAt(ofPage: string, position: number): string {
    return ofPage.replace(/-\d+$/, `-${position}`);
}
