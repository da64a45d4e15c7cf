//! The tables in docs/configuration.md, and docs/configuration.schema.json, are
//! made of the settings in the code. `MOORING_WRITE_DOCS=1 cargo test -p service
//! --test configuration_docs` writes them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::indexing_slicing, reason = "what a JSON value does not have is null")]

use std::path::{Path, PathBuf};
use std::{env, fs};

use boon::{Compiler, Draft, SchemaIndex, Schemas};
use schemars::generate::SchemaSettings;
use serde_json::Value;
use service::config::Config;

/// Begins a table of the settings below the one it names.
const TABLE: &str = "<!-- settings: ";
/// Begins a table of the values that the setting it names takes.
const VALUES: &str = "<!-- values: ";
const END: &str = "<!-- end -->";

/// A setting with its dotted key in the file; `<name>` stands for a name of the operator's.
struct Setting {
    key: String,
    meaning: String,
    is_required: bool,
    schema: Value,
}

fn in_root(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file)
}

fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|it| it.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<Config>().to_value();
    adapt(&mut schema);
    schema
}

/// TOML has no `null`, and whoever reads a description may not know Rust.
fn adapt(schema: &mut Value) {
    let is_null = |it: &Value| it.is_null() || it == "null" || it["type"] == "null";
    if let Value::Object(fields) = schema {
        for list in ["type", "enum", "anyOf", "oneOf"] {
            if let Some(Value::Array(items)) = fields.get_mut(list) {
                items.retain(|it| !is_null(it));
            }
        }
        if fields.get("default").is_some_and(Value::is_null) {
            fields.shift_remove("default");
        }
        fields.retain(|name, it| name != "format" || it == "locator");
        if let Some([only]) = fields.get("type").and_then(Value::as_array).map(Vec::as_slice) {
            let only = only.clone();
            fields.insert("type".into(), only);
        }
        if let Some([only]) = fields.get("anyOf").and_then(Value::as_array).map(Vec::as_slice) {
            let Value::Object(only) = only.clone() else { panic!("a schema is an object") };
            fields.shift_remove("anyOf");
            for (name, it) in only {
                fields.entry(name).or_insert(it);
            }
        }
        if let Some(Value::String(text)) = fields.get_mut("description") {
            *text = text.replace('\n', " ");
        }
        fields.values_mut().for_each(adapt);
    } else if let Value::Array(items) = schema {
        items.iter_mut().for_each(adapt);
    }
}

/// Every setting below a table, tables included, in the order of the code.
fn settings(key: &str, table: &Value, found: &mut Vec<Setting>) {
    let required = table["required"].as_array().into_iter().flatten();
    let required: Vec<&Value> = required.collect();
    for (name, schema) in table["properties"].as_object().into_iter().flatten() {
        let is_required = required.iter().any(|it| *it == name);
        let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
        let meaning = schema["description"].as_str().unwrap_or_default().to_owned();
        let (key, schema) = match entry(schema) {
            Some(entry) => (format!("{key}.<name>"), entry),
            None => (key, schema),
        };
        let setting = Setting { key: key.clone(), meaning, is_required, schema: schema.clone() };
        found.push(setting);
        settings(&key, schema, found);
    }
}

/// What stands under each name of a table whose names are the operator's.
fn entry(schema: &Value) -> Option<&Value> {
    let by_pattern = schema["patternProperties"].as_object().and_then(|it| it.values().next());
    by_pattern.or_else(|| Some(&schema["additionalProperties"]).filter(|it| it.is_object()))
}

fn all_settings() -> Vec<Setting> {
    let mut found = Vec::new();
    settings("", &schema(), &mut found);
    found
}

/// The values of an enumeration, with what each means.
fn values(schema: &Value) -> Vec<(&str, &str)> {
    let choices = schema["oneOf"].as_array().into_iter().flatten();
    let value = |it| Some((text(it, "const")?, text(it, "description").unwrap_or_default()));
    choices.filter_map(value).collect()
}

fn text<'a>(schema: &'a Value, field: &str) -> Option<&'a str> {
    schema[field].as_str()
}

fn is_secret(schema: &Value) -> bool {
    schema["oneOf"][0]["properties"]["env"].is_object()
}

impl Setting {
    fn is_below(&self, key: &str) -> bool {
        self.key.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'))
    }

    /// `MOORING__INGEST__LISTEN`; a list and a table have none.
    fn variable(&self) -> Option<String> {
        let is_text_or_number = !matches!(self.schema["type"].as_str(), Some("array" | "object"));
        let key = self.key.to_uppercase().replace('.', "__");
        let reference = if is_secret(&self.schema) { "__FILE" } else { "" };
        is_text_or_number.then(|| format!("MOORING__{key}{reference}"))
    }

