//! Reads both files.

use std::io;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use crate::problem::{Findings, Problems, Source};
use crate::{Config, Local, StoreName, raw, validate};

/// The largest configuration that is read: what a peer sends is bounded by it, too.
pub const CONFIG_BYTES_MAX: usize = 1024 * 1024;

/// Both files, valid by themselves and together.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The cluster.
    pub config: Config,
    /// This machine.
    pub local: Local,
    /// `understudy.toml` as it was read.
    pub text: String,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be read.
    #[error("cannot read {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What was read is not valid.
    #[error(transparent)]
    Invalid(#[from] Problems),
}

/// Reads `understudy.toml` and `node.toml`, and returns every problem of both.
pub fn load(cluster_file: &Path, node_file: &Path) -> Result<Loaded, LoadError> {
    let read = |file: &Path| {
        std::fs::read_to_string(file).map_err(|source| LoadError::Read {
            file: file.to_owned(),
            source,
        })
    };
    let source = |file: &Path, text| Source {
        file: file.display().to_string(),
        text,
    };
    let text = read(cluster_file)?;
    let sources = vec![
        source(cluster_file, text.clone()),
        source(node_file, read(node_file)?),
    ];
    let absolute = std::path::absolute(node_file).map_err(|source| LoadError::Read {
        file: node_file.to_owned(),
        source,
    })?;
    let (config, local) = parse_both(sources, &absolute.with_file_name("pki"))?;
    Ok(Loaded {
        config,
        local,
        text,
    })
}

/// Reads `node.toml` alone: enough to find the daemon, whatever an edit of `understudy.toml` has made
/// of that.
pub fn load_local(node_file: &Path) -> Result<Local, LoadError> {
    let failed = |source| LoadError::Read {
        file: node_file.to_owned(),
        source,
    };
    let text = std::fs::read_to_string(node_file).map_err(failed)?;
    let absolute = std::path::absolute(node_file).map_err(failed)?;
    let mut findings = Findings::default();
    let local = raw::read(0, &text, &mut findings).and_then(|file| {
        validate::local(&file, &absolute.with_file_name("pki"), None, &mut findings)
    });
    let source = Source {
        file: node_file.display().to_string(),
        text,
    };
    match findings.into_problems(vec![source]) {
        Some(problems) => Err(problems.into()),
        None => Ok(local.expect("what is not read was reported")),
    }
}

/// Returns the trees of files that a cluster file names, with the names of their stores, whatever else is wrong with
/// it: what was kept aside in them is looked for on nodes whose configuration is broken, too. What cannot be
/// understood at all is left out.
pub fn trees_named(text: &str) -> Vec<(StoreName, PathBuf)> {
    if text.len() > CONFIG_BYTES_MAX {
        return Vec::new();
    }
    let (table, _errors) = DeTable::parse_recoverable(text);
    let files = table.get_ref().get("files");
    let Some(DeValue::Array(files)) = files.map(|files| files.get_ref()) else {
        return Vec::new();
    };
    let tree = |section: &DeValue<'_>| {
        let DeValue::Table(section) = section else {
            return None;
        };
        let text = |key: &str| match section.get(key)?.get_ref() {
            DeValue::String(text) => Some(text.to_string()),
            DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_)
            | DeValue::Table(_) => None,
        };
        let path = PathBuf::from(text("path")?);
        let name = StoreName::try_from(text("name")?).ok()?;
        path.is_absolute().then_some((name, path))
    };
    files
        .iter()
        .filter_map(|section| tree(section.get_ref()))
        .collect()
}

/// Parses the text of both files: the cluster's and this machine's.
fn parse_both(sources: Vec<Source>, default_pki_dir: &Path) -> Result<(Config, Local), Problems> {
    let mut findings = Findings::default();
    let checked = raw::read(0, &sources[0].text, &mut findings)
        .map(|file| validate::cluster(&file, &mut findings));
    let local = raw::read(1, &sources[1].text, &mut findings)
        .map(|file| validate::local(&file, default_pki_dir, checked.as_ref(), &mut findings));
    match findings.into_problems(sources) {
        Some(problems) => Err(problems),
        None => Ok(checked
            .and_then(|checked| checked.config)
            .zip(local.flatten())
            .expect("what is not read was reported")),
    }
}

/// Parses the text of an `understudy.toml`, whoever sent it. `file_name` is for messages.
pub fn parse_cluster(file_name: &str, text: &str) -> Result<Config, Problems> {
    let mut findings = Findings::default();
    let config = raw::read(0, text, &mut findings)
        .and_then(|file| validate::cluster(&file, &mut findings).config);
    let source = Source {
        file: file_name.to_owned(),
        text: text.to_owned(),
    };
    match findings.into_problems(vec![source]) {
        Some(problems) => Err(problems),
        None => Ok(config.expect("what is not read was reported")),
    }
}
