//! `explain`: why an object has or lacks its devices, as one story.

mod asked;
mod events;
mod link;
mod node;
mod pod;
mod pool;

use crate::args::{Explain, Subject};
use crate::cluster::{Cluster, Read, Unread, list};
use crate::facts::network::Network;
use crate::facts::{Facts, Scope};
use crate::output;
use crate::report::{Level, Report, Section};
use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::Api;
use kube::api::ListParams;
use macvtap_operator::network::kind::NetworkAttachmentDefinition;

/// Where agents and operator are, for users who may not list in all namespaces.
const INSTALLATION: &str = "macvtap-system";

/// Explains, prints the story, and returns whether nothing is wrong.
pub(crate) async fn run(cluster: &Cluster, args: &Explain) -> Result<bool> {
    let namespace = args.namespace.clone().unwrap_or_else(|| cluster.namespace.clone());
    let of_pod = args.kind == Subject::Pod;
    let scope = Scope { installation: INSTALLATION.to_owned(), namespace: of_pod.then(|| namespace.clone()) };
    let mut facts = Facts::read(cluster, &scope).await;
    if let Err(unread) = &facts.version {
        bail!("the API server at {} does not answer: {}", cluster.address, unread.text());
    }
    let report = match args.kind {
        Subject::Pod => {
            let subject = read_pod(cluster, &namespace, &args.name).await;
            if let Ok(pod) = &subject.pod {
                read_foreign_networks(cluster, pod, &namespace, &mut facts).await;
            }
            pod::story(&facts, &subject)
        }
        Subject::Pool => pool::story(&facts, &args.name),
        Subject::Node => node::story(&facts, &args.name),
        Subject::Link => link::story(&facts, &args.name, args.node.as_deref()),
    };
    output::print(&report, args.shown.output)?;
    Ok(!report.has_failed())
}

async fn read_pod(cluster: &Cluster, namespace: &str, name: &str) -> pod::Subject {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let pod: Read<Pod> = pods.get(name).await.map_err(Unread::from);
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), namespace);
    let fields = match &pod {
        Ok(_) => format!("involvedObject.name={name}"),
        // The controller that should have created the pod reports that it cannot.
        Err(_) => "reason=FailedCreate".to_owned(),
    };
    let events = list(events, ListParams::default().fields(&fields)).await.unwrap_or_default();
    pod::Subject { namespace: namespace.to_owned(), name: name.to_owned(), pod, events }
}

/// Adds the networks of other namespaces that a pod names.
async fn read_foreign_networks(cluster: &Cluster, pod: &Pod, namespace: &str, facts: &mut Facts) {
    let Ok(networks) = &mut facts.networks else { return };
    for wanted in asked::networks(pod).unwrap_or_default() {
        let other = wanted.namespace.filter(|other| other != namespace);
        let Some(other) = other else { continue };
        let api: Api<NetworkAttachmentDefinition> = Api::namespaced(cluster.client.clone(), &other);
        if let Ok(found) = api.get(&wanted.name).await {
            networks.push(Network::from(&found));
        }
    }
}

/// The story with its conclusion: the first thing that is wrong, or that all is well.
fn concluded(subject: &str, sections: Vec<Section>, well: &str) -> Report {
    let mut report = Report { sections, conclusion: String::new() };
    let first = report.of_level(Level::Failed).next();
    report.conclusion = match first {
        Some(failed) => {
            // Many facts begin with the name of the subject.
            let fact = failed.fact.strip_prefix(&format!("{subject}: ")).unwrap_or(&failed.fact);
            match &failed.remedy {
                Some(remedy) => format!("{subject}: {fact}. What to do: {remedy}"),
                None => format!("{subject}: {fact}"),
            }
        }
        None => format!("{subject}: {well}"),
    };
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Diagnostic;

    #[test]
    fn the_conclusion_names_its_subject_once() {
        for fact in ["pool later: it is not accepted", "it is not accepted"] {
            let section = Section::new("pool later", vec![Diagnostic::failed(fact).remedy("rename it")]);
            let report = concluded("pool later", vec![section], "");
            assert_eq!(report.conclusion, "pool later: it is not accepted. What to do: rename it");
        }
    }
}
