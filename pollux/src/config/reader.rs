//! A TOML document as sections that are asked for their keys one by one. Each mistake is kept with file, line,
//! column and key; reading goes on, so that one run tells them all. A key nobody asked for is one too.

use crate::mistake::Mistake;
use std::cell::RefCell;
use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The document's name and text, and what has been found out about it.
pub(super) struct Report<'a> {
    name: String,
    text: &'a str,
    mistakes: RefCell<Vec<Mistake>>,
    warnings: RefCell<Vec<Mistake>>,
}

impl<'a> Report<'a> {
    pub(super) fn new(name: String, text: &'a str) -> Report<'a> {
        Report { name, text, mistakes: RefCell::default(), warnings: RefCell::default() }
    }

    /// `FILE:LINE:COLUMN, key KEY`, counted from 1, columns in characters.
    pub(super) fn place(&self, span: &Range<usize>, key: &str) -> String {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        let key = if key.is_empty() { String::new() } else { format!(", key {key}") };
        format!("{}:{line}:{column}{key}", self.name)
    }

    pub(super) fn mistake(&self, mistake: Mistake) {
        self.mistakes.borrow_mut().push(mistake);
    }

    pub(super) fn warn(&self, warning: Mistake) {
        self.warnings.borrow_mut().push(warning);
    }

    /// Mistakes and warnings.
    pub(super) fn finish(self) -> (Vec<Mistake>, Vec<Mistake>) {
        (self.mistakes.into_inner(), self.warnings.into_inner())
    }
}

/// One table.
pub(super) struct Section<'r, 'a> {
    report: &'r Report<'a>,
    /// Its name with a dot behind it; empty for the document itself.
    prefix: String,
    table: &'r DeTable<'a>,
    span: Range<usize>,
    asked: Vec<&'static str>,
}

impl<'r, 'a> Section<'r, 'a> {
    pub(super) fn root(report: &'r Report<'a>, document: &'r Spanned<DeTable<'a>>) -> Section<'r, 'a> {
        Section {
            report,
            prefix: String::new(),
            table: document.get_ref(),
            span: document.span(),
            asked: Vec::new(),
        }
    }

    fn find(&mut self, key: &'static str) -> Option<&'r Spanned<DeValue<'a>>> {
        self.asked.push(key);
        self.table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    /// Where `key`'s value is; the section itself if it isn't there.
    pub(super) fn place(&self, key: &str) -> String {
        let value = self.table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value);
        self.report
            .place(&value.map_or_else(|| self.span.clone(), Spanned::span), &format!("{}{key}", self.prefix))
    }

    /// Says that `key`'s value is wrong.
    pub(super) fn mistake(&self, key: &str, mistake: Mistake) {
        self.report.mistake(mistake.at(self.place(key)));
    }

    /// Says that `key`'s value is unwise.
    pub(super) fn warn(&self, key: &str, warning: Mistake) {
        self.report.warn(warning.at(self.place(key)));
    }

    /// Whether the key is there, right or wrong.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.iter().any(|(name, _)| name.get_ref() == key)
    }

