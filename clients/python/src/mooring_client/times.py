import re
from datetime import datetime


def time_of(text: str) -> datetime:
    """A time as the API writes it."""
    # Before 3.11 `fromisoformat` takes neither `Z` nor any other number of digits.
    with_offset = re.sub("[Zz]$", "+00:00", text)
    return datetime.fromisoformat(re.sub(r"\.(\d+)", lambda it: f".{it[1][:6]:0<6}", with_offset))
