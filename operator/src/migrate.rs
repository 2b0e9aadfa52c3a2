//! `macvtap-operator migrate`: prints the pools that do what the configuration of macvtap-cni's device plugin does.

pub mod plan;
pub mod source;

use crate::args::Migrate;
use crate::refusal;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use plan::{Group, Migration};
use source::{Found, SourceError};
use std::collections::BTreeMap;
use std::io::{Read, Write};

/// Any error: how a caller finds the cluster is its own affair.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why there is nothing to print.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A file cannot be read.
    #[error("read {file:?}")]
    Read {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The cluster did not give the `ConfigMap`.
    #[error(
        "read ConfigMap {namespace}/{name}: {problem}; name another with --namespace and --name, or give a file"
    )]
    Cluster {
        /// Where.
        namespace: String,
        /// Which.
        name: String,
        /// What the API server said.
        problem: String,
    },
    /// There is no cluster.
    #[error("find the cluster; or give a file, or - for the standard input")]
    NoCluster(#[source] BoxError),
    /// What was read is not a configuration.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A flag that makes no sense.
    #[error("--nodes {0:?}: write NAME=KEY=VALUE, the name of a ConfigMap and a label of its nodes")]
    Nodes(String),
    /// A flag about something that was not read.
    #[error("--nodes is about {0}, and no ConfigMap or file of that name was read")]
    NodesOfNothing(String),
    /// The text cannot be written.
    #[error("write the pools")]
    Print(#[source] serde_yaml::ser::Error),
    /// The output is closed.
    #[error("write to the standard output")]
    Write(#[source] std::io::Error),
    /// Some entries have no pool; the comments say why.
    #[error("no pool for {0} of the entries; the comments among the output say why")]
    Incomplete(usize),
}

/// Prints the pools. `connect` is called if the configuration is in the cluster.
pub async fn run(
    args: Migrate,
    connect: impl AsyncFnOnce() -> Result<Client, BoxError>,
) -> Result<(), MigrateError> {
    let mut selectors = BTreeMap::new();
    for text in &args.nodes {
        let mut parts = text.splitn(3, '=');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(name), Some(key), Some(value)) if !name.is_empty() && !key.is_empty() => {
                selectors.insert(name.to_owned(), (key.to_owned(), value.to_owned()));
            }
            _ => return Err(MigrateError::Nodes(text.clone())),
        }
    }
    let found =
        if args.files.is_empty() { from_cluster(&args, connect).await? } else { from_files(&args.files)? };
    let groups = grouped(found, &selectors)?;
    let plan = plan::plan(&groups);
    let text = print(&plan)?;
    std::io::stdout().write_all(text.as_bytes()).map_err(MigrateError::Write)?;
    match plan.problems.len() {
        0 => Ok(()),
        count => Err(MigrateError::Incomplete(count)),
    }
}

/// Gives each configuration its nodes.
fn grouped(
    found: Vec<Found>,
    selectors: &BTreeMap<String, (String, String)>,
) -> Result<Vec<Group>, MigrateError> {
    if let Some(name) = selectors.keys().find(|name| !found.iter().any(|found| found.name == **name)) {
        return Err(MigrateError::NodesOfNothing(name.clone()));
    }
    let group =
        |Found { name, entries }: Found| Group { nodes: selectors.get(&name).cloned(), name, entries };
    Ok(found.into_iter().map(group).collect())
}

fn from_files(files: &[String]) -> Result<Vec<Found>, MigrateError> {
    let mut found = Vec::new();
    for file in files {
        let mut text = String::new();
        let read = match file.as_str() {
            "-" => std::io::stdin().take(source::SIZE_MAX).read_to_string(&mut text),
            path => std::fs::File::open(path)
                .and_then(|file| file.take(source::SIZE_MAX).read_to_string(&mut text)),
        };
        read.map_err(|source| MigrateError::Read { file: file.clone(), source })?;
        let place = if file == "-" { "stdin" } else { file };
        found.extend(source::read(place, &text)?);
    }
    Ok(found)
}

async fn from_cluster(
    args: &Migrate,
    connect: impl AsyncFnOnce() -> Result<Client, BoxError>,
) -> Result<Vec<Found>, MigrateError> {
    let client = connect().await.map_err(MigrateError::NoCluster)?;
    let maps: Api<ConfigMap> = Api::namespaced(client, &args.namespace);
    let mut found = Vec::new();
    for name in &args.names {
        let map = maps.get(name).await.map_err(|error| MigrateError::Cluster {
            namespace: args.namespace.clone(),
            name: name.clone(),
            problem: refusal::text(&error),
        })?;
        found.push(source::of_map(name, map.data.as_ref())?);
    }
    Ok(found)
}

/// The pools as YAML that kubectl applies, with what is to know about each as a comment.
pub fn print(plan: &Migration) -> Result<String, MigrateError> {
    let mut text = String::new();
    let comment = |text: &mut String, lines: &[String]| {
        for line in lines {
            text.push_str("# ");
            // A comment is one line, whatever the configuration contains.
            text.extend(line.chars().map(|c| if c.is_control() { ' ' } else { c }));
            text.push('\n');
        }
    };
    comment(&mut text, &plan.notes);
    for problem in &plan.problems {
        comment(&mut text, &[format!("NOT MIGRATED: {problem}")]);
    }
    for pool in &plan.pools {
        text.push_str("---\n");
        comment(&mut text, &pool.notes);
        text.push_str(&serde_yaml::to_string(&pool.object).map_err(MigrateError::Print)?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_of_a_config_map_that_was_not_read_are_a_mistake() {
        let found = || vec![Found { name: "west".to_owned(), entries: Vec::new() }];
        let nodes = |name: &str| BTreeMap::from([(name.to_owned(), ("zone".to_owned(), "w".to_owned()))]);
        assert!(grouped(found(), &nodes("west")).unwrap()[0].nodes.is_some());
        assert!(grouped(found(), &BTreeMap::new()).unwrap()[0].nodes.is_none());
        let error = grouped(found(), &nodes("wset")).unwrap_err().to_string();
        assert!(error.contains("wset"), "{error}");
    }
}