    /// `key`'s value, read by `parse`. `None`: not there, or wrong and told.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&DeValue<'a>) -> Result<T, Mistake>,
    ) -> Option<T> {
        let value = self.find(key)?;
        match parse(value.get_ref()) {
            Ok(value) => Some(value),
            Err(mistake) => {
                self.mistake(key, mistake);
                None
            }
        }
    }

    /// As [`Section::read`]; its absence is a mistake with this cure.
    pub(super) fn require<T>(
        &mut self,
        key: &'static str,
        cure: &str,
        parse: impl FnOnce(&DeValue<'a>) -> Result<T, Mistake>,
    ) -> Option<T> {
        if !self.has(key) {
            self.mistake(key, Mistake::new(format!("{key} is missing"), cure));
        }
        self.read(key, parse)
    }

    /// Each element of `key`'s array, which has at most `max`, read by `parse`. `None`: not there.
    pub(super) fn read_each<T>(
        &mut self,
        key: &'static str,
        max: usize,
        parse: impl Fn(&DeValue<'a>) -> Result<T, Mistake>,
    ) -> Option<Vec<T>> {
        let value = self.find(key)?;
        let Some(array) = value.get_ref().as_array().filter(|array| array.len() <= max) else {
            let what = format!("{key} is {}", describe(value.get_ref()));
            self.mistake(key, Mistake::new(what, format!("write an array of at most {max}")));
            return Some(Vec::new());
        };
        let mut values = Vec::with_capacity(array.len());
        for element in array {
            match parse(element.get_ref()) {
                Ok(value) => values.push(value),
                Err(mistake) => {
                    let place = self.report.place(&element.span(), &format!("{}{key}", self.prefix));
                    self.report.mistake(mistake.at(place));
                }
            }
        }
        Some(values)
    }

    fn below(&self, key: &str, table: &'r DeTable<'a>, span: Range<usize>) -> Section<'r, 'a> {
        Section {
            report: self.report,
            prefix: format!("{}{key}.", self.prefix),
            table,
            span,
            asked: Vec::new(),
        }
    }

    /// The table `[key]` or `key = { ... }`.
    pub(super) fn section(&mut self, key: &'static str) -> Option<Section<'r, 'a>> {
        let value = self.find(key)?;
        if let Some(table) = value.get_ref().as_table() {
            return Some(self.below(key, table, value.span()));
        }
        let what = format!("{key} is {}", describe(value.get_ref()));
        self.mistake(key, Mistake::new(what, format!("write a table: [{}{key}]", self.prefix)));
        None
    }

    /// The tables `[[key]]`, at most `max`.
    pub(super) fn sections(&mut self, key: &'static str, max: usize) -> Vec<Section<'r, 'a>> {
        let Some(value) = self.find(key) else {
            return Vec::new();
        };
        let tables =
            value.get_ref().as_array().filter(|array| array.iter().all(|each| each.get_ref().is_table()));
        let Some(tables) = tables else {
            let what = format!("{key} is {}", describe(value.get_ref()));
            self.mistake(
                key,
                Mistake::new(what, format!("write one [[{key}]] table for each, in double brackets")),
            );
            return Vec::new();
        };
        if tables.len() > max {
            let what = format!("there are {} [[{key}]] tables", tables.len());
            self.mistake(key, Mistake::new(what, format!("keep at most {max}")));
        }
        let pairs =
            tables.iter().take(max).filter_map(|each| each.get_ref().as_table().map(|table| (table, each)));
        pairs.map(|(table, each)| self.below(key, table, each.span())).collect()
    }

    /// Every key that nobody asked for is a mistake.
    pub(super) fn finish(self) {
        for (name, _) in self.table {
            if !self.asked.iter().any(|asked| asked == name.get_ref()) {
                let key = format!("{}{}", self.prefix, name.get_ref());
                let section = self.prefix.trim_end_matches('.');
                let within =
                    if section.is_empty() { "at the top".to_owned() } else { format!("in [{section}]") };
                let what = format!("{:?} is no key {within}", name.get_ref());
                let cure = format!("remove it, or write one of: {}", self.asked.join(", "));
                self.report.mistake(Mistake::new(what, cure).at(self.report.place(&name.span(), &key)));
            }
        }
    }
}

/// A value as a message shows it. Not for secrets.
fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text {text:?}"),
        DeValue::Integer(integer) => format!("the number {}", integer.as_str()),
        DeValue::Float(float) => format!("the number {}", float.as_str()),
        DeValue::Boolean(boolean) => boolean.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(array) => format!("an array of {}", array.len()),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

pub(super) fn text<'v>(value: &'v DeValue<'_>) -> Result<&'v str, Mistake> {
    value
        .as_str()
        .ok_or_else(|| Mistake::new(format!("{} is no text", describe(value)), "put it in double quotes"))
}

pub(super) fn boolean(value: &DeValue<'_>) -> Result<bool, Mistake> {
    let wrong =
        || Mistake::new(format!("{} is neither true nor false", describe(value)), "write true or false");
    value.as_bool().ok_or_else(wrong)
}

/// An integer within `range`, of which `unit` says what it counts.
pub(super) fn integer<T>(value: &DeValue<'_>, range: RangeInclusive<T>, unit: &str) -> Result<T, Mistake>
where
    T: TryFrom<i64> + PartialOrd + Display + Copy,
{
    let number =
        value.as_integer().and_then(|integer| i64::from_str_radix(integer.as_str(), integer.radix()).ok());
    let number = number.and_then(|number| T::try_from(number).ok()).filter(|number| range.contains(number));
    number.ok_or_else(|| {
        let cure = format!("write a whole number of {unit} from {} to {}", range.start(), range.end());
        Mistake::new(format!("{} does not fit", describe(value)), cure)
    })
}

/// One of `words`.
pub(super) fn word<T: Copy>(value: &DeValue<'_>, words: &[(&str, T)]) -> Result<T, Mistake> {
    let found = value.as_str().and_then(|text| words.iter().find(|(word, _)| *word == text));
    found.map(|&(_, value)| value).ok_or_else(|| {
        let all: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        Mistake::new(
            format!("{} is not one of the words for this", describe(value)),
            format!("write {}", all.join(" or ")),
        )
    })
}
