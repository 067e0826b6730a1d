"""Dates and times as Debezium sends them, in the text that Postgres' `to_jsonb` has for them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

_MICROS_PER_DAY: Final = 86_400_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH: Final = datetime(1970, 1, 1)
_ISO: Final = re.compile(
    r"^([+-]?\d{4,9})-(\d\d)-(\d\d)[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?(Z|[+-]\d\d(?::?\d\d)?)$"
)
_FRACTION: Final = re.compile(r"\.(\d*?)0+(?!\d)")

#: What Debezium sends for `infinity` in columns without time zone: the driver's constants, and Java's limits.
_INFINITE_MICROS: Final = {
    9223372036825200000: "infinity",
    9223372036854775807: "infinity",
    -9223372036832400000: "-infinity",
    -9223372036854775808: "-infinity",
}
_INFINITE_DAYS: Final = {
    -2147472692: "infinity",
    -2147472691: "-infinity",
    2147483647: "infinity",
    -2147483648: "-infinity",
    2146033978: "infinity",
    2146033979: "infinity",
    2146033980: "infinity",
    # In arrays, and as a snapshot reads it, the number has run over; by a day more or less in other zones of Connect.
    -622191235: "infinity",
    -622191234: "infinity",
    -622191233: "infinity",
    -625821273: "-infinity",
    -625821272: "-infinity",
    -625821271: "-infinity",
}
#: The last year that Postgres has. In arrays `-infinity` arrives as Java's first moment, without its sign.
_LAST_YEAR: Final = 294_276


def instant(micros: int) -> datetime:
    """A moment of the source's clock. Raises OverflowError outside the years 1 to 9999."""
    return _EPOCH + timedelta(microseconds=micros)


def date_text(days: int) -> str:
    """`io.debezium.time.Date`: days since 1970."""
    if days in _INFINITE_DAYS:
        return _INFINITE_DAYS[days]
    year, month, day = _civil(days)
    return _dated(year, f"-{month:02d}-{day:02d}")


def timestamp_text(micros: int) -> str:
    """A timestamp without time zone, microseconds since 1970."""
    if micros in _INFINITE_MICROS:
        return _INFINITE_MICROS[micros]
    if -62_135_596_800_000_000 <= micros < 253_402_300_800_000_000:
        return _trimmed((_NAIVE_EPOCH + timedelta(microseconds=micros)).isoformat())
    days, within = divmod(micros, _MICROS_PER_DAY)
    year, month, day = _civil(days)
    return _dated(year, f"-{month:02d}-{day:02d}T{time_text(within)}")


def time_text(micros: int) -> str:
    """A time of day, microseconds since midnight; 24:00:00 exists in Postgres."""
    seconds, fraction = divmod(micros, 1_000_000)
    text = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return _trimmed(f"{text}.{fraction:06d}") if fraction else text


def zoned_timestamp_text(text: str) -> str:
    """`io.debezium.time.ZonedTimestamp` in UTC; `infinity` stays. Raises ValueError for other text."""
    if "infinity" in text:
        return text
    match = _ISO.match(text)
    if match is None:
        raise ValueError("not an ISO timestamp")
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    if int(year) > _LAST_YEAR:
        return "-infinity"
    if zone not in {"Z", "+00:00", "+00", "+0000"}:
        return _trimmed(datetime.fromisoformat(text).astimezone(UTC).isoformat())
    end = f"-{month}-{day}T{hour}:{minute}:{second or '00'}"
    digits = (fraction or "")[:6].rstrip("0")
    return _dated(int(year), f"{end}.{digits}+00:00" if digits else f"{end}+00:00")


def zoned_time_text(text: str) -> str:
    """`io.debezium.time.ZonedTime`, with the offset as Postgres has it."""
    return _trimmed(text.removesuffix("Z") + "+00" if text.endswith("Z") else text)


def _trimmed(text: str) -> str:
    """Without zeros at the end of the fraction, as Postgres prints it."""
    return _FRACTION.sub(lambda match: f".{match[1]}" if match[1] else "", text)


def _dated(year: int, rest: str) -> str:
    return f"{year:04d}{rest}" if year > 0 else f"{1 - year:04d}{rest} BC"


def _civil(days: int) -> tuple[int, int, int]:
    """Year (0 = 1 BC), month and day of the proleptic Gregorian calendar, for any number of days."""
    era, of_era = divmod(days + 719_468, 146_097)
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    day = of_year - (153 * month + 2) // 5 + 1
    month = month + 3 if month < 10 else month - 9
    return year + era * 400 + (month <= 2), month, day
