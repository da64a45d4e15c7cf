//! Inputs that are almost right: a seed, changed in a few places. Random bytes
//! would end at the first check; these come further. JSON is changed as JSON
//! first, and then as bytes.

use std::{fmt, slice};

use serde_json::{Map, Value, json};

/// As the largest body that ingest takes.
const BYTES_MAX: usize = 64 * 1024;
const CHANGES_MAX: usize = 6;

/// Looks like a secret and stands in many seeds; whoever repeats it leaks it.
pub(crate) const CANARY: &str = "canary-0123456789abcdef-secret";

/// What parsers stumble over.
const WORDS: &[&str] = &[
    CANARY,
    "",
    "\0",
    "\r\n",
    "\u{7f}",
    "\u{202e}",
    "é",
    "😀",
    "/",
    ":",
    ".",
    "%",
    "%2F",
    "+",
    "-",
    "_",
    "~",
    "#",
    "~0",
    "!",
    "=",
    "0",
    "00",
    "-1",
    "64",
    "256",
    "18446744073709551616",
    "1e400",
    "null",
    "true",
    "{}",
    "[]",
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    "$sealed",
    "install:",
    "uninstall:",
    "sha256-",
    "header:",
    "query:",
    "value:",
    "v1.",
    "v2.",
    "N/A",
    "1969-12-31T23:59:59Z",
    "9999-12-30T22:00:00Z",
    "0001-01-01T00:00:00Z",
    "2026-02-30T00:00:00Z",
    "-9999-01-01",
    "253402207200",
];

/// What a target takes: a part for each thing that comes apart, such as a body.
#[derive(Clone)]
pub(crate) struct Input {
    /// Which of several parsers it is for; never changed.
    pub(crate) of: &'static str,
    pub(crate) parts: Vec<Vec<u8>>,
}

impl Input {
    pub(crate) fn new(of: &'static str, parts: &[&str]) -> Self {
        Self { of, parts: parts.iter().map(|part| part.as_bytes().to_vec()).collect() }
    }

    /// A part, or what is left of one that is no longer UTF-8.
    pub(crate) fn text(&self, part: usize) -> String {
        String::from_utf8_lossy(&self.parts[part]).into_owned()
    }
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.of)?;
        self.parts.iter().try_for_each(|part| write!(f, "\n    {}", part.escape_ascii()))
    }
}

/// Makes inputs out of seeds.
pub(crate) struct Mutated {
    seeds: Vec<Input>,
    /// Every value that is in a seed, however deep.
    values: Vec<Value>,
    /// Every text and name that is in a seed, and [`WORDS`].
    words: Vec<String>,
}

impl Mutated {
    pub(crate) fn new(seeds: Vec<Input>) -> Self {
        let mut values = Vec::new();
        let json = |part: &Vec<u8>| serde_json::from_slice(part).ok();
        seeds.iter().flat_map(|seed| seed.parts.iter().filter_map(json)).for_each(
            |value: Value| {
                collect(&value, &mut values);
            },
        );
        let mut words: Vec<String> = WORDS.iter().map(|word| (*word).to_owned()).collect();
        for value in &values {
            match value {
                Value::String(text) => words.push(text.clone()),
                Value::Object(fields) => words.extend(fields.keys().cloned()),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {}
            }
        }
        words.sort();
        words.dedup();
        Self { seeds, values, words }
    }
}

