use std::{str::FromStr, time::Duration};

use hybrid_core::{Error, Result, Timestamp};
use jiff::{
    civil::Weekday,
    tz::{Offset, TimeZone},
};

/// When a worker takes on work: windows of local time on days of the week, in a time zone.
///
/// As text: windows and then the zone, with `;` between. A window is days (`mon`, `mon-fri`, `sat,sun`, `daily`) and times `hh:mm-hh:mm`;
/// one that ends before it begins goes on into the next day, `24:00` is the day's end. The zone is an IANA name, an offset such as `+02:00`, `UTC`, or a POSIX `TZ` rule with daylight saving.
/// When clocks are put forward or back the windows stay where the clock on the wall says.
///
/// ```
/// use hybrid_sync::worker::WorkingHours;
///
/// let hours: WorkingHours = "mon-fri 19:00-07:00; sat,sun 00:00-24:00; Europe/Berlin".parse()?;
/// assert!(hours.is_open("2026-03-02T20:00:00Z".parse()?)); // Monday, 21:00 in Berlin
/// assert!(hours.is_open("2026-03-03T05:59:00Z".parse()?)); // Tuesday, 06:59
/// assert!(!hours.is_open("2026-03-03T11:00:00Z".parse()?)); // Tuesday, noon
/// # Ok::<(), hybrid_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct WorkingHours(Option<Schedule>);

#[derive(Clone, Debug, PartialEq)]
struct Schedule {
    windows: Vec<Window>,
    zone: TimeZone,
}

/// A window of a week: `from` to `to` in minutes of the day on the days set, counted from Monday.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Window {
    days: [bool; 7],
    from: u16,
    to: u16,
}

const DAY: u16 = 24 * 60;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

impl WorkingHours {
    /// Day and night.
    pub fn always() -> Self {
        Self(None)
    }

    /// Whether work is taken on at `now`.
    pub fn is_open(&self, now: Timestamp) -> bool {
        let Some(Schedule { windows, zone }) = &self.0 else { return true };
        let Ok(now) = jiff::Timestamp::from_microsecond(now.unix_micros()) else { return true };
        let local = zone.to_datetime(now);
        let minute = u16::try_from(i16::from(local.hour()) * 60 + i16::from(local.minute())).unwrap_or(0);
        windows.iter().any(|window| window.covers(local.weekday(), minute))
    }

    /// How long it is open from `now` on, at most `limit`: zero if it is closed. To the second before a full minute at which it closes.
    pub(super) fn open_for(&self, now: Timestamp, limit: Duration) -> Duration {
        if !self.is_open(now) {
            return Duration::ZERO;
        }
        // Windows end at full minutes, and so do the offsets of all zones in use today.
        let micros = now.unix_micros().rem_euclid(60_000_000).unsigned_abs();
        let mut open = Duration::from_micros(60_000_000 - micros);
        while open < limit && self.is_open(now.plus(open)) {
            open += Duration::from_secs(60);
        }
        open.min(limit)
    }
}

impl Window {
    fn covers(&self, weekday: Weekday, minute: u16) -> bool {
        let today = usize::try_from(weekday.to_monday_zero_offset()).unwrap_or(0);
        let yesterday = (today + 6) % 7;
        let Self { days, from, to } = *self;
        if from < to {
            return days[today] && (from..to).contains(&minute);
        }
        days[today] && minute >= from || days[yesterday] && minute < to
    }
}

impl FromStr for WorkingHours {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = |message: &'static str| {
            Error::invalid("parse working hours", message)
                .with("found", format_args!("{text:?}"))
                .with("example", "mon-fri 19:00-07:00; sat,sun 00:00-24:00; Europe/Berlin")
        };
        let mut parts: Vec<&str> = text.split(';').map(str::trim).collect();
        let zone = parts.pop().and_then(parse_zone).ok_or_else(|| {
            invalid("expected a time zone at the end: an IANA name that this machine knows, an offset such as +02:00, or UTC")
        })?;
        let windows: Vec<_> = parts.into_iter().map(parse_window).collect::<Option<_>>().unwrap_or_default();
        if windows.is_empty() {
            return Err(invalid("expected windows of days and times before the time zone"));
        }
        Ok(Self(Some(Schedule { windows, zone })))
    }
}

fn parse_zone(text: &str) -> Option<TimeZone> {
    if let Some(sign) = text.strip_prefix('+').map(|_| 1).or(text.strip_prefix('-').map(|_| -1)) {
        let minutes = i32::from(parse_time(&text[1..])?);
        return Offset::from_seconds(sign * minutes * 60).ok().map(TimeZone::fixed);
    }
    if let Ok(zone) = TimeZone::get(text) {
        return Some(zone);
    }
    // Only rules with daylight saving: in POSIX `UTC+2` lies west of Greenwich, which nobody who writes it means.
    text.contains(',').then(|| TimeZone::posix(text).ok()).flatten()
}

