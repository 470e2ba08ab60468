// SPDX-License-Identifier: MIT OR Apache-2.0
//! Add-ons of a cluster file: how they are read, and what they must satisfy.

use std::str::FromStr;
use std::time::Duration;

use toml::de::DeValue;

use crate::decode::{Decoder, Item, Placeholder, Table, array, entries, string, strings, word};
use crate::schema::{Addon, Cluster, Input, ObjectName, ObjectPath, Patch, Segment, Value, Wait};
use crate::sections::{duration, is_dns_name};
use crate::text;
use crate::validate::{duplicates, inside_directory};

/// What a manifest begins with that is the file of an input.
pub(crate) const INPUT: &str = "input:";
/// Folders of the payload whose files masters apply: the one is the add-ons' own, files in the other are applied as they are.
const OWN: &str = "/opt/imgbuild/addons/";
const MANIFESTS: &str = "/opt/imgbuild/manifests/";
/// How long an add-on may take, unless the file says otherwise: images are there already, so what takes time is starting.
const TIMEOUT: Duration = Duration::from_secs(600);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// The longest name: it becomes part of a file's.
const NAME: usize = 40;

pub(crate) fn addon(t: &mut Table<'_, '_>) -> Addon {
    Addon {
        name: t.required("name", word),
        manifests: t.required("manifests", array(word)),
        images: t.with_default("images", Default::default(), strings),
        patch: t.tables("patch", |t| Patch {
            object: t.required("object", object),
            set: t.optional("set", path),
            add: t.optional("add", path),
            delete: t.optional("delete", path),
            value: t.optional("value", value),
        }),
        wait: t.tables("wait", |t| Wait {
            object: t.required("object", object),
            condition: t.required("condition", word),
            timeout: t.with_default("timeout", TIMEOUT, duration),
        }),
    }
}

impl Placeholder for ObjectName {
    fn placeholder() -> Self {
        Self { kind: String::new(), namespace: None, name: String::new() }
    }
}

fn object(decoder: &mut Decoder, item: &Item<'_>) -> Option<ObjectName> {
    told(
        decoder,
        item,
        "an object",
        "write it like \"Deployment/cert-manager/cert-manager-webhook\" or \"ClusterRole/view\"",
    )
}

fn path(decoder: &mut Decoder, item: &Item<'_>) -> Option<ObjectPath> {
    let fix = "write it like \"spec.template.spec.containers[name=web].args[0]\"";
    told(decoder, item, "a place in an object", fix)
}

/// A string that parses, or why not.
fn told<T: FromStr<Err = &'static str>>(decoder: &mut Decoder, item: &Item<'_>, what: &str, fix: &str) -> Option<T> {
    let text = string(decoder, item)?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(why) => decoder.bad(item, format!("`{}` is \"{text}\", {why}: not {what}", item.key()), fix),
    }
}

/// Any value that YAML has, too.
fn value(decoder: &mut Decoder, item: &Item<'_>) -> Option<Value> {
    match item.value {
        DeValue::String(text) => Some(Value::String(text.clone().into_owned())),
        DeValue::Boolean(value) => Some(Value::Boolean(*value)),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Some(Value::Integer(number)),
            Err(_) => decoder.bad(item, format!("`{}` is too large a number", item.key()), "put it in double quotes"),
        },
        DeValue::Float(number) => match number.as_str().parse::<f64>() {
            Ok(number) if number.is_finite() => Some(Value::Float(number)),
            _ => decoder.bad(item, format!("`{}` is no number that JSON has", item.key()), ""),
        },
        DeValue::Datetime(_) => decoder.bad(
            item,
            format!("`{}` is a date, which Kubernetes has as strings", item.key()),
            "put it in double quotes",
        ),
        DeValue::Array(_) => array(value)(decoder, item).map(Value::List),
        DeValue::Table(_) => entries("a table", value)(decoder, item).map(Value::Table),
    }
}

pub(crate) fn validate(c: &Cluster, d: &mut Decoder) {
    duplicates(d, "addon", "name", "add-ons", c.addon.iter().map(|addon| Some(&addon.name)));
    let manifests = c.addon.iter().flat_map(|addon| &addon.manifests);
    let mut seen: Vec<&str> = Vec::new();
    let twice: Vec<bool> = manifests
        .map(|manifest| {
            let twice = seen.contains(&manifest.as_str());
            seen.push(manifest);
            twice
        })
        .collect();
    let mut twice = twice.into_iter();
    for (index, addon) in c.addon.iter().enumerate() {
        let key = |name: &str| format!("addon[{index}].{name}");
        if !is_dns_name(&addon.name) || addon.name.contains('.') || addon.name.len() > NAME {
            let what = format!("\"{}\" is not the name of an add-on", addon.name);
            d.report(&[&key("name")], what, "", format!("use a-z, 0-9 and `-`, at most {NAME} of them"));
        }
        if addon.manifests.is_empty() {
            d.report(&[&key("manifests")], format!("add-on `{}` has no manifest", addon.name), "", "name its files");
        }
        for (at, manifest) in addon.manifests.iter().enumerate() {
            let place = format!("{}[{at}]", key("manifests"));
            if twice.next() == Some(true) {
                let fix = "list each file once: all that is in it is applied";
                d.report(&[&place], format!("\"{manifest}\" is listed twice"), "", fix);
            }
            match manifest.strip_prefix(INPUT) {
                Some(input) => of_input(c, d, &place, input),
                None => inside_directory(d, &place, manifest),
            }
        }
        images(d, &key("images"), addon);
        addon
            .patch
            .iter()
            .enumerate()
            .for_each(|(at, patch)| self::patch(d, &format!("{}[{at}]", key("patch")), patch));
        addon.wait.iter().enumerate().for_each(|(at, wait)| self::wait(d, &format!("{}[{at}]", key("wait")), wait));
    }
    for (index, input) in c.input.iter().enumerate() {
        let to = match input {
            Input::File(file) => &file.to,
            Input::Tar(tar) => &tar.to,
            _ => continue,
        };
        if format!("{to}/").starts_with(OWN) {
            let what = format!("{to} is in the folder of the add-ons");
            d.report(
                &[&format!("input[{index}].to")],
                what,
                "imgbuild writes all that is in it",
                "choose another folder",
            );
        }
    }
}

