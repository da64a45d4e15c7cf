import random

FIRST_S = 0.25
LAST_S = 30.0
# A longer `Retry-After` is a mistake.
RETRY_AFTER_MAX_S = 3_600


def delay_after(failures: int, retry_after: int | None) -> float:
    """How many seconds to wait after so many failures. What the answer asks for is the least."""
    if retry_after is not None:
        return min(retry_after, RETRY_AFTER_MAX_S) + random.random() * FIRST_S
    # A larger power of two is beyond the longest wait, and one day beyond a float.
    longest = min(LAST_S, FIRST_S * float(2 ** min(failures, 16)))
    return longest * (0.5 + random.random() / 2)