    fn unit(&self) -> Option<&'static str> {
        let name = self.key.rsplit('.').next()?;
        [("_ms", "ms"), ("_s", "s"), ("max_bytes", "bytes"), ("bytes_max", "bytes")]
            .into_iter()
            .find_map(|(end, unit)| name.ends_with(end).then_some(unit))
    }

    /// What it holds, with unit and bounds.
    fn kind(&self) -> String {
        let mut parts = vec![kind(&self.schema)];
        parts.extend(self.unit().map(str::to_owned));
        let bound = |name: &str| self.schema[name].as_u64().map(grouped);
        match (bound("minimum").filter(|it| it != "0"), bound("maximum")) {
            (Some(min), Some(max)) => parts.push(format!("{min} to {max}")),
            (Some(min), None) => parts.push(format!("at least {min}")),
            (None, Some(max)) => parts.push(format!("at most {max}")),
            (None, None) => {}
        }
        parts.join(", ")
    }

    fn default(&self) -> String {
        match (&self.schema["default"], self.is_required) {
            (_, true) => "required".to_owned(),
            (given, false) => shown(given),
        }
    }

    fn row(&self) -> String {
        let variable = self.variable().map_or(String::new(), |name| format!("<br>`{name}`"));
        let of_list = values(&self.schema["items"]);
        let mut meaning = vec![self.meaning.clone()];
        if of_list.len() <= FEW {
            let values = [values(&self.schema), of_list].concat();
            meaning.extend(values.iter().map(|(value, means)| format!("`{value}`: {means}")));
        }
        let (key, kind, default) = (&self.key, self.kind(), self.default());
        format!("| `{key}`{variable} | {kind} | {default} | {} |\n", meaning.join(" "))
    }
}

/// Values that a row has room for.
const FEW: usize = 4;

fn kind(schema: &Value) -> String {
    let names: Vec<String> = values(schema).iter().map(|(it, _)| format!("`{it}`")).collect();
    match (schema["type"].as_str(), &names[..]) {
        _ if is_secret(schema) => "[secret](#secrets)".to_owned(),
        (_, [.., _, _]) if names.len() > FEW => "name".to_owned(),
        (_, [first @ .., last]) if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        (Some("array"), _) => format!("list: {}", kind(&schema["items"])),
        (Some("object"), _) => "table".to_owned(),
        (Some("string"), _) if schema["format"] == "locator" => "locator".to_owned(),
        (Some(other), _) => other.to_owned(),
        (None, _) => panic!("a setting of no type: {schema}"),
    }
}

/// A default as a reader writes it.
fn shown(default: &Value) -> String {
    match default {
        Value::Null => String::new(),
        Value::String(text) if text.is_empty() => String::new(),
        Value::String(text) if text.contains('\n') => "built in".to_owned(),
        Value::String(text) => format!("`{text}`"),
        Value::Number(number) => number.as_u64().map_or(number.to_string(), grouped),
        Value::Bool(flag) => format!("`{flag}`"),
        Value::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(", "),
        Value::Object(_) => String::new(),
    }
}

/// `65,536`
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(|it| std::str::from_utf8(it).unwrap());
    groups.collect::<Vec<_>>().join(",")
}

/// The document with its tables made anew; what is between them is written by hand.
fn document(written: &str) -> String {
    let all = all_settings();
    let named = |line: &str, begin: &str| {
        line.strip_prefix(begin).map(|rest| rest.trim_end_matches(" -->").to_owned())
    };
    let tables: Vec<String> = written.lines().filter_map(|line| named(line, TABLE)).collect();
    let mut text = String::new();
    let mut lines = written.lines();
    while let Some(line) = lines.next() {
        text.extend([line, "\n"]);
        let made = if let Some(key) = named(line, TABLE) {
            let inner = tables.iter().filter(|it| it.len() > key.len());
            let inner: Vec<&String> = inner.collect();
            let here = all.iter().filter(|it| it.is_below(&key));
            let here = here.filter(|it| !inner.iter().any(|inner| it.is_below(inner)));
            let rows: String = here.map(Setting::row).collect();
            assert!(!rows.is_empty(), "no setting is below {key}");
            format!("| setting | type | default | meaning |\n|---|---|---|---|\n{rows}")
        } else if let Some(key) = named(line, VALUES) {
            let setting = all.iter().find(|it| it.key == key).unwrap();
            let rows = values(&setting.schema["items"]);
            let rows = rows.iter().map(|(value, means)| format!("| `{value}` | {means} |\n"));
            format!("| value | meaning |\n|---|---|\n{}", rows.collect::<String>())
        } else {
            continue;
        };
        text.extend([&made, END, "\n"]);
        assert!(lines.any(|line| line == END), "a table has no end: {line}");
    }
    text
}

