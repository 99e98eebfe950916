//! `weft report --format`: a text with `{{path}}` in it, filled in from the report.
//!
//! A path is names and list positions with dots between. A name is met whatever its case and with
//! or without underscores, and a dot may stand before it, so that the simple ones of Weave Net's Go
//! templates work too: `{{.Router.NickName}}`, `{{.IPAM.DefaultSubnet}}`.

use serde_json::Value;
use thiserror::Error;

/// Why a template cannot be filled in.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TemplateError {
    /// Two braces open and never close.
    #[error("in the format, the {{{{ before {0:?} is never closed by }}}}")]
    Unclosed(String),
    /// A path leads nowhere.
    #[error("in the format, {{{{{path}}}}} leads nowhere: {whole} has {known}", whole = Whole(parent))]
    Nowhere {
        /// The path as written.
        path: String,
        /// The part of it that leads somewhere.
        parent: String,
        /// What is there instead.
        known: String,
    },
}

/// Fills in a template.
///
/// # Errors
/// It is not closed, or a path leads nowhere.
pub fn fill(template: &str, report: &Value) -> Result<String, TemplateError> {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, behind)) = rest.split_once("{{") {
        let Some((path, next)) = behind.split_once("}}") else {
            let start = behind.chars().take(20).collect();
            return Err(TemplateError::Unclosed(start));
        };
        out.push_str(before);
        match at(path.trim(), report)? {
            Value::String(text) => out.push_str(text),
            Value::Null => {}
            value @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                out.push_str(&value.to_string());
            }
        }
        rest = next;
    }
    out.push_str(rest);
    Ok(out)
}

/// What is at a path.
fn at<'a>(path: &str, report: &'a Value) -> Result<&'a Value, TemplateError> {
    let mut value = report;
    let mut walked: Vec<&str> = Vec::new();
    for step in path.split('.').filter(|step| !step.is_empty()) {
        value = child(value, step).ok_or_else(|| TemplateError::Nowhere {
            path: path.to_owned(),
            parent: walked.join("."),
            known: describe(value),
        })?;
        walked.push(step);
    }
    Ok(value)
}

fn child<'a>(value: &'a Value, step: &str) -> Option<&'a Value> {
    match value {
        Value::Object(fields) => {
            let wanted = folded(step);
            let mut found = fields.iter().filter(|(name, _)| folded(name) == wanted);
            found.next().map(|(_, value)| value)
        }
        Value::Array(items) => items.get(step.parse::<usize>().ok()?),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

fn folded(name: &str) -> String {
    name.replace('_', "").to_ascii_lowercase()
}

/// What could have been written instead.
fn describe(value: &Value) -> String {
    match value {
        Value::Object(fields) => fields.keys().cloned().collect::<Vec<_>>().join(", "),
        Value::Array(items) if items.is_empty() => "no items".to_owned(),
        Value::Array(items) => format!("items 0 to {}", items.len() - 1),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            format!("no parts, it is {value}")
        }
    }
}

/// A path, or the whole report for an empty one.
struct Whole<'a>(&'a str);

impl std::fmt::Display for Whole<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_empty() {
            "the report"
        } else {
            self.0
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn filled(template: &str) -> Result<String, String> {
        let report = json!({
            "router": { "name": "02:00:00:00:00:01", "nickname": "host1", "port": 6783 },
            "ipam": { "default_subnet": "10.32.0.0/12", "owners": [{ "addresses": 7 }] },
            "dns": null,
        });
        fill(template, &report).map_err(|error| error.to_string())
    }

    #[test]
    fn paths_are_replaced_by_what_is_there() {
        assert_eq!(filled("{{router.name}}").unwrap(), "02:00:00:00:00:01");
        assert_eq!(filled("a {{ router.port }} b").unwrap(), "a 6783 b");
        assert_eq!(filled("{{ipam.owners.0.addresses}}").unwrap(), "7");
        assert_eq!(filled("{{ipam.owners}}").unwrap(), r#"[{"addresses":7}]"#);
        assert_eq!(filled("{{dns}}|").unwrap(), "|");
        assert_eq!(filled("no path }} {").unwrap(), "no path }} {");
    }

    #[test]
    fn names_as_weave_net_wrote_them_are_met() {
        assert_eq!(filled("{{.Router.NickName}}").unwrap(), "host1");
        assert_eq!(filled("{{.IPAM.DefaultSubnet}}").unwrap(), "10.32.0.0/12");
    }

    #[test]
    fn mistakes_are_explained() {
        assert_eq!(
            filled("{{router.nam}}").unwrap_err(),
            "in the format, {{router.nam}} leads nowhere: router has name, nickname, port"
        );
        assert_eq!(
            filled("{{nothing}}").unwrap_err(),
            "in the format, {{nothing}} leads nowhere: the report has dns, ipam, router"
        );
        assert_eq!(
            filled("{{ipam.owners.1}}").unwrap_err(),
            "in the format, {{ipam.owners.1}} leads nowhere: ipam.owners has items 0 to 0"
        );
        assert_eq!(
            filled("{{router.port.x}}").unwrap_err(),
            "in the format, {{router.port.x}} leads nowhere: router.port has no parts, it is 6783"
        );
        assert_eq!(
            filled("x {{router").unwrap_err(),
            "in the format, the {{ before \"router\" is never closed by }}"
        );
    }
}
