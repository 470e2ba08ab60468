// SPDX-License-Identifier: MIT OR Apache-2.0
//! Times as Kubernetes and HTTP write them, and spans as people read them.

use crate::cert::show_time;

/// Seconds since 1970 of `2026-11-21T09:47:48Z`; fractions are cut off. `None` for anything else.
pub(super) fn from_rfc3339(text: &str) -> Option<u64> {
    let (date, rest) = text.strip_suffix('Z')?.split_once('T')?;
    let clock = rest.split('.').next()?;
    let mut date = date.splitn(3, '-');
    let (year, month, day) = (date.next()?.parse().ok()?, date.next()?.parse().ok()?, date.next()?.parse().ok()?);
    seconds(year, month, day, clock)
}

/// Seconds since 1970 of `Sat, 21 Nov 2026 09:47:48 GMT`.
pub(super) fn from_http(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_once(", ")?.1.split_whitespace();
    let day = words.next()?.parse().ok()?;
    let month = words.next()?;
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let year = words.next()?.parse().ok()?;
    let clock = words.next()?;
    (words.next()? == "GMT").then(|| seconds(year, month, day, clock))?
}

fn seconds(year: u64, month: u64, day: u64, clock: &str) -> Option<u64> {
    let mut clock = clock.splitn(3, ':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let sane = (1970..10_000).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !sane {
        return None;
    }
    // Days of the proleptic Gregorian calendar, years counted from March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + (day - 1) - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

/// `2026-11-21T09:47:48Z`.
pub(super) fn rfc3339(unix: u64) -> String {
    show_time(unix).replacen(' ', "T", 1).replace(" UTC", "Z")
}

/// `118 s`, `12 min`, `5 h`, `71 d`: two significant digits are enough for a person.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(from_rfc3339("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(from_rfc3339("2024-02-29T23:59:58.123456Z"), Some(1_709_251_198));
        assert_eq!(from_http("Thu, 29 Feb 2024 23:59:58 GMT"), Some(1_709_251_198));
        assert_eq!(rfc3339(1_709_251_198), "2024-02-29T23:59:58Z");
        for text in ["", "Z", "2024-02-29", "2024-13-01T00:00:00Z", "2024-02-29T25:00:00Z", "-1-1-1T0:0:0Z", "null"] {
            assert_eq!(from_rfc3339(text), None, "{text}");
            assert_eq!(from_http(text), None, "{text}");
        }
        assert_eq!(from_http("Thu, 29 Feb 2024 23:59:58 CET"), None);
    }

    #[test]
    fn spans_are_short() {
        assert_eq!(
            [0, 119, 120, 7199, 7200, 172_799, 172_800, 71 * 86_400].map(span),
            ["0 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 d", "71 d"]
        );
    }

    proptest::proptest! {
        #[test]
        fn what_is_shown_is_read_back(unix in 0_u64..200_000_000_000) {
            assert_eq!(from_rfc3339(&rfc3339(unix)), Some(unix));
        }

        #[test]
        fn never_panics(text: String) {
            let _ = (from_rfc3339(&text), from_http(&text));
        }
    }
}
