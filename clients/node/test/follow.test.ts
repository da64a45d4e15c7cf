import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { CursorExpired, Mooring, MooringProblem, MooringUnreachable, type Step } from 'mooring-client';
import { FaultyServer, problem, type Answer } from './faulty_server.js';

async function start(t: TestContext, ...answers: Answer[]) {
    const server = new FaultyServer(...answers);
    const url = await server.start();
    t.after(() => server.stop());
    return { server, mooring: new Mooring({ url, token: 'token' }) };
}

function page(cursor: string, ...positions: number[]): Answer {
    return { body: { changes: positions.map((position) => ({ position, installation_id: `i${position}` })), cursor } };
}

function list(next_cursor: string | null, changes_cursor: string, ...ids: string[]): Answer {
    const installations = ids.map((installation_id) => ({ installation_id }));
    return { body: { installations, next_cursor, changes_cursor } };
}

async function take<T>(items: AsyncIterable<T>, count: number): Promise<T[]> {
    const taken: T[] = [];
    for await (const item of items) if (taken.push(item) >= count) break;
    return taken;
}

test('each change comes with the cursor after it, and the next page follows', async (t) => {
    const { server, mooring } = await start(t, page('f1-12', 7, 9), page('f1-13', 13));
    const followed = await take(mooring.follow({ after: 'f1-5', source: 'blnk', types: ['a', 'b'] }), 3);
    assert.deepEqual(
        followed.map(({ change, cursor }) => [change.position, cursor]),
        [
            [7, 'f1-7'],
            [9, 'f1-9'],
            [13, 'f1-13'],
        ],
    );
    assert.deepEqual(
        server.seen.map((it) => it.url),
        ['/v1/changes?source=blnk&wait=25&after=f1-5&type=a%2Cb', '/v1/changes?source=blnk&wait=25&after=f1-12&type=a%2Cb'],
    );
});

test('failures are waited out and told', async (t) => {
    const { server, mooring } = await start(
        t,
        page('f1-1', 1),
        { hangUp: true },
        problem(503, 'database-unavailable', {}, { 'retry-after': '1' }),
        problem(500, 'internal-error'),
        page('f1-2', 2),
    );
    const told: [string, number][] = [];
    const onFailure = (error: MooringProblem | MooringUnreachable, ms: number) => void told.push([error.name, ms]);
    const followed = await take(mooring.follow({ after: 'f1-0', onFailure }), 2);
    assert.deepEqual(
        followed.map((it) => it.cursor),
        ['f1-1', 'f1-2'],
    );
    assert.deepEqual(
        told.map(([name]) => name),
        ['MooringUnreachable', 'MooringProblem', 'MooringProblem'],
    );
    assert.ok((told[1]?.[1] ?? 0) >= 1_000, 'Retry-After is obeyed');
    assert.ok(
        server.seen.slice(1).every((it) => it.url.includes('after=f1-1')),
        'it asks from where it was',
    );
});

test('what does not pass ends it', async (t) => {
    for (const [status, name] of [
        [401, 'unauthorized'],
        [403, 'insufficient-scope'],
        [400, 'invalid-parameter'],
    ] as const) {
        const { mooring } = await start(t, problem(status, name));
        await assert.rejects(take(mooring.follow(), 1), { code: name });
    }
});

test('a cursor that has expired is an error of its own', async (t) => {
    const { mooring } = await start(t, problem(410, 'cursor-expired'));
    await assert.rejects(take(mooring.follow({ after: 'f0-1' }), 1), (error) => {
        return error instanceof CursorExpired && error instanceof MooringProblem && error.status === 410;
    });
});

test('it ends when it is aborted: while it waits for an answer, between attempts, and within a page', async (t) => {
    for (const answer of [{ hang: true }, problem(503, 'database-unavailable', {}, { 'retry-after': '60' })]) {
        const { mooring } = await start(t, answer);
        assert.deepEqual(await take(mooring.follow({ signal: AbortSignal.timeout(100) }), 1), []);
    }
    const { mooring } = await start(t, page('f1-3', 1, 2, 3));
    const controller = new AbortController();
    const seen = [];
    for await (const { cursor } of mooring.follow({ signal: controller.signal })) {
        seen.push(cursor);
        controller.abort();
    }
    assert.deepEqual(seen, ['f1-1']);
});

test('a worker that does not wait is not asked without a pause', async (t) => {
    const { server, mooring } = await start(t, page('f1-1'));
    await take(mooring.follow({ signal: AbortSignal.timeout(1_000) }), 1);
    assert.ok(server.seen.length <= 5, `${server.seen.length} requests`);
});

test('a list is followed from the cursor of its first page', async (t) => {
    const { server, mooring } = await start(t, list('n', 'f1-4', 'a'), list(null, 'f1-9', 'b'), page('f1-5', 5));
    const [listed, changed] = (await take(mooring.listAndFollow({ source: 'blnk' }), 2)) as [Step, Step];
    assert.ok(listed.kind === 'listed' && changed.kind === 'changed');
    assert.deepEqual(
        listed.installations.map((it) => it.installation_id),
        ['a', 'b'],
    );
    assert.equal(listed.cursor, 'f1-4');
    assert.equal(changed.cursor, 'f1-5');
    assert.match(server.seen[2]?.url ?? '', /after=f1-4/);
});

test('after an expired cursor it lists again', async (t) => {
    const { server, mooring } = await start(
        t,
        problem(410, 'cursor-expired'),
        problem(503, 'database-unavailable'),
        list(null, 'f2-4', 'a'),
        page('f2-5', 5),
    );
    const steps = await take(mooring.listAndFollow({ after: 'f1-1' }), 2);
    assert.deepEqual(
        steps.map((it) => [it.kind, it.cursor]),
        [
            ['listed', 'f2-4'],
            ['changed', 'f2-5'],
        ],
    );
    assert.deepEqual(
        server.seen.map((it) => it.url.split('?')[0]),
        ['/v1/changes', '/v1/installations', '/v1/installations', '/v1/changes'],
    );
});
