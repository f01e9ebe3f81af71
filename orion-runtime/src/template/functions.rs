//! The functions and filters that chat templates expect beside Jinja's own.

use std::time::Duration;

use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value, escape_formatter};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::guard;
use super::json::{self, Style};

pub(super) fn register(environment: &mut Environment<'_>) {
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", string);
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
    environment.add_filter(guard::MEASURED, measured);
    environment.add_filter(guard::WEIGHED, weighed);
    environment.add_filter(guard::NAMED, named);
    environment.set_formatter(write);
    environment.add_test("iterable", |value: &Value| {
        use ValueKind as K;
        matches!(value.kind(), K::Undefined | K::String | K::Bytes | K::Seq | K::Map | K::Iterable)
    });
    environment.set_unknown_method_callback(python_method);
}

/// Charges for the length of a list.
fn measured(state: &State, value: Value) -> Result<Value, Error> {
    if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        state.consume_fuel(value.len().map_or(1, |len| len as u64 / 64))?;
    }
    Ok(value)
}

/// Charges for all that a value holds.
fn weighed(state: &State, value: Value) -> Result<Value, Error> {
    weigh(state, &value)?;
    Ok(value)
}

/// Charges for a quarter of what a value holds: a conversation that a loop collects is named again at each turn.
fn named(state: &State, value: Value) -> Result<Value, Error> {
    let mut held = 0;
    count(state, &value, &mut held)?;
    Ok(value)
}

fn count(state: &State, value: &Value, held: &mut u32) -> Result<(), Error> {
    *held += 1;
    if held.is_multiple_of(4) {
        state.consume_fuel(1)?;
    }
    match value.kind() {
        // What is read once is not read here.
        ValueKind::Seq => value.try_iter()?.try_for_each(|item| count(state, &item, held)),
        ValueKind::Map => value.try_iter()?.try_for_each(|key| {
            count(state, &key, held)?;
            count(state, &value.get_item(&key)?, held)
        }),
        _ => Ok(()),
    }
}

/// Writes a value, charged in advance: what it holds may be far more than what it takes.
fn write(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    weigh(state, value)?;
    escape_formatter(out, state, value)
}

fn weigh(state: &State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::String => state.consume_fuel(value.as_str().map_or(0, str::len) as u64 / 64),
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()? {
                state.consume_fuel(1)?;
                weigh(state, &item)?;
            }
            Ok(())
        }
        ValueKind::Map => {
            for key in value.try_iter()? {
                state.consume_fuel(1)?;
                weigh(state, &key)?;
                weigh(state, &value.get_item(&key)?)?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn string(state: &State, value: &Value) -> Result<Value, Error> {
    weigh(state, value)?;
    Ok(if value.kind() == ValueKind::String { value.clone() } else { Value::from(value.to_string()) })
}

/// HTML's special characters as Python's `markupsafe` writes them.
fn escape(state: &State, value: &Value) -> Result<String, Error> {
    weigh(state, value)?;
    let mut escaped = String::new();
    for letter in value.to_string().chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&#39;"),
            '"' => escaped.push_str("&#34;"),
            other => escaped.push(other),
        }
    }
    Ok(escaped)
}

/// Methods of Python's strings that `pycompat` leaves out, and those it knows.
fn python_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return unknown_method_callback(state, value, method, args);
    };
    match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let first = method == "partition";
            let halves = if first { text.split_once(separator) } else { text.rsplit_once(separator) };
            Ok(match halves {
                Some((head, tail)) => [head, separator, tail].into_iter().collect(),
                None if first => [text, "", ""].into_iter().collect(),
                None => ["", "", text].into_iter().collect(),
            })
        }
        "rsplit" if !args.is_empty() => {
            let (separator, most): (&str, Option<usize>) = from_args(args)?;
            if separator.is_empty() {
                return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
            }
            let most = most.map_or(usize::MAX, |most| most.saturating_add(1));
            let mut parts: Vec<&str> = text.rsplitn(most, separator).collect();
            parts.reverse();
            Ok(parts.into_iter().collect())
        }
        _ => unknown_method_callback(state, value, method, args),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "the engine hands filters their options by value")]