fn is_current(file: &str, made: impl Fn(&str) -> String) {
    let path = in_root(file);
    if env::var_os("MOORING_WRITE_DOCS").is_some() {
        fs::write(&path, made(&fs::read_to_string(&path).unwrap_or_default())).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == made(&written),
        "{file} differs: run MOORING_WRITE_DOCS=1 cargo test -p service --test configuration_docs"
    );
}

#[test]
fn docs_configuration_md_says_what_the_code_says() {
    is_current("docs/configuration.md", document);
}

#[test]
fn docs_configuration_schema_json_says_what_the_code_says() {
    is_current("docs/configuration.schema.json", |_| {
        serde_json::to_string_pretty(&schema()).unwrap() + "\n"
    });
}

#[test]
fn every_setting_is_explained_and_stands_in_a_table() {
    let document = document(&fs::read_to_string(in_root("docs/configuration.md")).unwrap());
    for setting in all_settings() {
        let (key, meaning) = (&setting.key, &setting.meaning);
        assert!(meaning.ends_with('.'), "{key} needs a doc comment of whole sentences: {meaning}");
        for (value, meaning) in [values(&setting.schema), values(&setting.schema["items"])].concat()
        {
            assert!(meaning.ends_with('.'), "{key}: the value {value} needs a doc comment");
        }
        let is_listed = !key.contains('.') || document.contains(&format!("\n| `{key}`"));
        assert!(is_listed || key == "sources.<name>", "no table in the document has {key}");
    }
}

/// A configuration as an editor sees it: TOML, one file over the other.
fn merged(files: &[String]) -> Value {
    let mut builder = config::Config::builder();
    for text in files {
        builder = builder.add_source(config::File::from_str(text, config::FileFormat::Toml));
    }
    builder.build().unwrap().try_deserialize().unwrap()
}

/// What the schema says against it.
fn problem(configuration: &Value) -> Option<String> {
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    compiler.set_default_draft(Draft::V2020_12);
    compiler.add_resource("mooring.json", schema()).unwrap();
    let index: SchemaIndex = compiler.compile("mooring.json", &mut schemas).unwrap();
    schemas.validate(configuration, index).err().map(|why| format!("{why:#}"))
}

fn example_in_the_readme() -> String {
    let readme = fs::read_to_string(in_root("README.md")).unwrap();
    let toml = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    toml.unwrap().to_owned()
}

#[test]
fn the_schema_takes_every_example() {
    let mut examples = vec![in_root("deploy/compose/mooring.toml")];
    let sources = fs::read_dir(in_root("deploy/sources")).unwrap().map(|it| it.unwrap().path());
    examples.extend(sources.filter(|path| path.extension().is_some_and(|it| it == "toml")));
    assert!(examples.len() > 5, "{examples:?}");
    assert_eq!(problem(&merged(&[example_in_the_readme()])), None, "README.md");
    for path in examples {
        let example = fs::read_to_string(&path).unwrap();
        let whole = merged(&[example_in_the_readme(), example]);
        assert_eq!(problem(&whole), None, "{}", path.display());
    }
}

#[test]
fn the_schema_refuses_what_the_services_refuse() {
    let wrong = [
        "ingest.listn = \"127.0.0.1:8080\"",
        "nats.password = \"in the file\"",
        "nats.password = { env = \"A\", file = \"/b\" }",
        "stream.allow = [\"anything\"]",
        "sources.Blnk.platform = \"blnk\"",
        "sources.blnk.platform = \"other\"",
        "sources.blnk.app_ids = [\"\"]",
        "sources.blnk.mapping = { event_type = [\"type\"], installed = [\"a\"], app_id = \"/a\", installation_id = [\"/i\"] }",
        "sources.blnk.verification.hmac = { headers = [\"x\"] }",
        "worker.ack_wait_ms = -1",
    ];
    for line in wrong {
        let whole = merged(&[example_in_the_readme(), line.to_owned()]);
        assert!(problem(&whole).is_some(), "the schema takes {line}");
        let read = serde_json::from_value::<Config>(whole);
        assert!(read.is_err(), "the services take {line}");
    }
}