/// A manifest that is the file of an input.
fn of_input(c: &Cluster, d: &mut Decoder, place: &str, name: &str) {
    match c.files().find(|file| file.name == name) {
        Some(file) if file.to.starts_with(MANIFESTS) => d.report(
            &[place, "input"],
            format!("the file of input `{name}` is applied twice"),
            format!("masters apply all that is in {MANIFESTS}, and it goes there too"),
            "choose another folder as `to` of the input: /opt/imgbuild/share",
        ),
        Some(_) => {}
        None => {
            let names: Vec<&str> = c.files().map(|file| file.name.as_str()).collect();
            let fix = match text::closest(name, &names) {
                Some(near) => format!("did you mean \"{INPUT}{near}\"?"),
                None => "name one, or the path of a file".to_owned(),
            };
            d.report(&[place, "input"], format!("no input of kind \"file\" is called `{name}`"), "", fix);
        }
    }
}

fn images(d: &mut Decoder, key: &str, addon: &Addon) {
    let is_part = |name: &str| {
        !name.is_empty()
            && !name.starts_with('/')
            && !name.ends_with(['/', ':', '@'])
            && !name.contains(char::is_whitespace)
    };
    for (from, to) in &addon.images {
        let place = format!("{key}.{from}");
        if !is_part(from) || !is_part(to) || from.contains("://") || to.contains("://") {
            let what = format!("\"{from}\" or \"{to}\" is not the beginning of an image's name");
            d.report(&[&place], what, "", "write it like \"quay.io/jetstack\", without a slash at its end");
        } else if from == to {
            d.report(&[&place], format!("\"{from}\" is to become what it is"), "", "drop it");
        }
    }
}

fn patch(d: &mut Decoder, key: &str, patch: &Patch) {
    let ways = [("set", &patch.set), ("add", &patch.add), ("delete", &patch.delete)];
    let places: Vec<String> = ways.iter().map(|(name, _)| format!("{key}.{name}")).collect();
    let keys: Vec<&str> = std::iter::once(key).chain(places.iter().map(String::as_str)).collect();
    let given: Vec<&str> = ways.iter().filter(|(_, path)| path.is_some()).map(|(name, _)| *name).collect();
    if given.len() != 1 {
        let what = match given.len() {
            0 => format!("the patch of {} says no place", patch.object),
            _ => format!("the patch of {} says {} places", patch.object, given.len()),
        };
        d.report(&keys, what, "", "give one of `set`, `add` and `delete`; write a patch for each place");
    }
    let value = format!("{key}.value");
    match (&patch.value, &patch.delete) {
        (None, None) if !given.is_empty() => {
            let what = format!("`{}` has no `value`", given.join("` and `"));
            d.report(&[key, &value], what, "", "say what the place gets; `delete` takes it out");
        }
        (Some(_), Some(_)) => {
            d.report(
                &[&value, key],
                "`delete` has a `value`",
                "what is taken out gets none",
                "drop the `value`, or use `set`",
            );
        }
        _ => {}
    }
    for (name, path) in [("set", &patch.set), ("delete", &patch.delete)] {
        if path.as_ref().is_some_and(|path| path.segments.contains(&Segment::End)) {
            let what = format!("there is nothing to {name} at the end of a list");
            d.report(&[&format!("{key}.{name}")], what, "", "`add` puts something there");
        }
    }
}

fn wait(d: &mut Decoder, key: &str, wait: &Wait) {
    if wait.timeout.subsec_millis() != 0 || wait.timeout > LONGEST {
        let what = "the timeout is not a whole number of seconds, or longer than a day";
        d.report(&[&format!("{key}.timeout")], what, "", "write it like \"10m\"");
    }
    if !wait.condition.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b)) {
        let what = format!("\"{}\" is not a condition", wait.condition);
        d.report(
            &[&format!("{key}.condition")],
            what,
            "",
            "write \"rolled-out\", \"exists\", or one like \"Available\"",
        );
    }
    let kinds = ["DaemonSet", "Deployment", "StatefulSet"];
    if wait.condition == "rolled-out" && !kinds.contains(&wait.object.kind.as_str()) {
        d.report(
            &[&format!("{key}.condition"), &format!("{key}.object")],
            format!("a {} is not rolled out", wait.object.kind),
            format!("only {} are", text::list(&kinds)),
            "write \"exists\", or a condition of its status",
        );
    }
}