fn to_json(
    state: &State,
    value: &Value,
    ensure_ascii: Option<bool>,
    options: Kwargs,
) -> Result<Value, Error> {
    weigh(state, value)?;
    let indent: Option<Value> = options.get("indent")?;
    let indent = indent.filter(|indent| indent.kind() == ValueKind::Number).and_then(|n| n.as_usize());
    let separators: Option<Vec<String>> = options.get("separators")?;
    let mut separators = separators.unwrap_or_default().into_iter();
    let style = Style {
        indent: indent.map(|indent| indent.min(64)),
        item_separator: separators.next(),
        key_separator: separators.next(),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ascii: ensure_ascii.or(options.get("ensure_ascii")?).unwrap_or(false),
    };
    options.assert_all_used()?;
    let text = json::write(value, &style);
    text.map(Value::from).ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidOperation,
            format!("tojson has no form for a value of type {}", value.kind()),
        )
    })
}

/// `strftime_now(format)` at a fixed time, in UTC.
pub(super) fn strftime_now(now: Duration) -> Value {
    Value::from_function(move |format: String| Moment::at(now).format(&format))
}

/// A point in time as a calendar has it.
struct Moment {
    year: i64,
    month: i64,
    day: i64,
    day_of_year: i64,
    weekday: usize,
    seconds: i64,
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

impl Moment {
    /// Days to a date by Hinnant's `civil_from_days`.
    fn at(now: Duration) -> Self {
        let total = i64::try_from(now.as_secs()).unwrap_or(i64::MAX / 2).min(253_402_300_799);
        let (days, seconds) = (total / 86_400, total % 86_400);
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let in_era = shifted % 146_097;
        let year_of_era = (in_era - in_era / 1_460 + in_era / 36_524 - in_era / 146_096) / 365;
        let in_year = in_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * in_year + 2) / 153;
        let day = in_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month as usize - 1];
        let day_of_year = before + day + i64::from(leap && month > 2);
        let weekday = usize::try_from((days + 4) % 7).unwrap_or(0);
        Self { year, month, day, day_of_year, weekday, seconds }
    }

    fn format(&self, format: &str) -> String {
        let mut text = String::new();
        let mut letters = format.chars();
        while let Some(letter) = letters.next() {
            if letter != '%' {
                text.push(letter);
                continue;
            }
            match letters.next() {
                Some('-') => {
                    let padded = letters.next().map(|code| self.field(code)).unwrap_or_default();
                    let bare = padded.trim_start_matches(['0', ' ']);
                    text.push_str(if bare.is_empty() { "0" } else { bare });
                }
                Some(code) => text.push_str(&self.field(code)),
                None => text.push('%'),
            }
        }
        text
    }

    fn field(&self, code: char) -> String {
        let (hour, minute, second) = (self.seconds / 3_600, self.seconds / 60 % 60, self.seconds % 60);
        let twelve = (hour + 11) % 12 + 1;
        let month = MONTHS[self.month as usize - 1];
        let day = DAYS[self.weekday];
        match code {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year),
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'A' => day.to_owned(),
            'a' => day[..3].to_owned(),
            'w' => self.weekday.to_string(),
            'u' => ((self.weekday + 6) % 7 + 1).to_string(),
            'H' => format!("{hour:02}"),
            'I' => format!("{twelve:02}"),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'f' => "000000".to_owned(),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            'T' | 'X' => format!("{hour:02}:{minute:02}:{second:02}"),
            'R' => format!("{hour:02}:{minute:02}"),
            'D' | 'x' => format!("{:02}/{:02}/{:02}", self.month, self.day, self.year % 100),
            'c' => format!(
                "{} {} {:2} {hour:02}:{minute:02}:{second:02} {}",
                &day[..3],
                &month[..3],
                self.day,
                self.year
            ),
            'Z' | 'z' => String::new(),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            other => format!("%{other}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected texts are those of Python's `datetime.strftime`.
    #[test]
    fn dates_are_written_as_python_writes_them() {
        let cases = [
            (0, "%Y-%m-%d %H:%M:%S %A", "1970-01-01 00:00:00 Thursday"),
            (1_709_210_096, "%d %b %Y, %j %-d %-I%p", "29 Feb 2024, 060 29 12PM"),
            (1_735_689_599, "%B %e, %y %a %w %u %j", "December 31, 24 Tue 2 2 366"),
            (951_827_696, "%c|%x|%X|%%", "Tue Feb 29 12:34:56 2000|02/29/00|12:34:56|%"),
        ];
        for (seconds, format, text) in cases {
            assert_eq!(Moment::at(Duration::from_secs(seconds)).format(format), text);
        }
    }
}
