const FIRST_MS = 250;
const LAST_MS = 30_000;
/** A longer `Retry-After` is a mistake. */
const RETRY_AFTER_MAX_S = 3_600;

/** How long to wait after so many failures. What the answer asks for is the least. */
export function delayAfter(failures: number, retryAfter: number | undefined): number {
    const longest = Math.min(LAST_MS, FIRST_MS * 2 ** failures);
    const jittered = longest * (0.5 + Math.random() / 2);
    if (retryAfter === undefined) return jittered;
    return Math.min(retryAfter, RETRY_AFTER_MAX_S) * 1000 + Math.random() * FIRST_MS;
}

/** Throws what `signal` was aborted with. */
export function sleep(milliseconds: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
        if (signal?.aborted) return reject(signal.reason);
        const stop = () => {
            clearTimeout(timer);
            reject(signal?.reason);
        };
        const timer = setTimeout(() => {
            signal?.removeEventListener('abort', stop);
            resolve();
        }, milliseconds);
        signal?.addEventListener('abort', stop, { once: true });
    });
}