fn parse_window(text: &str) -> Option<Window> {
    let (days, times) = text.split_once(' ')?;
    let (from, to) = times.trim().split_once('-')?;
    let (from, to) = (parse_time(from)?, parse_time(to)?);
    (from < DAY && from != to).then_some(Window { days: parse_days(days)?, from, to })
}

fn parse_days(text: &str) -> Option<[bool; 7]> {
    if text == "daily" {
        return Some([true; 7]);
    }
    let index = |day: &str| DAYS.iter().position(|name| *name == day);
    let mut days = [false; 7];
    for span in text.split(',') {
        let (first, last) = span.split_once('-').unwrap_or((span, span));
        let (first, last) = (index(first)?, index(last)?);
        // A span may go over the week's end: sat-mon.
        (0..=(last + 7 - first) % 7).for_each(|i| days[(first + i) % 7] = true);
    }
    Some(days)
}

/// `hh:mm` up to 24:00, in minutes.
fn parse_time(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let digits = |part: &str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(hours) || !digits(minutes) {
        return None;
    }
    let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
    (minutes < 60 && hours * 60 + minutes <= DAY).then_some(hours * 60 + minutes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(hours: &str, times: &[&str]) -> Vec<bool> {
        let hours: WorkingHours = hours.parse().unwrap();
        times.iter().map(|time| hours.is_open(time.parse().unwrap())).collect()
    }

    #[test]
    fn windows_open_and_close_on_the_minute_and_cross_midnight() {
        // 2026-03-06 is a Friday.
        let times = [
            "2026-03-06T21:59:59Z",
            "2026-03-06T22:00:00Z",
            "2026-03-07T05:59:59Z",
            "2026-03-07T06:00:00Z",
            "2026-03-06T03:00:00Z",
        ];
        assert_eq!(open("fri 22:00-06:00; UTC", &times), [false, true, true, false, false]);
        assert_eq!(open("fri 22:00-24:00; UTC", &times), [false, true, false, false, false]);
        assert_eq!(open("sat-mon 00:00-12:00; UTC", &["2026-03-09T11:00:00Z", "2026-03-10T11:00:00Z"]), [true, false]);
    }

    #[test]
    fn windows_follow_the_clock_on_the_wall() {
        // Clocks go forward on 2026-03-29 in central Europe: 08:00 is 07:00 UTC the day before and 06:00 UTC that day.
        let times = ["2026-03-28T06:59:00Z", "2026-03-28T07:00:00Z", "2026-03-29T06:00:00Z", "2026-03-29T05:59:00Z"];
        for zone in ["Europe/Berlin", "CET-1CEST,M3.5.0,M10.5.0/3"] {
            assert_eq!(open(&format!("daily 08:00-09:00; {zone}"), &times), [false, true, true, false], "{zone}");
        }
        assert_eq!(open("daily 08:00-09:00; +02:00", &times), [true, false, true, false]);
        assert_eq!(open("daily 00:00-01:00; -03:30", &["2026-03-28T03:29:00Z", "2026-03-28T03:30:00Z"]), [false, true]);
    }

    #[test]
    fn how_long_it_stays_open_ends_on_the_minute() {
        let hours: WorkingHours = "daily 08:00-09:00; UTC".parse().unwrap();
        let open_for = |time: &str| hours.open_for(time.parse().unwrap(), Duration::from_secs(90)).as_secs();
        assert_eq!(open_for("2026-03-06T08:30:10Z"), 90);
        assert_eq!(open_for("2026-03-06T08:59:10Z"), 50);
        assert_eq!(open_for("2026-03-06T08:58:40Z"), 80);
        assert_eq!(open_for("2026-03-06T09:00:00Z"), 0);
        assert_eq!(WorkingHours::always().open_for(Timestamp::UNIX_EPOCH, Duration::from_secs(90)).as_secs(), 90);
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for bad in [
            "",
            "UTC",
            "mon 08:00-09:00",
            "mon 08:00-09:00; Atlantis/Capital",
            "mon 8-9; UTC",
            "moon 08:00-09:00; UTC",
            "mon 08:00-08:00; UTC",
            "mon 08:00-09:00; UTC+2",
            "mon 24:00-08:00; UTC",
            "mon 08:00-24:01; UTC",
            "mon 08:60-09:00; UTC",
            "mon 08:00-09:00; +25:00",
            "mon; UTC",
            "; UTC",
            "mon 08:00-09:00; bad; UTC",
            "mon +8:00-09:00; UTC",
        ] {
            assert!(bad.parse::<WorkingHours>().is_err(), "{bad}");
        }
    }
}
