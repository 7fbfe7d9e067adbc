//! Reads a config's JSON object field by field, so that nothing in it is passed over in silence: what is not
//! known is an error, unless its name or value says that it changes nothing.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The object in a config file.
pub(super) struct Fields<'a> {
    file: &'a Path,
    object: &'a Map<String, Value>,
    asked: RefCell<HashSet<&'static str>>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(value: &'a Value, file: &'a Path) -> Result<Self> {
        match value {
            Value::Object(object) => Ok(Fields { file, object, asked: RefCell::default() }),
            other => Err(Error::format(file, format!("is {}: must be a JSON object", brief(other)))),
        }
    }

    /// The value of a field, where it is there and not null.
    pub(super) fn value(&self, name: &'static str) -> Option<&'a Value> {
        self.asked.borrow_mut().insert(name);
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// Whether the field is there at all, be it null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    /// The error that a field is not what it must be.
    pub(super) fn wrong(&self, name: &str, value: &Value, allowed: impl std::fmt::Display) -> Error {
        Error::format(self.file, format!("{name} is {}: must be {allowed}", brief(value)))
    }

    /// A whole number ≥ 0, or `default` where the field is missing.
    pub(super) fn size(&self, name: &'static str, default: usize) -> Result<usize> {
        Ok(self.optional_size(name)?.unwrap_or(default))
    }

    /// A whole number ≥ 0, or nothing where the field is missing or null.
    pub(super) fn optional_size(&self, name: &'static str) -> Result<Option<usize>> {
        let parse =
            |value| size(value).ok_or_else(|| self.wrong(name, value, "a whole number of at least 0"));
        self.value(name).map(parse).transpose()
    }

    /// A number.
    pub(super) fn number(&self, name: &'static str, default: f64) -> Result<f64> {
        let Some(value) = self.value(name) else { return Ok(default) };
        value.as_f64().ok_or_else(|| self.wrong(name, value, "a number"))
    }

    /// true or false.
    pub(super) fn flag(&self, name: &'static str, default: bool) -> Result<bool> {
        let Some(value) = self.value(name) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(name, value, "true or false"))
    }

    /// One of a few names.
    pub(super) fn choice<T: Copy>(&self, name: &'static str, default: T, choices: &[(&str, T)]) -> Result<T> {
        let Some(value) = self.value(name) else { return Ok(default) };
        self.pick(name, value, choices)
    }

    /// A list, each entry one of a few names.
    pub(super) fn choices<T: Copy>(
        &self,
        name: &'static str,
        choices: &[(&str, T)],
    ) -> Result<Option<Vec<T>>> {
        let Some(list) = self.list(name)? else { return Ok(None) };
        list.iter().map(|value| self.pick(name, value, choices)).collect::<Result<_>>().map(Some)
    }

    /// A list of whole numbers ≥ 0.
    pub(super) fn sizes(&self, name: &'static str) -> Result<Option<Vec<usize>>> {
        let Some(list) = self.list(name)? else { return Ok(None) };
        let parse = |value| size(value).ok_or_else(|| self.wrong(name, value, "a list of whole numbers"));
        list.iter().map(parse).collect::<Result<_>>().map(Some)
    }

    /// A list of numbers.
    pub(super) fn numbers(&self, name: &'static str) -> Result<Option<Vec<f64>>> {
        let Some(list) = self.list(name)? else { return Ok(None) };
        let parse =
            |value: &Value| value.as_f64().ok_or_else(|| self.wrong(name, value, "a list of numbers"));
        list.iter().map(parse).collect::<Result<_>>().map(Some)
    }

    fn list(&self, name: &'static str) -> Result<Option<&'a Vec<Value>>> {
        let Some(value) = self.value(name) else { return Ok(None) };
        value.as_array().map(Some).ok_or_else(|| self.wrong(name, value, "a list"))
    }

    fn pick<T: Copy>(&self, name: &str, value: &Value, choices: &[(&str, T)]) -> Result<T> {
        let found = choices.iter().find(|(text, _)| value.as_str() == Some(text));
        found.map(|(_, choice)| *choice).ok_or_else(|| {
            let names: Vec<String> = choices.iter().map(|(text, _)| format!("{text:?}")).collect();
            self.wrong(name, value, format!("one of {} to be supported here", names.join(", ")))
        })
    }

    /// Says that a field may have any value, since it changes no result here.
    pub(super) fn ignore(&self, names: &[&'static str]) {
        self.asked.borrow_mut().extend(names);
    }

    /// To be called last: an error where a field was not asked for. Harmless are null and names that begin
    /// with an underscore, which diffusers too takes for notes.
    pub(super) fn finish(self) -> Result<()> {
        let asked = self.asked.borrow();
        let unknown = |(name, value): &(&String, &Value)| {
            !name.starts_with('_') && !value.is_null() && !asked.contains(name.as_str())
        };
        match self.object.iter().find(unknown) {
            Some((name, value)) => Err(self.wrong(name, value, "absent: this field is not supported here")),
            None => Ok(()),
        }
    }
}

/// A whole number, written as 2 or as 2.0.
fn size(value: &Value) -> Option<usize> {
    match (value.as_u64(), value.as_f64()) {
        (Some(whole), _) => usize::try_from(whole).ok(),
        // Above 2^53 a f64 is no longer a certain whole number.
        (None, Some(real)) if real.fract() == 0.0 && (0.0..9e15).contains(&real) => Some(real as usize),
        _ => None,
    }
}

/// A value as it stands in a message: short, whatever the file holds.
fn brief(value: &Value) -> String {
    match value {
        Value::Array(list) if list.len() > 8 => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".to_owned(),
        other => {
            let text = other.to_string();
            match text.char_indices().nth(60) {
                Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
                None => text,
            }
        }
    }
}
