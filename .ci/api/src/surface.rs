//! The items that have a page of their own, and their faults.

use rustdoc_types::{Attribute, Crate, FORMAT_VERSION, Id, Item, ItemEnum, StructKind};
use std::collections::BTreeMap;
use std::error::Error;

/// The guides are pages without items.
const GUIDES: &str = "guide";

pub(crate) struct Surface {
    documented: Crate,
    /// By path.
    items: BTreeMap<String, Id>,
}

impl Surface {
    pub(crate) fn read(json: &str) -> Result<Surface, Box<dyn Error>> {
        let text = std::fs::read_to_string(json)?;
        let format = serde_json::from_str::<serde_json::Value>(&text)?;
        let format = format["format_version"].as_u64();
        if format != Some(u64::from(FORMAT_VERSION)) {
            return Err(format!("rustdoc's format is {format:?}, not {FORMAT_VERSION}").into());
        }
        let mut surface = Surface {
            documented: serde_json::from_str(&text)?,
            items: BTreeMap::new(),
        };
        let root = surface.documented.root;
        surface.walk(root, "");
        Ok(surface)
    }

    fn walk(&mut self, module: Id, path: &str) {
        let Some(ItemEnum::Module(module)) = self.inner(module) else {
            return;
        };
        for mut id in module.items.clone() {
            if let Some(ItemEnum::Use(import)) = self.inner(id) {
                match import.id {
                    Some(target) => id = target,
                    None => continue,
                }
            }
            let Some(item) = self.item(id) else {
                continue;
            };
            let name = item.name.clone().unwrap_or_default();
            let path = match path {
                "" => name,
                _ => format!("{path}::{name}"),
            };
            if path != GUIDES && self.items.insert(path.clone(), id).is_none() {
                self.walk(id, &path);
            }
        }
    }

    fn item(&self, id: Id) -> Option<&Item> {
        let item = self.documented.index.get(&id);
        item.filter(|item| item.crate_id == 0)
    }

    fn inner(&self, id: Id) -> Option<&ItemEnum> {
        self.item(id).map(|item| &item.inner)
    }

    fn pages(&self) -> impl Iterator<Item = (&str, &Item)> {
        let pages = self.items.iter();
        pages.filter_map(|(path, id)| Some((path.as_str(), self.item(*id)?)))
    }

    /// Structs that others can build and enums that others can match in full: a new field or
    /// variant would break their code. The words "is closed" in the documentation allows it.
    pub(crate) fn open(&self) -> Vec<String> {
        let is_open = |item: &Item| {
            let grows = match &item.inner {
                ItemEnum::Enum(_) => true,
                ItemEnum::Struct(found) => match &found.kind {
                    StructKind::Unit => true,
                    StructKind::Tuple(fields) => fields.iter().all(Option::is_some),
                    StructKind::Plain {
                        has_stripped_fields,
                        ..
                    } => !has_stripped_fields,
                },
                _ => false,
            };
            let is_closed = docs(item).contains("is closed");
            grows && !is_closed && !item.attrs.contains(&Attribute::NonExhaustive)
        };
        let open = self.pages().filter(|(_, item)| is_open(item));
        open.map(|(path, _)| format!("{path}: neither `non_exhaustive` nor documented as closed"))
            .collect()
    }

    /// Pages that have no example, neither of the item nor of a method, and no link to one.
    pub(crate) fn without_example(&self) -> Vec<String> {
        let lacks = |item: &Item| {
            let mut linked = item.links.values().filter_map(|id| self.item(*id));
            !self.has_example(item) && !linked.any(|item| self.has_example(item))
        };
        let bare = self.pages().filter(|(_, item)| lacks(item));
        bare.map(|(path, _)| format!("{path}: no example, and no link to one"))
            .collect()
    }

    fn has_example(&self, item: &Item) -> bool {
        has_code(docs(item)) || self.methods(item).any(|method| has_code(docs(method)))
    }

    fn methods<'a>(&'a self, item: &'a Item) -> impl Iterator<Item = &'a Item> {
        let impls: &[Id] = match &item.inner {
            ItemEnum::Struct(found) => &found.impls,
            ItemEnum::Enum(found) => &found.impls,
            _ => &[],
        };
        let own = impls.iter().filter_map(|id| match self.inner(*id) {
            Some(ItemEnum::Impl(found)) if found.trait_.is_none() => Some(&found.items),
            _ => None,
        });
        let of_trait = match &item.inner {
            ItemEnum::Trait(found) => Some(&found.items),
            _ => None,
        };
        own.chain(of_trait)
            .flatten()
            .filter_map(|id| self.item(*id))
    }
}

fn docs(item: &Item) -> &str {
    item.docs.as_deref().unwrap_or_default()
}

/// Whether there is a block of Rust.
fn has_code(docs: &str) -> bool {
    let mut inside = false;
    docs.lines().any(|line| {
        let Some(kind) = line.trim_start().strip_prefix("```") else {
            return false;
        };
        inside = !inside;
        inside && !["text", "sh", "toml", "json", "yaml"].contains(&kind)
    })
}
