//! API server, kinds, operator.

use crate::advice::anchor;
use crate::cluster::Unread;
use crate::facts::{Facts, LEASE, NETWORK_KIND, OUR_KINDS, items};
use crate::report::Diagnostic;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt as _;

/// How far the clock of the user and the time of reading may be from the lease, in seconds.
const SKEW: i64 = 60;

/// The oldest Kubernetes that the operator is made for.
const OLDEST: (u32, u32) = (1, 32);

/// The version of the API that this program speaks.
const API_VERSION: &str = "v1alpha1";

/// Whether the API server answers, and its version.
pub(super) fn api(facts: &Facts, address: &str) -> Diagnostic {
    let version = match &facts.version {
        Ok(version) => version,
        Err(unread) => {
            return Diagnostic::failed(format!(
                "the API server at {address} does not answer: {}",
                unread.text()
            ))
            .remedy("check the kubeconfig and its context, and the network to that address")
            .see(anchor::INSTALLATION);
        }
    };
    match minor(version) {
        Some(found) if found < OLDEST => {
            let fact =
                format!("the API server is Kubernetes {version}, and the operator needs 1.{}", OLDEST.1);
            let remedy = "upgrade Kubernetes, or run the agent without operator (docs/standalone.md)";
            Diagnostic::failed(fact).remedy(remedy).see(anchor::INSTALLATION)
        }
        _ => Diagnostic::ok(format!("the API server answers, Kubernetes {version}")),
    }
}

/// `v1.36.3-eks` as (1, 36).
fn minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim_start_matches('v').split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Whether Multus' kind exists.
pub(super) fn multus(facts: &Facts) -> Option<Diagnostic> {
    let kinds = facts.kinds.as_ref();
    Some(match (kinds, facts.kind(NETWORK_KIND)) {
        (Err(unread), _) => {
            // A user who may not read kinds can still see that the objects exist.
            return facts.networks.is_err().then(|| {
                Diagnostic::skipped(format!("whether Multus' kind exists is not known: {}", unread.text()))
            });
        }
        (Ok(_), None) => {
            Diagnostic::failed("the cluster has no NetworkAttachmentDefinitions: Multus is not installed")
                .because("NADKindMissing")
                .remedy("install Multus (https://github.com/k8snetworkplumbingwg/multus-cni)")
                .see(anchor::INSTALLATION)
        }
        (Ok(_), Some(_)) => Diagnostic::ok("Multus' kind NetworkAttachmentDefinition exists"),
    })
}

/// Whether the kinds of this project exist and serve this program's version.
pub(crate) fn kinds(facts: &Facts) -> Vec<Diagnostic> {
    if let Err(unread) = &facts.kinds {
        return vec![Diagnostic::skipped(format!("the kinds cannot be read: {}", unread.text()))];
    }
    let judge = |name: &str| {
        match facts.kind(name) {
        None => Diagnostic::failed(format!("the CustomResourceDefinition {name} is missing"))
            .because("CRDMissing")
            .remedy("apply the CRDs of the release: `helm upgrade` of the chart, or `kubectl apply --server-side -f crds/yaml`")
            .see(anchor::INSTALLATION),
        Some(kind) => established(name, kind),
    }
    };
    let mut found: Vec<_> = OUR_KINDS.into_iter().map(judge).collect();
    found.extend(facts.unreadable.iter().map(|what| {
        Diagnostic::failed(format!("an object cannot be read: {what}"))
            .because("NotReadable")
            .remedy("correct the object, or use the release that knows it")
            .see(anchor::POOLS)
    }));
    found
}

fn established(name: &str, kind: &CustomResourceDefinition) -> Diagnostic {
    let conditions = kind.status.as_ref().and_then(|status| status.conditions.as_ref());
    let problem = conditions.into_iter().flatten().find(|condition| {
        let wanted = matches!(condition.type_.as_str(), "Established" | "NamesAccepted");
        wanted && condition.status != "True"
    });
    let serves = kind.spec.versions.iter().any(|version| version.name == API_VERSION && version.served);
    if let Some(problem) = problem {
        let message = problem.message.as_deref().unwrap_or_default();
        return Diagnostic::failed(format!("{name} is not established: {message}")).see(anchor::INSTALLATION);
    }
    if !serves {
        let fact = format!("{name} does not serve {API_VERSION}, the version of this program");
        return Diagnostic::failed(fact)
            .remedy("use the program of the installed release")
            .see(anchor::INSTALLATION);
    }
    Diagnostic::ok(format!("{name} serves {API_VERSION}"))
}

/// Whether an operator is available and leads.
pub(super) fn operator(facts: &Facts) -> Vec<Diagnostic> {
    let deployments = match &facts.deployments {
        Err(unread) => {
            return vec![Diagnostic::skipped(format!("the operator cannot be seen: {}", unread.text()))];
        }
        Ok(deployments) => deployments,
    };
    if deployments.is_empty() {
        let mut found = Diagnostic::failed("no operator is installed").because("OperatorMissing");
        found = found.remedy("install the chart macvtap-operator").see(anchor::INSTALLATION);
        return vec![found];
    }
    let mut found: Vec<_> = deployments.iter().map(available).collect();
    found.push(leading(facts));
    found
}

