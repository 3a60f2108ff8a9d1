//! Turns what was read into what is meant, and reports everything that is wrong with it.
//!
//! What could not be read is reported already: it is `None` here, and nothing is said about it
//! again. A function looks at all of its section before it gives up.

mod check;
mod check_values;
mod client_address;
mod drill;
mod index;
mod kv;
mod local;
mod paths;
mod sections;
mod services;

use std::collections::BTreeMap;
use std::net::SocketAddr;

pub(crate) use local::local;

use self::paths::StorePath;
use crate::problem::{Findings, Mistake, Place, Placed};
use crate::{Config, NameError, NodeName, raw};

/// What is valid of an `understudy.toml`.
pub(crate) struct Checked {
    /// The whole, if nothing is missing.
    pub(crate) config: Option<Config>,
    /// Every node, or `None` if one of them could not be read.
    nodes: Option<Vec<Placed<NodeName>>>,
    /// The paths of the stores.
    stores: Vec<StorePath>,
    /// The key-value store's section, if there is one.
    kv: Option<KvSection>,
}

/// What `node.toml` has to agree with of the key-value store.
struct KvSection {
    place: Place,
    has_password: bool,
}

/// Validates an `understudy.toml`.
pub(crate) fn cluster(file: &raw::ClusterFile, findings: &mut Findings) -> Checked {
    if let Some(section) = &file.witness {
        let what = "section `[witness]` is not available in this version";
        findings.report(&section.place, what, "the section to be removed");
    }
    let cluster = file
        .cluster
        .as_ref()
        .and_then(|it| sections::cluster(&it.value, findings));
    let nodes = file.node.as_ref().map(|it| sections::nodes(it, findings));
    let postgres = file
        .postgres
        .as_ref()
        .map(|it| sections::postgres(&it.value, findings));
    let files = all(elements(&file.files).map(|it| sections::files(it, findings)));
    let kv = file
        .kv
        .as_ref()
        .map(|it| kv::kv(&it.value, file.node.as_ref(), findings));
    let settings = file
        .settings
        .as_ref()
        .map(|it| sections::settings(&it.value, findings));
    let has_postgres = file.postgres.is_some();
    let indexes = all(elements(&file.index).map(|it| index::index(it, has_postgres, findings)));
    let fence = file.fence.as_ref();
    let fence = fence.map(|it| sections::fence(&it.value, findings));
    let services = services::services(&file.service, findings);
    let jobs = all(elements(&file.job).map(|it| services::job(&it.value, findings)));
    let hooks = file
        .hooks
        .as_ref()
        .map(|it| services::hooks(&it.value, findings));
    let client_address = file
        .address
        .as_ref()
        .map(|it| client_address::address(&it.value, file.node.as_ref(), findings));
    let drill = file
        .drill
        .as_ref()
        .and_then(|it| drill::drill(&it.value, findings));

    unique(
        elements(&file.files).filter_map(|it| it.value.name.as_ref()),
        "store",
        findings,
    );
    unique(
        elements(&file.index).filter_map(|it| it.value.name.as_ref()),
        "index",
        findings,
    );
    unique(
        elements(&file.service).filter_map(|it| it.value.name.as_ref()),
        "service",
        findings,
    );
    unique(
        elements(&file.check).filter_map(|it| it.value.name.as_ref()),
        "check",
        findings,
    );
    unique(
        elements(&file.job).filter_map(|it| it.value.name.as_ref()),
        "job",
        findings,
    );
    services::distinct(file, findings);
    let stores = paths::stores(file);
    paths::report_overlaps(&stores, findings);
    let around = check::Around {
        has_postgres,
        stores: &stores,
    };
    let checks = all(elements(&file.check).map(|it| check::check(it, &around, findings)));

    let names = nodes.as_ref().and_then(|nodes| {
        all(nodes.iter().zip(elements(&file.node)).map(|(node, raw)| {
            let place = raw.value.name.as_ref()?.place.clone();
            Some(Placed {
                value: node.as_ref()?.name.clone(),
                place,
            })
        }))
    });
    let config = || {
        Some(Config {
            cluster: cluster?,
            nodes: all(nodes?.into_iter())?,
            postgres: whole(postgres)?,
            files: files?,
            kv: whole(kv)?,
            settings: whole(settings)?,
            indexes: indexes?,
            fence: whole(fence)?,
            services: services?,
            address: whole(client_address)?,
            checks: checks?,
            jobs: jobs?,
            hooks: whole(hooks)?,
            drill: drill?,
        })
    };
    Checked {
        config: config(),
        nodes: names,
        stores,
        kv: file.kv.as_ref().map(|section| KvSection {
            place: section.place.clone(),
            has_password: section.value.password_file.is_some(),
        }),
    }
}

/// Tells a section that is absent (which is fine) from one that is wrong.
fn whole<T>(section: Option<Option<T>>) -> Option<Option<T>> {
    match section {
        None => Some(None),
        Some(None) => None,
        Some(Some(section)) => Some(Some(section)),
    }
}

/// Returns all of the items, or `None` if one is wrong; every one is looked at in either case.
fn all<T>(items: impl Iterator<Item = Option<T>>) -> Option<Vec<T>> {
    let items: Vec<Option<T>> = items.collect();
    items.into_iter().collect()
}

/// Returns the elements that could be read.
fn elements<T>(list: &Option<Placed<Vec<Placed<T>>>>) -> impl Iterator<Item = &Placed<T>> {
    list.iter().flat_map(|list| &list.value)
}

/// Reports every name after the first of its kind.
fn unique<'a>(
    names: impl Iterator<Item = &'a Placed<String>>,
    kind: &str,
    findings: &mut Findings,
) {
    let mut first: BTreeMap<&str, &Place> = BTreeMap::new();
    for name in names {
        let Some(place) = first.get(name.value.as_str()) else {
            first.insert(&name.value, &name.place);
            continue;
        };
        let what = format!("{kind} `{}` is named twice", name.value);
        let expected = format!("a name that no other {kind} has");
        findings
            .report(&name.place, what, expected)
            .related(place, "it is named here first");
    }
}

/// Parses a name.
fn name<T: TryFrom<String, Error = NameError>>(text: &str) -> Result<T, Mistake> {
    T::try_from(text.to_owned())
        .map_err(|error| Mistake::new(error.to_string(), NameError::EXPECTED))
}

/// Parses an address: an IP and a port.
fn address(text: &str) -> Result<SocketAddr, Mistake> {
    text.parse().map_err(|_| {
        Mistake::new(
            format!("`{text}` is not an IP address and a port"),
            "an address such as \"10.0.0.1:7400\" or \"[fd00::1]:7400\"",
        )
    })
}