fn collect(value: &Value, found: &mut Vec<Value>) {
    found.push(value.clone());
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        Value::Object(fields) => fields.values().for_each(|field| collect(field, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

impl Mutated {
    /// The input that these choices make; without any, a seed as it is.
    pub(crate) fn input(&self, choices: &[u32]) -> Input {
        let mut dice = Dice(choices.iter());
        let mut input = dice.one_of(&self.seeds).clone();
        for _ in 0..dice.below(CHANGES_MAX) {
            let at = dice.below(input.parts.len());
            let part = &mut input.parts[at];
            if let Ok(mut value) = serde_json::from_slice::<Value>(part) {
                self.change(&mut value, &mut dice);
                *part = dice.written(&value);
            }
        }
        // Rarely: the first change usually ends what is JSON.
        for _ in 0..dice.below(CHANGES_MAX).saturating_sub(CHANGES_MAX / 2) {
            let at = dice.below(input.parts.len());
            self.change_bytes(&mut input.parts[at], &mut dice);
        }
        input.parts.iter_mut().for_each(|part| part.truncate(BYTES_MAX));
        input
    }

    /// Changes something in it.
    fn change(&self, value: &mut Value, dice: &mut Dice<'_>) {
        let inside = match value {
            Value::Object(fields) => fields.len(),
            Value::Array(items) => items.len(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
        };
        if inside > 0 && dice.below(4) > 0 {
            let at = dice.below(inside);
            let inner = match value {
                Value::Object(fields) => fields.values_mut().nth(at),
                Value::Array(items) => items.get_mut(at),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
            };
            return self.change(inner.unwrap(), dice);
        }
        match value {
            Value::Object(fields) if dice.below(8) > 0 => self.change_fields(fields, dice),
            Value::Array(items) if dice.below(8) > 0 => match dice.below(4) {
                0 => drop(items.pop()),
                1 => *items = vec![self.value(dice); dice.size(512)],
                _ => items.push(self.value(dice)),
            },
            Value::String(text) if dice.below(2) > 0 => {
                let mut bytes = std::mem::take(text).into_bytes();
                self.change_bytes(&mut bytes, dice);
                *text = String::from_utf8_lossy(&bytes).into_owned();
            }
            _ => *value = self.value(dice),
        }
    }

    fn change_fields(&self, fields: &mut Map<String, Value>, dice: &mut Dice<'_>) {
        let at = dice.below(fields.len());
        let known = fields.keys().nth(at).cloned().unwrap_or_default();
        let word = dice.one_of(&self.words).clone();
        match dice.below(5) {
            0 => drop(fields.remove(&known)),
            1 => {
                let value = fields.remove(&known).unwrap_or_default();
                fields.insert(word, value);
            }
            2 => {
                for number in 0..dice.size(512) {
                    fields.insert(format!("{word}{number}"), json!(number));
                }
            }
            _ => drop(fields.insert(word, self.value(dice))),
        }
    }

    /// A value of any kind, often one that a seed has elsewhere.
    fn value(&self, dice: &mut Dice<'_>) -> Value {
        match dice.below(12) {
            0..4 if !self.values.is_empty() => dice.one_of(&self.values).clone(),
            0..7 => json!(dice.one_of(&self.words)),
            7 => json!(dice.one_of(&self.words).repeat(dice.size(4_096))),
            8 => dice.one_of(&[json!(0), json!(-1), json!(u64::MAX), json!(i64::MIN)]).clone(),
            9 => dice
                .one_of(&[json!(1e308), json!(0.1), json!(-0.0), json!(123_456_789.123_456_79)])
                .clone(),
            10 => dice.one_of(&[json!(null), json!(true), json!([]), json!({})]).clone(),
            _ => (0..dice.size(256)).fold(json!(1), |inner, _| json!([inner])),
        }
    }

    fn change_bytes(&self, bytes: &mut Vec<u8>, dice: &mut Dice<'_>) {
        let from = dice.below(bytes.len() + 1);
        let to = from + dice.below((bytes.len() - from).min(20) + 1);
        match dice.below(6) {
            0 => drop(bytes.drain(from..to)),
            1 => {
                let twice = bytes[from..to].to_vec();
                drop(bytes.splice(from..from, twice));
            }
            2 => bytes.truncate(from),
            3 if from < bytes.len() => bytes[from] ^= 1 << dice.below(8),
            _ => {
                let word = dice.one_of(&self.words).as_bytes().to_vec();
                drop(bytes.splice(from..to, word));
            }
        }
    }
}

/// The choices that make an input; all zero where there are no more.
struct Dice<'a>(slice::Iter<'a, u32>);

impl Dice<'_> {
    /// Less than `end`, or zero.
    fn below(&mut self, end: usize) -> usize {
        let choice = self.0.next().copied().unwrap_or(0);
        usize::try_from(choice).unwrap() % end.max(1)
    }

    /// A power of two, so that most are small.
    fn size(&mut self, max: usize) -> usize {
        max >> self.below(12)
    }

    fn one_of<'b, T>(&mut self, items: &'b [T]) -> &'b T {
        &items[self.below(items.len())]
    }

    /// As JSON, packed or not.
    fn written(&mut self, value: &Value) -> Vec<u8> {
        let written =
            if self.below(4) == 3 { serde_json::to_vec_pretty } else { serde_json::to_vec };
        written(value).unwrap()
    }
}