fn available(deployment: &Deployment) -> Diagnostic {
    let name = format!("Deployment {}/{}", deployment.namespace().unwrap_or_default(), deployment.name_any());
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let status = deployment.status.as_ref();
    let available = status.and_then(|status| status.available_replicas).unwrap_or(0);
    if available > 0 {
        return Diagnostic::ok(format!("{name}: {available} of {wanted} operators are available"));
    }
    let conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let mut wrong =
        conditions.filter(|condition| condition.type_ != "Progressing" && condition.message.is_some());
    let why = wrong.next().and_then(|condition| condition.message.clone()).unwrap_or_default();
    Diagnostic::failed(
        format!("{name}: none of {wanted} operators is available. {why}").trim_end().to_owned(),
    )
    .because("OperatorNotAvailable")
    .remedy("`kubectl describe` its pods, and read their log")
    .see(anchor::INSTALLATION)
}

fn leading(facts: &Facts) -> Diagnostic {
    let leases = match &facts.leases {
        Err(Unread::Absent) => &[][..],
        Err(unread) => {
            return Diagnostic::skipped(format!("whether an operator leads is not known: {}", unread.text()));
        }
        Ok(leases) => leases,
    };
    let lasts = |lease: &Lease| {
        let spec = lease.spec.as_ref()?;
        let renewed = spec.renew_time.as_ref()?.0;
        let seconds = i64::from(spec.lease_duration_seconds.unwrap_or(15));
        let age = facts.now.duration_since(renewed).as_secs();
        (age <= seconds + SKEW).then(|| spec.holder_identity.clone().filter(|holder| !holder.is_empty()))?
    };
    let leading = leases.iter().filter_map(|lease| {
        Some(format!("{} in namespace {}", lasts(lease)?, lease.namespace().unwrap_or_default()))
    });
    match leading.collect::<Vec<_>>().as_slice() {
        [holder] => Diagnostic::ok(format!("operator {holder} leads")),
        [] => Diagnostic::failed(format!("no operator leads: nobody has renewed lease {LEASE}"))
            .because("NoLeader")
            .remedy("read the log of the operator's pods; they say what they wait for")
            .see(anchor::INSTALLATION),
        several => Diagnostic::failed(format!("several operators lead: {}", several.join(", ")))
            .because("SeveralInstallations")
            .remedy("uninstall all releases of the chart but one: a cluster has one operator")
            .see(anchor::INSTALLATION),
    }
}

/// The release of the operator, by the label of its Deployment.
pub(super) fn release(facts: &Facts) -> Option<&str> {
    items(&facts.deployments).first()?.labels().get("app.kubernetes.io/version").map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{nothing, object};
    use jiff::Timestamp;
    use serde_json::json;

    fn deployment(available: i32) -> Deployment {
        object(json!({
            "metadata": {"name": "macvtap-operator", "namespace": "macvtap-system"},
            "spec": {"replicas": 2, "selector": {}, "template": {}},
            "status": {"availableReplicas": available},
        }))
    }

    #[test]
    fn an_operator_must_be_available_and_have_renewed_its_lease() {
        let mut facts = nothing();
        assert_eq!(operator(&facts)[0].reason.as_deref(), Some("OperatorMissing"));
        facts.deployments = Ok(vec![deployment(0)]);
        let reasons: Vec<_> = operator(&facts).into_iter().filter_map(|found| found.reason).collect();
        assert_eq!(reasons, ["OperatorNotAvailable", "NoLeader"]);
        facts.deployments = Ok(vec![deployment(1)]);
        facts.now = Timestamp::from_second(100).unwrap();
        let spec = |second| {
            let renewed = Timestamp::from_second(second).unwrap().to_string().replace('Z', ".000000Z");
            json!({"holderIdentity": "op-1", "leaseDurationSeconds": 15, "renewTime": renewed})
        };
        facts.leases = Ok(vec![object(json!({"metadata": {}, "spec": spec(95)}))]);
        assert!(operator(&facts).iter().all(|found| found.reason.is_none()));
        facts.leases = Ok(vec![object(json!({"metadata": {}, "spec": spec(10)}))]);
        assert_eq!(operator(&facts)[1].reason.as_deref(), Some("NoLeader"));
        let of = |namespace| object(json!({"metadata": {"namespace": namespace}, "spec": spec(95)}));
        facts.leases = Ok(vec![of("a"), of("b")]);
        assert_eq!(operator(&facts)[1].reason.as_deref(), Some("SeveralInstallations"));
    }

    #[test]
    fn missing_kinds_are_named() {
        let facts = nothing();
        let found = kinds(&facts);
        assert!(found.iter().zip(OUR_KINDS).all(|(found, kind)| found.fact.contains(kind)));
        assert_eq!(found.len(), OUR_KINDS.len());
        assert_eq!(multus(&facts).unwrap().reason.as_deref(), Some("NADKindMissing"));
    }

    #[test]
    fn an_old_kubernetes_is_refused() {
        let mut facts = nothing();
        for (version, wrong) in [("v1.31.9", true), ("v1.32.0", false), ("v1.36.3+k3s1", false)] {
            facts.version = Ok(version.to_owned());
            assert_eq!(api(&facts, "").remedy.is_some(), wrong, "{version}");
        }
    }
}
