//! What the user may do.

use crate::advice::anchor;
use crate::args::Check;
use crate::cluster::Cluster;
use crate::report::{Diagnostic, Section};
use futures::future::join_all;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;
use macvtap_crds::GROUP;

/// A right: verb, group, resource.
type Right = (&'static str, &'static str, &'static str);

/// What the checks read.
const TO_READ: [Right; 9] = [
    ("list", GROUP, "macvtapresourcepools"),
    ("list", GROUP, "macvtapnodestates"),
    ("list", GROUP, "macvtapnodeconfigs"),
    ("list", "", "nodes"),
    ("list", "", "pods"),
    ("list", "", "resourcequotas"),
    ("list", "apps", "daemonsets"),
    ("list", "k8s.cni.cncf.io", "network-attachment-definitions"),
    ("get", "apiextensions.k8s.io", "customresourcedefinitions"),
];

/// What an installation writes outside its namespace, or that needs it most.
const TO_INSTALL: [Right; 6] = [
    ("create", "apiextensions.k8s.io", "customresourcedefinitions"),
    ("create", "rbac.authorization.k8s.io", "clusterroles"),
    ("create", "rbac.authorization.k8s.io", "clusterrolebindings"),
    ("create", "admissionregistration.k8s.io", "validatingadmissionpolicies"),
    ("create", "apps", "daemonsets"),
    ("create", "apps", "deployments"),
];

/// Asks the API server.
pub(super) async fn read(cluster: &Cluster, args: &Check) -> Section {
    let rights = if args.pre { &TO_INSTALL[..] } else { &TO_READ[..] };
    let namespace = args.pre.then_some(args.namespace.as_str());
    let answers = join_all(rights.iter().map(|right| may(cluster, right, namespace))).await;
    let answers: Vec<_> = rights.iter().zip(answers).collect();
    let found = if args.pre { judge(&answers, "install", true) } else { judge(&answers, "read", false) };
    Section::new("your rights", found)
}

/// Whether the user may; an error if the server does not answer that.
async fn may(cluster: &Cluster, right: &Right, namespace: Option<&str>) -> Result<bool, String> {
    let (verb, group, resource) = *right;
    let attributes = ResourceAttributes {
        verb: Some(verb.to_owned()),
        group: Some(group.to_owned()),
        resource: Some(resource.to_owned()),
        namespace: namespace.map(str::to_owned).filter(|_| group == "apps"),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
    let review = SelfSubjectAccessReview { spec, ..Default::default() };
    let api: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
    let answer = api.create(&PostParams::default(), &review).await;
    let answer = answer.map_err(|error| macvtap_operator::refusal::text(&error))?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

fn judge(answers: &[(&Right, Result<bool, String>)], purpose: &str, needed: bool) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for ((verb, group, resource), answer) in answers {
        let place = if group.is_empty() { (*resource).to_owned() } else { format!("{resource}.{group}") };
        match answer {
            Ok(true) => {}
            Ok(false) if needed => found.push(
                Diagnostic::failed(format!("you may not {verb} {place}"))
                    .because("Forbidden")
                    .remedy("install as a cluster administrator")
                    .see(anchor::INSTALLATION),
            ),
            Ok(false) => found.push(
                Diagnostic::warning(format!("you may not {verb} {place}: what depends on it is not checked"))
                    .because("Forbidden")
                    .remedy("ask for the right, or run the check as a cluster administrator"),
            ),
            Err(problem) => {
                found.push(Diagnostic::skipped(format!("whether you may {verb} {place}: {problem}")));
            }
        }
    }
    if found.is_empty() {
        found.push(Diagnostic::ok(format!("you may {purpose} everything that is needed")));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_that_is_missing_is_named_and_stops_only_an_installation() {
        let answers = [(&TO_READ[0], Ok(true)), (&TO_READ[3], Ok(false))];
        let found = judge(&answers, "read", false);
        assert_eq!(found.len(), 1);
        assert!(found[0].fact.starts_with("you may not list nodes:"), "{}", found[0].fact);
        assert_eq!(judge(&answers[..1], "read", false)[0].fact, "you may read everything that is needed");
        assert_eq!(judge(&answers, "install", true)[0].level, crate::report::Level::Failed);
    }
}
